"""Makes Ray Train's trainer of a planned run, and runs it while the driver looks on."""

import json
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors.numpy import save

from timellama_dist.cluster import Resources, worker_environment
from timellama_dist.config.schema import RunConfig
from timellama_dist.console.exit_codes import on_interrupt
from timellama_dist.console.monitor import ProgressLine
from timellama_dist.data.dataset import Dataset
from timellama_dist.errors import InterruptedRunError
from timellama_dist.model.linear_fit import Float64
from timellama_dist.train.plan import RunPlan
from timellama_dist.train.run_directory import (
    CHECKPOINTS,
    checkpoints_place,
    holds_checkpoint,
    resume_command,
    run_place,
)
from timellama_dist.train.tracking import Tracking
from timellama_dist.train.worker.entry import train_worker
from timellama_dist.train.worker.results import Diverged, Finished, Result, Stopped, StorageFailed
from timellama_dist.train.worker.spec import WorkerSpec

# Between two looks at whether an elastic run may have more workers.
_RESIZE_S = 30.0


def make_trainer(
    plan: RunPlan,
    sets: Sequence[Dataset],
    maps: Sequence[Float64],
    resources: Resources,
    monitor: str | None,
    *,
    test: bool = True,
) -> TorchTrainer:
    """Make the trainer, and write `deepspeed.json` into the run directory.

    Args:
        plan: of a run whose directory is there.
        sets: its prepared data.
        maps: the linear map of each, if `model.shortcut`.
        resources: of a worker.
        monitor: name of the `Monitor` actor that takes the workers' events, if somebody listens.
        test: score the test part and export the model at the end.

    Raises:
        DataError: the run's storage refuses.
    """
    config, place = plan.config, run_place(plan.config)
    checkpoints_place(config).make_dirs()
    shortcuts = place / "shortcuts.safetensors" if config.model.shortcut != "none" else None
    if shortcuts is not None:
        # In order, because safetensors writes an array's memory as it lies.
        named = {str(number): map_LH.astype("f4", order="C") for number, map_LH in enumerate(maps)}
        shortcuts.write_bytes(save(named))
    run_dir = Path(str(config.run.dir))
    deepspeed = plan.deepspeed(use_gpu=resources.use_gpu)
    (run_dir / "deepspeed.json").write_text(json.dumps(deepspeed, indent=2), encoding="utf-8")
    spec = WorkerSpec(
        config=config.to_dict(),
        deepspeed=deepspeed,
        datasets=[dataset.to_dict() for dataset in sets],
        use_gpu=resources.use_gpu,
        checkpoints=checkpoints_place(config).uri,
        shortcuts=None if shortcuts is None else shortcuts.uri,
        monitor=monitor,
        test=test,
    )
    # Not by name: mypy reads the arguments of Ray Train's first version.
    workers: dict[str, Any] = {
        "worker_runtime_env": {"env_vars": worker_environment(config.scaling)}
    }
    return TorchTrainer(
        # What it returns is the result's `return_value`, which Ray's annotation forgets.
        train_worker,  # type: ignore[arg-type]
        train_loop_config=asdict(spec),
        torch_config=TorchConfig(backend="nccl" if resources.use_gpu else "gloo"),
        scaling_config=_scaling(config, resources),
        run_config=ray.train.RunConfig(
            # Ray Train is told of no checkpoint (`checkpoint.saving`), but wants a folder.
            storage_path=place.path,
            storage_filesystem=None if place.is_local else place.filesystem,
            name=CHECKPOINTS,
            failure_config=ray.train.FailureConfig(max_failures=config.scaling.max_failures),
            **workers,
        ),
    )


def _scaling(config: RunConfig, resources: Resources) -> ray.train.ScalingConfig:
    per_worker = {"CPU": resources.cpus_per_worker}
    # Not by name: mypy reads the arguments of Ray Train's first version.
    arguments: dict[str, Any] = {
        "num_workers": config.scaling.num_workers,
        "elastic_resize_monitor_interval_s": _RESIZE_S,
        "use_gpu": resources.use_gpu,
        "resources_per_worker": per_worker | ({"GPU": 1} if resources.use_gpu else {}),
        "placement_strategy": config.scaling.placement,
    }
    return ray.train.ScalingConfig(**arguments)


class Fitting:
    """A trainer that runs in a thread, so that its starter can look on."""

    def __init__(self, trainer: TorchTrainer) -> None:
        self.done = threading.Event()
        # Ray's annotation forgets the `return_value`.
        self._result: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, args=(trainer,), name="ray-train", daemon=True).start()

    @property
    def succeeded(self) -> bool:
        """Whether the trainer has ended without an error."""
        return self._result is not None

    def result(self) -> Result:
        """The value that `train_worker` returned; raises what the trainer raised."""
        if self._result is None:
            raise self._error or RuntimeError("the trainer hasn't ended yet")
        value: Result = self._result.return_value
        return value

    def _run(self, trainer: TorchTrainer) -> None:
        try:
            self._result = trainer.fit()
        # Whatever it is, it is the starter's to raise.
        except BaseException as error:
            self._error = error
        finally:
            self.done.set()


def fit(trainer: TorchTrainer, monitor: Any, config: RunConfig) -> Finished:
    """Run the trainer in a thread while this one shows progress and listens for Ctrl-C.

    Args:
        trainer: what `make_trainer` made, to run to its end.
        monitor: the handle of the `Monitor` whose name the trainer was given.
        config: the run.

    Returns:
        What `train_worker` returned.

    Raises:
        InterruptedRunError, FloatingPointError, RuntimeError, TrainingFailedError: see
            `train.driver.train`.
    """
    fitting = Fitting(trainer)
    line = ProgressLine(Path(str(config.run.dir)) / "history.jsonl")
    tracking = Tracking(config, line.say)

    def stop() -> None:
        monitor.request_stop.remote()
        line.say("stopping: saving a checkpoint (Ctrl-C again leaves at once)")

    try:
        with on_interrupt(stop):
            ended = False
            while not ended:
                ended = fitting.done.wait(timeout=0.5)
                events = ray.get(monitor.drain.remote())
                line.show(events)
                tracking.write(events)
    except KeyboardInterrupt:
        saved = "a" if holds_checkpoint(config) else "no"
        raise InterruptedRunError(
            f"stopped at once; {saved} checkpoint was saved before; {resume_command(config)}"
        ) from None
    finally:
        line.close()
        tracking.close(finished=fitting.succeeded)
    try:
        result = fitting.result()
    except Exception as error:
        if holds_checkpoint(config):
            error.add_note(f"a checkpoint was saved; {resume_command(config)}")
        raise
    return _finished(result, config)


def _finished(result: Result, config: RunConfig) -> Finished:
    """The result of a run that came to its end; of any other one, what it raises on the driver."""
    match result:
        case Finished():
            return result
        case Stopped(step=step):
            raise InterruptedRunError(f"stopped at step {step}; {resume_command(config)}")
        case StorageFailed(problem=problem):
            raise RuntimeError(f"{problem}; {resume_command(config)}")
        case Diverged(problem=problem):
            saved = "no checkpoint was saved"
            if holds_checkpoint(config):
                saved = f"the last checkpoint is the newest in {run_place(config) / CHECKPOINTS}"
            raise FloatingPointError(f"{problem}; {saved}; {resume_command(config)}")
