"""Turns rows as a file holds them into typed rows: id, time in UTC, float64 values.

Whatever is no time or no number becomes a finding; nothing is dropped or filled here.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from timellama_dist.data.tables.findings import Findings
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.errors import DataError

ID_COLUMN = "unique_id"
TIME_COLUMN = "ds"
ROW_COLUMN = "_row"
TIME_NAMES = ("date", "ds", "timestamp", "time", "datetime")
NULLS = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "#N/A"]

_ROW_BITS = 40
# After a time of day: the -2015 of 25-12-2015 is none.
_OFFSET = (
    r"(?:\d:\d{2}(?::\d{2}(?:[.,]\d+)?)?|\dT\d{2,6}(?:[.,]\d+)?)\s*(?:[AaPp][Mm])?\s*"
    r"(Z|[+-]\d{2}(?::?\d{2})?)$"
)


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


@dataclass(frozen=True)
class Origin:
    """The files of a table, to tell a user where a typed row came from."""

    files: tuple[str, ...]
    row_width: int = 1

    def where(self, code: int) -> str:
        """File and 1-based data row of a row code."""
        file, row = code >> _ROW_BITS, code & ((1 << _ROW_BITS) - 1)
        return f"{self.files[file]}: row {row // self.row_width + 1}"

    @property
    def place(self) -> str:
        """The table in an error that concerns no single row."""
        more = f" (and {len(self.files) - 1} more files)" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


def row_codes(file: int, first_row: int, count: int) -> NDArray[np.int64]:
    """Codes of consecutive rows of a file; they sort by file and row."""
    return (file << _ROW_BITS) + first_row + np.arange(count, dtype=np.int64)


def file_of(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """The file of each row code."""
    return codes >> _ROW_BITS


def typed_schema(columns: Columns) -> pa.Schema:
    """Columns of typed rows."""
    return pa.schema(
        [
            (ID_COLUMN, pa.string()),
            (TIME_COLUMN, pa.timestamp("us")),
            *((f"v{number}", pa.float64()) for number in range(len(columns.values))),
            (ROW_COLUMN, pa.int64()),
        ]
    )


def decide_columns(sample: pa.Table, place: str, options: TableOptions) -> Columns:
    """Decide what the columns mean.

    Args:
        sample: the first rows of the first file.
        place: the table in errors.
        options: how the table is to be read.

    Raises:
        DataError: no time column, no value column, or one that was asked for and is not there.
    """
    names = sample.column_names
    rows = options.layout == "rows" or (options.layout == "auto" and names[:2] == ["V1", "V2"])
    if rows:
        if options.frequency is None:
            raise DataError(
                f"{place}: a row holds a whole series and no times (data.layout=rows): give "
                "data.frequency, for example h, or prepare it first with it"
            )
        return Columns(layout="rows", time=None, values=("y",), cells=tuple(names[1:]))
    long = ID_COLUMN in names
    if options.layout not in ("auto", "long" if long else "wide"):
        has = "has" if long else "has no"
        raise DataError(f"{place}: data.layout={options.layout}, but it {has} column {ID_COLUMN!r}")
    time = _find_time_column(sample, place)
    there = [name for name in names if name not in (time, ID_COLUMN)]
    if not there:
        raise DataError(f"{place}: no value columns beside {time!r}")
    kind = sample.schema.field(time).type
    text = _is_text(kind)
    return Columns(
        layout="long" if long else "wide",
        time=time,
        values=choose_values(there, place, options),
        time_format=_guess_format(sample[time], place, time) if text else None,
        zoned=_has_offset(sample[time]) if text else _has_zone(kind),
    )


def _is_text(kind: pa.DataType) -> bool:
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
    if names and _is_text(kinds[names[0]]):
        return names[0]
    raise DataError(
        f"{place}: no time column: name it one of {', '.join(TIME_NAMES)}, or put it first; "
        f"the columns are {names}"
    )


def choose_values(there: Sequence[str], place: str, options: TableOptions) -> tuple[str, ...]:
    """The value columns to use, of those that are there.

    Raises:
        DataError: one that was asked for is not there.
    """
    for name in options.columns or ():
        if name not in there:
            raise DataError(f"{place}: no value column {name!r} (data.columns); there are {there}")
    return options.columns or tuple(there)


def _guess_format(raw: pa.ChunkedArray, place: str, column: str) -> str:
    """ISO 8601, whose precision may vary from row to row, or else the format of the first row."""
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
    return bool(len(texts)) and re.search(_OFFSET, str(texts[0].as_py())) is not None


def _has_zone(kind: pa.DataType) -> bool:
    return getattr(kind, "tz", None) is not None


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
        values = [_numbers(raw, cell, starts, origin, findings) for cell in columns.cells]
        return _unroll(ids, np.stack(values, axis=1), codes, columns), findings
    assert columns.time is not None
    times = _times(raw[columns.time], codes, columns, origin, findings)
    if columns.layout == "long":
        ids = _ids(raw[ID_COLUMN], codes, origin, findings)
    else:
        ids = pa.repeat(pa.scalar(name, pa.string()), len(raw))
    values = [_numbers(raw, value, codes, origin, findings) for value in columns.values]
    if options.missing == "refuse":
        for value, column in zip(columns.values, values, strict=True):
            _refuse_empty(raw, value, column, codes, origin, findings)
    arrays = [ids, pa.array(times, pa.timestamp("us")), *map(pa.array, values), pa.array(codes)]
    return pa.table(arrays, schema=typed_schema(columns)), findings


def _unroll(
    ids: pa.Array, values: NDArray[np.float64], codes: NDArray[np.int64], columns: Columns
) -> pa.Table:
    """One typed row a value; empty cells after a row's last value are no part of its series."""
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
    """Times in UTC, or as the clock showed them where they carry no offset."""
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
    if _is_text(kind):
        _check_offsets(raw, codes, columns, origin, findings)
    elif len(codes) and _has_zone(kind) != columns.zoned:
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
    offsets = raw.astype("str").str.extract(_OFFSET, expand=False)
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


