"""Reads scaled windows of one split from a prepared data set, by window id.

Opens only the row groups that the windows lie in. No Ray here: the pipelines that call it in
their tasks are in `stream.py`.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray

from timellama_dist.data.files import ID_COLUMN
from timellama_dist.data.manifest import Manifest
from timellama_dist.data.scaling import Scaler
from timellama_dist.data.windows import WindowIndex
from timellama_dist.errors import ConfigError, DataError

Batch = dict[str, NDArray]

_OPEN_FILES = 16


@dataclass(frozen=True, kw_only=True)
class ReaderSpec:
    """What it takes to open the same reader in another process."""

    path: str
    context_len: int
    horizon: int
    split: str
    train_fraction: float
    cache_bytes: int
    content_hash: str


class WindowReader:
    """Windows of one split of a prepared data set.

    Pickles as its `spec`; a process that unpickles it opens the files once, whatever the number
    of copies it is sent.

    Attributes:
        spec: the arguments, and the content hash of the data seen.
        manifest: the data set's manifest.
        index: the split's windows.
        cached_bytes: bytes of scaled row groups in memory now.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        context_len: int,
        horizon: int,
        split: str = "train",
        train_fraction: float = 1.0,
        cache_bytes: int = 256 << 20,
    ) -> None:
        """Open the manifest and the series' table; no rows are read yet.

        Args:
            path: folder of a prepared data set.
            context_len: rows of past in a window (L).
            horizon: rows of target in a window (H).
            split: "train", "validation" or "test".
            train_fraction: few-shot, the first share of the training part to keep.
            cache_bytes: most bytes of scaled row groups to keep in memory.

        Raises:
            ConfigError: no series of the split is as long as one window.
            DataError: not a prepared data set, or a damaged one.
        """
        self._folder = Path(path).resolve()
        self.manifest = Manifest.load(self._folder)
        self._read_series()
        self.index = WindowIndex.build(
            self._num_rows,
            split=self.manifest.split,
            name=split,
            context_len=context_len,
            horizon=horizon,
            train_fraction=train_fraction,
        )
        if len(self.index) == 0:
            raise ConfigError(
                f"data.context_len={context_len} + data.horizon={horizon} rows do not fit into the "
                f"{split} part of {self.manifest.name!r}: its longest series has "
                f"{self._num_rows.max()} rows, cut by data.split={list(self.manifest.split)} and "
                f"data.train_fraction={train_fraction}"
            )
        self.spec = ReaderSpec(
            path=str(self._folder),
            context_len=context_len,
            horizon=horizon,
            split=split,
            train_fraction=train_fraction,
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
        self._open_file = lru_cache(maxsize=_OPEN_FILES)(pq.ParquetFile)

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self) -> tuple[Callable[[ReaderSpec], "WindowReader"], tuple[ReaderSpec]]:
        return open_reader, (self.spec,)

    @property
    def unique_ids(self) -> NDArray[np.object_]:
        """Name of each series, in the order of the number that `read` gives as `series`."""
        return self._unique_ids

    @property
    def scaler(self) -> Scaler:
        """All series' scalers, mean and std of shape (series, C)."""
        return self._scaler

    @property
    def window_bytes(self) -> int:
        """Bytes of one window's values."""
        return 4 * (self.spec.context_len + self.spec.horizon) * self.manifest.num_channels

    def read(self, window_ids: ArrayLike) -> Batch:
        """Read windows, in any order; id -1 is padding.

        Args:
            window_ids: ids in [0, len(self)), or -1, shape (B,).

        Returns:
            past: z-scores by the series' training part, float32, shape (B, L, C).
            future: the same, shape (B, H, C).
            series: number of the series, int32, shape (B,).
            start: the window's first row in its series, int64, shape (B,).
            weight: 1, or 0 for padding (whose values are window 0's), float32, shape (B,).
        """
        ids = np.asarray(window_ids, dtype=np.int64)
        padding = ids == -1
        series, start = self.index.locate(np.where(padding, 0, ids))
        rows = self._gather(self._first_row[series] + start)
        context_len = self.spec.context_len
        return {
            "past": np.ascontiguousarray(rows[:, :context_len]),
            "future": np.ascontiguousarray(rows[:, context_len:]),
            "series": series.astype(np.int32),
            "start": start,
            "weight": (~padding).astype(np.float32),
        }

    def _read_series(self) -> None:
        table = pq.ParquetFile(self._folder / self.manifest.series_file.path).read()
        shape = (self.manifest.num_series, self.manifest.num_channels)
        mean, std = (
            table.column(name).combine_chunks().flatten().to_numpy().reshape(shape)
            for name in ("mean", "std")
        )
        self._scaler = Scaler(mean, std)
        self._unique_ids = table.column(ID_COLUMN).to_numpy()
        self._first_row = table.column("first_row").to_numpy()
        self._num_rows = table.column("num_rows").to_numpy()

    def _gather(self, first_rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """L + H rows from each of the global rows, shape (B, L + H, C)."""
        length = self.spec.context_len + self.spec.horizon
        rows = np.empty((len(first_rows), length, self.manifest.num_channels), np.float32)
        groups = np.searchsorted(self._group_starts, first_rows, side="right") - 1
        # By row, so that each group is loaded once even if the cache holds but one. A slice per
        # window beats fancy indexing: each is one copy of consecutive memory.
        for place in np.argsort(first_rows, kind="stable").tolist():
            group, filled = int(groups[place]), 0
            offset = int(first_rows[place] - self._group_starts[group])
            while filled < length:
                piece = self._group(group)[offset : offset + length - filled]
                rows[place, filled : filled + len(piece)] = piece
                filled += len(piece)
                group, offset = group + 1, 0
        return rows

    def _group(self, group: int) -> NDArray[np.float32]:
        """Scaled rows of one row group, shape (rows, C)."""
        rows = self._groups.get(group)
        if rows is not None:
            self._groups.move_to_end(group)
            return rows
        rows = self._load_group(group)
        self._groups[group] = rows
        self.cached_bytes += rows.nbytes
        while self.cached_bytes > self.spec.cache_bytes and len(self._groups) > 1:
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
            values = np.stack([table.column(name).to_numpy() for name in channels], axis=1)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: row group {number} cannot be read: {error}") from error
        first, last = self._group_starts[group : group + 2]
        if len(values) != last - first:
            raise DataError(
                f"{path}: row group {number} should hold {last - first} rows, found {len(values)}"
            )
        series = np.searchsorted(self._first_row, np.arange(first, last), side="right") - 1
        if series[0] == series[-1]:
            series = series[:1]
        scaler = Scaler(self._scaler.mean[series], self._scaler.std[series])
        return scaler.transform(values).astype(np.float32)


# Tasks are short and many: a worker process keeps its readers, and with them their row groups.
@lru_cache(maxsize=4)
def open_reader(spec: ReaderSpec) -> WindowReader:
    """The process's reader of a spec, opened at the first call.

    Raises:
        DataError: the data set has changed since the spec was made.
    """
    reader = WindowReader(
        spec.path,
        context_len=spec.context_len,
        horizon=spec.horizon,
        split=spec.split,
        train_fraction=spec.train_fraction,
        cache_bytes=spec.cache_bytes,
    )
    if reader.spec.content_hash != spec.content_hash:
        raise DataError(f"{spec.path}: the data set was prepared anew while it was in use")
    return reader
