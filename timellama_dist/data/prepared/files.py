"""Writes Parquet files of a prepared data set, row group by row group."""

import hashlib
import json
from collections.abc import Iterator
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from timellama_dist.data.prepared.manifest import DataFile
from timellama_dist.data.prepared.options import PrepareOptions
from timellama_dist.data.tables.columns import ID_COLUMN, TIME_COLUMN
from timellama_dist.data.tables.series import Table
from timellama_dist.storage import Place


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
    for unique_id, values in zip(table.unique_ids, series["digest"].to_pylist(), strict=True):
        digest.update(f"{len(unique_id)}:{unique_id}".encode() + values)
    for number, begin in enumerate(range(0, len(table.values), options.rows_per_file)):
        end = min(begin + options.rows_per_file, len(table.values))
        edges = np.searchsorted(table.first_rows, [begin, end - 1], side="right") - 1
        yield write_file(
            output,
            f"data/{digest.hexdigest()}-{number:05d}.parquet",
            _row_groups(table, begin, end, group_rows),
            first_id=table.unique_ids[edges[0]],
            last_id=table.unique_ids[edges[1]],
            inputs=inputs,
        )


def _row_groups(table: Table, begin: int, end: int, rows_per_group: int) -> Iterator[pa.Table]:
    """Cut rows [begin, end) of the table into row groups, which may straddle series."""
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
        """Do nothing: the stream below is flushed when it is closed."""

    def close(self) -> None:
        self.closed = True

    def sha256(self) -> str:
        return self._digest.hexdigest()


def write_file(
    output: Place,
    path: str,
    groups: Iterator[pa.Table],
    *,
    first_id: str = "",
    last_id: str = "",
    inputs: tuple[int, ...] = (),
) -> DataFile:
    """Write one Parquet file of these row groups, of which there is at least one."""
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
