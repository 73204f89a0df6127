"""Going back to the last validation's weights and moments when the loss leaps.

The batches that made it leap are not seen again: the position in the data goes on.
"""

import statistics
from typing import Any

from timellama_dist.train.checkpoint.state import (
    Progress,
    TrainedState,
    set_masters,
    set_optimizer_state,
    set_weights,
    trained_state,
)

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

    def keep(self, progress: Progress) -> None:
        """Keep the state between two steps, in place of the one kept before."""
        if self._factor is not None:
            self._kept = trained_state(self._engine)
            self._step, self._updates = progress.step, progress.updates

    def after_loss(self, progress: Progress, loss: float | None) -> int | None:
        """Go back if a logged loss leaps.

        Args:
            progress: changed in place; its `recent_losses` are those before.
            loss: the same on every rank; None if no step was made since the last one.

        Returns:
            The step whose weights these are now; None if the loss doesn't leap.
        """
        if self._factor is None or self._kept is None or loss is None:
            return None
        if not leaps(loss, progress, self._factor):
            progress.recent_losses = [*progress.recent_losses, loss][-_REMEMBERED:]
            return None
        set_trained_state(self._engine, self._kept, self._updates)
        progress.undone_steps += progress.updates - self._updates
        progress.rollbacks += 1
        progress.last_fault = progress.step - 1
        return self._step


def leaps(loss: float, progress: Progress, factor: float) -> bool:
    """Is a loss beyond that many times the median of those before, and may the run go back?"""
    before = progress.recent_losses
    return (
        len(before) >= _NEEDED
        and progress.rollbacks < _MOST
        and loss > factor * statistics.median(before)
    )


def set_trained_state(engine: Any, state: TrainedState, updates: int) -> None:
    """Put a state into an engine that has made steps already; every rank must call.

    Args:
        engine: between two steps.
        state: of the same model.
        updates: how many steps the optimizer had counted by then.
    """
    set_weights(engine, state.weights)
    set_masters(engine, state.weights)
    set_optimizer_state(engine, state.moments, updates)
