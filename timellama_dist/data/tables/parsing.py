"""Turns rows as a file holds them into typed rows: id, time in UTC, float64 values.

Whatever is no time or no number becomes a finding; nothing is dropped or filled here.
"""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from timellama_dist.data.tables.columns import (
    ID_COLUMN,
    OFFSET,
    Columns,
    has_zone,
    is_text,
    typed_schema,
)
from timellama_dist.data.tables.findings import Findings
from timellama_dist.data.tables.numbers import read_numbers, refuse_empty
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.origin import Origin, row_codes
from timellama_dist.errors import DataError


def parse_rows(
    raw: pa.Table,
    *,
    file: int,
    first_row: int,
    columns: Columns,
    options: TableOptions,
    origin: Origin,
    name: str,
) -> tuple[pa.Table, Findings]:
    """Type some consecutive rows of a file.

    Args:
        raw: the rows as the file holds them.
        file: the file's number.
        first_row: 0-based number of the first of the rows in the file.
        columns: what the columns mean.
        options: how the table is to be read.
        origin: the files.
        name: of the table; a wide table's only series is called so.

    Returns:
        The rows (see `typed_schema`), and what is wrong with them.
    """
    findings = Findings()
    codes = row_codes(file, first_row * columns.row_width, len(raw) * columns.row_width)
    if columns.layout == "rows":
        starts = codes[:: columns.row_width]
        ids = _ids(raw[raw.column_names[0]], starts, origin, findings)
        values = [read_numbers(raw, cell, starts, origin, findings) for cell in columns.cells]
        return _unroll(ids, np.stack(values, axis=1), codes, columns), findings
    assert columns.time is not None
    times = _times(raw[columns.time], codes, columns, origin, findings)
    if columns.layout == "long":
        ids = _ids(raw[ID_COLUMN], codes, origin, findings)
    else:
        ids = pa.repeat(pa.scalar(name, pa.string()), len(raw))
    values = [read_numbers(raw, value, codes, origin, findings) for value in columns.values]
    if options.missing == "refuse":
        for value, column in zip(columns.values, values, strict=True):
            refuse_empty(raw, value, column, codes, origin, findings)
    arrays = [ids, pa.array(times, pa.timestamp("us")), *map(pa.array, values), pa.array(codes)]
    return pa.table(arrays, schema=typed_schema(columns)), findings


def _unroll(
    ids: pa.Array, values: NDArray[np.float64], codes: NDArray[np.int64], columns: Columns
) -> pa.Table:
    """Make a typed row of each value; empty cells after a row's last are no part of its series."""
    filled = ~np.isnan(values)
    lengths = np.where(filled.any(axis=1), values.shape[1] - filled[:, ::-1].argmax(axis=1), 0)
    kept = np.arange(values.shape[1]) < lengths[:, None]
    rows = np.repeat(np.arange(len(values)), lengths)
    count = int(lengths.sum())
    arrays = [
        ids.take(pa.array(rows)),
        pa.nulls(count, pa.timestamp("us")),
        pa.array(values[kept]),
        pa.array(codes.reshape(values.shape)[kept]),
    ]
    return pa.table(arrays, schema=typed_schema(columns))


def _ids(
    raw: pa.ChunkedArray, codes: NDArray[np.int64], origin: Origin, findings: Findings
) -> pa.Array:
    ids = raw.cast(pa.string()).combine_chunks()
    missing = np.flatnonzero(pc.fill_null(pc.equal(ids, ""), True).to_numpy(zero_copy_only=False))
    if missing.size:
        first = int(codes[missing[0]])
        findings.add(
            "id",
            f"{origin.where(first)}: column {ID_COLUMN!r} is empty ({{count}} such rows)",
            count=missing.size,
            row=first,
        )
    return pc.fill_null(ids, "")


def _times(
    column: pa.ChunkedArray,
    codes: NDArray[np.int64],
    columns: Columns,
    origin: Origin,
    findings: Findings,
) -> NDArray[np.datetime64]:
    """Read times in UTC, or as the clock showed them where they carry no offset."""
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        raise DataError(
            f"{origin.place}: time column {columns.time!r} holds numbers such as "
            f"{column[0].as_py()}; write dates, for example 2016-07-01 00:00:00"
        )
    raw = column.to_pandas()
    parsed = pd.to_datetime(raw, format=columns.time_format, errors="coerce", utc=True)
    bad = np.flatnonzero(parsed.isna())
    if bad.size:
        first = int(codes[bad[0]])
        findings.add(
            "time",
            f"{origin.where(first)}: time column {columns.time!r} holds {raw.iloc[bad[0]]!r}, "
            "which is not a time ({count} such rows)",
            count=bad.size,
            row=first,
        )
    if is_text(kind):
        _check_offsets(raw, codes, columns, origin, findings)
    elif len(codes) and has_zone(kind) != columns.zoned:
        first = int(codes[0])
        findings.add(
            "time zone",
            f"{origin.where(first)}: time column {columns.time!r} is of {kind}, with "
            f"{'no' if columns.zoned else 'a'} time zone, unlike the first row "
            "({count} such rows)",
            count=len(codes),
            row=first,
        )
    return parsed.dt.tz_localize(None).to_numpy(dtype="datetime64[us]")


def _check_offsets(
    raw: pd.Series,
    codes: NDArray[np.int64],
    columns: Columns,
    origin: Origin,
    findings: Findings,
) -> None:
    offsets = raw.astype("str").str.extract(OFFSET, expand=False)
    other = np.flatnonzero(offsets.notna() != columns.zoned)
    if other.size:
        first = int(codes[other[0]])
        wanted = "no UTC offset" if columns.zoned else "a UTC offset"
        findings.add(
            "time zone",
            f"{origin.where(first)}: time column {columns.time!r} holds {raw.iloc[other[0]]!r} "
            f"with {wanted}, unlike the first row ({{count}} such rows)",
            count=other.size,
            row=first,
        )
    elif columns.zoned:
        changes = np.flatnonzero((offsets != offsets.shift())[1:]) + 1
        if changes.size:
            first = int(codes[changes[0]])
            findings.add(
                "time zone",
                f"{origin.where(first)}: the UTC offset changes from {offsets[changes[0] - 1]} to "
                f"{offsets[changes[0]]} ({{count}} changes); all times become UTC",
                count=changes.size,
                row=first,
                fatal=False,
            )
