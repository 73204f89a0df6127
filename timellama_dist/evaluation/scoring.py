"""Scores forecasters over windows: needs batches of them, wherever they come from.

Shapes: B batch, C channels, S series.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from timellama_dist.data.prepared.scaling import Scaler
from timellama_dist.data.tables.frequency import m4_season_len
from timellama_dist.data.windows.reader import WindowReader
from timellama_dist.data.windows.spans import Batch, RowSpans
from timellama_dist.evaluation.forecasters import Forecaster, Naive2Forecaster
from timellama_dist.evaluation.scores import Scores

IntArray = NDArray[np.int64]

_MOST_ROWS = 1 << 20


class Yardstick:
    """Measures forecasts of the windows of a split: in-sample errors, and Naive2, are its scale.

    Args:
        reader: reader of the split's windows.
        m4: the M4 competition's way: both look at the series' whole past, with M4's seasons. Else
            in-sample means the training part, and Naive2 sees a window's context.

    Raises:
        ConfigError: see `Naive2Forecaster`.

    Attributes:
        season_len: of MASE and Naive2.
        scale_SC: mean absolute error of seasonal naive in-sample, by series and channel, in the
            data's units; 0 where there is none.
    """

    def __init__(self, reader: WindowReader, *, m4: bool) -> None:
        manifest = reader.manifest
        self.reader = reader
        self.season_len = m4_season_len(manifest.frequency) if m4 else manifest.season_len
        self.naive2 = Naive2Forecaster(reader, season_len=self.season_len, whole_past=m4)
        if (history := self.naive2.history) is not None:
            # The past of a series' first window ends where the part begins.
            ends = history.index.first_start + history.spec.context_len
        elif manifest.split_by == "series":
            member = manifest.split_rule.members(manifest.num_series, "train")
            ends = np.where(member, reader.num_rows, 0)
        else:
            ends = manifest.split_rule.train_rows(reader.num_rows)
        self.scale_SC = insample_errors(
            reader, ends, self.season_len, pooled=manifest.split_by == "series"
        )

    def score(self, forecaster: Forecaster, batches: Iterable[Batch]) -> Iterator[Scores]:
        """Score each batch, to be added; windows of weight 0 count nothing."""
        for padded in batches:
            kept = padded["weight"] > 0
            # The last worker's last batch may be nothing but padding.
            if kept.any():
                yield self._score(forecaster, {key: value[kept] for key, value in padded.items()})

    def _score(self, forecaster: Forecaster, batch: Batch) -> Scores:
        future_BHC, series = batch["future"], batch["series"]
        scaler = Scaler(self.reader.scaler.mean[series, None], self.reader.scaler.std[series, None])
        target_BHC, scale_BC = scaler.inverse(future_BHC), self.scale_SC[series]
        scores = Scores.zeros(future_BHC.shape[1], future_BHC.shape[2])
        forecast_BHC = forecaster(batch)
        scores.errors.add(forecast_BHC, future_BHC, batch["weight"])
        scores.raw.add(scaler.inverse(forecast_BHC), target_BHC, scale_BC)
        # By way of z-scores, as any forecast: Naive2's own OWA is 1 to the last bit.
        reference_BHC = scaler.inverse(self.naive2(batch))
        scores.naive2.add(reference_BHC, target_BHC, scale_BC)
        return scores


def insample_errors(
    reader: WindowReader, ends: IntArray, season_len: int, *, pooled: bool = False
) -> NDArray[np.float64]:
    """Average absolute differences to the value a season before, in each series' first rows.

    Args:
        reader: reader of the data set.
        ends: rows of each series that count, shape (S,).
        season_len: rows of a season.
        pooled: one mean of all series for every series.

    Returns:
        In the data's units, 0 where a series has no two such values, shape (S, C).
    """
    shape = (len(ends), reader.manifest.num_channels)
    sums_SC, counts_SC = np.zeros((2, *shape))
    # Series are cut into chunks by rows: a chunk begins with the series that the last one ended at.
    chunk = (np.cumsum(ends) - ends) // _MOST_ROWS
    for begin, end in _runs(chunk):
        lengths = ends[begin:end]
        spans = RowSpans(reader.first_row[begin:end], np.append(0, np.cumsum(lengths)))
        rows, codes = reader.rows(spans), np.repeat(np.arange(begin, end), lengths)
        errors = np.abs(rows[season_len:] - rows[:-season_len]).astype(np.float64)
        same = codes[season_len:] == codes[:-season_len]
        for channel in range(shape[1]):
            counted = same & ~np.isnan(errors[:, channel])
            of = codes[season_len:][counted]
            sums_SC[:, channel] += np.bincount(of, errors[counted, channel], minlength=shape[0])
            counts_SC[:, channel] += np.bincount(of, minlength=shape[0])
    sums_SC *= reader.scaler.std
    if pooled:
        sums_SC, counts_SC = (
            np.broadcast_to(totals.sum(axis=0), shape) for totals in (sums_SC, counts_SC)
        )
    return np.divide(sums_SC, counts_SC, out=np.zeros(shape), where=counts_SC > 0)


def _runs(labels: IntArray) -> list[tuple[int, int]]:
    """Find where each stretch of equal labels begins and ends."""
    borders = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return list(pairwise(borders))
