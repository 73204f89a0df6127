"""The ways in which a run ends, as `train_worker` returns them; loads no framework.

Ray Train hands on the first worker's as its result's `return_value`.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The run came to its end."""

    step: int
    """Steps of the whole run."""
    metrics: dict[str, Any] | None = None
    """The worker's part of `metrics.json`; None where the run isn't tested."""
    checkpoint: str | None = None
    """Name of the last checkpoint, which holds the exported model; None where nothing is."""


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """The user stopped the run before its end; its last checkpoint is of this step."""

    step: int


@dataclass(frozen=True, kw_only=True)
class Diverged:
    """Loss, gradient or validation were not finite: going on would change nothing."""

    problem: str


@dataclass(frozen=True, kw_only=True)
class StorageFailed:
    """The storage refused too many checkpoints in a row."""

    problem: str


Result = Finished | Stopped | Diverged | StorageFailed
