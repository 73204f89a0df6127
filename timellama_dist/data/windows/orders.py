"""Decides which windows each rank reads in which order, as functions of the place."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from timellama_dist.data.windows.shuffle import MOST_OPEN_CHUNKS, shuffled_ids
from timellama_dist.errors import ConfigError, require_at_least

IntArray = NDArray[np.int64]


def sample_order(
    num_windows: int, seed: int, positions: ArrayLike, *, open_chunks: int = MOST_OPEN_CHUNKS
) -> IntArray:
    """List the window ids at positions of the endless training order.

    Position p lies in epoch p // num_windows. An epoch's order is the two-level shuffle of
    `shuffle.py`: each window once, a function of (seed, epoch, position), the number of windows
    and `open_chunks` alone, never of workers, batches, files or row groups.

    Args:
        num_windows: windows in one epoch, at least 1.
        seed: at least 0.
        positions: any positions >= 0, in any order, shape (N,).
        open_chunks: chunks of 1024 windows that are mixed with each other.

    Returns:
        Window ids, shape (N,).
    """
    places = np.asarray(positions, dtype=np.int64)
    epochs, offsets = np.divmod(places, num_windows)
    window_ids = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        window_ids[here] = shuffled_ids(
            num_windows, offsets[here], open_chunks=open_chunks, seed=seed, epoch=epoch
        )
    return window_ids


def spread_ids(num_windows: int, most: int) -> IntArray:
    """List the ids of `most` evenly spread windows, the first and the last too; or of all."""
    return np.linspace(0, num_windows - 1, min(num_windows, most)).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class TrainOrder:
    """The windows that one rank trains on in steps [first_step, last_step): a few integers.

    Global batch g is positions [g * batch_size, (g + 1) * batch_size) of `sample_order`, cut into
    micro-batches; micro-batch k goes to rank k % world_size. So a global batch is the same set of
    windows whatever the world size. Where ranks don't divide the micro-batches, those that have
    none left in the last turn get padding: ids of -1.
    """

    num_windows: int
    seed: int
    batch_size: int
    micro_batch_size: int
    world_rank: int
    world_size: int
    first_step: int
    last_step: int
    open_chunks: int = MOST_OPEN_CHUNKS
    """How far the shuffle reaches, see `sample_order`; `fitting_chunks` says it for a data set."""

    def __post_init__(self) -> None:
        if self.num_windows < 1:
            raise ConfigError(f"cannot train on {self.num_windows} windows")
        require_at_least(0, {"train.seed": self.seed})
        require_at_least(
            1,
            {
                "train.batch_size": self.batch_size,
                "train.micro_batch_size": self.micro_batch_size,
                "scaling.num_workers": self.world_size,
            },
        )
        if self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"train.batch_size={self.batch_size} must be a multiple of "
                f"train.micro_batch_size={self.micro_batch_size}"
            )
        _check_rank(self.world_rank, self.world_size)
        assert 0 <= self.first_step <= self.last_step

    @property
    def turns(self) -> int:
        """Micro-batches of a rank in one step, padding among them."""
        return -(-self.batch_size // (self.micro_batch_size * self.world_size))

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.turns * self.micro_batch_size

    def positions(self, places: ArrayLike) -> IntArray:
        """List positions of the training order at this rank's own places; -1 for padding."""
        steps, inside = np.divmod(
            np.asarray(places, dtype=np.int64), self.turns * self.micro_batch_size
        )
        turns, offsets = np.divmod(inside, self.micro_batch_size)
        in_batch = (turns * self.world_size + self.world_rank) * self.micro_batch_size + offsets
        positions = (self.first_step + steps) * self.batch_size + in_batch
        return np.where(in_batch < self.batch_size, positions, -1)

    def window_ids(self, places: ArrayLike) -> IntArray:
        """List window ids at this rank's own places, in the order in which it consumes them."""
        positions = self.positions(places)
        padding = positions == -1
        ids = sample_order(
            self.num_windows,
            self.seed,
            np.where(padding, positions.max(initial=0), positions),
            open_chunks=self.open_chunks,
        )
        return np.where(padding, -1, ids)


@dataclass(frozen=True, kw_only=True)
class EvaluationOrder:
    """One rank's share of an exact evaluation: each window once over all ranks.

    Batch j of the rank is batch j * world_size + world_rank of the windows taken, in id order. All
    ranks have equally many batches and all batches are full: ids of -1 pad the end.
    """

    num_windows: int
    batch_size: int
    world_rank: int
    world_size: int
    most: int | None = None
    """Not more than so many windows, evenly spread over the split."""

    def __post_init__(self) -> None:
        require_at_least(
            1,
            {
                "train.micro_batch_size": self.batch_size,
                "scaling.num_workers": self.world_size,
            },
        )
        _check_rank(self.world_rank, self.world_size)

    @property
    def num_taken(self) -> int:
        """Windows over all ranks."""
        return min(self.num_windows, self.most or self.num_windows)

    @property
    def num_batches(self) -> int:
        """Batches per rank, the same for every rank."""
        return -(-self.num_taken // (self.batch_size * self.world_size))

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def window_ids(self, places: ArrayLike) -> IntArray:
        """List window ids, -1 for padding, at this rank's own places."""
        batches, offsets = np.divmod(np.asarray(places, dtype=np.int64), self.batch_size)
        taken = (batches * self.world_size + self.world_rank) * self.batch_size + offsets
        ids = taken * self.num_windows // max(1, self.num_taken)
        return np.where(taken < self.num_taken, ids, -1)


@dataclass(frozen=True, eq=False)
class ListedOrder:
    """Window ids listed one by one; `window_ids=None` means all of `num_windows` in id order."""

    num_windows: int
    listed: IntArray | None = None

    def __len__(self) -> int:
        return self.num_windows if self.listed is None else len(self.listed)

    def window_ids(self, places: ArrayLike) -> IntArray:
        """List window ids at places of the list."""
        index = np.asarray(places, dtype=np.int64)
        return index if self.listed is None else self.listed[index]


def _check_rank(world_rank: int, world_size: int) -> None:
    if not 0 <= world_rank < world_size:
        raise ConfigError(f"rank must be in [0, {world_size}), got {world_rank}")
