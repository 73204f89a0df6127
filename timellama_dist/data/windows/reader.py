"""Reads scaled windows of one split from a prepared data set, by window id.

Opens only the row groups that the windows lie in. No Ray here: the pipelines that call it in
their tasks are in `stream.py`.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from timellama_dist.data.prepared.manifest import Manifest
from timellama_dist.data.prepared.scaling import Scaler
from timellama_dist.data.tables.parsing import ID_COLUMN
from timellama_dist.data.windows.index import WindowIndex
from timellama_dist.data.windows.shuffle import fitting_chunks
from timellama_dist.data.windows.spans import Batch, LocatedWindows, RowSpans
from timellama_dist.data.windows.spec import WindowSpec
from timellama_dist.errors import ConfigError, DataError
from timellama_dist.storage import Location, Place, open_place

_OPEN_FILES = 16
CACHE_BYTES = 32 << 20
# Of all readers that a process keeps: a run over many data sets has many, with smaller caches.
_MOST_CACHE_BYTES = 1 << 30


@dataclass(frozen=True, kw_only=True)
class ReaderHandle:
    """All that another process needs to open the same reader."""

    path: str
    """An absolute path or a URI."""
    spec: WindowSpec
    cache_bytes: int
    content_hash: str


class WindowReader:
    """Windows of one split of a prepared data set.

    Pickles as its `handle`; a process that unpickles it opens the files once, whatever the number
    of copies it is sent.

    Attributes:
        spec: which windows are meant.
        handle: what opens the same reader elsewhere, with the content hash of the data seen.
        manifest: the data set's manifest.
        index: the split's windows.
        first_row: global row at which each series begins, shape (series,).
        num_rows: rows of each series, shape (series,).
        cached_bytes: bytes of scaled row groups in memory now.
    """

    def __init__(self, path: Location, spec: WindowSpec, *, cache_bytes: int = CACHE_BYTES) -> None:
        """Open the manifest and the series' table; no rows are read yet.

        Args:
            path: folder of a prepared data set, a local path or a URI.
            spec: which windows are meant.
            cache_bytes: most bytes of scaled row groups to keep in memory.

        Raises:
            ConfigError: no series of the split is as long as one window.
            DataError: not a prepared data set, or a damaged one.
        """
        self._folder = open_place(path)
        self.manifest = Manifest.load(self._folder)
        self.spec = spec
        self._read_series()
        self.index = WindowIndex.build(self.num_rows, spec, self.manifest.split_rule)
        if len(self.index) == 0:
            raise ConfigError(
                f"data.context_len={spec.context_len} + data.horizon={spec.horizon} rows do not "
                f"fit into the {spec.split} part of {self.manifest.name!r}: its longest series has "
                f"{self.num_rows.max()} rows, cut by data.split={list(self.manifest.split)} and "
                f"data.train_fraction={spec.train_fraction}"
            )
        self.handle = ReaderHandle(
            path=self._folder.uri,
            spec=spec,
            cache_bytes=cache_bytes,
            content_hash=self.manifest.content_hash,
        )
        lengths = [rows for file in self.manifest.files for rows in file.row_groups]
        self._group_starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        self._group_places = [
            (file.path, group)
            for file in self.manifest.files
            for group in range(len(file.row_groups))
        ]
        self._groups: OrderedDict[int, NDArray[np.float32]] = OrderedDict()
        self.cached_bytes = 0
        self._open_file = lru_cache(maxsize=_OPEN_FILES)(_open_parquet)

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self) -> tuple[Callable[[ReaderHandle], "WindowReader"], tuple[ReaderHandle]]:
        return open_reader, (self.handle,)

    @cached_property
    def unique_ids(self) -> NDArray[np.object_]:
        """Name of each series, in the order of the number that `read` gives as `series`."""
        return self._series_table(ID_COLUMN).column(ID_COLUMN).to_numpy()

    @property
    def scaler(self) -> Scaler:
        """All series' scalers, mean and std of shape (series, C)."""
        return self._scaler

    @property
    def open_chunks(self) -> int:
        """How far this data set's training order mixes windows; see `TrainOrder`."""
        return fitting_chunks(self.manifest.num_channels, self.spec.context_len, self.spec.horizon)

    @property
    def row_bytes(self) -> int:
        """Bytes of one scaled row."""
        return 4 * self.manifest.num_channels

    @property
    def window_bytes(self) -> int:
        """Bytes of one window's values."""
        return self.spec.length * self.row_bytes

    def read(self, window_ids: ArrayLike) -> Batch:
        """Read windows, in any order; id -1 is padding.

        Args:
            window_ids: ids in [0, len(self)), or -1, shape (B,).

        Returns:
            past: z-scores by the series' training part, float32, shape (B, L, C); NaN where a
                value is missing, and before the series' first row.
            future: the same, shape (B, H, C).
            series: number of the series, int32, shape (B,).
            start: the window's first row in its series, negative if it begins before it, int64,
                shape (B,).
            weight: 1, or 0 for padding (whose values are window 0's), float32, shape (B,).
        """
        windows = self.locate(window_ids)
        return windows.cut(self.rows(windows.spans), 0, len(windows))

    def locate(self, window_ids: ArrayLike) -> LocatedWindows:
        """Say which rows windows need, and read none; ids as in `read`."""
        ids = np.asarray(window_ids, dtype=np.int64)
        padding = ids == -1
        series, start = self.index.locate(np.where(padding, 0, ids))
        first_rows = self.first_row[series] + start
        spans = RowSpans.of_windows(first_rows, self.spec.length)
        return LocatedWindows(
            spans=spans,
            places=spans.places(first_rows),
            series=series.astype(np.int32),
            start=start,
            weight=(~padding).astype(np.float32),
            spec=self.spec,
        )

    def rows(self, spans: RowSpans) -> NDArray[np.float32]:
        """Scaled rows of spans, shape (rows, C).

        A padded window of the first series begins before row 0: what stands there is never used.

        Raises:
            DataError: a row group can't be read.
        """
        wanted = np.maximum(spans.rows(), 0)
        rows = np.empty((len(wanted), self.manifest.num_channels), np.float32)
        done = 0
        while done < len(wanted):
            group = int(np.searchsorted(self._group_starts, wanted[done], side="right")) - 1
            begin, end = self._group_starts[group : group + 2]
            last = int(np.searchsorted(wanted, end))
            # take() into place is ten times as fast as indexing; "clip" is its mode without a copy.
            places = wanted[done:last] - begin
            np.take(self._group(group), places, axis=0, out=rows[done:last], mode="clip")
            done = last
        return rows

    def _series_table(self, *columns: str) -> pa.Table:
        file = _open_parquet(self._folder / self.manifest.series_file.path)
        return file.read(columns=list(columns))

    def _read_series(self) -> None:
        # Without the names, which would take most of the memory of a million series.
        table = self._series_table("mean", "std", "first_row", "num_rows")
        shape = (self.manifest.num_series, self.manifest.num_channels)
        mean, std = (
            table.column(name).combine_chunks().flatten().to_numpy().reshape(shape)
            for name in ("mean", "std")
        )
        self._scaler = Scaler(mean, std)
        self.first_row = table.column("first_row").to_numpy()
        self.num_rows = table.column("num_rows").to_numpy()

    def _group(self, group: int) -> NDArray[np.float32]:
        """Scaled rows of one row group, shape (rows, C)."""
        rows = self._groups.get(group)
        if rows is not None:
            self._groups.move_to_end(group)
            return rows
        rows = self._load_group(group)
        self._groups[group] = rows
        self.cached_bytes += rows.nbytes
        while self.cached_bytes > self.handle.cache_bytes and len(self._groups) > 1:
            self.cached_bytes -= self._groups.popitem(last=False)[1].nbytes
        return rows

    def _load_group(self, group: int) -> NDArray[np.float32]:
        file, number = self._group_places[group]
        path = self._folder / file
        channels = list(self.manifest.channels)
        try:
            # One thread: the pipeline's tasks are the parallelism.
            table = self._open_file(path).read_row_group(
                number, columns=channels, use_threads=False
            )
            # By name: of a channel "a", Arrow also reads its namesakes "a.b".
            columns = [table.column(name).to_numpy() for name in channels]
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: row group {number} cannot be read: {error}") from error
        first, last = self._group_starts[group : group + 2]
        if len(table) != last - first:
            raise DataError(
                f"{path}: row group {number} should hold {last - first} rows, found {len(table)}"
            )
        series = np.searchsorted(self.first_row, np.arange(first, last), side="right") - 1
        if series[0] == series[-1]:
            series = series[:1]
        rows = np.empty((len(table), len(channels)), np.float32)
        # A column at a time: the float64 of a wide row group would be twice its rows.
        for channel, values in enumerate(columns):
            mean, std = self._scaler.mean[series, channel], self._scaler.std[series, channel]
            rows[:, channel] = Scaler(mean, std).transform(values)
        return rows


def _open_parquet(place: Place) -> pq.ParquetFile:
    # Away from here every request costs: a row group's columns are asked for together.
    return pq.ParquetFile(place.open_input_file(), pre_buffer=not place.is_local)


# Tasks are short and many: a worker process keeps its readers, and with them their row groups.
_readers: OrderedDict[ReaderHandle, WindowReader] = OrderedDict()


def open_reader(handle: ReaderHandle) -> WindowReader:
    """Open the process's reader of a handle; the same one at every call.

    Raises:
        DataError: the data set has changed since the handle was made.
    """
    reader = _readers.pop(handle, None)
    reader = _readers[handle] = _fresh_reader(handle) if reader is None else reader
    while sum(kept.cache_bytes for kept in _readers) > _MOST_CACHE_BYTES and len(_readers) > 1:
        _readers.popitem(last=False)
    return reader


def _fresh_reader(handle: ReaderHandle) -> WindowReader:
    reader = WindowReader(handle.path, handle.spec, cache_bytes=handle.cache_bytes)
    if reader.handle.content_hash != handle.content_hash:
        raise DataError(
            f"{open_place(handle.path)}: the data set was prepared anew while it was in use"
        )
    return reader
