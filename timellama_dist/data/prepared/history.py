"""Rows of a prepared data set's series in their own units, for who forecasts from them."""

from functools import lru_cache

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from timellama_dist.data.prepared.manifest import Manifest
from timellama_dist.data.tables.columns import ID_COLUMN, TIME_COLUMN
from timellama_dist.data.tables.series import Series
from timellama_dist.errors import DataError
from timellama_dist.storage import Location, open_place

_OPEN_FILES = 4
_KEPT_GROUPS = 16

Rows = tuple[NDArray[np.datetime64], NDArray[np.float64]]


class SeriesReader:
    """Reads some rows of some series; opens only the row groups they lie in.

    Attributes:
        manifest: the data set's manifest.
        unique_ids: name of each series, shape (series,).
        num_rows: rows of each series, shape (series,).

    Args:
        path: folder of a prepared data set, a local path or a URI.

    Raises:
        DataError: not a prepared data set, or a damaged one.
    """

    def __init__(self, path: Location) -> None:
        self._folder = open_place(path)
        self.manifest = Manifest.load(self._folder)
        with (self._folder / self.manifest.series_file.path).open_input_file() as file:
            table = pq.read_table(file, columns=[ID_COLUMN, "first_row", "num_rows"])
        self.unique_ids = table[ID_COLUMN].to_numpy()
        self.num_rows = table["num_rows"].to_numpy()
        self._first_row = table["first_row"].to_numpy()
        files = self.manifest.files
        self._groups = [(file.path, n) for file in files for n in range(len(file.row_groups))]
        lengths = [rows for file in files for rows in file.row_groups]
        self._starts = np.append(0, np.cumsum(lengths))
        self._open = lru_cache(maxsize=_OPEN_FILES)(self._open_file)
        self._group = lru_cache(maxsize=_KEPT_GROUPS)(self._read_group)

    def read(self, number: int, begin: int, end: int) -> Series:
        """Rows [begin, end) of a series, counted in it.

        Raises:
            DataError: the files can't be read.
        """
        first, last = self._first_row[number] + begin, self._first_row[number] + end
        parts = []
        for group in range(
            int(np.searchsorted(self._starts, first, side="right")) - 1, len(self._groups)
        ):
            start, stop = self._starts[group : group + 2]
            if start >= last:
                break
            rows = slice(max(first - start, 0), min(last, stop) - start)
            parts.append(tuple(column[rows] for column in self._group(group)))
        times, values = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Series(str(self.unique_ids[number]), times, values)

    def _open_file(self, path: str) -> pq.ParquetFile:
        place = self._folder / path
        return pq.ParquetFile(place.open_input_file(), pre_buffer=not place.is_local)

    def _read_group(self, group: int) -> Rows:
        path, number = self._groups[group]
        channels = list(self.manifest.channels)
        try:
            table = self._open(path).read_row_group(number, columns=[TIME_COLUMN, *channels])
            # By name: of a channel "a", Arrow also reads its namesakes "a.b".
            values = np.stack([table[name].to_numpy() for name in channels], axis=1)
            return table[TIME_COLUMN].to_numpy().astype("datetime64[us]"), values
        except (OSError, ValueError, KeyError) as error:
            place = self._folder / path
            raise DataError(f"{place}: row group {number} cannot be read: {error}") from error
