"""Trains one run from the driver: plan, baselines, trainer, the run directory.

python ray_jobs/train.py --help
"""

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timellama_dist.config.deepspeed import precision
from timellama_dist.config.load import dump_config, load_begun, load_config, load_run
from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import ConfigError, UserError
from timellama_dist.versions import versions

if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer

    from timellama_dist.data.windows.mixture import PreparedSet
    from timellama_dist.model.card import DatasetCard
    from timellama_dist.model.linear_fit import Float64
    from timellama_dist.storage import Place
    from timellama_dist.train.plan import RunPlan

DESCRIPTION = """Train Time-LlaMA on a table of time series.

Without arguments: the public data set epf (hourly electricity markets, 6 channels) with 4 blocks of
SmolLM2-135M in 4 bits, on 2 workers with ZeRO-3."""


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    run_dir: Path
    metrics: dict[str, Any]
    copy: "Place | None"
    """Where else the results lie."""


def read_arguments(argv: Sequence[str]) -> RunConfig:
    """The run's configuration; a resumed run starts from what it was begun with.

    Raises:
        ConfigError: see `load_config`; or there is no run to resume.
        DataError: the run's storage refuses.
    """
    arguments: dict[str, str] = {"prog": "train.py", "description": DESCRIPTION}
    run = load_run(argv, **arguments)
    if not run.resume:
        return load_config(argv, **arguments)
    from timellama_dist.storage import copy_tree, open_place
    from timellama_dist.train.resume import check_resumed
    from timellama_dist.train.run_directory import begun_config

    begun = begun_config(RunConfig(run=run))
    with tempfile.TemporaryDirectory() as scratch:
        here = open_place(scratch) / begun.name
        copy_tree(begun, here)
        first, resumed = (
            absolute_paths(load_begun(here.path, more, **arguments)) for more in ([], argv)
        )
        check_resumed(first, resumed)
        return resumed


def train(config: RunConfig) -> Outcome:
    """Run a whole training, from the checks to the run directory.

    Raises:
        ConfigError: the configuration can't be run.
        DataError: the data can't be used.
        InterruptedRunError: the user pressed Ctrl-C; a checkpoint was saved.
        FloatingPointError: loss, gradient or validation were not finite, see `train.worker.loop`.
        TrainingFailedError: a worker failed more than `scaling.max_failures` times.
    """
    from timellama_dist.cluster import connected, plan_resources
    from timellama_dist.console.monitor import Monitor
    from timellama_dist.train.describe import describe
    from timellama_dist.train.nodes import check_nodes
    from timellama_dist.train.run_directory import copy_results

    run_dir, plan = plan_with_dir(config)
    print(describe(plan), flush=True)
    # After that: torch and DeepSpeed take seconds, for which a mistake shall not wait.
    from timellama_dist.train.trainer import fit, make_trainer

    with connected():
        resources = plan_resources(config.scaling)
        if precision(config, use_gpu=resources.use_gpu) == "bf16" and not resources.use_gpu:
            print("note: train.precision=bf16 on a CPU is many times slower than fp32", flush=True)
        check_nodes(plan)
        sets = _open_run_dir(plan, run_dir)
        print("fitting the linear map, scoring it and seasonal naive", flush=True)
        maps = fit_shortcuts(plan, sets)
        baselines = _baselines(plan, sets, maps)
        name, monitor = Monitor.start()
        print("starting the workers", flush=True)
        found = fit(make_trainer(plan, sets, maps, resources, name), monitor, plan.config)
    checkpoint = found.pop("checkpoint")
    metrics = {
        **{key: value for key, value in found.items() if key != "step"},
        **_with_baselines(found["by_dataset"], baselines),
        "zero_stage": plan.policy.get("zero_optimization", {}).get("stage", 0),
        "versions": versions(),
    }
    _write_results(plan.config, checkpoint, metrics)
    return Outcome(run_dir, metrics, copy_results(plan.config))


