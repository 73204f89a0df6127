"""Typed rows sorted into series, and their times: made where there are none, brought to UTC."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from timellama_dist.data.tables.columns import ID_COLUMN, ROW_COLUMN, TIME_COLUMN
from timellama_dist.data.tables.findings import Findings
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.origin import Origin
from timellama_dist.errors import DataError


@dataclass
class Rows:
    """Rows of whole series; each step of `arrange` replaces them."""

    ids: NDArray[np.object_]
    """Names of the series."""
    codes: NDArray[np.int64]
    """Each row's series, ascending."""
    times: NDArray[np.datetime64]
    values: NDArray[np.float64]
    rows: NDArray[np.int64]
    """Row codes, see `Origin.where`; a row that was put in has that of the row before it."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """First row of each series that has rows."""
        return np.flatnonzero(np.diff(self.codes, prepend=-1))

    def take(self, index: NDArray) -> "Rows":
        """Take rows by their numbers, or a mask."""
        return Rows(
            self.ids, self.codes[index], self.times[index], self.values[index], self.rows[index]
        )

    def of_series(self, row: int) -> str:
        """Say " in series 'x'", where there are several."""
        return f" in series {self.ids[self.codes[row]]!r}" if len(self.ids) > 1 else ""


def sorted_rows(typed: pa.Table, num_values: int, *, by_appearance: bool) -> Rows:
    """Sort rows by series, and inside a series as the files hold them."""
    rows = typed[ROW_COLUMN].to_numpy()
    values = np.empty((len(typed), num_values))
    for number in range(num_values):
        values[:, number] = typed[f"v{number}"].to_numpy()
    as_read = np.argsort(rows, kind="stable")
    codes, names = pd.factorize(typed[ID_COLUMN].to_pandas().iloc[as_read], sort=not by_appearance)
    by_series = np.argsort(codes, kind="stable")
    order = as_read[by_series]
    times = typed[TIME_COLUMN].to_numpy().astype("datetime64[us]")
    return Rows(
        np.asarray(names, object),
        codes[by_series].astype(np.int64),
        times[order],
        values[order],
        rows[order],
    )


def make_times(rows: Rows, options: TableOptions, origin: Origin) -> None:
    """Make times for rows that have none: every series starts at `options.start`."""
    lengths = np.diff([*rows.starts, len(rows.codes)])
    steps = np.arange(len(rows.codes)) - np.repeat(rows.starts, lengths)
    try:
        grid = pd.date_range(
            options.start, periods=int(lengths.max()), freq=options.frequency, unit="us"
        )
    except (ValueError, pd.errors.OutOfBoundsDatetime) as error:
        raise DataError(
            f"{origin.key('start')}={options.start!r} and {origin.key('frequency')}="
            f"{options.frequency!r} give no times for a series of {lengths.max()} steps: {error}"
        ) from error
    rows.times = grid.to_numpy(dtype="datetime64[us]")[steps]


def to_utc(rows: Rows, zone: str, origin: Origin, findings: Findings) -> None:
    """Bring local times to UTC; of an hour that the clock shows twice, the first is summer time."""
    _, first = np.unique(
        np.stack([rows.codes, rows.times.astype(np.int64)]), axis=1, return_index=True
    )
    is_first = np.zeros(len(rows.codes), bool)
    is_first[first] = True
    local = pd.DatetimeIndex(rows.times)
    utc = local.tz_localize(zone, ambiguous=is_first, nonexistent="NaT").tz_convert("UTC")
    bad = np.flatnonzero(utc.isna())
    if bad.size:
        where = int(rows.rows[bad[0]])
        findings.add(
            "time zone",
            f"{origin.where(where)}: {stamp(rows.times[bad[0]])} does not exist in "
            f"{origin.key('time_zone')}={zone}, where the clock is put forward ({{count}} such "
            "rows)",
            count=bad.size,
            row=where,
        )
        return
    rows.times = utc.tz_localize(None).to_numpy(dtype="datetime64[us]")


def stamp(time: np.datetime64) -> str:
    """Write a time as errors show it."""
    return str(pd.Timestamp(time))
