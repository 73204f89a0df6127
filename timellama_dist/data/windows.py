"""Which rows belong to which split, and which windows each rank reads in which order.

Integers only: no table, no scaler, no Ray. A window is `context_len` rows of past followed by
`horizon` rows of target; windows have stride 1 and never cross from one series into another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from timellama_dist.errors import ConfigError

IntArray = NDArray[np.int64]
SplitName = Literal["train", "validation", "test"]

SPLIT_NAMES: tuple[SplitName, ...] = get_args(SplitName)

_EPS = 1e-9


def split_is_fractional(split: Sequence[float]) -> bool:
    """Tell fractions (0.7, 0.1, 0.2) from rows (8640, 2880, 2880).

    Raises:
        ConfigError: `split` is neither.
    """
    if len(split) != 3:
        raise ConfigError(f"data.split must be three numbers, got {list(split)}")
    if any(not np.isfinite(part) or part < 0 for part in split):
        raise ConfigError(f"data.split must not be negative, got {list(split)}")
    if sum(split) <= 1 + _EPS:
        return True
    if any(part != int(part) for part in split):
        raise ConfigError(
            "data.split must be three fractions whose sum is at most 1, or three whole numbers "
            f"of rows, got {list(split)}"
        )
    return False


def _part_ends(num_rows: ArrayLike, split: Sequence[float]) -> tuple[IntArray, IntArray, IntArray]:
    """Ends of the train, validation and test part of each series, each of shape (series,)."""
    rows = np.asarray(num_rows, dtype=np.int64)
    if not split_is_fractional(split):
        if rows.size and rows.min() < sum(split):
            raise ConfigError(
                f"data.split {list(split)} asks for {int(sum(split))} rows, but a series has only "
                f"{rows.min()}"
            )
        ends = np.cumsum([int(part) for part in split])
        return tuple(np.full_like(rows, end) for end in ends)  # type: ignore[return-value]
    # Truncation of the float product, not rounding: published borders are int(n * 0.7).
    train = np.trunc(rows * split[0]).astype(np.int64)
    test = np.trunc(rows * split[2]).astype(np.int64)
    used = rows if sum(split) >= 1 - _EPS else np.trunc(rows * sum(split)).astype(np.int64)
    return train, used - test, used


def _keep_first(num_train: IntArray, context_len: int, train_fraction: float) -> IntArray:
    if not 0 < train_fraction <= 1:
        raise ConfigError(
            f"data.train_fraction must be above 0 and at most 1, got {train_fraction}"
        )
    # round() so that 0.29 of 100 is 29 as in the papers' integer percentages, and not 28.
    share = np.trunc(np.round((num_train - context_len) * train_fraction, 9)).astype(np.int64)
    return np.where(num_train > context_len, share + context_len, num_train)


def _ranges(
    num_rows: ArrayLike, split: Sequence[float], context_len: int, train_fraction: float
) -> dict[SplitName, tuple[IntArray, IntArray]]:
    train_end, validation_end, test_end = _part_ends(num_rows, split)
    return {
        "train": (np.zeros_like(train_end), _keep_first(train_end, context_len, train_fraction)),
        "validation": (np.maximum(train_end - context_len, 0), validation_end),
        "test": (np.maximum(validation_end - context_len, 0), test_end),
    }


def split_borders(
    num_rows: int, split: Sequence[float], context_len: int, *, train_fraction: float = 1.0
) -> dict[SplitName, tuple[int, int]]:
    """Row ranges [begin, end) of one series' three splits.

    Fractions (a, b, c): train gets int(n * a) rows, test the last int(n * c), validation the rest
    between them; if they sum to less than 1, rows are left over at the end. Whole numbers are rows
    from the start. Validation and test begin `context_len` rows before their first target row,
    so that every row of their part is forecast.

    Args:
        num_rows: rows of the series.
        split: three fractions that sum to at most 1, or three numbers of rows.
        context_len: rows of past in a window.
        train_fraction: few-shot, the first share of the training part to keep:
            int((train rows - context_len) * train_fraction) + context_len rows.

    Raises:
        ConfigError: `split` or `train_fraction` is out of bounds, or asks for more rows than
            there are.
    """
    ranges = _ranges(num_rows, split, context_len, train_fraction)
    return {name: (int(begin), int(end)) for name, (begin, end) in ranges.items()}


def train_rows(num_rows: ArrayLike, split: Sequence[float]) -> IntArray:
    """Rows of the whole training part of each series, few-shot or not: the scaler's rows."""
    return _part_ends(num_rows, split)[0]