def build_trainer(
    config: RunConfig,
    *,
    maps: "Sequence[Float64] | None" = None,
    monitor: str | None = None,
    test: bool = True,
) -> "TorchTrainer":
    """Ray Train's trainer for a configuration, to `fit()` in a Ray program of one's own.

    Ray must be initialised. `config.run.dir` is made, with the prepared data in it. The result's
    `return_value` is that of `train.worker.entry.train_worker`.

    Args:
        config: the run.
        maps: the linear map of each data set, if `model.shortcut`; fitted here if not given.
        monitor: name of the actor that workers tell their progress, if somebody listens.
        test: score the test part and export the model at the end.

    Raises:
        ConfigError: the configuration can't be run.
        DataError: the data can't be used.
    """
    from timellama_dist.cluster import plan_resources
    from timellama_dist.train.nodes import check_nodes
    from timellama_dist.train.trainer import make_trainer

    run_dir, plan = plan_with_dir(config)
    resources = plan_resources(config.scaling)
    check_nodes(plan)
    sets = _open_run_dir(plan, run_dir)
    if maps is None:
        maps = [] if config.model.shortcut == "none" else fit_shortcuts(plan, sets)
    return make_trainer(plan, sets, maps, resources, monitor, test=test)


def plan_with_dir(config: RunConfig, prefix: str = "") -> tuple[Path, "RunPlan"]:
    """The run directory, not made yet, and the plan of a run whose storage takes files.

    Args:
        config: the run.
        prefix: of the directory's name where the user gave it none.

    Raises:
        CheckpointError: a resumed run's checkpoints are damaged, or of another backbone.
        ConfigError: the configuration can't be run.
        DataError: the data can't be used, or the storage refuses.
    """
    from timellama_dist.train.plan import plan_run
    from timellama_dist.train.resume import check_content
    from timellama_dist.train.run_directory import check_storage
    from timellama_dist.train.tracking import check_tracking

    run_dir, config = _run_dir(config, prefix), absolute_paths(config)
    plan = plan_run(replace(config, run=replace(config.run, dir=str(run_dir))))
    check_storage(plan.config)
    check_tracking(plan.config)
    if config.run.resume:
        check_content(plan.config, plan.sets)
    return run_dir, plan


def absolute_paths(config: RunConfig) -> RunConfig:
    """Paths that mean the same in a worker's process, and in a run resumed from another folder."""
    from timellama_dist.storage import open_place

    backbone, deepspeed = Path(config.backbone.name).expanduser(), config.deepspeed
    if config.data.mixture is not None or config.data.path is not None:
        places = [(part, open_place(part.path)) for part in config.data.parts]
        parts = [replace(part, path=one.uri) if one.exists() else part for part, one in places]
        config = replace(config, data=config.data.with_parts(parts))
    if config.run.storage_path is not None:
        run = replace(config.run, storage_path=open_place(config.run.storage_path).uri)
        config = replace(config, run=run)
    if backbone.exists():
        config = replace(config, backbone=replace(config.backbone, name=str(backbone.resolve())))
    return replace(config, deepspeed=deepspeed and str(Path(deepspeed).expanduser().resolve()))


def _run_dir(config: RunConfig, prefix: str) -> Path:
    from timellama_dist.storage import open_place
    from timellama_dist.train.plan import run_name

    if config.run.dir is None:
        # In the user's home: a submitted job's own folder is Ray's to delete.
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return Path.home() / "timellama_runs" / f"{prefix}{run_name(config.data)}-{stamp}"
    if not open_place(config.run.dir).is_local:
        raise ConfigError(
            f"run.dir must be a local folder, got {config.run.dir!r}; a URI is for run.storage_path"
        )
    run_dir = Path(config.run.dir).expanduser().resolve()
    if run_dir.exists() and any(run_dir.iterdir()) and not config.run.resume:
        raise ConfigError(
            f"run.dir: {run_dir} is not empty; choose another, or go on with it: --run.resume"
        )
    return run_dir


def _open_run_dir(plan: "RunPlan", run_dir: Path) -> list["PreparedSet"]:
    """Make the run directory, with what the run was resolved to; returns the prepared data."""
    from timellama_dist.train.run_directory import CONFIG, copy_config

    run_dir.mkdir(parents=True, exist_ok=True)
    sets = plan.prepared_data(run_dir)
    dump_config(plan.config, run_dir / CONFIG)
    copy_config(plan.config)
    return sets


