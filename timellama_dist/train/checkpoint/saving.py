"""Saves checkpoints, also to a storage that refuses now and then; knows nothing of Ray.

Ray Train isn't given the checkpoints. Its report copies one with state and data in any order and
raises in the worker when that fails, which costs a restart; its controller then writes a list of
checkpoints, not in one piece, and ends the whole run if that fails or if one of the list is gone.
(Ray 2.60: train/v2/_internal/execution/context.py and checkpoint/checkpoint_manager.py.)
"""

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from timellama_dist.errors import DataError
from timellama_dist.ranks import from_first_rank
from timellama_dist.storage import Place
from timellama_dist.train.checkpoint.contents import write_checkpoint
from timellama_dist.train.checkpoint.files import (
    checkpoint_name,
    publish,
    remove_old,
    scratch_folder,
)
from timellama_dist.train.checkpoint.position import Position
from timellama_dist.train.checkpoint.state import TrainedState, Weights, trained_state

_PAUSE_S = 5.0


class SavingFailedError(Exception):
    """The storage has refused too many checkpoints in a row; says which, why, and what there is."""


class Saver:
    """Saves the checkpoints of a run; every rank holds one and makes the same calls.

    Args:
        checkpoints: the folder of the run's checkpoints.
        keep: newest ones that stay.
        max_failed: saves in a row that may fail before the run is stopped.
        say: takes a line for the user.
        begun_at: step of the checkpoint that the run goes on from.
        damaged: names of checkpoints that could not be set aside.
    """

    def __init__(
        self,
        checkpoints: Place,
        *,
        keep: int,
        max_failed: int,
        say: Callable[[str], None],
        begun_at: int | None = None,
        damaged: Collection[str] = (),
    ) -> None:
        self._checkpoints = checkpoints
        self._keep = keep
        self._max_failed = max_failed
        self._say = say
        self._saved_step = begun_at
        self._damaged = damaged
        self.failed = 0
        """Saves in a row that have failed."""
        self.name = ""
        """Name of the last checkpoint saved; the first rank alone has it."""
        self._saves, self._seconds, self._bytes = 0, 0.0, 0

    @property
    def costs(self) -> dict[str, float | None]:
        """Costs of the checkpoints since this start, for `metrics.json`; the first rank has them.

        `saved` counts them, `seconds` is their mean time, all of it taken from training, and
        `bytes` the size of the last one. The one with the exported model isn't among them yet.
        """
        seconds = self._seconds / self._saves if self._saves else None
        return {"saved": self._saves, "seconds": seconds, "bytes": self._bytes or None}

    def save(
        self,
        engine: Any,
        position: Position,
        best: Weights | None,
        complete: Callable[[Path], None] | None = None,
    ) -> bool:
        """Save a checkpoint; every rank must call, between two steps.

        Args:
            engine: the DeepSpeed engine.
            position: where the run stands.
            best: weights of the best validation so far.
            complete: writes further files that belong to the checkpoint.

        Returns:
            Whether it was saved, alike on every rank; if not, a line says why.

        Raises:
            SavingFailedError: on every rank, when this was one failure too many.
        """
        started = time.perf_counter()
        state = trained_state(engine)
        problem = None
        if torch.distributed.get_rank() == 0:
            problem = self._write(state, position, best, complete)
        problem = from_first_rank(problem, engine.device)
        if problem is None:
            self.failed, self._saved_step = 0, position.step
            self._saves += 1
            self._seconds += time.perf_counter() - started
            return True
        self.failed += 1
        refusal = f"the checkpoint of step {position.step} could not be saved: {problem}"
        if self.failed >= self._max_failed:
            raise SavingFailedError(
                f"{refusal}; that makes run.max_failed_saves={self._max_failed} in a row; "
                + self._newest()
            )
        self._say(f"{refusal}; going on, {self._newest()}")
        return False

    def save_at_last(
        self,
        engine: Any,
        position: Position,
        best: Weights | None,
        complete: Callable[[Path], None] | None = None,
    ) -> None:
        """Save the checkpoint that no other comes after: tried again until the storage takes it.

        Raises:
            SavingFailedError: as `save`.
        """
        while not self.save(engine, position, best, complete):
            time.sleep(_PAUSE_S)

    def _write(
        self,
        state: TrainedState,
        position: Position,
        best: Weights | None,
        complete: Callable[[Path], None] | None,
    ) -> str | None:
        """Write a checkpoint and remove the old ones; returns what went wrong, if anything."""
        name = checkpoint_name(position.step)
        try:
            with scratch_folder() as scratch:
                write_checkpoint(scratch, state, position, best, complete)
                self._bytes = sum(
                    path.stat().st_size for path in scratch.rglob("*") if path.is_file()
                )
                publish(scratch, self._checkpoints, name)
        except (DataError, OSError, SafetensorError) as error:
            return str(error)
        self.name = name
        try:
            remove_old(self._checkpoints, keep=self._keep, ignored=self._damaged)
        except DataError as error:
            self._say(f"old checkpoints could not be removed: {error}")
        return None

    def _newest(self) -> str:
        if self._saved_step is None:
            return "no checkpoint was saved yet"
        return f"the newest checkpoint is of step {self._saved_step}"
