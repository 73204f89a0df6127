"""Decides what the columns of a table mean, from its header and first rows."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pandas as pd
import pyarrow as pa

from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.origin import Origin
from timellama_dist.errors import DataError

ID_COLUMN = "unique_id"
TIME_COLUMN = "ds"
ROW_COLUMN = "_row"
TIME_NAMES = ("date", "ds", "timestamp", "time", "datetime")

# After a time of day: the -2015 of 25-12-2015 is none.
OFFSET = (
    r"(?:\d:\d{2}(?::\d{2}(?:[.,]\d+)?)?|\dT\d{2,6}(?:[.,]\d+)?)\s*(?:[AaPp][Mm])?\s*"
    r"(Z|[+-]\d{2}(?::?\d{2})?)$"
)
"""The UTC offset at the end of a time that is written as text."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What the columns of a table mean, decided from its first rows."""

    layout: Literal["wide", "long", "rows"]
    time: str | None
    """None in layout rows."""
    values: tuple[str, ...]
    """Names of the value columns in their order; layout rows has one, "y"."""
    cells: tuple[str, ...] = ()
    """Layout rows: the columns that hold the steps."""
    time_format: str | None = None
    """Of times written as text; None if they are no text."""
    zoned: bool = False
    """Times carry a time zone or an offset."""

    @property
    def row_width(self) -> int:
        """Typed rows that one row of the file becomes at most."""
        return max(1, len(self.cells))


def typed_schema(columns: Columns) -> pa.Schema:
    """Name and type the columns of typed rows."""
    return pa.schema(
        [
            (ID_COLUMN, pa.string()),
            (TIME_COLUMN, pa.timestamp("us")),
            *((f"v{number}", pa.float64()) for number in range(len(columns.values))),
            (ROW_COLUMN, pa.int64()),
        ]
    )


def decide_columns(sample: pa.Table, origin: Origin, options: TableOptions) -> Columns:
    """Decide what the columns mean.

    Args:
        sample: the first rows of the first file.
        origin: the table's files.
        options: how the table is to be read.

    Raises:
        DataError: no time column, no value column, or one that was asked for and is not there.
    """
    names, place = sample.column_names, origin.place
    rows = options.layout == "rows" or (options.layout == "auto" and names[:2] == ["V1", "V2"])
    if rows:
        if options.frequency is None:
            raise DataError(
                f"{place}: a row holds a whole series and no times ({origin.key('layout')}=rows): "
                f"give {origin.key('frequency')}, for example h"
            )
        return Columns(layout="rows", time=None, values=("y",), cells=tuple(names[1:]))
    long = ID_COLUMN in names
    if options.layout not in ("auto", "long" if long else "wide"):
        has = "has" if long else "has no"
        raise DataError(
            f"{place}: {origin.key('layout')}={options.layout}, but it {has} column {ID_COLUMN!r}"
        )
    time = _find_time_column(sample, place)
    there = [name for name in names if name not in (time, ID_COLUMN)]
    if not there:
        raise DataError(f"{place}: no value columns beside {time!r}")
    kind = sample.schema.field(time).type
    text = is_text(kind)
    return Columns(
        layout="long" if long else "wide",
        time=time,
        values=choose_values(there, origin, options),
        time_format=_guess_format(sample[time], place, time) if text else None,
        zoned=_has_offset(sample[time]) if text else has_zone(kind),
    )


def is_text(kind: pa.DataType) -> bool:
    """Is a column of this type text, be it encoded as a dictionary?"""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _find_time_column(sample: pa.Table, place: str) -> str:
    names = [name for name in sample.column_names if name != ID_COLUMN]
    lowered = {name.lower(): name for name in reversed(names)}
    for name in TIME_NAMES:
        if name in lowered:
            return lowered[name]
    kinds = {name: sample.schema.field(name).type for name in names}
    for name in names:
        if pa.types.is_temporal(kinds[name]):
            return name
    if names and is_text(kinds[names[0]]):
        return names[0]
    raise DataError(
        f"{place}: no time column: name it one of {', '.join(TIME_NAMES)}, or put it first; "
        f"the columns are {names}"
    )


def choose_values(there: Sequence[str], origin: Origin, options: TableOptions) -> tuple[str, ...]:
    """Choose the value columns to use, of those that are there.

    Raises:
        DataError: one that was asked for is not there.
    """
    for name in options.columns or ():
        if name not in there:
            raise DataError(
                f"{origin.place}: no value column {name!r} ({origin.key('columns')}); there are "
                f"{there}"
            )
    return options.columns or tuple(there)


def _guess_format(raw: pa.ChunkedArray, place: str, column: str) -> str:
    """Take ISO 8601, whose precision may vary from row to row, or the format of the first row."""
    texts = raw.drop_null()
    if not len(texts):
        raise DataError(f"{place}: time column {column!r} is empty in its first rows")
    first = str(texts[0].as_py())
    if not pd.isna(pd.to_datetime(first, format="ISO8601", errors="coerce", utc=True)):
        return "ISO8601"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return pd.tseries.api.guess_datetime_format(first) or "ISO8601"


def _has_offset(raw: pa.ChunkedArray) -> bool:
    texts = raw.drop_null()
    return bool(len(texts)) and re.search(OFFSET, str(texts[0].as_py())) is not None


def has_zone(kind: pa.DataType) -> bool:
    """Does a column of this type hold times with a time zone?"""
    return getattr(kind, "tz", None) is not None
