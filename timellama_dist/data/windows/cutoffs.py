"""Numbers the forecasts of many series: one for each series and cut-off. Integers only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CutoffIndex:
    """All forecasts, at a few integers per series; ids run through the series, then by time."""

    first_seen: IntArray
    """Rows before a series' first cut-off, shape (series,)."""
    cumulative: IntArray
    """Number of forecasts before each series, and last the total, shape (series + 1,)."""
    stride: int

    @classmethod
    def build(
        cls,
        num_rows: ArrayLike,
        *,
        least_rows: int,
        cutoffs: int = 0,
        stride: int = 1,
        horizon: int = 0,
    ) -> "CutoffIndex":
        """Count the forecasts of series of `num_rows` rows, shape (series,).

        Args:
            num_rows: rows of each series.
            least_rows: rows that a forecast must see.
            cutoffs: 0 for one forecast after each series' last row; N for at most N whose truth is
                there, the last of them `horizon` rows before the end.
            stride: rows between two cut-offs.
            horizon: rows of truth after a cut-off.
        """
        last = np.asarray(num_rows, dtype=np.int64) - (horizon if cutoffs else 0)
        counts = np.clip((last - least_rows) // stride + 1, 0, max(cutoffs, 1))
        return cls(
            first_seen=last - (counts - 1) * stride,
            cumulative=np.append(0, np.cumsum(counts)),
            stride=stride,
        )

    def __len__(self) -> int:
        return int(self.cumulative[-1])

    @property
    def num_skipped(self) -> int:
        """Series that are too short for any forecast."""
        return int(np.count_nonzero(np.diff(self.cumulative) == 0))

    def locate(self, ids: ArrayLike) -> tuple[IntArray, IntArray]:
        """Find the series and the rows before the cut-off of each forecast, shape (B,)."""
        wanted = np.asarray(ids, dtype=np.int64)
        # side="right" steps over series without a forecast, whose cumulative counts repeat.
        series = np.searchsorted(self.cumulative, wanted, side="right") - 1
        return series, self.first_seen[series] + (wanted - self.cumulative[series]) * self.stride
