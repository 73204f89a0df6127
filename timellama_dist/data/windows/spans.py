"""Finds the rows that a set of windows lies in, and cuts the windows from them.

Windows overlap: a thousand that begin in consecutive rows lie in hardly more rows than two. So it
is rows that are read and sent, each once, and windows are cut where they are used.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from timellama_dist.data.windows.spec import WindowSpec

IntArray = NDArray[np.int64]
Batch = dict[str, NDArray]
"""Windows as `WindowReader.read` gives them: arrays by name, of as many windows each."""


@dataclass(frozen=True, eq=False)
class RowSpans:
    """Disjoint ranges of global rows in ascending order, laid end to end."""

    begins: IntArray
    """First row of each span, shape (spans,)."""
    offsets: IntArray
    """Rows of all spans before each, and last the total, shape (spans + 1,)."""

    @classmethod
    def of_windows(cls, first_rows: IntArray, length: int) -> "RowSpans":
        """Collect the rows of windows of `length` rows each, which may overlap, in any order."""
        if not len(first_rows):
            return cls(np.empty(0, np.int64), np.zeros(1, np.int64))
        ordered = np.sort(first_rows)
        apart = np.flatnonzero(np.diff(ordered) > length)
        begins = ordered[np.concatenate([[0], apart + 1])]
        ends = ordered[np.concatenate([apart, [-1]])] + length
        return cls(begins, np.concatenate([[0], np.cumsum(ends - begins)]))

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def rows(self) -> IntArray:
        """Number every row globally, shape (len(self),)."""
        shifts = np.repeat(self.begins - self.offsets[:-1], np.diff(self.offsets))
        return shifts + np.arange(len(self))

    def places(self, rows: IntArray) -> IntArray:
        """Find rows, which must lie in a span, among all spans' rows."""
        spans = np.searchsorted(self.begins, rows, side="right") - 1
        return self.offsets[spans] + rows - self.begins[spans]

    def part(self, first: int, last: int) -> "RowSpans":
        """Keep only the rows at places [first, last), which must not be empty."""
        begin = int(np.searchsorted(self.offsets, first, side="right")) - 1
        end = int(np.searchsorted(self.offsets, last, side="left"))
        begins = self.begins[begin:end].copy()
        begins[0] += first - self.offsets[begin]
        return RowSpans(begins, np.clip(self.offsets[begin : end + 1], first, last) - first)


@dataclass(frozen=True, kw_only=True, eq=False)
class LocatedWindows:
    """Some windows of a data set: the rows they need, and what can be said without reading them."""

    spans: RowSpans
    places: IntArray
    """First row of each window among those of `spans`, shape (N,)."""
    series: NDArray[np.int32]
    start: IntArray
    weight: NDArray[np.float32]
    spec: WindowSpec

    def __len__(self) -> int:
        return len(self.places)

    def cut(self, rows: NDArray[np.float32], first: int, last: int) -> Batch:
        """Cut windows [first, last) out of their rows, as `WindowReader.read` describes them.

        Args:
            rows: the rows of `spans`, shape (rows, C).
            first: number of the first window.
            last: number after the last; may be beyond the end.
        """
        places, start = self.places[first:last], self.start[first:last]
        context_len = self.spec.context_len
        past = _cut(rows, places, context_len)
        if len(start) and start.min() < 0:
            past[np.arange(context_len) < -start[:, None]] = np.nan
        return {
            "past": past,
            "future": _cut(rows, places + context_len, self.spec.horizon),
            "series": self.series[first:last],
            "start": start,
            "weight": self.weight[first:last],
        }


def _cut(rows: NDArray[np.float32], places: IntArray, length: int) -> NDArray[np.float32]:
    """Copy `length` rows from each place on, shape (B, length, C)."""
    num_rows, num_channels = rows.shape
    # A row a place, flat, so that a window is one stretch of memory. Not sliding_window_view, which
    # takes longer than copying a small batch.
    windows: NDArray[np.float32] = np.ndarray(
        (num_rows - length + 1, length * num_channels),
        np.float32,
        np.ascontiguousarray(rows),
        strides=(rows.itemsize * num_channels, rows.itemsize),
    )
    return windows[places].reshape(-1, length, num_channels)
