"""Numbers the windows of a data set's series. Integers only: no table, no scaler, no Ray."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from timellama_dist.data.windows.spec import WindowSpec
from timellama_dist.data.windows.splits import SplitRule

IntArray = NDArray[np.int64]


def fitted_context_len(num_train: IntArray, *, most: int, horizon: int, season_len: int) -> int:
    """Choose a context that leaves windows enough to learn from, for series nobody has looked at.

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


@dataclass(frozen=True, kw_only=True)
class WindowCounts:
    """How many windows a split has, and of how many series."""

    num_windows: int
    num_series: int
    """Series that the split has rows of: all, unless it is by series."""
    num_skipped: int
    """Those of them that are too short for a window."""


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
    def build(cls, num_rows: ArrayLike, spec: WindowSpec, rule: SplitRule) -> "WindowIndex":
        """Count the windows in series of `num_rows` rows, shape (series,).

        Args:
            num_rows: rows of each series.
            spec: which windows are meant.
            rule: how the series are divided into splits; one that is given whole to a split has
                windows anywhere in it.

        Raises:
            ConfigError: see `SplitRule`.
        """
        rows = np.atleast_1d(np.asarray(num_rows, dtype=np.int64))
        context_len = spec.context_len
        if rule.by == "series":
            member = rule.members(len(rows), spec.split)
            fraction = spec.train_fraction if spec.split == "train" else 1.0
            end = np.where(member, rule.kept_rows(rows, context_len, fraction), 0)
            begin = np.zeros_like(end)
        else:
            member = np.ones(len(rows), dtype=np.bool_)
            begin, end = rule.parts(rows, context_len, spec.train_fraction)[spec.split]
        # One row of past at least: of a window without any, nothing is to be said.
        earliest = 1 - context_len if spec.short_series == "pad" else 0
        if spec.split == "train" or rule.by == "series":
            first_start = np.where(end < spec.length, earliest, 0)
        else:
            first_start = np.maximum(begin - context_len, earliest)
        counts = np.maximum(end - first_start - spec.length + 1, 0)
        return cls(
            first_start=first_start,
            cumulative=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]),
            num_series=int(np.count_nonzero(member)),
            num_skipped=int(np.count_nonzero(member & (counts == 0))),
        )

    def __len__(self) -> int:
        return int(self.cumulative[-1])

    @property
    def counts(self) -> WindowCounts:
        """How many windows there are, and of how many series."""
        return WindowCounts(
            num_windows=len(self), num_series=self.num_series, num_skipped=self.num_skipped
        )

    def locate(self, window_ids: IntArray) -> tuple[IntArray, IntArray]:
        """Find the series and start row (counted in it, negative if padded) of each window.

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
