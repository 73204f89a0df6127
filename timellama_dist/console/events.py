"""Events of a run, from its first worker to the driver; plain values only, loads no framework.

`to_record` gives an event's line of JSON: `TrainStep` and `Validation` are the lines of
`history.jsonl`, and the logger `timellama_dist.records` gets all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

Record = dict[str, Any]
"""An event as plain values, its kind first."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that has happened in a run."""

    kind: ClassVar[str]
    """Its name in a record."""

    def to_record(self) -> Record:
        """The event as plain values: its kind, then its fields in their order."""
        return {"kind": self.kind, **vars(self)}


@dataclass(frozen=True, kw_only=True)
class Phase(Event):
    """A line for the user."""

    kind = "phase"
    text: str


@dataclass(frozen=True, kw_only=True)
class Started(Event):
    """An attempt begins with its steps; there is more than one where workers are started anew."""

    kind = "start"
    step: int
    """Steps that were made before."""
    total_steps: int


@dataclass(frozen=True, kw_only=True)
class TrainStep(Event):
    """A logged optimizer step, with means since the one logged before."""

    kind = "train"
    step: int
    loss: float | None
    """None where all of the steps were skipped, as is the balance loss."""
    balance_loss: float | None
    learning_rate: float
    gradient_norm: float | None
    skipped_steps: int
    """Of the whole run."""
    windows_per_s: float
    seconds: float
    """Time that the steps of the whole run took."""


@dataclass(frozen=True, kw_only=True)
class Evaluating(Event):
    """How far a long evaluation is."""

    kind = "evaluating"
    split: str
    done: int
    """Windows; may exceed the total by windows that fill up a batch."""
    total: int


@dataclass(frozen=True, kw_only=True)
class Validation(Event):
    """The errors of a validation."""

    kind = "validation"
    step: int
    metrics: Mapping[str, Any]
    """As `RunData.evaluate` gives them: "mse" and "mae" among them."""

    def to_record(self) -> Record:
        """The event as plain values, the metrics beside the step."""
        return {"kind": self.kind, "step": self.step, **self.metrics}


@dataclass(frozen=True, kw_only=True)
class Saved(Event):
    """How the run stands at a checkpoint, and what it costs."""

    kind = "saved"
    step: int
    checkpoint: str | None
    """Name of the newest one; empty if none was saved yet."""
    validation: dict[str, float]
    """The best "mse" and "mae" so far; empty before the first validation."""
    best_step: int
    finished: bool
    seconds: float
    peak_bytes: int
    """The most memory that a worker has had of its device."""
    parameters: dict[str, int]
    """Counts: "trainable", "frozen" and "active"."""
