"""Runs a planned training on the cluster: linear maps, baselines, workers, results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.train.torch import TorchTrainer

from timellama_dist.cluster import connected, plan_resources
from timellama_dist.config.deepspeed import precision
from timellama_dist.config.load import dump_config
from timellama_dist.console.monitor import Monitor
from timellama_dist.data.dataset import Dataset
from timellama_dist.evaluation.baseline_job import fit_shortcut, score_baselines
from timellama_dist.evaluation.metrics import mean_errors
from timellama_dist.model.linear_fit import Float64
from timellama_dist.storage import Place
from timellama_dist.train.nodes import check_nodes
from timellama_dist.train.plan import RunPlan
from timellama_dist.train.results import write_results
from timellama_dist.train.run_directory import CONFIG, copy_config, copy_results
from timellama_dist.train.trainer import fit, make_trainer
from timellama_dist.versions import versions


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    run_dir: Path
    metrics: dict[str, Any]
    copy: Place | None
    """Where else the results lie."""


def execute(plan: RunPlan) -> Outcome:
    """Train as planned and write the results; see `driver.train`."""
    with connected():
        resources = plan_resources(plan.config.scaling)
        in_bf16 = precision(plan.config, use_gpu=resources.use_gpu) == "bf16"
        if in_bf16 and not resources.use_gpu:
            print("note: train.precision=bf16 on a CPU is many times slower than fp32", flush=True)
        check_nodes(plan)
        sets = make_run_dir(plan)
        print("fitting the linear map, scoring it and seasonal naive", flush=True)
        maps = fit_linear_maps(plan, sets)
        baselines = _score_baselines(plan, sets, maps)
        name, monitor = Monitor.start()
        print("starting the workers", flush=True)
        result = fit(make_trainer(plan, sets, maps, resources, name), monitor, plan.config)
    assert result.metrics is not None
    assert result.checkpoint is not None
    metrics = {
        **{key: value for key, value in result.metrics.items() if key != "step"},
        **_with_baselines(result.metrics["by_dataset"], baselines),
        "zero_stage": plan.policy.get("zero_optimization", {}).get("stage", 0),
        "versions": versions(),
    }
    write_results(plan.config, result.checkpoint, metrics)
    return Outcome(plan.run_dir, metrics, copy_results(plan.config))


def make_planned_trainer(
    plan: RunPlan, *, maps: Sequence[Float64] | None, monitor: str | None, test: bool
) -> TorchTrainer:
    """Make the run directory and Ray Train's trainer; see `driver.build_trainer`."""
    resources = plan_resources(plan.config.scaling)
    check_nodes(plan)
    sets = make_run_dir(plan)
    if maps is None:
        beside_map = plan.config.model.shortcut != "none"
        maps = fit_linear_maps(plan, sets) if beside_map else []
    return make_trainer(plan, sets, maps, resources, monitor, test=test)


def make_run_dir(plan: RunPlan) -> list[Dataset]:
    """Make the run directory with the resolved configuration; return the prepared data sets."""
    plan.run_dir.mkdir(parents=True, exist_ok=True)
    sets = plan.prepared_data(plan.run_dir)
    dump_config(plan.config, plan.run_dir / CONFIG)
    copy_config(plan.config)
    return sets


def fit_linear_maps(plan: RunPlan, sets: Sequence[Dataset]) -> list[Float64]:
    """Fit the linear map of each data set."""
    return [fit_shortcut(dataset.path, dataset.spec, plan.config.model) for dataset in sets]


def _score_baselines(
    plan: RunPlan, sets: Sequence[Dataset], maps: Sequence[Float64]
) -> dict[str, Any]:
    """Score the baselines on each data set's test part, by its name."""
    clip = plan.config.model.clip
    return {
        dataset.name: score_baselines(dataset.path, dataset.spec, map_LH, clip)
        for dataset, map_LH in zip(sets, maps, strict=True)
    }


def _with_baselines(by_dataset: Mapping[str, Any], baselines: Mapping[str, Any]) -> dict[str, Any]:
    """Put its baselines beside each data set's results, and their means over data sets."""
    kinds = next(iter(baselines.values()))
    return {
        "by_dataset": {
            name: {**results, "baselines": baselines[name]} for name, results in by_dataset.items()
        },
        "baselines": {
            kind: mean_errors([scores[kind] for scores in baselines.values()]) for kind in kinds
        },
    }