@dataclass(frozen=True, eq=False)
class WindowIndex:
    """All windows of one split over many series, at a few integers per series.

    Window ids run through the series in turn, and inside a series by start row.
    """

    first_start: IntArray
    """First window's start row in its own series, shape (series,)."""
    cumulative: IntArray
    """Number of windows before each series, and last the total, shape (series + 1,)."""

    @classmethod
    def build(
        cls,
        num_rows: ArrayLike,
        *,
        split: Sequence[float],
        name: str,
        context_len: int,
        horizon: int,
        train_fraction: float = 1.0,
    ) -> "WindowIndex":
        """Count the windows of split `name` in series of `num_rows` rows, shape (series,).

        Raises:
            ConfigError: an unknown split, or lengths below 1, or see `split_borders`.
        """
        if name not in SPLIT_NAMES:
            raise ConfigError(f"split must be one of {', '.join(SPLIT_NAMES)}, got {name!r}")
        for key, value in (("data.context_len", context_len), ("data.horizon", horizon)):
            if value < 1:
                raise ConfigError(f"{key} must be at least 1, got {value}")
        rows = np.atleast_1d(np.asarray(num_rows, dtype=np.int64))
        begin, end = _ranges(rows, split, context_len, train_fraction)[name]
        counts = np.maximum(end - begin - context_len - horizon + 1, 0)
        return cls(begin, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))

    def __len__(self) -> int:
        return int(self.cumulative[-1])

    def locate(self, window_ids: IntArray) -> tuple[IntArray, IntArray]:
        """Series and start row (counted in that series) of each window.

        Args:
            window_ids: ids in [0, len(self)), shape (B,).

        Returns:
            (series, start_row), both of shape (B,).

        Raises:
            IndexError: an id out of range.
        """
        ids = np.asarray(window_ids, dtype=np.int64)
        if ids.size and (ids.min() < 0 or ids.max() >= len(self)):
            raise IndexError(
                f"window ids must be in [0, {len(self)}), got {ids.min()}..{ids.max()}"
            )
        # side="right" steps over series without a window, whose cumulative counts repeat.
        series = np.searchsorted(self.cumulative, ids, side="right") - 1
        return series, self.first_start[series] + ids - self.cumulative[series]


# Two epochs: a global batch may straddle the border of one epoch and the next.
@lru_cache(maxsize=2)
def _epoch_order(num_windows: int, seed: int, epoch: int) -> IntArray:
    order = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_windows)
    order.flags.writeable = False
    return order


def sample_order(num_windows: int, seed: int, positions: ArrayLike) -> IntArray:
    """Window ids at positions of the endless training order.

    Position p lies in epoch p // num_windows. An epoch's order is a permutation of all windows
    that depends on (seed, epoch) alone, never on workers, batches or files. It is held as 8 bytes
    per window.

    Args:
        num_windows: windows in one epoch, at least 1.
        seed: at least 0.
        positions: any positions >= 0, in any order, shape (N,).

    Returns:
        Window ids, shape (N,).
    """
    places = np.asarray(positions, dtype=np.int64)
    epochs, offsets = np.divmod(places, num_windows)
    window_ids = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        window_ids[here] = _epoch_order(num_windows, seed, int(epoch))[offsets[here]]
    return window_ids