def _numbers(
    raw: pa.Table,
    name: str,
    codes: NDArray[np.int64],
    origin: Origin,
    findings: Findings,
) -> NDArray[np.float64]:
    """Values of one column, NaN where it is empty or not there."""
    if name not in raw.column_names:
        return np.full(len(raw), np.nan)
    column = raw[name]
    if pa.types.is_temporal(column.type):
        raise DataError(f"{origin.place}: column {name!r} holds times, not numbers")
    if _is_text(column.type):
        has_id = ID_COLUMN in raw.column_names
        values = _numbers_of_text(column, name, codes, origin, findings, has_id=has_id)
    else:
        try:
            values = np.array(pc.cast(column, pa.float64(), safe=False).to_numpy())
        except pa.ArrowException as error:
            raise DataError(
                f"{origin.place}: column {name!r} is of {column.type}, not of numbers"
            ) from error
    infinite = np.flatnonzero(np.isinf(values))
    if infinite.size:
        _add_empty(findings, name, "infinite", infinite, codes, origin)
    return values


def _refuse_empty(
    raw: pa.Table,
    name: str,
    values: NDArray[np.float64],
    codes: NDArray[np.int64],
    origin: Origin,
    findings: Findings,
) -> None:
    missing = np.isnan(values)
    if name in raw.column_names and _is_text(raw[name].type):
        texts = raw[name].to_pandas()
        # What is no number was told as such.
        missing &= (texts.isna() | texts.isin(NULLS)).to_numpy()
    empty = np.flatnonzero(missing)
    if empty.size:
        _add_empty(findings, name, "empty or NaN", empty, codes, origin)


def _add_empty(
    findings: Findings,
    name: str,
    kind: str,
    rows: NDArray[np.int64],
    codes: NDArray[np.int64],
    origin: Origin,
) -> None:
    first = int(codes[rows[0]])
    findings.add(
        "empty",
        f"{origin.where(first)}: column {name!r} is {kind} ({{count}} rows of the column are "
        "empty, NaN or infinite); fill or drop them"
        + ("" if kind == "infinite" else ", or say what becomes of them: data.missing"),
        count=rows.size,
        row=first,
        channel=name,
    )


def _numbers_of_text(
    column: pa.ChunkedArray,
    name: str,
    codes: NDArray[np.int64],
    origin: Origin,
    findings: Findings,
    *,
    has_id: bool,
) -> NDArray[np.float64]:
    raw = column.to_pandas()
    numbers = pd.to_numeric(raw, errors="coerce")
    bad = np.flatnonzero(numbers.isna() & ~(raw.isna() | raw.isin(NULLS)))
    if bad.size:
        first, text = int(codes[bad[0]]), str(raw.iloc[bad[0]])
        hint = ""
        if re.fullmatch(r"[+-]?\d+,\d+", text):
            hint = "; write decimals with a point"
        elif bad.size == len(raw):
            hint = "; data.columns says which columns to take"
            if not has_id:
                hint += f"; if it names series, call it {ID_COLUMN}"
        findings.add(
            "number",
            f"{origin.where(first)}: column {name!r} holds {text!r}, which is not a "
            "number ({count} such rows)" + hint,
            count=bad.size,
            row=first,
            channel=name,
        )
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)
