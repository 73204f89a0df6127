"""Finds the files of a user's table, CSV or Parquet, and reads them piece by piece as they are."""

import csv
import io
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from timellama_dist.data.tables.columns import ID_COLUMN, TIME_NAMES, Columns
from timellama_dist.data.tables.numbers import NULLS
from timellama_dist.errors import DataError
from timellama_dist.storage import Location, Place, open_place

Source = Location | Sequence[Location]

SUFFIXES = (".csv", ".csv.gz", ".parquet")

_BLOCK_BYTES = 8 << 20
# Footers and headers lie on object storage too, where one after the other would take minutes.
_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive rows of one file: a whole CSV file, or some row groups of a Parquet file."""

    file: int
    """Number of the file in its table."""
    place: Place
    num_bytes: int
    first_row: int = 0
    row_groups: tuple[int, ...] = ()


def list_files(source: Source) -> tuple[Place, ...]:
    """List the files of a source: of a folder, those whose suffix is one of `SUFFIXES`, by name.

    Raises:
        DataError: a path that is missing or of another kind.
    """
    places = [source] if isinstance(source, str | Path | Place) else list(source)
    if not places:
        raise DataError("no input file was given")
    files: list[Place] = []
    for place in map(open_place, places):
        if place.is_dir():
            tables = [child for child in place.children() if child.name.endswith(SUFFIXES)]
            if not tables:
                raise DataError(f"{place}: the folder holds no {', '.join(SUFFIXES)} file")
            files.extend(tables)
        elif not place.exists():
            raise DataError(f"{place}: no such file")
        elif not place.name.endswith(SUFFIXES):
            raise DataError(f"{place}: expected a {', '.join(SUFFIXES)} file")
        else:
            files.append(place)
    return tuple(files)


def source_name(source: Source, files: Sequence[Place]) -> str:
    """Name a source by its folder or first file, without suffix."""
    place = open_place(source) if isinstance(source, str | Path | Place) else files[0]
    return place.name.split(".")[0]


def read_sample(place: Place) -> pa.Table:
    """Read the first rows of a file, types as Arrow guesses them.

    Raises:
        DataError: a file that is empty or unreadable.
    """
    with _readable(place):
        if _is_parquet(place):
            file = _open_parquet(place)
            check_header(str(place), _parquet_names(file))
            batches = list(islice(file.iter_batches(1024, columns=_parquet_names(file)), 1))
            sample = pa.Table.from_batches(batches) if batches else pa.table({})
        else:
            names = _csv_names(place)
            texts = {name for name in names if name == ID_COLUMN or name.lower() in TIME_NAMES}
            sample = _csv_sample(place, texts)
            # Arrow guesses at only some formats of time, and not alike from file to file.
            times = {f.name for f in sample.schema if pa.types.is_temporal(f.type)}
            sample = _csv_sample(place, texts | times) if times else sample
    if not len(sample):
        raise DataError(f"{place}: the file holds no rows")
    return sample


def read_names(files: Sequence[Place]) -> list[list[str]]:
    """Read the column names of each file.

    Raises:
        DataError: a file that is empty or unreadable, or names a column twice or not at all.
    """

    def names_of(place: Place) -> list[str]:
        with _readable(place):
            names = (
                _parquet_names(_open_parquet(place)) if _is_parquet(place) else _csv_names(place)
            )
        check_header(str(place), names)
        return names

    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(names_of, files))


def cut_pieces(files: Sequence[Place], most_bytes: float = math.inf) -> list[Piece]:
    """Cut files into pieces of about `most_bytes` in memory; a CSV file is one piece.

    Raises:
        DataError: an unreadable file, or one without rows.
    """

    def cut(file: int, place: Place) -> list[Piece]:
        if not _is_parquet(place):
            return [Piece(file=file, place=place, num_bytes=place.size())]
        with _readable(place):
            metadata = _open_parquet(place).metadata
        if metadata.num_rows == 0:
            raise DataError(f"{place}: the file holds no rows")
        pieces, groups, size, first, row = [], [], 0, 0, 0
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            groups.append(number)
            size += group.total_byte_size
            row += group.num_rows
            if size >= most_bytes or number == metadata.num_row_groups - 1:
                pieces.append(
                    Piece(
                        file=file,
                        place=place,
                        num_bytes=size,
                        first_row=first,
                        row_groups=tuple(groups),
                    )
                )
                groups, size, first = [], 0, row
        return pieces

    with ThreadPoolExecutor(_THREADS) as pool:
        return [piece for part in pool.map(cut, range(len(files)), files) for piece in part]


def read_piece(piece: Piece, columns: Columns) -> Iterator[tuple[int, pa.Table]]:
    """Read the rows of a piece, a few at a time, with the number of the first of them.

    Columns of numbers come as float64, or as text where some of them are no numbers; times as text
    from CSV. Columns that the file lacks are left out.

    Raises:
        DataError: the file cannot be read, or holds no rows.
    """
    empty = True
    with _readable(piece.place):
        read = _read_parquet if _is_parquet(piece.place) else _read_csv
        for row, table in read(piece, columns):
            empty = False
            yield row, table
    if empty:
        raise DataError(f"{piece.place}: the file holds no rows")


@contextmanager
def _readable(place: Place) -> Generator[None, None, None]:
    """Name the file in whatever makes it unreadable."""
    try:
        yield
    except (pa.ArrowException, OSError, UnicodeError, csv.Error) as error:
        raise DataError(f"{place}: cannot be read: {str(error).splitlines()[0]}") from error


def _is_parquet(place: Place) -> bool:
    return place.name.endswith(".parquet")


def _open_parquet(place: Place) -> pq.ParquetFile:
    # Not read_table: that would take folder names such as year=2020 for columns.
    return pq.ParquetFile(place.path, filesystem=place.filesystem)


def _parquet_names(file: pq.ParquetFile) -> list[str]:
    # A nameless pandas index: the time column if it holds times, otherwise row numbers.
    return [
        field.name
        for field in file.schema_arrow
        if not field.name.startswith("__index_level_") or pa.types.is_timestamp(field.type)
    ]


def check_header(place: str, names: Sequence[str]) -> None:
    """Refuse a column without a name, or two of the same.

    Raises:
        DataError: names the table, `place`, and the column.
    """
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(f"{place}: column {number} has no name (a saved index?); remove it")
        if name in names[: number - 1]:
            raise DataError(f"{place}: two columns are named {name!r}")


def _wanted(columns: Columns, there: Sequence[str]) -> list[str]:
    if columns.layout == "rows":
        return [there[0], *(name for name in columns.cells if name in there)]
    wanted = dict.fromkeys((ID_COLUMN, columns.time, *columns.values))
    if columns.layout == "wide":
        wanted.pop(ID_COLUMN)
    return [name for name in wanted if name is not None and name in there]


def _read_parquet(piece: Piece, columns: Columns) -> Iterator[tuple[int, pa.Table]]:
    file = _open_parquet(piece.place)
    row = piece.first_row
    for group in piece.row_groups:
        wanted = _wanted(columns, _parquet_names(file))
        # By name: of a column "a", Arrow also reads its namesakes "a.b".
        table = file.read_row_group(group, columns=wanted, use_threads=False).select(wanted)
        yield row, table
        row += len(table)


def _open_csv(place: Place) -> pa.NativeFile:
    compression = "gzip" if place.name.endswith(".gz") else None
    return place.filesystem.open_input_stream(place.path, compression=compression)


def _csv_names(place: Place) -> list[str]:
    with _open_csv(place) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as lines:
        names = next(csv.reader(lines), [])
    if not names:
        raise DataError(f"{place}: the file is empty")
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise DataError(
            f"{place}: the first line is one column, {names[0]!r}: separate the columns by commas"
        )
    check_header(str(place), names)
    return names


def _csv_reader(
    place: Place, options: pyarrow.csv.ConvertOptions
) -> pyarrow.csv.CSVStreamingReader:
    return pyarrow.csv.open_csv(
        _open_csv(place),
        read_options=pyarrow.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        convert_options=options,
    )


def _csv_sample(place: Place, texts: set[str]) -> pa.Table:
    options = pyarrow.csv.ConvertOptions(
        column_types={name: pa.string() for name in texts},
        null_values=NULLS,
        strings_can_be_null=False,
    )
    with _csv_reader(place, options) as reader:
        for batch in reader:
            if len(batch):
                return pa.Table.from_batches([batch.slice(0, 1024)])
        return pa.Table.from_batches([], schema=reader.schema)


def _read_csv(piece: Piece, columns: Columns) -> Iterator[tuple[int, pa.Table]]:
    names = _wanted(columns, _csv_names(piece.place))
    numbers = set(columns.cells or columns.values)
    kinds: list[Callable[[str], pa.DataType]] = [
        lambda name: pa.float64() if name in numbers else pa.string(),
        lambda name: pa.string(),
    ]
    row = piece.first_row
    for kind in kinds:
        options = pyarrow.csv.ConvertOptions(
            column_types={name: kind(name) for name in names},
            include_columns=names,
            null_values=NULLS,
            strings_can_be_null=False,
        )
        try:
            yield from _skip(partial(_csv_reader, piece.place, options), row)
            return
        except _BadNumberError as bad:
            # Once more from there, as text, so that the row can be named.
            row = bad.row


class _BadNumberError(Exception):
    """A value that is no number stands after this row."""

    def __init__(self, row: int) -> None:
        self.row = row


def _skip(
    opened: Callable[[], pyarrow.csv.CSVStreamingReader], first_row: int
) -> Iterator[tuple[int, pa.Table]]:
    """Batches from `first_row` on, with the number of their first row."""
    row = 0
    try:
        with opened() as reader:
            for batch in reader:
                begin, row = row, row + len(batch)
                if row > first_row:
                    part = batch.slice(max(0, first_row - begin))
                    yield row - len(part), pa.Table.from_batches([part])
    except pa.ArrowInvalid as error:
        if "conversion error" not in str(error):
            raise
        raise _BadNumberError(max(row, first_row)) from error
