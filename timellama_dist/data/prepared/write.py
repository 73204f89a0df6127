"""Writes arranged series as a prepared data set: Parquet, per-series scalers and a manifest.

`output/` then holds `manifest.json`, `series-<hash>.parquet` (one row a series) and
`data/<hash>-00000.parquet`... with the columns `unique_id`, `ds` and one a channel; a series' rows
are contiguous and in time order, and series lie in the order of their ids. A file's name comes from
its content, and the manifest is written last: whoever reads sees the old data set or the new one.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from timellama_dist.data.prepared.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    DataFile,
    InputFile,
    Manifest,
)
from timellama_dist.data.prepared.scaling import Scaler
from timellama_dist.data.tables.files import Source
from timellama_dist.data.tables.findings import Findings
from timellama_dist.data.tables.frequency import season_len, step_in_words
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.parsing import ID_COLUMN, TIME_COLUMN
from timellama_dist.data.tables.series import Table
from timellama_dist.data.tables.table import read_table
from timellama_dist.data.windows.index import SplitBy, series_in_split, train_rows
from timellama_dist.errors import ConfigError, DataError, require_at_least
from timellama_dist.storage import Location, Place, open_place

DEFAULT_SPLIT = (0.7, 0.1, 0.2)

SERIES_SCHEMA = pa.schema(
    [
        (ID_COLUMN, pa.string()),
        ("num_rows", pa.int64()),
        ("first_ds", pa.timestamp("us")),
        ("last_ds", pa.timestamp("us")),
        ("mean", pa.list_(pa.float64())),
        ("std", pa.list_(pa.float64())),
        ("digest", pa.binary(16)),
        ("num_observed", pa.list_(pa.int64())),
    ]
)
"""One row a series, see `describe_series`; `num_observed` is not kept in the series file."""

UNTRAINED = "series dropped that data.split"
"""In the note about series without a training row."""
_FILE = r"(series-[0-9a-f]{16}|[0-9a-f]{16}-\d{5,})\.parquet"
_WRITTEN = re.compile(rf"{_FILE}|\.({_FILE}|{re.escape(MANIFEST_NAME)})\.[0-9a-f]{{12}}")
"""Names of files of ours but the manifest's, and of files that are being written."""

