"""Which rows belong to which split, and which windows lie in them.

Integers only: no table, no scaler, no Ray. A window is `context_len` rows of past followed by
`horizon` rows of target; windows have stride 1 and never cross from one series into another.
A window of a series that is too short may begin before it, with missing rows in its past.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from timellama_dist.errors import ConfigError, require_at_least

IntArray = NDArray[np.int64]
SplitName = Literal["train", "validation", "test"]
SplitBy = Literal["time", "series"]
ShortSeries = Literal["skip", "pad"]

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
        return _part_ends_in_rows(rows, [int(part) for part in split])
    # Truncation of the float product, not rounding: published borders are int(n * 0.7).
    train = np.trunc(rows * split[0]).astype(np.int64)
    test = np.trunc(rows * split[2]).astype(np.int64)
    # round() so that 0.9 of 10 is 9, though 0.7 + 0.0 + 0.2 is a little less than 0.9.
    share = np.trunc(np.round(rows * sum(split), 9)).astype(np.int64)
    used = rows if sum(split) >= 1 - _EPS else share
    return train, np.maximum(used - test, train), used


def _part_ends_in_rows(rows: IntArray, split: list[int]) -> tuple[IntArray, IntArray, IntArray]:
    train, validation, test = split
    if train == 0:
        if validation == 0 or test == 0:
            raise ConfigError(
                "data.split [0, V, T] trains on all but the last V + T rows of each series: V and "
                f"T must be above 0, got {split}"
            )
        ends = rows - validation - test, rows - test, rows
        return np.maximum(ends[0], 0), np.maximum(ends[1], 0), ends[2]
    if rows.size and rows.min() < sum(split):
        raise ConfigError(
            f"data.split {split} asks for {sum(split)} rows, but a series has only {rows.min()}"
        )
    return (
        np.full_like(rows, train),
        np.full_like(rows, train + validation),
        np.full_like(rows, train + validation + test),
    )


def _keep_first(num_train: IntArray, context_len: int, train_fraction: float) -> IntArray:
    if not 0 < train_fraction <= 1:
        raise ConfigError(
            f"data.train_fraction must be above 0 and at most 1, got {train_fraction}"
        )
    # round() so that 0.29 of 100 is 29 as in the papers' integer percentages, and not 28.
    share = np.trunc(np.round((num_train - context_len) * train_fraction, 9)).astype(np.int64)
    return np.where(num_train > context_len, share + context_len, num_train)


def _parts(
    num_rows: ArrayLike, split: Sequence[float], context_len: int, train_fraction: float
) -> dict[SplitName, tuple[IntArray, IntArray]]:
    """Rows [begin, end) of each series' own part of each split, without the past before it."""
    train_end, validation_end, test_end = _part_ends(num_rows, split)
    return {
        "train": (np.zeros_like(train_end), _keep_first(train_end, context_len, train_fraction)),
        "validation": (train_end, validation_end),
        "test": (validation_end, test_end),
    }


def series_in_split(num_series: int, split: Sequence[float], name: SplitName) -> NDArray[np.bool_]:
    """Which series belong to a split by series, shape (series,).

    The first int(num_series * train share) series of a fixed random order train, the last test:
    the borders of `split_borders`, in series instead of rows. The order depends on the number of
    series alone.

    Raises:
        ConfigError: `split` is rows and not fractions.
    """
    if not split_is_fractional(split):
        raise ConfigError(
            "data.split must be three fractions of the number of series where data are split by "
            f"series, got {list(split)}"
        )
    order = np.random.Generator(np.random.PCG64(0)).permutation(num_series)
    begin, end = _parts(num_series, split, 0, 1.0)[name]
    member = np.zeros(num_series, dtype=np.bool_)
    member[order[int(begin) : int(end)]] = True
    return member


