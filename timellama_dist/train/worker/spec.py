"""What a driver hands every worker, and the names of what the last checkpoint holds for it."""

from dataclasses import dataclass
from typing import Any

EXPORTED = "model"
"""Folder of the exported model inside the last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """The run as every worker gets it; plain values only."""

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
    """Score the test part and export the model at the end; a trial of a search doesn't."""


def examples_file(dataset: int) -> str:
    """The file of the last checkpoint with a few test windows of a data set and their forecasts."""
    return f"examples-{dataset}.safetensors" if dataset else "examples.safetensors"
