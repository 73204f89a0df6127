"""One trial of a search: a whole Ray Train run inside a Ray Tune trial, without a test."""

import functools
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune
from ray.tune import Trainable

from timellama_dist.compat.ray import patient_trainable, wait_for_last_step
from timellama_dist.config.load import config_from_flat
from timellama_dist.config.schema import RunConfig
from timellama_dist.console.events import Event, Saved
from timellama_dist.console.monitor import Monitor, ProgressLine
from timellama_dist.model.linear_fit import Float64
from timellama_dist.storage import copy_tree, open_place
from timellama_dist.train.checkpoint.files import checkpoint_name, read_state
from timellama_dist.train.driver import build_trainer
from timellama_dist.train.run_directory import CONFIG, checkpoints_place
from timellama_dist.train.trainer import Fitting
from timellama_dist.train.worker.results import Diverged, Finished, Stopped, StorageFailed

# Ray Tune waits so long for a stopped trial's last step before it begins the next one's.
_LAST_STEP_S = 600

# No trial runs in this process.
_idle = threading.Event()
_idle.set()


@dataclass(frozen=True, kw_only=True)
class TrialSpec:
    """All that the trials of a search share."""

    base: dict[str, Any]
    """`RunConfig.to_dict()`, over prepared data."""
    folder: str
    """Where the trials' run directories are."""
    metric: str
    """`mse` or `mae` of the validation part."""
    objectives: Sequence[str]
    """Numbers that the search makes small; every trial reports all of them."""
    hands_over: bool
    """Are checkpoints given to Ray Tune, for another trial to go on from?"""
    maps: Sequence[Float64] | None
    """The linear map of each data set, if all trials have the same."""


def make_trainable(spec: TrialSpec) -> type[Trainable]:
    """Make Ray Tune's class for a trial: it runs `run_trial`, never cut off in the middle.

    The run's workers would hold their place in the cluster for ever, where Ray runs without its
    dashboard.
    """
    return patient_trainable(functools.partial(run_trial, spec=spec), _wait_until_idle)


def _wait_until_idle() -> None:
    _idle.wait(_LAST_STEP_S)


def run_trial(keys: Mapping[str, Any], spec: TrialSpec) -> None:
    """Train one configuration and report each of its validations; called by Ray Tune.

    A trial that was interrupted goes on from its own last checkpoint. Why not Ray's
    TuneReportCallback: it passes no checkpoint on, which PBT needs, and kills the workers of a
    trial that is stopped wherever they are.
    """
    wait_for_last_step(_LAST_STEP_S)
    _idle.clear()
    try:
        _run(_begin(keys, spec), spec)
    finally:
        _idle.set()


def _run(config: RunConfig, spec: TrialSpec) -> None:
    name, monitor = Monitor.start()
    fitting = Fitting(build_trainer(config, maps=spec.maps, monitor=name, test=False))
    history = ProgressLine(Path(str(config.run.dir)) / "history.jsonl")
    try:
        ended = False
        while not ended:
            ended = fitting.done.wait(timeout=0.5)
            events = ray.get(monitor.drain.remote())
            history.show(events)
            _report_saved(events, config, spec)
    finally:
        # Left by Ray Tune's SystemExit if the trial is stopped: its actor is used again.
        monitor.request_stop.remote()
        fitting.done.wait()
    match fitting.result():
        case Finished():
            pass
        case Diverged(problem=problem):
            tune.report(diverged(problem, spec.objectives))
        case (Stopped() | StorageFailed()) as result:
            raise RuntimeError(cut_short(result))


def diverged(problem: str, objectives: Sequence[str]) -> dict[str, Any]:
    """The report of a trial that is worth nothing: Ray Tune asks for each objective."""
    return {"step": 0, **dict.fromkeys(objectives, math.inf), "problem": problem}


def cut_short(result: Stopped | StorageFailed) -> str:
    """Why a run has ended before its last step."""
    if isinstance(result, StorageFailed):
        return result.problem
    return f"the run ended early, at step {result.step}"


def trial_config(base: RunConfig, keys: Mapping[str, Any], folder: Path) -> RunConfig:
    """The run of a trial, in a directory of its name."""
    config = config_from_flat(keys, base)
    return replace(config, run=replace(config.run, dir=str(folder)))


def _begin(keys: Mapping[str, Any], spec: TrialSpec) -> RunConfig:
    """The trial's configuration, with the checkpoint it shall go on from in its place."""
    base, folder = RunConfig.from_dict(spec.base), Path(spec.folder)
    trial = folder / tune.get_context().get_trial_id()
    handed = tune.get_checkpoint()
    if handed is None:
        config = trial_config(base, keys, trial)
        return _resumed(config) if (trial / CONFIG).exists() else config
    # A folder of its own: workers of the trial before may still be saving.
    number = sum(path.name.startswith(trial.name) for path in folder.iterdir())
    config = _resumed(trial_config(base, keys, trial.with_name(f"{trial.name}-{number}")))
    with handed.as_directory() as path:
        place = open_place(path)
        copy_tree(place, checkpoints_place(config) / checkpoint_name(read_state(place).step))
    return config


def _resumed(config: RunConfig) -> RunConfig:
    return replace(config, run=replace(config.run, resume=True))


def _report_saved(events: Sequence[Event], config: RunConfig, spec: TrialSpec) -> None:
    """Report each checkpoint that comes after a validation."""
    for event in events:
        if isinstance(event, Saved) and event.validation:
            _report(_metrics(event, spec.metric), event.checkpoint, config, spec)


def _metrics(event: Saved, metric: str) -> dict[str, Any]:
    """The numbers of a trial after a validation."""
    return {
        "step": event.step,
        "validation": event.validation[metric],
        **event.validation,
        "best_step": event.best_step,
        "finished": event.finished,
        "active_parameters": event.parameters["active"],
        "trainable_parameters": event.parameters["trainable"],
        "step_s": event.seconds / max(1, event.step),
        "peak_bytes": event.peak_bytes,
    }


def _report(
    metrics: Mapping[str, Any], checkpoint: str | None, config: RunConfig, spec: TrialSpec
) -> None:
    if not spec.hands_over or not checkpoint:
        tune.report(dict(metrics))
        return
    with TemporaryDirectory(prefix="timellama-trial-") as scratch:
        copy_tree(checkpoints_place(config) / checkpoint, open_place(scratch))
        tune.report(dict(metrics), checkpoint=tune.Checkpoint.from_directory(scratch))