def split_borders(
    num_rows: int, split: Sequence[float], context_len: int, *, train_fraction: float = 1.0
) -> dict[SplitName, tuple[int, int]]:
    """Row ranges [begin, end) of one series' three splits.

    Fractions (a, b, c): train gets int(n * a) rows, test the last int(n * c), validation the rest
    between them; if they sum to less than 1, rows are left over at the end. Whole numbers are rows
    from the start; 0 rows of training mean all but the last b + c. Validation and test begin
    `context_len` rows before their first target row, so that every row of their part is forecast.

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
    parts = _parts(num_rows, split, context_len, train_fraction)
    return {
        name: (max(int(begin) - context_len, 0), int(end)) for name, (begin, end) in parts.items()
    }


def train_rows(num_rows: ArrayLike, split: Sequence[float]) -> IntArray:
    """Rows of the whole training part of each series, few-shot or not: the scaler's rows."""
    return _part_ends(num_rows, split)[0]


def fitted_context_len(num_train: IntArray, *, most: int, horizon: int, season_len: int) -> int:
    """A context that leaves windows enough to learn from, for series nobody has looked at.

    A quarter of the rows that windows may take of a training part, but at least two seasons or two
    horizons, unless that is more than half of the rows.

    Args:
        num_train: training rows of each series; the median counts.
        most: the longest context.
        horizon: steps to forecast.
        season_len: steps of the data's main season.
    """
    room = int(np.median(num_train)) - horizon
    least = min(2 * max(season_len, horizon), room // 2)
    return max(1, min(most, max(room // 4, least)))


@dataclass(frozen=True, eq=False)
class WindowIndex:
    """All windows of one split over many series, at a few integers per series.

    Window ids run through the series in turn, and inside a series by start row.
    """

    first_start: IntArray
    """First window's start row in its own series, negative if padded, shape (series,)."""
    cumulative: IntArray
    """Number of windows before each series, and last the total, shape (series + 1,)."""
    num_series: int
    """Series that the split has rows of: all, unless it is by series."""
    num_skipped: int
    """Those of them that are too short for a window."""

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
        split_by: str = "time",
        short_series: str = "skip",
    ) -> "WindowIndex":
        """Count the windows of split `name` in series of `num_rows` rows, shape (series,).

        Args:
            num_rows: rows of each series.
            split: see `split_borders`, and `series_in_split`.
            name: "train", "validation" or "test".
            context_len: rows of past in a window (L).
            horizon: rows of target in a window (H).
            train_fraction: few-shot, see `split_borders`.
            split_by: "time" gives each series a part in each split; "series" gives it to one split
                whole, with windows anywhere in it.
            short_series: "skip" counts windows that lie in their series; "pad" also those that
                begin before its first row, with at least one row of past: for every target row
                of a validation or test part (by time), else in series that have no full window.

        Raises:
            ConfigError: an unknown choice, or lengths below 1, or see `split_borders`.
        """
        _check_choices(("split", name, SplitName), ("split_by", split_by, SplitBy))
        _check_choices(("data.short_series", short_series, ShortSeries))
        require_at_least(1, {"data.context_len": context_len, "data.horizon": horizon})
        rows = np.atleast_1d(np.asarray(num_rows, dtype=np.int64))
        split_name = cast(SplitName, name)
        if split_by == "series":
            member = series_in_split(len(rows), split, split_name)
            fraction = train_fraction if name == "train" else 1.0
            end = np.where(member, _keep_first(rows, context_len, fraction), 0)
            begin = np.zeros_like(end)
        else:
            member = np.ones(len(rows), dtype=np.bool_)
            begin, end = _parts(rows, split, context_len, train_fraction)[split_name]
        # One row of past at least: of a window without any, nothing is to be said.
        earliest = 1 - context_len if short_series == "pad" else 0
        if name == "train" or split_by == "series":
            first_start = np.where(end < context_len + horizon, earliest, 0)
        else:
            first_start = np.maximum(begin - context_len, earliest)
        counts = np.maximum(end - first_start - context_len - horizon + 1, 0)
        return cls(
            first_start=first_start,
            cumulative=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            num_series=int(np.count_nonzero(member)),
            num_skipped=int(np.count_nonzero(member & (counts == 0))),
        )

    def __len__(self) -> int:
        return int(self.cumulative[-1])

    def locate(self, window_ids: IntArray) -> tuple[IntArray, IntArray]:
        """Series and start row (counted in that series, negative if padded) of each window.

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


def _check_choices(*choices: tuple[str, str, object]) -> None:
    for key, value, literal in choices:
        known = get_args(literal)
        if value not in known:
            raise ConfigError(f"{key} must be one of {', '.join(known)}, got {value!r}")
