"""Finds and reads the files of one user's table, CSV or Parquet, as they are."""

import csv
import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from timellama_dist.errors import DataError

Source = str | Path | Sequence[str | Path]

ID_COLUMN = "unique_id"
TIME_NAMES = ("date", "ds", "timestamp", "time", "datetime")
SUFFIXES = (".csv", ".csv.gz", ".parquet")

NULLS = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "#N/A"]


@dataclass(frozen=True, eq=False)
class Rows:
    """All files' rows one after the other, and which file each came from."""

    frame: pd.DataFrame
    files: tuple[Path, ...]
    file_ends: NDArray[np.int64]

    def where(self, row: int) -> str:
        """File and 1-based data row of a row of `frame`."""
        file = int(np.searchsorted(self.file_ends, row, side="right"))
        first = self.file_ends[file - 1] if file else 0
        return f"{self.files[file]}: row {row - first + 1}"

    @property
    def place(self) -> str:
        """The source in an error that concerns no single row."""
        more = f" (and {len(self.files) - 1} more files)" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


def list_files(source: Source) -> tuple[Path, ...]:
    """Files of a source: of a folder, those of a known suffix, by name.

    Raises:
        DataError: a path that is missing or of another kind.
    """
    given = [source] if isinstance(source, str | Path) else list(source)
    if not given:
        raise DataError("no input file was given")
    files: list[Path] = []
    for path in map(Path, given):
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
            if not inside:
                raise DataError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file")
            files.extend(inside)
        elif not path.exists():
            raise DataError(f"{path}: no such file")
        elif not path.name.endswith(SUFFIXES):
            raise DataError(f"{path}: expected a {', '.join(SUFFIXES)} file")
        else:
            files.append(path)
    return tuple(files)


def source_name(source: Source, files: tuple[Path, ...]) -> str:
    """Name of a source: of its folder or first file, without suffix."""
    path = Path(source) if isinstance(source, str | Path) else files[0]
    return path.resolve().name if path.is_dir() else path.name.split(".")[0]


def read_rows(files: tuple[Path, ...]) -> Rows:
    """Read all files, types as found.

    Raises:
        DataError: a file that is empty, unreadable or of other columns than the first.
    """
    tables: list[pd.DataFrame] = []
    for file in files:
        try:
            table = _read_parquet(file) if file.suffix == ".parquet" else _read_csv(file)
            frame = table.to_pandas(ignore_metadata=True)
        except (pa.ArrowException, OSError, UnicodeError, csv.Error) as error:
            raise DataError(f"{file}: cannot be read: {str(error).splitlines()[0]}") from error
        if len(frame) == 0:
            raise DataError(f"{file}: the file holds no rows")
        if tables and list(frame.columns) != list(tables[0].columns):
            raise DataError(
                f"{file}: columns {list(frame.columns)} differ from those of {files[0]}, "
                f"{list(tables[0].columns)}"
            )
        tables.append(frame)
    ends = np.cumsum([len(frame) for frame in tables])
    frame = tables[0] if len(tables) == 1 else pd.concat(tables, ignore_index=True)
    return Rows(frame, files, ends)


def _check_header(file: Path, names: list[str]) -> None:
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(f"{file}: column {number} has no name (a saved index?); remove it")
        if name in names[: number - 1]:
            raise DataError(f"{file}: two columns are named {name!r}")


def _read_parquet(file: Path) -> pa.Table:
    # Not read_table(file): that would take folder names such as year=2020 for columns.
    table = pq.ParquetFile(file).read()
    # A nameless pandas index: the time column if it holds times, otherwise row numbers.
    numbers = [
        field.name
        for field in table.schema
        if field.name.startswith("__index_level_") and not pa.types.is_timestamp(field.type)
    ]
    table = table.drop_columns(numbers)
    _check_header(file, table.column_names)
    return table


def _read_csv(file: Path) -> pa.Table:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8-sig", newline="") as lines:
        header = next(csv.reader(lines), [])
    if not header:
        raise DataError(f"{file}: the file is empty")
    _check_header(file, header)
    # Arrow would read an id such as 007 as a number, and guess at only some formats of time.
    texts = {name for name in header if name == ID_COLUMN or name.lower() in TIME_NAMES}
    return pa.csv.read_csv(
        file,
        convert_options=pa.csv.ConvertOptions(
            column_types={name: pa.string() for name in texts},
            null_values=NULLS,
            strings_can_be_null=False,
        ),
    )
