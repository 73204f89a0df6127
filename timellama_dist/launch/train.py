"""Trains one run from the driver: plan, baselines, Ray Train, the run directory.

python ray_jobs/train.py --help
"""

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timellama_dist.config.deepspeed import precision
from timellama_dist.config.load import dump_config, load_config
from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import ConfigError, InterruptedRunError

if TYPE_CHECKING:
    from ray.train import Result
    from ray.train.torch import TorchTrainer

    from timellama_dist.launch.cluster import Resources
    from timellama_dist.launch.plan import RunPlan

DESCRIPTION = """Train Time-LlaMA on a table of time series.

Without arguments: the public data set epf (hourly electricity markets, 6 channels) with 4 blocks of
SmolLM2-135M in 4 bits, on 2 workers with ZeRO-3."""

_PACKAGES = ("timellama-dist", "torch", "transformers", "deepspeed", "ray", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    run_dir: Path
    metrics: dict[str, Any]


def read_arguments(argv: Sequence[str]) -> RunConfig:
    """The run's configuration; a resumed run starts from what it was begun with.

    Raises:
        ConfigError: see `load_config`.
    """
    arguments: dict[str, str] = {"prog": "train.py", "description": DESCRIPTION}
    config = load_config(argv, **arguments)
    if not config.run.resume:
        return config
    begun = Path(str(config.run.dir)) / "config.yaml"
    if not begun.is_file():
        raise ConfigError(f"run.resume: {begun} does not exist, so there is no run to resume")
    return load_config(["--config", str(begun), *argv], **arguments)


def train(config: RunConfig) -> Outcome:
    """Run a whole training, from the checks to the run directory.

    Raises:
        ConfigError: the configuration can't be run.
        DataError: the data can't be used.
        InterruptedRunError: the user pressed Ctrl-C; a checkpoint was saved.
        TrainingFailedError: a worker failed more than `scaling.max_failures` times.
    """
    from timellama_dist.launch.baselines import score_baselines
    from timellama_dist.launch.cluster import connected, plan_resources
    from timellama_dist.launch.monitor import Monitor
    from timellama_dist.launch.plan import describe, plan_run

    run_dir = _run_dir(config)
    plan = plan_run(replace(config, run=replace(config.run, dir=str(run_dir))))
    print(describe(plan), flush=True)
    with connected():
        resources = plan_resources(config.scaling)
        if precision(config, use_gpu=resources.use_gpu) == "bf16" and not resources.use_gpu:
            print("note: train.precision=bf16 on a CPU is many times slower than fp32", flush=True)
        data = _open_run_dir(plan, run_dir)
        baselines = score_baselines(data, plan.config.data)
        name, monitor = Monitor.start()
        result = _fit(_trainer(plan, data, resources, name), monitor, run_dir)
    metrics = {
        **{key: value for key, value in (result.metrics or {}).items() if key != "step"},
        "baselines": baselines,
        "world_size": config.scaling.num_workers,
        "zero_stage": plan.policy.get("zero_optimization", {}).get("stage", 0),
        "versions": versions(),
    }
    _write_results(run_dir, result, metrics)
    return Outcome(run_dir, metrics)


def build_trainer(config: RunConfig) -> "TorchTrainer":
    """Ray Train's trainer for a configuration, to `fit()` in a Ray program of one's own.

    Ray must be initialised. `config.run.dir` is made, with the prepared data in it.

    Raises:
        ConfigError: the configuration can't be run.
        DataError: the data can't be used.
    """
    from timellama_dist.launch.cluster import plan_resources
    from timellama_dist.launch.plan import plan_run

    run_dir = _run_dir(config)
    plan = plan_run(replace(config, run=replace(config.run, dir=str(run_dir))))
    resources = plan_resources(config.scaling)
    return _trainer(plan, _open_run_dir(plan, run_dir), resources, monitor=None)


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on, and this project's commit."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        git = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
        found["commit"] = git.stdout.strip()
    return found


def _run_dir(config: RunConfig) -> Path:
    from timellama_dist.launch.plan import data_name

    if config.run.dir is None:
        # In the user's home: a submitted job's own folder is Ray's to delete.
        stamp = time.strftime("%Y%m%d-%H%M%S")
        return Path.home() / "timellama_runs" / f"{data_name(config.data.path)}-{stamp}"
    run_dir = Path(config.run.dir).expanduser().resolve()
    if run_dir.exists() and any(run_dir.iterdir()) and not config.run.resume:
        raise ConfigError(
            f"run.dir: {run_dir} is not empty; choose another, or go on with it: --run.resume"
        )
    return run_dir


def _open_run_dir(plan: "RunPlan", run_dir: Path) -> Path:
    """Make the run directory, with what the run was resolved to; returns the prepared data."""
    run_dir.mkdir(parents=True, exist_ok=True)
    data = plan.prepared_data(run_dir)
    dump_config(plan.config, run_dir / "config.yaml")
    return data


def _trainer(
    plan: "RunPlan", data: Path, resources: "Resources", monitor: str | None
) -> "TorchTrainer":
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    from timellama_dist.data.manifest import Manifest
    from timellama_dist.engine.worker import WorkerSpec, train_worker

    config = plan.config
    run_dir = Path(str(config.run.dir))
    deepspeed = plan.deepspeed(use_gpu=resources.use_gpu)
    (run_dir / "deepspeed.json").write_text(json.dumps(deepspeed, indent=2), encoding="utf-8")
    spec = WorkerSpec(
        config=config.to_dict(),
        deepspeed=deepspeed,
        data=str(data),
        prompt=plan.prompt(Manifest.load(data)),
        use_gpu=resources.use_gpu,
        monitor=monitor,
    )
    per_worker = {"CPU": resources.cpus_per_worker}
    return TorchTrainer(
        train_worker,
        train_loop_config=asdict(spec),
        torch_config=TorchConfig(backend="nccl" if resources.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.scaling.num_workers,
            use_gpu=resources.use_gpu,
            resources_per_worker=per_worker | ({"GPU": 1} if resources.use_gpu else {}),
            placement_strategy=config.scaling.placement,
        ),
        run_config=ray.train.RunConfig(
            # Ray Train resumes by itself where name and storage_path hold a run.
            storage_path=str(run_dir),
            name="checkpoints",
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=config.run.keep_checkpoints),
            failure_config=ray.train.FailureConfig(max_failures=config.scaling.max_failures),
        ),
    )


