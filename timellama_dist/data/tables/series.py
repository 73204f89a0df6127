"""Arranges typed rows into whole series in time order: duplicates, steps, gaps, empty values.

Works on many series at once, column by column; a Python loop runs only over series in which
something is wrong.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from timellama_dist.data.tables.columns import Columns
from timellama_dist.data.tables.filling import fill_missing
from timellama_dist.data.tables.findings import Findings
from timellama_dist.data.tables.frequency import infer_frequency
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.origin import Origin
from timellama_dist.data.tables.profile import profile_values
from timellama_dist.data.tables.rows import Rows, make_times, sorted_rows, stamp, to_utc
from timellama_dist.data.tables.steps import (
    check_frequency,
    in_time_order,
    without_duplicates,
    without_gaps,
)
from timellama_dist.errors import DataError


@dataclass(frozen=True, eq=False)
class Series:
    """One series of a table, in time order."""

    unique_id: str
    timestamps: NDArray[np.datetime64]
    """Shape (rows,), datetime64[us], in UTC where the table had time zones."""
    values: NDArray[np.float64]
    """Shape (rows, C); NaN where a value is missing."""


@dataclass(frozen=True, eq=False)
class Table:
    """Series of the same channels and the same step, one after the other in the order of ids."""

    name: str
    channels: tuple[str, ...]
    frequency: str | None
    """pandas offset alias, such as "h", "15min" or "MS"; None if no series has two rows."""
    unique_ids: tuple[str, ...]
    first_rows: NDArray[np.int64]
    """Where each series begins, and last the number of rows, shape (series + 1,)."""
    timestamps: NDArray[np.datetime64]
    """Shape (rows,), datetime64[us]."""
    values: NDArray[np.float64]
    """Shape (rows, C)."""
    source: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was done to the table, with counts, and what is worth knowing about it."""

    @property
    def num_channels(self) -> int:
        return len(self.channels)

    @property
    def num_rows(self) -> NDArray[np.int64]:
        """Rows of each series."""
        return np.diff(self.first_rows)

    @property
    def series(self) -> tuple[Series, ...]:
        """Every series by itself; views."""
        return tuple(
            Series(unique_id, self.timestamps[begin:end], self.values[begin:end])
            for unique_id, begin, end in zip(
                self.unique_ids, self.first_rows[:-1], self.first_rows[1:], strict=True
            )
        )

    def select(self, kept: NDArray[np.bool_]) -> "Table":
        """Keep only some of the series, by a mask of shape (series,)."""
        rows = np.repeat(kept, self.num_rows)
        return replace(
            self,
            unique_ids=tuple(compress(self.unique_ids, kept)),
            first_rows=np.append(0, np.cumsum(self.num_rows[kept])),
            timestamps=self.timestamps[rows],
            values=self.values[rows],
        )

    @classmethod
    def of(
        cls, name: str, series: Sequence[Series], channels: Sequence[str], frequency: str
    ) -> "Table":
        """Make a table of series that a program holds."""
        lengths = [len(single.values) for single in series]
        return cls(
            name=name,
            channels=tuple(channels),
            frequency=frequency,
            unique_ids=tuple(single.unique_id for single in series),
            first_rows=np.cumsum([0, *lengths]),
            timestamps=np.concatenate([single.timestamps for single in series]),
            values=np.concatenate([single.values for single in series]),
            source=(name,),
        )


def arrange(
    typed: pa.Table,
    *,
    columns: Columns,
    options: TableOptions,
    origin: Origin,
    name: str,
) -> tuple[Table | None, Findings]:
    """Arrange all rows of some series.

    Args:
        typed: rows as `parse_rows` gives them, in any order.
        columns: what the table's columns mean.
        options: what to do about what is wrong.
        origin: the table's files.
        name: of the table.

    Returns:
        The series, None if the findings forbid it; and what was wrong or done.

    Raises:
        DataError: series of different times that shall be channels of one.
    """
    findings = Findings()
    rows = sorted_rows(typed, len(columns.values), by_appearance=options.series == "channels")
    profile_values(rows, columns.values, origin, findings)
    frequency: str | None
    if columns.layout == "rows":
        frequency = options.frequency
        make_times(rows, options, origin)
    else:
        # Found already where they were read; the other rows are checked all the same.
        rows = rows.take(~np.isnat(rows.times))
        if not len(rows.codes):
            return None, findings
        if options.time_zone is not None:
            if columns.zoned:
                _note_unused_zone(rows, options.time_zone, columns, origin, findings)
            else:
                to_utc(rows, options.time_zone, origin, findings)
        if options.timestamps == "check":
            rows = in_time_order(rows, origin, findings)
            rows = without_duplicates(rows, options, origin, findings)
        frequency, gaps = infer_frequency(rows.times, rows.codes)
        if options.frequency is not None:
            frequency = check_frequency(frequency, options.frequency, rows, origin, findings)
        if gaps.size and options.timestamps == "check":
            assert frequency is not None
            rows = without_gaps(rows, gaps, frequency, options, origin, findings)
    # Found already where it was read, but for what a row of a whole series leaves out.
    if options.missing != "refuse" or columns.layout == "rows":
        fill_missing(rows, columns.values, options, origin, findings)
    if findings.fatal:
        return None, findings
    table = _table(rows, columns, frequency, origin, name)
    if options.series == "channels" and columns.layout == "long":
        table = _join_as_channels(table, origin)
    return table, findings


def _note_unused_zone(
    rows: Rows, zone: str, columns: Columns, origin: Origin, findings: Findings
) -> None:
    first = int(rows.rows.min())
    findings.add(
        "unused zone",
        f"{origin.where(first)}: time column {columns.time!r} says its offset from UTC, which is "
        f"what counts; {origin.key('time_zone')}={zone} is not used ({{count}} rows)",
        count=len(rows.rows),
        row=first,
        fatal=False,
    )


def _table(rows: Rows, columns: Columns, frequency: str | None, origin: Origin, name: str) -> Table:
    return Table(
        name=name,
        channels=columns.values,
        frequency=frequency,
        unique_ids=tuple(map(str, rows.ids[rows.codes[rows.starts]])),
        first_rows=np.append(rows.starts, len(rows.codes)),
        timestamps=rows.times,
        values=rows.values,
        source=origin.files,
    )


def _join_as_channels(table: Table, origin: Origin) -> Table:
    parts = table.series
    first = parts[0]
    for part in parts[1:]:
        common = min(len(first.timestamps), len(part.timestamps))
        differ = np.flatnonzero(first.timestamps[:common] != part.timestamps[:common])
        if differ.size or len(first.timestamps) != len(part.timestamps):
            place = int(differ[0]) if differ.size else common
            stamps = [
                stamp(series.timestamps[place]) if place < len(series.timestamps) else "no row"
                for series in (part, first)
            ]
            raise DataError(
                f"{origin.place}: {origin.key('series')}=channels needs the same timestamps in "
                f"every series, but the first that differs, number {place + 1}, is {stamps[0]} in "
                f"{part.unique_id!r} and {stamps[1]} in {first.unique_id!r}"
            )
    return replace(
        table,
        channels=tuple(f"{part.unique_id}:{name}" for part in parts for name in table.channels),
        unique_ids=(table.name,),
        first_rows=np.array([0, len(first.timestamps)]),
        timestamps=first.timestamps,
        values=np.concatenate([part.values for part in parts], axis=1),
    )
