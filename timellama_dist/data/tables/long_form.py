"""Forecasts as a table in long form: `unique_id, ds, channel, yhat`, and what stands beside it.

Shapes: B forecasts, H horizon, C channels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from timellama_dist.data.tables.columns import ID_COLUMN, TIME_COLUMN
from timellama_dist.data.tables.frequency import time_grid

Times = NDArray[np.datetime64]


def future_times(last_B: Times, frequency: str, steps: int) -> Times:
    """Make the times of the steps after each last row, shape (B, steps), datetime64[us]."""
    # A calendar's steps are made one by one, but most series end at the same time.
    lasts, place_B = np.unique(last_B, return_inverse=True)
    grids = []
    for last in lasts:
        grid = time_grid(last, frequency, periods=steps + 1)
        # All but the last row itself, which is not there if it is no business day.
        grids.append(grid[grid > last][:steps])
    return np.stack(grids)[place_B]


def long_form(
    unique_ids: Sequence[str],
    times_BH: Times,
    channels: Sequence[str],
    values: Mapping[str, NDArray[np.float64]],
    cutoff_B: Times | None = None,
) -> pa.Table:
    """Make a row for each forecast, channel and step, in this order.

    Args:
        unique_ids: name of each forecast's series, B of them.
        times_BH: times of the steps.
        channels: C names.
        values: by column's name, shape (B, H, C).
        cutoff_B: time of the last row that each forecast has seen, for a column `cutoff`.
    """
    num, steps = times_BH.shape
    count = len(channels)
    rows = np.repeat(np.arange(num), count * steps)
    times = np.broadcast_to(times_BH[:, None], (num, count, steps)).ravel()
    columns: dict[str, pa.Array] = {
        ID_COLUMN: pa.array(unique_ids, pa.string()).take(pa.array(rows)),
        TIME_COLUMN: pa.array(times, pa.timestamp("us")),
    }
    if cutoff_B is not None:
        columns["cutoff"] = pa.array(cutoff_B[rows], pa.timestamp("us"))
    numbers = np.tile(np.repeat(np.arange(count), steps), num)
    columns["channel"] = pa.array(channels, pa.string()).take(pa.array(numbers))
    for name, value_BHC in values.items():
        columns[name] = pa.array(value_BHC.transpose(0, 2, 1).ravel(), pa.float64())
    return pa.table(columns)