def _fit(trainer: "TorchTrainer", monitor: Any, run_dir: Path) -> "Result":
    """Run the trainer in a thread while this one shows progress and listens for Ctrl-C."""
    import ray

    from timellama_dist.launch.command import on_interrupt
    from timellama_dist.launch.monitor import ProgressLine

    outcome: dict[str, Any] = {}
    done = threading.Event()

    def fit() -> None:
        try:
            outcome["result"] = trainer.fit()
        # Whatever it is, it is the main thread's to raise.
        except BaseException as error:
            outcome["error"] = error
        finally:
            done.set()

    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    line = ProgressLine(run_dir / "history.jsonl")

    def stop() -> None:
        monitor.request_stop.remote()
        line.say("stopping: saving a checkpoint (Ctrl-C again leaves at once)")

    try:
        with on_interrupt(stop):
            ended = False
            while not ended:
                ended = done.wait(timeout=0.5)
                line.show(ray.get(monitor.drain.remote()))
    finally:
        line.close()
    if error := outcome.get("error"):
        if any((run_dir / "checkpoints").glob("checkpoint_*/state.json")):
            error.add_note(f"a checkpoint was saved; {_how_on(run_dir)}")
        raise error
    result: Result = outcome["result"]
    if "test" not in (result.metrics or {}):
        raise InterruptedRunError(
            f"stopped at step {(result.metrics or {}).get('step')}; {_how_on(run_dir)}"
        )
    return result


def _how_on(run_dir: Path) -> str:
    return f"go on with: python ray_jobs/train.py --run.dir {run_dir} --run.resume"


def _write_results(run_dir: Path, result: "Result", metrics: Mapping[str, Any]) -> None:
    from safetensors.numpy import load_file

    from timellama_dist.engine.worker import EXAMPLES, EXPORTED
    from timellama_dist.launch.plan import data_name
    from timellama_dist.modeling.exported import read_card
    from timellama_dist.report.plots import plot_forecasts

    (run_dir / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    assert result.checkpoint is not None
    with result.checkpoint.as_directory() as folder:
        shutil.copytree(Path(folder) / EXPORTED, run_dir / "model", dirs_exist_ok=True)
        examples = load_file(Path(folder) / EXAMPLES)
    card = read_card(run_dir / "model")
    plot_forecasts(
        examples,
        card.channels,
        run_dir / "forecasts.png",
        title=f"{data_name(card.config['data']['path'])}: z-scored, test MSE "
        f"{metrics['test']['mse']:.4f}",
    )


def main(argv: Sequence[str]) -> int:
    """The command `ray_jobs/train.py`; returns its exit code."""
    from timellama_dist.launch.command import run_command

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
