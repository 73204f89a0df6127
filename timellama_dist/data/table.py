"""Reads and checks one user's table: CSV or Parquet, wide or long, into series in memory.

Writes nothing. Every mistake is one `DataError` that names file, column and row or timestamp.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from timellama_dist.data.files import (
    ID_COLUMN,
    NULLS,
    TIME_NAMES,
    Rows,
    Source,
    list_files,
    read_rows,
    source_name,
)
from timellama_dist.data.frequency import infer_frequency
from timellama_dist.errors import ConfigError, DataError

SeriesLayout = Literal["separate", "channels"]
TimestampCheck = Literal["check", "ignore"]


@dataclass(frozen=True, eq=False)
class Series:
    """One series of a table, in time order."""

    unique_id: str
    timestamps: NDArray[np.datetime64]
    """Shape (rows,), datetime64[us], in UTC where the table had time zones."""
    values: NDArray[np.float64]
    """Shape (rows, C), finite."""


@dataclass(frozen=True, eq=False)
class Table:
    """A checked table: series of the same channels and the same step."""

    name: str
    series: tuple[Series, ...]
    channels: tuple[str, ...]
    frequency: str
    """pandas offset alias, such as "h", "15min" or "MS"."""
    source: tuple[str, ...]

    @property
    def num_channels(self) -> int:
        return len(self.channels)


def read_table(
    source: Source,
    *,
    series: SeriesLayout = "separate",
    timestamps: TimestampCheck = "check",
    columns: Sequence[str] | None = None,
    name: str | None = None,
) -> Table:
    """Read and check a CSV or Parquet table.

    Args:
        source: a file, a folder of files, or a list of files of the same columns.
        name: what the table is called; default its file's or folder's name.
        series: see `check_rows`.
        timestamps: see `check_rows`.
        columns: see `check_rows`.

    Raises:
        ConfigError: an unknown choice.
        DataError: anything wrong with the table.
    """
    _check_choices(series, timestamps)
    rows = read_rows(list_files(source))
    name = name or source_name(source, rows.files)
    return check_rows(rows, name, series=series, timestamps=timestamps, columns=columns)


def table_from_frame(
    frame: pd.DataFrame,
    *,
    series: SeriesLayout = "separate",
    timestamps: TimestampCheck = "check",
    columns: Sequence[str] | None = None,
) -> Table:
    """Check a frame as `read_table` checks a file; messages call it "frame".

    Raises:
        ConfigError: an unknown choice.
        DataError: anything wrong with the frame.
    """
    _check_choices(series, timestamps)
    if frame.empty:
        raise DataError("frame: it holds no rows")
    rows = Rows(frame.reset_index(drop=True), (Path("frame"),), np.array([len(frame)]))
    return check_rows(rows, "frame", series=series, timestamps=timestamps, columns=columns)


def _check_choices(series: str, timestamps: str) -> None:
    for key, value, choices in (
        ("data.series", series, ("separate", "channels")),
        ("data.timestamps", timestamps, ("check", "ignore")),
    ):
        if value not in choices:
            raise ConfigError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def check_rows(
    rows: Rows,
    name: str,
    *,
    series: SeriesLayout,
    timestamps: TimestampCheck,
    columns: Sequence[str] | None,
) -> Table:
    """Check rows and sort them into series.

    A table with a column `unique_id` is long (`unique_id, ds, <values>...`), any other is wide
    (`date, <channel>...`).

    Args:
        rows: the rows as they were read.
        name: of the table; a wide table's only series is called so.
        series: of a long table, "separate" keeps each unique_id as a series of its own and
            "channels" makes each unique_id and value column a channel `ID:column` of one series.
        timestamps: "check" refuses unordered and duplicate timestamps and gaps, "ignore" takes
            the rows as they stand.
        columns: value columns to use, in this order; default all of the table's.

    Raises:
        DataError: anything wrong with the table.
    """
    time_column = _find_time_column(rows)
    times = _parse_times(rows, time_column)
    ids, codes = _series_codes(rows, name)
    value_columns = _choose_columns(rows, time_column, columns)
    values = _numeric_values(rows, value_columns)

    # Long tables may interleave their series; inside each, the order of rows is kept.
    order = np.argsort(codes, kind="stable")
    codes, times, values = codes[order], times[order], values[order]
    if timestamps == "check":
        _check_order(rows, ids, codes, times, order)
    frequency, gaps = infer_frequency(times, codes)
    if frequency is None:
        raise DataError(f"{rows.place}: no series has two timestamps, so there is no step to learn")
    if gaps.size and timestamps == "check":
        first = int(gaps[0])
        raise DataError(
            f"{rows.where(order[first + 1])}: irregular step{_of_series(ids, codes[first])}: "
            f"{_stamp(times[first])} is followed by {_stamp(times[first + 1])} where the step is "
            f"{frequency!r} ({gaps.size} such in the table); fill the gaps, or keep the rows as "
            "they stand with data.timestamps=ignore"
        )
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    parts = [
        Series(ids[codes[begin]], times[begin:end], values[begin:end])
        for begin, end in zip(starts, [*starts[1:], len(codes)], strict=True)
    ]
    if series == "channels" and ID_COLUMN in rows.frame:
        parts, value_columns = (
            [_join_as_channels(rows, name, parts)],
            [f"{part.unique_id}:{column}" for part in parts for column in value_columns],
        )
    return Table(name, tuple(parts), tuple(value_columns), frequency, tuple(map(str, rows.files)))


def _find_time_column(rows: Rows) -> str:
    columns = [str(column) for column in rows.frame.columns if column != ID_COLUMN]
    lowered = {column.lower(): column for column in reversed(columns)}
    for name in TIME_NAMES:
        if name in lowered:
            return lowered[name]
    for column in columns:
        if pd.api.types.is_datetime64_any_dtype(rows.frame[column]):
            return column
    if columns and not pd.api.types.is_numeric_dtype(rows.frame[columns[0]]):
        return columns[0]
    raise DataError(
        f"{rows.place}: no time column: name it one of {', '.join(TIME_NAMES)}, or put it first; "
        f"the columns are {columns}"
    )


def _choose_columns(rows: Rows, time_column: str, wanted: Sequence[str] | None) -> list[str]:
    there = [str(column) for column in rows.frame if column not in (time_column, ID_COLUMN)]
    if not there:
        raise DataError(f"{rows.place}: no value columns beside {time_column!r}")
    for column in wanted or ():
        if column not in there:
            raise DataError(
                f"{rows.place}: no value column {column!r} (data.columns); there are {there}"
            )
    chosen = list(wanted or there)
    if len(set(chosen)) < len(chosen):
        raise ConfigError(f"data.columns must name each column once, got {chosen}")
    return chosen


def _parse_times(rows: Rows, column: str) -> NDArray[np.datetime64]:
    raw = rows.frame[column]
    if pd.api.types.is_numeric_dtype(raw):
        raise DataError(
            f"{rows.place}: time column {column!r} holds numbers such as {raw.iloc[0]}; "
            "write dates, for example 2016-07-01 00:00:00"
        )
    # ISO 8601 first, since it may vary in length; else one format, that of the first row.
    parsed = pd.to_datetime(raw, format="ISO8601", errors="coerce", utc=True)
    if parsed.isna().any():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            guessed = pd.to_datetime(raw, errors="coerce", utc=True)
        if guessed.isna().sum() < parsed.isna().sum():
            parsed = guessed
    bad = np.flatnonzero(parsed.isna())
    if bad.size:
        raise DataError(
            f"{rows.where(bad[0])}: time column {column!r} holds {raw.iloc[bad[0]]!r}, which is "
            f"not a time ({bad.size} such rows)"
        )
    return parsed.dt.tz_localize(None).to_numpy(dtype="datetime64[us]")


def _series_codes(rows: Rows, name: str) -> tuple[list[str], NDArray[np.int64]]:
    """Names of the series in order of first appearance, and each row's series."""
    if ID_COLUMN not in rows.frame:
        return [name], np.zeros(len(rows.frame), np.int64)
    raw = rows.frame[ID_COLUMN]
    missing = np.flatnonzero(raw.isna() | (raw.astype(str) == ""))
    if missing.size:
        raise DataError(
            f"{rows.where(missing[0])}: column {ID_COLUMN!r} is empty ({missing.size} such rows)"
        )
    codes, ids = pd.factorize(raw.astype(str))
    return [str(unique_id) for unique_id in ids], codes.astype(np.int64)


