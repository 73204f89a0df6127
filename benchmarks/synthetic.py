"""Tables of random walks on disk, written row group by row group, whatever their size."""

import hashlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from timellama_dist.data.prepared.manifest import SCHEMA_VERSION, DataFile, Manifest

_GROUP_ROWS = 8192
_FILE_ROWS = 1 << 20
_HOUR = np.timedelta64(1, "h")
_START = np.datetime64("2000-01-01", "us")


def write_prepared_walks(
    folder: Path, *, num_series: int, num_rows: int, num_channels: int
) -> None:
    """A prepared data set of equally long series, `num_rows` rows in all; never held in memory.

    The scaler is the walks' own, near enough, not measured: nothing here is trained to any end.
    """
    (folder / "data").mkdir(parents=True)
    channels = tuple(f"c{n}" for n in range(num_channels))
    length = num_rows // num_series
    rng = np.random.default_rng(0)
    files = []
    for number, begin in enumerate(range(0, length * num_series, _FILE_ROWS)):
        rows = min(_FILE_ROWS, length * num_series - begin)
        files.append(_write(folder, f"data/part-{number:05d}.parquet", _walks(rng, rows, channels)))
    std = [float(np.sqrt(_GROUP_ROWS / 2))] * num_channels
    series = pa.table(
        {
            "unique_id": [f"s{n}" for n in range(num_series)],
            "first_row": pa.array(range(0, length * num_series, length), pa.int64()),
            "num_rows": pa.array([length] * num_series, pa.int64()),
            "first_ds": pa.array([_START] * num_series, pa.timestamp("us")),
            "last_ds": pa.array([_START + (length - 1) * _HOUR] * num_series, pa.timestamp("us")),
            "mean": [[0.0] * num_channels] * num_series,
            "std": [std] * num_series,
        }
    )
    Manifest(
        schema_version=SCHEMA_VERSION,
        name="walks",
        channels=channels,
        frequency="h",
        season_len=24,
        num_series=num_series,
        num_rows=length * num_series,
        split=(0.8, 0.1, 0.1),
        scaler="standard",
        prompt="Random walks.",
        files=tuple(files),
        series_file=_write(folder, "series.parquet", iter([series])),
        content_hash=f"walks {num_series} {num_rows} {num_channels}",
        inputs=(),
        options={},
        notes=(),
    ).save(folder)


def write_long_parquet(path: Path, *, num_series: int, rows: int) -> None:
    """A long table of short series of one channel, as users have it."""
    stamps = np.tile(_START + np.arange(rows) * _HOUR, max(1, _FILE_ROWS // rows))
    rng = np.random.default_rng(0)

    def groups() -> Iterator[pa.Table]:
        per_group = len(stamps) // rows
        for first in range(0, num_series, per_group):
            count = min(per_group, num_series - first)
            ids = pa.array([f"s{number:09d}" for number in range(first, first + count)])
            codes = pa.array(np.repeat(np.arange(count, dtype=np.int32), rows))
            values = rng.normal(size=(count, rows)).cumsum(axis=1).reshape(-1)
            yield pa.table(
                {
                    "unique_id": ids.take(codes),
                    "ds": stamps[: count * rows],
                    "y": values,
                }
            )

    _write(path.parent, path.name, groups())


def _walks(rng: np.random.Generator, rows: int, channels: tuple[str, ...]) -> Iterator[pa.Table]:
    for first in range(0, rows, _GROUP_ROWS):
        count = min(_GROUP_ROWS, rows - first)
        steps = rng.standard_normal((len(channels), count)).cumsum(axis=1)
        yield pa.table(dict(zip(channels, steps, strict=True)))


def _write(folder: Path, path: str, groups: Iterator[pa.Table]) -> DataFile:
    first = next(groups)
    lengths = []
    with pq.ParquetWriter(folder / path, first.schema, use_dictionary=False) as writer:
        for group in chain([first], groups):
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
