"""Goes back to the last validation's weights and moments when the loss leaps.

The batches that made it leap are not seen again: the position in the data goes on.
"""

import statistics
from typing import Any

from timellama_dist.train.checkpoint.position import Position
from timellama_dist.train.checkpoint.state import TrainedState, set_trained_state, trained_state

_REMEMBERED, _NEEDED = 20, 5
"""Logged losses: of how many the median is, and how many it takes."""
_MOST = 3
"""Times a run goes back; after that it endures what comes."""


class Rollback:
    """Keeps a run's last good state on the host; every rank makes the same calls.

    Args:
        engine: the DeepSpeed engine.
        factor: `train.rollback_on_spike`; if None nothing is kept.
    """

    def __init__(self, engine: Any, factor: float | None) -> None:
        self._engine = engine
        self._factor = factor
        self._kept: TrainedState | None = None
        self._step = self._updates = 0

    def keep(self, position: Position) -> None:
        """Keep the state between two steps, in place of the one kept before."""
        if self._factor is not None:
            self._kept = trained_state(self._engine)
            self._step, self._updates = position.step, position.updates

    def after_loss(self, position: Position, loss: float | None) -> int | None:
        """Go back if a logged loss leaps.

        Args:
            position: changed in place; its `recent_losses` are those before.
            loss: the same on every rank; None if no step was made since the last one.

        Returns:
            The step whose weights these are now; None if the loss doesn't leap.
        """
        if self._factor is None or self._kept is None or loss is None:
            return None
        if not leaps(loss, position, self._factor):
            position.recent_losses = [*position.recent_losses, loss][-_REMEMBERED:]
            return None
        set_trained_state(self._engine, self._kept, self._updates)
        position.undone_steps += position.updates - self._updates
        position.rollbacks += 1
        position.last_fault = position.step - 1
        return self._step


def leaps(loss: float, position: Position, factor: float) -> bool:
    """Whether a loss is beyond `factor` times the median before, and the run may go back."""
    before = position.recent_losses
    return (
        len(before) >= _NEEDED
        and position.rollbacks < _MOST
        and loss > factor * statistics.median(before)
    )