_CHANNELS_IN_PROMPT = 24
_GROUP_BYTES = 1 << 20
_GROUP_ROWS = (1024, 8192)


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """What a prepared data set is to be, beside the table's own options."""

    split: tuple[float, ...] = DEFAULT_SPLIT
    """Fractions or rows of the train, validation and test part; see `split_borders`."""
    split_by: SplitBy = "time"
    name: str | None = None
    """Default the source's name."""
    prompt: str | None = None
    """Text that describes the data set to the model; default one made from the table."""
    rows_per_file: int = 1 << 20
    rows_per_group: int | None = None
    """Rows of a row group, the least that a reader reads at once; default about 1 MiB."""

    def __post_init__(self) -> None:
        require_at_least(
            1, {"rows_per_file": self.rows_per_file, "rows_per_group": self.rows_per_group}
        )
        if self.split_by == "series":
            # Of how many is not known yet, but that they must be fractions.
            series_in_split(0, self.split, "train")

    def group_rows(self, num_channels: int) -> int:
        """Rows of a row group: a window of 1000 rows touches one or two."""
        least, most = _GROUP_ROWS
        return self.rows_per_group or max(least, min(most, _GROUP_BYTES // (8 * num_channels)))


def prepare(
    source: Source,
    output: Location,
    *,
    table: TableOptions | None = None,
    **options: Any,
) -> Manifest:
    """Read, check and write a table that fits into memory: `read_table` and `write_prepared`.

    Args:
        source: a file, a folder of files, or a list of files.
        output: folder to make.
        table: how to read the table.
        options: fields of `PrepareOptions`.
    """
    return write_prepared(read_table(source, table), output, options=table, **options)


def write_prepared(
    table: Table,
    output: Location,
    *,
    options: TableOptions | None = None,
    **prepare_options: Any,
) -> Manifest:
    """Write a table as a prepared data set, all of it or nothing.

    Does nothing where `output` already holds this content. Replaces another prepared data set,
    and nothing else.

    Args:
        table: the checked table.
        output: folder to make, a local path or a URI.
        options: how the table was read, for the manifest.
        prepare_options: fields of `PrepareOptions`.

    Raises:
        ConfigError: a split that the series cannot be cut into.
        DataError: a channel named like one of the columns `unique_id` and `ds`, or an `output`
            that holds something else.
    """
    place, wanted = open_place(output), PrepareOptions(**prepare_options)
    table, series, draft = _draft(table, options, wanted)
    existing = existing_data(place)
    if existing is not None and existing.content_hash == draft.content_hash(series):
        return existing
    written: list[DataFile] = []
    try:
        for file in write_rows(table, series, place, wanted):
            written.append(file)
        return draft.publish(place, written, series)
    except BaseException:
        remove_strays(place, existing)
        raise


def content_hash(
    table: Table, *, options: TableOptions | None = None, **prepare_options: Any
) -> str:
    """That of the manifest that `write_prepared` would write.

    Raises:
        ConfigError, DataError: as `write_prepared`.
    """
    _, series, draft = _draft(table, options, PrepareOptions(**prepare_options))
    return draft.content_hash(series)


def _draft(
    table: Table, options: TableOptions | None, wanted: PrepareOptions
) -> tuple[Table, pa.Table, "Draft"]:
    """What of a table will be written, its series, and the data set to be."""
    findings = Findings()
    table = drop_untrained(table, wanted, findings)
    if error := no_training(len(table.unique_ids), wanted, findings):
        raise error
    draft = Draft(
        name=wanted.name or table.name,
        channels=table.channels,
        frequency=str(table.frequency),
        options=options or TableOptions(),
        prepare=wanted,
        inputs=tuple(InputFile(path=path, fingerprint="") for path in table.source),
        notes=(*table.notes, *(one.text() for one in findings.notes)),
    )
    return table, describe_series(table, wanted), draft


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A prepared data set whose rows are written and whose manifest is not."""

    name: str
    channels: tuple[str, ...]
    frequency: str
    options: TableOptions
    prepare: PrepareOptions
    inputs: tuple[InputFile, ...]
    notes: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """All options as the manifest keeps them, to tell whether a run asks for the same."""
        given = asdict(self.options) | asdict(self.prepare)
        return dict(json.loads(json.dumps(given)))

    def prompt(self, series: pa.Table) -> str:
        """The user's text, or a plain description of the table.

        Says nothing of context or horizon: one data set serves many of them.
        """
        if self.prepare.prompt is not None:
            return self.prepare.prompt
        count = len(self.channels)
        shown = ", ".join(self.channels[:_CHANNELS_IN_PROMPT])
        if count > _CHANNELS_IN_PROMPT:
            shown += ", ..."
        channels = f"{count} channel{'s' if count > 1 else ''} ({shown})"
        of_series = f" in each of {len(series)} series" if len(series) > 1 else ""
        first = series["first_ds"].to_numpy().min().astype("datetime64[D]")
        last = series["last_ds"].to_numpy().max().astype("datetime64[D]")
        return (
            f"The {self.name} data set holds {channels}{of_series}, recorded every "
            f"{step_in_words(self.frequency)} from {first} to {last}. "
            "The task is to forecast the next values of each channel from its past values."
        )

    def content_hash(self, series: pa.Table) -> str:
        """Hash of values, times, names, split and prompt: not of how files are cut."""
        # float(): the split (1, 0, 0) of a YAML file is the split (1.0, 0.0, 0.0) of a flag.
        split = [float(part) for part in self.prepare.split]
        facts = [
            *(SCHEMA_VERSION, self.name, self.prompt(series), self.channels, self.frequency),
            *(split, self.prepare.split_by),
        ]
        digest = hashlib.sha256(json.dumps(facts).encode())
        for unique_id, one in zip(
            series[ID_COLUMN].to_pylist(), series["digest"].to_pylist(), strict=True
        ):
            digest.update(f"{len(unique_id)}:{unique_id}".encode() + one)
        return digest.hexdigest()

    def publish(
        self,
        output: Place,
        files: Sequence[DataFile],
        series: pa.Table,
    ) -> Manifest:
        """Write the table of series and then the manifest; remove what neither needs any more.

        Args:
            output: the data set's folder.
            files: all its files, in the order of ids.
            series: all its series (see `describe_series`), in the order of ids.
        """
        assert sum(file.num_rows for file in files) == sum(series["num_rows"].to_pylist())
        content_hash = self.content_hash(series)
        if self.prepare.split_by == "series":
            series = _pooled(series, self.prepare.split)
        first_rows = np.cumsum([0, *series["num_rows"].to_pylist()])[:-1]
        series = series.drop_columns("num_observed").add_column(
            1, "first_row", pa.array(first_rows)
        )
        groups = iter([series.combine_chunks()])
        series_file = _write_file(output, f"series-{content_hash[:16]}.parquet", groups)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            name=self.name,
            channels=self.channels,
            frequency=self.frequency,
            season_len=season_len(self.frequency),
            num_series=len(series),
            num_rows=sum(file.num_rows for file in files),
            split=tuple(self.prepare.split),
            split_by=self.prepare.split_by,
            scaler="standard",
            prompt=self.prompt(series),
            files=tuple(files),
            series_file=series_file,
            content_hash=content_hash,
            inputs=self.inputs,
            options=self.facts(),
            notes=self.notes,
        )
        manifest.save(output)
        remove_strays(output, manifest)
        return manifest


def drop_untrained(table: Table, options: PrepareOptions, findings: Findings) -> Table:
    """Leave out, and count, series without a training row, since nothing tells their scale.

    Raises:
        ConfigError: a split that the series cannot be cut into.
    """
    if options.split_by == "series":
        return table
    trained = train_rows(table.num_rows, options.split) >= 1
    if trained.all():
        return table
    first = int(np.flatnonzero(~trained)[0])
    findings.add(
        "untrained",
        f"{{count}} {UNTRAINED} {list(options.split)} leaves no training row, "
        f"so that they cannot be scaled; the first is {table.unique_ids[first]!r} of "
        f"{table.num_rows[first]} rows",
        count=int((~trained).sum()),
        row=0,
        fatal=False,
    )
    return table.select(trained)


def no_training(num_series: int, options: PrepareOptions, findings: Findings) -> ConfigError | None:
    """The error about series none of which is trained on, None if one is.

    Args:
        num_series: how many `drop_untrained` has left.
        options: the split.
        findings: what it has found.
    """
    if not num_series:
        [untrained] = [one for one in findings if one.kind == "untrained"]
        return ConfigError(f"nothing is left to train on: {untrained.text()}")
    by_series = options.split_by == "series"
    if by_series and not series_in_split(num_series, options.split, "train").any():
        return ConfigError(
            f"data.split {list(options.split)} of {num_series} series (data.split_by=series) "
            "leaves none to train on"
        )
    return None


def describe_series(table: Table, options: PrepareOptions) -> pa.Table:
    """One row a series: its id, length, times, scaler and digest.

    Args:
        table: the series, each with a training row.
        options: the split, by which the scaler's rows are chosen.

    Returns:
        The columns of `SERIES_SCHEMA`.

    Raises:
        DataError: a channel named like another column, or values that are too large.
    """
    for channel in table.channels:
        if channel in (ID_COLUMN, TIME_COLUMN):
            raise DataError(f"a channel may not be named {channel!r}; rename the column")
    begins, ends = table.first_rows[:-1], table.first_rows[1:]
    if options.split_by == "series":
        # Pooled later, where a constant series has no spread of its own.
        scaler = Scaler.fit_parts(table.values, begins, ends, constant_scale=0.0)
    else:
        num_train = train_rows(table.num_rows, options.split)
        scaler = Scaler.fit_parts(table.values, begins, begins + num_train)
    columns = [
        pa.array(table.unique_ids, pa.string()),
        pa.array(table.num_rows, pa.int64()),
        pa.array(table.timestamps[begins], pa.timestamp("us")),
        pa.array(table.timestamps[ends - 1], pa.timestamp("us")),
        _lists(scaler.mean),
        _lists(scaler.std),
        pa.array(_digests(table), pa.binary(16)),
        _lists(np.add.reduceat(np.isfinite(table.values), begins, axis=0, dtype=np.int64)),
    ]
    return pa.table(columns, schema=SERIES_SCHEMA)


def _lists(rows: np.ndarray) -> pa.Array:
    flat = pa.array(rows.ravel())
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]).cast(pa.list_(flat.type))


def _digests(table: Table) -> list[bytes]:
    times, values = table.timestamps, np.ascontiguousarray(table.values)
    return [
        hashlib.blake2b(
            times[begin:end].tobytes() + values[begin:end].tobytes(), digest_size=16
        ).digest()
        for begin, end in zip(table.first_rows[:-1], table.first_rows[1:], strict=True)
    ]


def _pooled(series: pa.Table, split: Sequence[float]) -> pa.Table:
    """Every series' scaler from the training series together, weighted by observed values."""
    train = series_in_split(len(series), split, "train")
    mean, std, num = (
        np.array(series[name].to_pylist())[train] for name in ("mean", "std", "num_observed")
    )
    # A channel that none of them has is a constant 0, as in `Scaler.fit`.
    total = np.maximum(num.sum(axis=0), 1)
    pooled = (mean * num).sum(axis=0) / total
    spread = np.sqrt(((np.square(std) + np.square(mean - pooled)) * num).sum(axis=0) / total)
    for name, row in (("mean", pooled), ("std", np.where(spread == 0, 1.0, spread))):
        column = _lists(np.tile(row, (len(series), 1)))
        series = series.set_column(series.column_names.index(name), name, column)
    return series


def write_rows(
    table: Table,
    series: pa.Table,
    output: Place,
    options: PrepareOptions,
    inputs: tuple[int, ...] = (0,),
) -> Iterator[DataFile]:
    """Write the rows of some series into files of their own; one file after the other.

    Args:
        table: the series.
        series: their description.
        output: the data set's folder.
        options: how long files and row groups are.
        inputs: numbers of the files that the rows come from.
    """
    group_rows = options.group_rows(table.num_channels)
    key = [table.channels, group_rows, options.rows_per_file, inputs]
    digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8)
    for unique_id, one in zip(table.unique_ids, series["digest"].to_pylist(), strict=True):
        digest.update(f"{len(unique_id)}:{unique_id}".encode() + one)
    for number, begin in enumerate(range(0, len(table.values), options.rows_per_file)):
        end = min(begin + options.rows_per_file, len(table.values))
        edges = np.searchsorted(table.first_rows, [begin, end - 1], side="right") - 1
        yield _write_file(
            output,
            f"data/{digest.hexdigest()}-{number:05d}.parquet",
            _row_groups(table, begin, end, group_rows),
            first_id=table.unique_ids[edges[0]],
            last_id=table.unique_ids[edges[1]],
            inputs=inputs,
        )


def _row_groups(table: Table, begin: int, end: int, rows_per_group: int) -> Iterator[pa.Table]:
    """Row groups of rows [begin, end) of the table; they may straddle series."""
    for first in range(begin, end, rows_per_group):
        last = min(first + rows_per_group, end)
        codes = np.searchsorted(table.first_rows, np.arange(first, last), side="right") - 1
        ids = pa.array(table.unique_ids[codes[0] : codes[-1] + 1], pa.string())
        columns = {
            ID_COLUMN: pa.DictionaryArray.from_arrays((codes - codes[0]).astype(np.int32), ids),
            TIME_COLUMN: pa.array(table.timestamps[first:last], pa.timestamp("us")),
        }
        for channel, values in zip(table.channels, table.values[first:last].T, strict=True):
            columns[channel] = pa.array(np.ascontiguousarray(values))
        yield pa.table(columns)


class _HashingSink:
    """Passes bytes on to a stream and hashes them."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.num_bytes = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        self._stream.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """The stream below is flushed when it is closed."""

    def close(self) -> None:
        self.closed = True

    def sha256(self) -> str:
        return self._digest.hexdigest()


def _write_file(
    output: Place,
    path: str,
    groups: Iterator[pa.Table],
    *,
    first_id: str = "",
    last_id: str = "",
    inputs: tuple[int, ...] = (),
) -> DataFile:
    lengths = []
    first = next(groups)
    with (output / path).open_output_stream() as stream:
        sink = _HashingSink(stream)
        with pq.ParquetWriter(
            pa.PythonFile(sink, mode="w"),
            first.schema,
            compression="zstd",
            use_dictionary=[ID_COLUMN],
        ) as writer:
            for group in chain([first], groups):
                writer.write_table(group, row_group_size=len(group))
                lengths.append(len(group))
    return DataFile(
        path=path,
        num_rows=sum(lengths),
        num_bytes=sink.num_bytes,
        row_groups=tuple(lengths),
        sha256=sink.sha256(),
        first_id=first_id,
        last_id=last_id,
        inputs=inputs,
    )


def existing_data(output: Place) -> Manifest | None:
    """The usable data set at `output`; None if there is none or a damaged one.

    Raises:
        DataError: `output` is something else, which must not be replaced.
    """
    if not output.exists():
        return None
    if not (output.is_dir() and _is_ours(output)):
        raise DataError(f"{output}: exists and is not a prepared data set; choose another output")
    try:
        return Manifest.load(output)
    except DataError:
        return None


def _is_ours(folder: Place) -> bool:
    manifest = folder / MANIFEST_NAME
    if manifest.is_file():
        text = manifest.read_text()
        try:
            fields = json.loads(text)
        except ValueError:
            return False
        # Other programs have files of that name.
        return isinstance(fields, dict) and {"schema_version", "content_hash"} <= fields.keys()
    # What a run that was killed may have left.
    data = folder / "data"
    inside = [child for child in folder.children() if child.name != data.name]
    inside += data.children() if data.is_dir() else []
    return all(_WRITTEN.fullmatch(child.name) for child in inside)


def remove_strays(output: Place, manifest: Manifest | None) -> None:
    """Remove files of ours that the manifest doesn't name; without any, also folders left empty.

    Only in a folder that `existing_data` has accepted; what else lies in it stays.
    """
    if manifest is None and (output / MANIFEST_NAME).exists():
        return
    kept = set()
    if manifest is not None:
        kept = {manifest.series_file.path, *(file.path for file in manifest.files)}
    for folder, prefix in ((output / "data", "data/"), (output, "")):
        if not folder.is_dir():
            continue
        for child in folder.children():
            if _WRITTEN.fullmatch(child.name) and f"{prefix}{child.name}" not in kept:
                child.delete()
        if manifest is None and not folder.children():
            folder.delete()
