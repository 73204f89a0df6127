"""The position of a run, as its checkpoints hold it; loads no framework."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timellama_dist.errors import CheckpointError
from timellama_dist.storage import open_place
from timellama_dist.train.checkpoint.files import read_state


@dataclass
class Position:
    """Where a run stands; `step` optimizer steps have been made or skipped.

    Its fields are the keys of `progress` in a checkpoint's `state.json`.
    """

    step: int = 0
    data: list[str] = field(default_factory=list)
    """Content hash of each data set, by which the step is a place in them."""
    backbone: str | None = None
    """`backbone_fingerprint` of the frozen part; older checkpoints have none."""
    best_metrics: dict[str, Any] = field(default_factory=dict)
    """The best validation so far, as `RunData.evaluate` gives it; empty before the first."""
    best_step: int = 0
    stale_validations: int = 0
    """Validations since the best one."""
    seconds: float = 0.0
    """Time that the steps took."""
    finished: bool = False
    skipped_steps: int = 0
    """Steps without an update, because loss or gradient wasn't finite."""
    skipped_in_row: int = 0
    last_fault: int | None = None
    """Number of the last step that was skipped or made the run go back."""
    rollbacks: int = 0
    undone_steps: int = 0
    """Updates that the rollbacks took back."""
    recent_losses: list[float] = field(default_factory=list)
    """As logged; empty where `train.rollback_on_spike` isn't used."""

    @property
    def updates(self) -> int:
        """How many steps the optimizer has counted."""
        return self.step - self.skipped_steps - self.undone_steps


def read_position(folder: Path) -> Position:
    """The position a checkpoint was written at.

    Raises:
        CheckpointError: no checkpoint there, a damaged one, or one of an unknown schema version.
    """
    try:
        return Position(**read_state(open_place(folder)).position)
    except (CheckpointError, TypeError) as error:
        raise CheckpointError(f"{folder} holds no readable checkpoint: {error}") from error