def _numeric_values(rows: Rows, columns: list[str]) -> NDArray[np.float64]:
    values = np.empty((len(rows.frame), len(columns)))
    for index, column in enumerate(columns):
        raw = rows.frame[column]
        if pd.api.types.is_datetime64_any_dtype(raw):
            raise DataError(f"{rows.place}: column {column!r} holds times, not numbers")
        numbers = pd.to_numeric(raw, errors="coerce")
        empty = raw.isna() | raw.isin(NULLS)
        bad = np.flatnonzero(numbers.isna() & ~empty)
        if bad.size:
            raise DataError(
                f"{rows.where(bad[0])}: column {column!r} holds {raw.iloc[bad[0]]!r}, which is "
                f"not a number ({bad.size} such rows)"
            )
        values[:, index] = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
        bad = np.flatnonzero(~np.isfinite(values[:, index]))
        if bad.size:
            kind = "empty or NaN" if np.isnan(values[bad[0], index]) else "infinite"
            raise DataError(
                f"{rows.where(bad[0])}: column {column!r} is {kind} ({bad.size} rows of the "
                "column are empty, NaN or infinite); fill or drop them"
            )
    return values


def _check_order(
    rows: Rows,
    ids: list[str],
    codes: NDArray[np.int64],
    times: NDArray[np.datetime64],
    order: NDArray[np.int64],
) -> None:
    same_series = np.diff(codes) == 0
    steps = np.diff(times).astype(np.int64)
    backward = np.flatnonzero(same_series & (steps < 0))
    if backward.size:
        first = int(backward[0])
        raise DataError(
            f"{rows.where(order[first + 1])}: timestamps are not in order"
            f"{_of_series(ids, codes[first])}: {_stamp(times[first])} is followed by "
            f"{_stamp(times[first + 1])} ({backward.size} such rows); sort the table by time, or "
            "keep the rows as they stand with data.timestamps=ignore"
        )
    repeated = np.flatnonzero(same_series & (steps == 0))
    if repeated.size:
        first = int(repeated[0])
        raise DataError(
            f"{rows.where(order[first + 1])}: duplicate timestamp {_stamp(times[first])}"
            f"{_of_series(ids, codes[first])} ({repeated.size} such rows); remove it, or keep the "
            "rows as they stand with data.timestamps=ignore"
        )


def _join_as_channels(rows: Rows, name: str, parts: list[Series]) -> Series:
    first = parts[0]
    for part in parts[1:]:
        common = min(len(first.timestamps), len(part.timestamps))
        differ = np.flatnonzero(first.timestamps[:common] != part.timestamps[:common])
        if differ.size or len(first.timestamps) != len(part.timestamps):
            place = int(differ[0]) if differ.size else common
            stamps = [
                _stamp(series.timestamps[place]) if place < len(series.timestamps) else "no row"
                for series in (part, first)
            ]
            raise DataError(
                f"{rows.place}: data.series=channels needs the same timestamps in every series, "
                f"but the first that differs, number {place + 1}, is {stamps[0]} in "
                f"{part.unique_id!r} and {stamps[1]} in {first.unique_id!r}"
            )
    return Series(name, first.timestamps, np.concatenate([part.values for part in parts], axis=1))


def _of_series(ids: list[str], code: int) -> str:
    return f" in series {ids[code]!r}" if len(ids) > 1 else ""


def _stamp(time: np.datetime64) -> str:
    return str(pd.Timestamp(time))
