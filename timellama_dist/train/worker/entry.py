"""The function that Ray Train runs in every worker, as the driver names it.

Whoever names it imports this module, a driver or Ray Train's controller, and neither needs torch or
DeepSpeed for that: `train.worker.rank`, which does the work, is imported by the workers alone.
"""

from dataclasses import dataclass
from typing import Any

EXPORTED = "model"
"""Folder of the exported model inside the last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """What the driver tells every worker; plain values only."""

    config: dict[str, Any]
    """`RunConfig.to_dict()`."""
    deepspeed: dict[str, Any]
    """The resolved DeepSpeed configuration."""
    datasets: list[dict[str, Any]]
    """A `Dataset` for each part of the data, as `to_dict` gives it."""
    use_gpu: bool
    checkpoints: str
    """Path or URI of the folder of the run's checkpoints."""
    shortcuts: str | None = None
    """Path or URI of the file with each data set's linear map, if `model.shortcut`."""
    monitor: str | None = None
    """Name of the driver's monitor actor, if the driver shows progress."""
    test: bool = True
    """Is the test part scored, and the model exported, at the end? Not in a trial of a search."""


def examples_file(dataset: int) -> str:
    """Where in the last checkpoint a few test windows of a data set are, with their forecasts."""
    return f"examples-{dataset}.safetensors" if dataset else "examples.safetensors"


def train_worker(spec: dict[str, Any]) -> dict[str, Any]:
    """Train one run; called by Ray Train on every worker with a `WorkerSpec` as a dict.

    Returns:
        What `metrics.json` says of this run, with its `step`, and as `checkpoint` the name of the
        last checkpoint, which holds the exported model. Only `step` if the user stopped the run, or
        it isn't tested; `failed` says why the storage did, `diverged` why its numbers did.
    """
    from timellama_dist.train.worker.rank import train_rank

    return train_rank(WorkerSpec(**spec))
