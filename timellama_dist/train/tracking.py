"""Sends a run's numbers to Ray's metrics, TensorBoard, MLflow and Weights & Biases.

All on the driver, from the events that `history.jsonl` gets.
"""

import importlib.util
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from timellama_dist.config.schema import RunConfig
from timellama_dist.console.events import Event, TrainStep, Validation
from timellama_dist.errors import ConfigError

Numbers = dict[str, float]
"""By path, such as train/loss or validation/by_dataset/epf/mse."""

_EXPERIMENT = "timellama"
# MLflow takes no longer value of a parameter.
_LONGEST_PARAMETER = 500


class Tracker(Protocol):
    """One place that takes numbers."""

    def write(self, step: int, numbers: Numbers) -> None:
        """Take the numbers of a step."""

    def close(self, *, finished: bool) -> None:
        """Take no more."""


def check_tracking(config: RunConfig) -> None:
    """Refuse a tracker whose package isn't there.

    Raises:
        ConfigError: named by its key.
    """
    for package in ("mlflow", "wandb"):
        asked = getattr(config.tracking, package) is not None
        if asked and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"tracking.{package} needs the package {package}: pip install '.[tracking]'"
            )


class Tracking:
    """All trackers of a run; one that fails is named once, and left out from then on.

    Args:
        config: the run; Ray must be initialised, and the run directory be there.
        say: takes a line for the user.
    """

    def __init__(self, config: RunConfig, say: Callable[[str], None]) -> None:
        # Read at import: they are to take the run's numbers, not to report on its user.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        self._say = say
        self._trackers: list[Tracker] = []
        wanted: dict[type[Any], bool] = {
            _Gauges: True,
            _TensorBoard: config.tracking.tensorboard,
            _MLflow: config.tracking.mlflow is not None,
            _WandB: config.tracking.wandb is not None,
        }
        for kind in (kind for kind, is_wanted in wanted.items() if is_wanted):
            try:
                self._trackers.append(kind(config))
            # Whatever a tracker raises, it is no reason to end a run.
            except Exception as error:
                self._name_failed(kind, error)

    def write(self, events: list[Event]) -> None:
        """Hand on the numbers of steps and validations."""
        for event in events:
            if isinstance(event, TrainStep | Validation):
                self._for_all(partial(_write, event.step, numbers_of(event.to_record())))

    def close(self, *, finished: bool) -> None:
        """End all trackers, with whether the run came to its end."""
        self._for_all(lambda tracker: tracker.close(finished=finished))

    def _for_all(self, call: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers.copy():
            try:
                call(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                self._name_failed(type(tracker), error)

    def _name_failed(self, kind: type, error: Exception) -> None:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        self._say(f"{kind.__name__.strip('_')} takes no more of this run's numbers: {cause}")


def _write(step: int, numbers: Numbers, tracker: Tracker) -> None:
    tracker.write(step, numbers)


def numbers_of(record: Mapping[str, Any]) -> Numbers:
    """All numbers in a record of the history by path, those of nested values too."""
    return {
        f"{record['kind']}/{path}": value
        for path, value in _flat(record)
        if path not in ("kind", "step")
    }


def _flat(values: Any, path: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from _flat(value, f"{path}/{key}".lstrip("/"))
    elif isinstance(values, list):
        yield from _flat({str(number): value for number, value in enumerate(values)}, path)
    elif isinstance(values, int | float) and not isinstance(values, bool):
        yield path, float(values)


class _Gauges:
    """Ray's own metrics: timellama_train_loss and so on, on the dashboard and for Prometheus.

    What is nested stands in the label `part`.
    """

    def __init__(self, config: RunConfig) -> None:
        self._run = Path(str(config.run.dir)).name
        self._gauges: dict[str, Any] = {}

    def write(self, step: int, numbers: Numbers) -> None:
        from ray.util.metrics import Gauge

        for path, value in ({"train/step": float(step)} | numbers).items():
            kind, key, *part = path.split("/")
            name = re.sub(r"\W", "_", f"timellama_{kind}_{key}")
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, description=path, tag_keys=("run", "part"))
            self._gauges[name].set(value, tags={"run": self._run, "part": "/".join(part)})

    def close(self, *, finished: bool) -> None:
        """Ray forgets them with the driver."""


class _TensorBoard:
    """Event files in the run directory."""

    def __init__(self, config: RunConfig) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(Path(str(config.run.dir)) / "tensorboard"))

    def write(self, step: int, numbers: Numbers) -> None:
        for path, value in numbers.items():
            self._writer.add_scalar(path, value, step)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class _MLflow:
    """A run of MLflow's experiment `timellama`, by its client alone: nothing global is set."""

    def __init__(self, config: RunConfig) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=config.tracking.mlflow)
        experiment = self._client.get_experiment_by_name(_EXPERIMENT)
        number = (
            self._client.create_experiment(_EXPERIMENT)
            if experiment is None
            else experiment.experiment_id
        )
        name = Path(str(config.run.dir)).name
        self._run = self._client.create_run(number, run_name=name).info.run_id
        keys = {
            f"{section}.{key}": value
            for section, keys in config.to_dict().items()
            if isinstance(keys, Mapping)
            for key, value in keys.items()
        }
        params = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in keys.items()]
        self._client.log_batch(self._run, params=params)

    def write(self, step: int, numbers: Numbers) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(path, value, now, step) for path, value in numbers.items()]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED")


class _WandB:
    """A run of a project, its files in the run directory."""

    def __init__(self, config: RunConfig) -> None:
        import wandb

        run_dir = Path(str(config.run.dir))
        self._run = wandb.init(
            project=config.tracking.wandb,
            name=run_dir.name,
            dir=run_dir,
            config=config.to_dict(),
            settings=wandb.Settings(silent=True),
        )

    def write(self, step: int, numbers: Numbers) -> None:
        self._run.log(numbers, step=step)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