@dataclass(frozen=True, kw_only=True)
class TrainOrder:
    """What one rank trains on in steps [first_step, last_step), a few integers to ship to a task.

    Global batch g is positions [g * batch_size, (g + 1) * batch_size) of `sample_order`, cut into
    micro-batches; micro-batch k goes to rank k % world_size. So a global batch is the same set of
    windows whatever the world size.
    """

    num_windows: int
    seed: int
    batch_size: int
    micro_batch_size: int
    world_rank: int
    world_size: int
    first_step: int
    last_step: int

    def __post_init__(self) -> None:
        if self.num_windows < 1:
            raise ConfigError(f"cannot train on {self.num_windows} windows")
        if self.seed < 0:
            raise ConfigError(f"train.seed must be at least 0, got {self.seed}")
        for key, value in (
            ("train.batch_size", self.batch_size),
            ("train.micro_batch_size", self.micro_batch_size),
            ("scaling.num_workers", self.world_size),
        ):
            if value < 1:
                raise ConfigError(f"{key} must be at least 1, got {value}")
        if self.batch_size % (self.micro_batch_size * self.world_size):
            raise ConfigError(
                f"train.batch_size={self.batch_size} must be a multiple of "
                f"train.micro_batch_size={self.micro_batch_size} x "
                f"scaling.num_workers={self.world_size}"
            )
        _check_rank(self.world_rank, self.world_size)
        assert 0 <= self.first_step <= self.last_step

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * (self.batch_size // self.world_size)

    def positions(self, places: ArrayLike) -> IntArray:
        """Positions of the training order at this rank's own places 0, 1, ..., len - 1."""
        steps, inside = np.divmod(
            np.asarray(places, dtype=np.int64), self.batch_size // self.world_size
        )
        turns, offsets = np.divmod(inside, self.micro_batch_size)
        micro_batches = turns * self.world_size + self.world_rank
        batches = self.first_step + steps
        return batches * self.batch_size + micro_batches * self.micro_batch_size + offsets

    def window_ids(self, places: ArrayLike) -> IntArray:
        """Window ids at this rank's own places, in the order in which it consumes them."""
        return sample_order(self.num_windows, self.seed, self.positions(places))


@dataclass(frozen=True, kw_only=True)
class EvaluationOrder:
    """One rank's share of an exact evaluation: each window once over all ranks.

    Batch j of the rank is the windows of batch j * world_size + world_rank of the split, in id
    order. All ranks have equally many batches and all batches are full: ids of -1 pad the end.
    """

    num_windows: int
    batch_size: int
    world_rank: int
    world_size: int

    def __post_init__(self) -> None:
        for key, value in (
            ("train.micro_batch_size", self.batch_size),
            ("scaling.num_workers", self.world_size),
        ):
            if value < 1:
                raise ConfigError(f"{key} must be at least 1, got {value}")
        _check_rank(self.world_rank, self.world_size)

    @property
    def num_batches(self) -> int:
        """Batches per rank, the same for every rank."""
        return -(-self.num_windows // (self.batch_size * self.world_size))

    def __len__(self) -> int:
        return self.num_batches * self.batch_size

    def window_ids(self, places: ArrayLike) -> IntArray:
        """Window ids, -1 for padding, at this rank's own places."""
        batches, offsets = np.divmod(np.asarray(places, dtype=np.int64), self.batch_size)
        ids = (batches * self.world_size + self.world_rank) * self.batch_size + offsets
        return np.where(ids < self.num_windows, ids, -1)


@dataclass(frozen=True, eq=False)
class ListedOrder:
    """Window ids listed one by one; `window_ids=None` means all of `num_windows` in id order."""

    num_windows: int
    listed: IntArray | None = None

    def __len__(self) -> int:
        return self.num_windows if self.listed is None else len(self.listed)

    def window_ids(self, places: ArrayLike) -> IntArray:
        """Window ids at places of the list."""
        index = np.asarray(places, dtype=np.int64)
        return index if self.listed is None else self.listed[index]


def _check_rank(world_rank: int, world_size: int) -> None:
    if not 0 <= world_rank < world_size:
        raise ConfigError(f"rank must be in [0, {world_size}), got {world_rank}")


def rank_positions(
    first_step: int,
    last_step: int,
    *,
    batch_size: int,
    micro_batch_size: int,
    world_rank: int,
    world_size: int,
) -> IntArray:
    """Positions that one rank consumes in steps [first_step, last_step); see `TrainOrder`.

    Raises:
        ConfigError: train.batch_size is not a multiple of the micro-batches of all ranks.
    """
    order = TrainOrder(
        num_windows=1,
        seed=0,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        world_rank=world_rank,
        world_size=world_size,
        first_step=first_step,
        last_step=last_step,
    )
    return order.positions(np.arange(len(order)))


def evaluation_windows(
    num_windows: int, *, batch_size: int, world_rank: int, world_size: int
) -> IntArray:
    """Window ids of one rank's evaluation, -1 for padding; see `EvaluationOrder`."""
    order = EvaluationOrder(
        num_windows=num_windows,
        batch_size=batch_size,
        world_rank=world_rank,
        world_size=world_size,
    )
    return order.window_ids(np.arange(len(order)))
