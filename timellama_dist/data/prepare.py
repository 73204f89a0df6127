"""Writes a checked table as a prepared data set: Parquet, per-series scalers and a manifest.

`output/` then holds `manifest.json`, `series.parquet` (one row a series) and
`data/part-00000.parquet`... with the columns `unique_id`, `ds` and one a channel; a series' rows
are contiguous and in time order.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from timellama_dist.data.files import ID_COLUMN, Source
from timellama_dist.data.frequency import season_len
from timellama_dist.data.manifest import MANIFEST_NAME, SCHEMA_VERSION, DataFile, Manifest
from timellama_dist.data.scaling import Scaler
from timellama_dist.data.table import SeriesLayout, Table, TimestampCheck, read_table
from timellama_dist.data.windows import train_rows
from timellama_dist.errors import ConfigError, DataError

TIME_COLUMN = "ds"
DEFAULT_SPLIT = (0.7, 0.1, 0.2)

_CHANNELS_IN_PROMPT = 24
_UNITS = {
    "h": "hour",
    "min": "minute",
    "s": "second",
    "D": "day",
    "B": "business day",
    "W": "week",
    "MS": "month",
    "ME": "month",
    "QS": "quarter",
    "QE": "quarter",
    "YS": "year",
    "YE": "year",
}


def prepare(
    source: Source,
    output: str | Path,
    *,
    series: SeriesLayout = "separate",
    timestamps: TimestampCheck = "check",
    columns: Sequence[str] | None = None,
    split: Sequence[float] = DEFAULT_SPLIT,
    name: str | None = None,
    prompt: str | None = None,
) -> Manifest:
    """Read, check and write a table: `read_table` and `write_prepared` in sequence."""
    table = read_table(source, series=series, timestamps=timestamps, columns=columns)
    return write_prepared(table, output, split=split, name=name, prompt=prompt)


def write_prepared(
    table: Table,
    output: str | Path,
    *,
    split: Sequence[float] = DEFAULT_SPLIT,
    name: str | None = None,
    prompt: str | None = None,
    rows_per_file: int = 1 << 20,
    rows_per_group: int = 8192,
) -> Manifest:
    """Write a table as a prepared data set, all of it or nothing.

    Does nothing where `output` already holds this content. Replaces another prepared data set,
    and nothing else.

    Args:
        table: the checked table.
        output: folder to make.
        split: fractions or rows of the train, validation and test part; see `split_borders`.
        name: the data set's name; default the source's file name.
        prompt: text that describes the data set to the model; default one made from the table.
        rows_per_file: rows of a Parquet file.
        rows_per_group: rows of a row group, the least that a reader reads at once.

    Raises:
        ConfigError: a split that the series cannot be cut into.
        DataError: a channel named like one of the columns `unique_id` and `ds`, or an `output`
            that holds something else.
    """
    output = Path(output)
    name = name or table.name
    prompt = prompt or default_prompt(table, name)
    for channel in table.channels:
        if channel in (ID_COLUMN, TIME_COLUMN):
            raise DataError(f"a channel may not be named {channel!r}; rename the column")
    scalers = _fit_scalers(table, split)
    content_hash = _content_hash(table, split, name, prompt)
    existing = _existing(output)
    if existing is not None and existing.content_hash == content_hash:
        return existing
    output.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    try:
        fresh = work / "new"
        (fresh / "data").mkdir(parents=True)
        files = _write_rows(table, fresh, rows_per_file, rows_per_group)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=name,
            channels=table.channels,
            frequency=table.frequency,
            season_len=season_len(table.frequency),
            num_series=len(table.series),
            num_rows=sum(file.num_rows for file in files),
            split=tuple(split),
            scaler="standard",
            prompt=prompt,
            files=files,
            series_file=_write_series(table, scalers, fresh),
            content_hash=content_hash,
            source=table.source,
        )
        manifest.save(fresh)
        _swap(fresh, output, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return manifest


def default_prompt(table: Table, name: str) -> str:
    """A plain description of a table, for users who write none.

    Says nothing of context or horizon: one data set serves many of them.
    """
    shown = ", ".join(table.channels[:_CHANNELS_IN_PROMPT])
    if table.num_channels > _CHANNELS_IN_PROMPT:
        shown += ", ..."
    channels = f"{table.num_channels} channel{'s' if table.num_channels > 1 else ''} ({shown})"
    of_series = f" in each of {len(table.series)} series" if len(table.series) > 1 else ""
    first = min(series.timestamps[0] for series in table.series).astype("datetime64[D]")
    last = max(series.timestamps[-1] for series in table.series).astype("datetime64[D]")
    return (
        f"The {name} data set holds {channels}{of_series}, recorded every "
        f"{_step_in_words(table.frequency)} from {first} to {last}. "
        "The task is to forecast the next values of each channel from its past values."
    )


def _step_in_words(frequency: str) -> str:
    alias = frequency.split("-")[0]
    unit = alias.lstrip("0123456789")
    count = alias[: len(alias) - len(unit)]
    word = _UNITS.get(unit, unit)
    return f"{count} {word}s" if count else word


def _fit_scalers(table: Table, split: Sequence[float]) -> list[Scaler]:
    ends = train_rows([len(series.values) for series in table.series], split)
    scalers = []
    for series, end in zip(table.series, ends, strict=True):
        if end < 1:
            raise ConfigError(
                f"data.split {list(split)} leaves no training row in series "
                f"{series.unique_id!r} of {len(series.values)} rows, so it cannot be scaled"
            )
        scalers.append(Scaler.fit(series.values[:end]))
    return scalers


def _content_hash(table: Table, split: Sequence[float], name: str, prompt: str) -> str:
    digest = hashlib.sha256()
    ids = [(series.unique_id, len(series.values)) for series in table.series]
    # float(): the split (1, 0, 0) of a YAML file is the split (1.0, 0.0, 0.0) of a flag.
    facts = [SCHEMA_VERSION, name, prompt, table.channels, table.frequency, ids]
    digest.update(json.dumps([*facts, [float(part) for part in split]]).encode())
    for series in table.series:
        digest.update(series.timestamps.tobytes())
        digest.update(series.values.tobytes())
    return digest.hexdigest()


def _existing(output: Path) -> Manifest | None:
    """The usable data set at `output`; None if there is none or a damaged one.

    Raises:
        DataError: `output` is something else, which must not be replaced.
    """
    if not output.exists():
        return None
    if not (output / MANIFEST_NAME).is_file() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"{output}: exists and is not a prepared data set; choose another output")
    try:
        return Manifest.load(output)
    except DataError:
        return None


def _swap(fresh: Path, output: Path, aside: Path) -> None:
    if output.exists():
        output.rename(aside)
    try:
        fresh.rename(output)
    except OSError:
        if aside.exists():
            aside.rename(output)
        raise


def _write_rows(
    table: Table, folder: Path, rows_per_file: int, rows_per_group: int
) -> tuple[DataFile, ...]:
    num_rows = sum(len(series.values) for series in table.series)
    return tuple(
        _write_file(
            folder,
            f"data/part-{number:05d}.parquet",
            _row_groups(table, begin, min(begin + rows_per_file, num_rows), rows_per_group),
            pa.schema(
                [
                    (ID_COLUMN, pa.dictionary(pa.int32(), pa.string())),
                    (TIME_COLUMN, pa.timestamp("us")),
                    *((channel, pa.float64()) for channel in table.channels),
                ]
            ),
        )
        for number, begin in enumerate(range(0, num_rows, rows_per_file))
    )


def _row_groups(
    table: Table, begin: int, end: int, rows_per_group: int
) -> Iterator[list[pa.Array]]:
    """Columns of the row groups of global rows [begin, end), which may straddle series."""
    first_rows = np.cumsum([0, *(len(series.values) for series in table.series)])
    for first in range(begin, end, rows_per_group):
        last = min(first + rows_per_group, end)
        ids, lengths, times, values = [], [], [], []
        index = int(np.searchsorted(first_rows, first, side="right")) - 1
        while index < len(table.series) and first_rows[index] < last:
            series, offset = table.series[index], first_rows[index]
            here = slice(max(first - offset, 0), last - offset)
            ids.append(series.unique_id)
            times.append(series.timestamps[here])
            values.append(series.values[here])
            lengths.append(len(times[-1]))
            index += 1
        block = np.concatenate(values)
        codes = np.repeat(np.arange(len(ids), dtype=np.int32), lengths)
        yield [
            pa.DictionaryArray.from_arrays(codes, pa.array(ids, pa.string())),
            pa.array(np.concatenate(times), pa.timestamp("us")),
            *(pa.array(np.ascontiguousarray(column)) for column in block.T),
        ]


def _write_series(table: Table, scalers: Sequence[Scaler], folder: Path) -> DataFile:
    num_rows = [len(series.values) for series in table.series]
    columns = {
        ID_COLUMN: pa.array([series.unique_id for series in table.series], pa.string()),
        "first_row": pa.array(np.cumsum([0, *num_rows[:-1]]), pa.int64()),
        "num_rows": pa.array(num_rows, pa.int64()),
        "first_ds": pa.array([series.timestamps[0] for series in table.series], pa.timestamp("us")),
        "last_ds": pa.array([series.timestamps[-1] for series in table.series], pa.timestamp("us")),
        "mean": pa.array([scaler.mean for scaler in scalers], pa.list_(pa.float64())),
        "std": pa.array([scaler.std for scaler in scalers], pa.list_(pa.float64())),
    }
    rows = pa.table(columns)
    groups = iter([[column.combine_chunks() for column in rows.columns]])
    return _write_file(folder, "series.parquet", groups, rows.schema)


def _write_file(
    folder: Path, path: str, groups: Iterator[list[pa.Array]], schema: pa.Schema
) -> DataFile:
    lengths = []
    with pq.ParquetWriter(
        folder / path, schema, compression="zstd", use_dictionary=[ID_COLUMN]
    ) as writer:
        for columns in groups:
            group = pa.table(columns, schema=schema)
            writer.write_table(group, row_group_size=len(group))
            lengths.append(len(group))
    with (folder / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return DataFile(
        path=path,
        num_rows=sum(lengths),
        num_bytes=(folder / path).stat().st_size,
        row_groups=tuple(lengths),
        sha256=digest,
    )