def fit_shortcuts(plan: "RunPlan", sets: Sequence["PreparedSet"]) -> list["Float64"]:
    """The linear map of each data set."""
    from timellama_dist.evaluation.baseline_job import fit_shortcut

    data, model = plan.config.data, plan.config.model
    return [
        fit_shortcut(one.path, data, part, model)
        for one, part in zip(sets, data.parts, strict=True)
    ]


def _baselines(
    plan: "RunPlan", sets: Sequence["PreparedSet"], maps: Sequence["Float64"]
) -> dict[str, Any]:
    """By data set."""
    from timellama_dist.evaluation.baseline_job import score_baselines

    data, clip = plan.config.data, plan.config.model.clip
    return {
        one.name: score_baselines(one.path, data, part, map_LH, clip)
        for one, part, map_LH in zip(sets, data.parts, maps, strict=True)
    }


def _with_baselines(by_dataset: Mapping[str, Any], baselines: Mapping[str, Any]) -> dict[str, Any]:
    """Each data set's results with its baselines, and the baselines' means over data sets."""
    from timellama_dist.evaluation.metrics import mean_errors

    kinds = next(iter(baselines.values()))
    return {
        "by_dataset": {
            name: {**results, "baselines": baselines[name]} for name, results in by_dataset.items()
        },
        "baselines": {
            kind: mean_errors([scores[kind] for scores in baselines.values()]) for kind in kinds
        },
    }


def _write_results(config: RunConfig, checkpoint: str, metrics: Mapping[str, Any]) -> None:
    from safetensors.numpy import load

    from timellama_dist.model.card import read_card
    from timellama_dist.report.plots import plot_forecasts
    from timellama_dist.storage import copy_tree, open_place
    from timellama_dist.train.run_directory import checkpoints_place, how_on
    from timellama_dist.train.worker.entry import EXPORTED, examples_file

    run_dir, last = Path(str(config.run.dir)), checkpoints_place(config) / checkpoint
    try:
        (open_place(run_dir) / "metrics.json").write_text(json.dumps(metrics, indent=2))
        copy_tree(last / EXPORTED, open_place(run_dir / "model"))
        datasets = read_card(run_dir / "model").datasets
        examples = [load((last / examples_file(n)).read_bytes()) for n in range(len(datasets))]
    except UserError as error:
        # No mistake of the user's.
        raise RuntimeError(f"the run has ended, but {error}; {how_on(config)}") from error
    _write_report(config, run_dir, datasets, examples)
    for number, one in enumerate(datasets):
        plot_forecasts(
            examples[number],
            one.channels,
            run_dir / (f"forecasts-{one.name}.png" if number else "forecasts.png"),
            title=f"{one.name}: z-scored, test MSE "
            f"{metrics['by_dataset'][one.name]['test']['mse']:.4f}",
        )


def _write_report(
    config: RunConfig,
    run_dir: Path,
    datasets: Sequence["DatasetCard"],
    examples: Sequence[Mapping[str, Any]],
) -> None:
    from timellama_dist.model.card import read_quantiles
    from timellama_dist.model.intervals import radius
    from timellama_dist.report.page import ShownSet, write_report

    quantiles = read_quantiles(run_dir / "model")
    sets = [
        ShownSet(
            name=one.name,
            channels=one.channels,
            examples=examples[number],
            radii={level: radius(quantiles[number], level) for level in (80, 95)},
        )
        for number, one in enumerate(datasets)
    ]
    write_report(run_dir, sets, config.dlora.linears)


def main(argv: Sequence[str]) -> int:
    """The command `ray_jobs/train.py`; returns its exit code."""
    from timellama_dist.console.exit_codes import run_command

    return run_command(lambda: _command(argv))


def _command(argv: Sequence[str]) -> None:
    from timellama_dist.report.table import memory_line, results_table

    outcome = train(read_arguments(argv))
    run_dir, metrics = outcome.run_dir, outcome.metrics
    print()
    print(results_table(metrics))
    print()
    print(memory_line(metrics))
    print(f"exported model  {run_dir / 'model'}")
    print(f"metrics         {run_dir / 'metrics.json'}")
    print(f"forecasts       {run_dir / 'forecasts.png'}")
    print(f"report          {run_dir / 'report.html'}")
    if outcome.copy is not None:
        print(f"copied to       {outcome.copy}")
