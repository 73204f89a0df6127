"""Reads and checks one user's table into memory: CSV or Parquet, wide, long or a series a row.

Writes nothing. Every mistake is one `DataError` that names file, column and row or timestamp. The
job for tables that don't fit (`data/prepared/job.py`) takes the same steps in tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import pyarrow as pa

from timellama_dist.data.tables.columns import ID_COLUMN, Columns, choose_values, decide_columns
from timellama_dist.data.tables.files import (
    Source,
    check_header,
    cut_pieces,
    list_files,
    read_names,
    read_piece,
    read_sample,
    source_name,
)
from timellama_dist.data.tables.findings import Findings
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.origin import Origin
from timellama_dist.data.tables.parsing import parse_rows
from timellama_dist.data.tables.series import Table, arrange
from timellama_dist.errors import DataError
from timellama_dist.storage import Place


@dataclass(frozen=True, kw_only=True)
class TableParser:
    """Types and arranges the rows of a table: all that a task needs for that."""

    name: str
    columns: Columns
    options: TableOptions
    origin: Origin

    def parse(self, raw: pa.Table, file: int, first_row: int) -> tuple[pa.Table, Findings]:
        """Type rows of a file; see `parse_rows`."""
        return parse_rows(
            raw,
            file=file,
            first_row=first_row,
            columns=self.columns,
            options=self.options,
            origin=self.origin,
            name=self.name,
        )

    def arrange(self, typed: pa.Table) -> tuple[Table | None, Findings]:
        """Arrange all rows of some series; see `series.arrange`."""
        return arrange(
            typed, columns=self.columns, options=self.options, origin=self.origin, name=self.name
        )


def make_parser(
    files: Sequence[Place], name: str, options: TableOptions, *, section: str = "data"
) -> TableParser:
    """Decide what the columns of some files mean, from all headers and the first rows.

    Args:
        files: the table's files.
        name: what the table is called.
        options: how to read it.
        section: where these options stand in the configuration, for errors.

    Raises:
        DataError: no time or value column, or files of different columns.
    """
    names = read_names(files)
    origin = Origin(tuple(map(str, files)), section=section)
    # Where values may be missing, the first file may lack columns that others have.
    masked = options.missing == "mask"
    in_first = replace(options, columns=None) if masked else options
    columns = decide_columns(read_sample(files[0]), origin, in_first)
    if columns.layout == "rows":
        # Files of longer series have more columns.
        longest = max(names, key=len)
        columns = replace(columns, cells=tuple(longest[1:]))
        same = [there == longest[: len(there)] for there in names]
    elif masked:
        needed = {columns.time, *([ID_COLUMN] if columns.layout == "long" else [])}
        same = [needed <= set(there) for there in names]
        union = dict.fromkeys(n for there in names for n in there if n not in needed)
        columns = replace(columns, values=choose_values(list(union), origin, options))
    else:
        same = [there == names[0] for there in names]
    for file, there, fits in zip(files, names, same, strict=True):
        if not fits:
            raise DataError(
                f"{file}: columns {there} differ from those of {files[0]}, {names[0]}"
                + ("" if masked else f"; {origin.key('missing')}=mask would allow it")
            )
    return TableParser(
        name=name,
        columns=columns,
        options=options,
        origin=replace(origin, row_width=columns.row_width),
    )


def read_table(
    source: Source,
    options: TableOptions | None = None,
    *,
    name: str | None = None,
    section: str = "data",
) -> Table:
    """Read and check a CSV or Parquet table.

    Args:
        source: a file, a folder of files, or a list of files of the same columns; paths or URIs.
        options: how to read it.
        name: what the table is called; default its file's or folder's name.
        section: where these options stand in the configuration, for errors.

    Raises:
        DataError: anything wrong with the table.
    """
    files = list_files(source)
    name = name or source_name(source, files)
    parser = make_parser(files, name, options or TableOptions(), section=section)
    findings = Findings()
    parts = []
    for piece in cut_pieces(files):
        for first_row, raw in read_piece(piece, parser.columns):
            part, part_findings = parser.parse(raw, piece.file, first_row)
            parts.append(part)
            findings.extend(part_findings)
    return _arrange(parser, pa.concat_tables(parts), findings)


def table_from_frame(
    frame: pd.DataFrame,
    options: TableOptions | None = None,
    origin: Origin | None = None,
    *,
    step: str | None = None,
) -> Table:
    """Check a frame as `read_table` checks a file; messages call it "frame".

    Args:
        frame: the table.
        options: how to read it.
        origin: what messages call the frame and its rows instead.
        step: alias of the step of a frame whose series are one row each; refused if not given.

    Raises:
        DataError: anything wrong with the frame.
    """
    options = options or TableOptions()
    origin = origin or Origin(("frame",))
    if frame.empty:
        raise DataError(f"{origin.place}: it holds no rows")
    check_header(origin.place, [str(name) for name in frame.columns])
    raw = _to_arrow(frame)
    columns = decide_columns(raw, origin, options)
    parser = TableParser(
        name="frame",
        columns=columns,
        options=options,
        origin=replace(origin, row_width=columns.row_width),
    )
    typed, findings = parser.parse(raw, 0, 0)
    return _arrange(parser, typed, findings, step)


def _to_arrow(frame: pd.DataFrame) -> pa.Table:
    try:
        return pa.Table.from_pandas(frame, preserve_index=False)
    except pa.ArrowException:
        # A column of numbers and texts: as text, as in a CSV file, so that the row can be named.
        texts = dict.fromkeys(frame.columns[frame.dtypes == "object"], "string")
        return pa.Table.from_pandas(frame.astype(texts), preserve_index=False)


def _arrange(
    parser: TableParser, typed: pa.Table, findings: Findings, step: str | None = None
) -> Table:
    findings.refuse()
    table, later = parser.arrange(typed)
    later.refuse()
    assert table is not None
    if table.frequency is None:
        if step is None or table.num_rows.max() > 1:
            raise no_step(parser.origin)
        table = replace(table, frequency=step)
    findings.extend(later)
    return replace(table, notes=tuple(note.text() for note in findings.notes))


def no_step(origin: Origin) -> DataError:
    """Make the error about a table in none of whose series a row is followed by a later one."""
    return DataError(
        f"{origin.place}: no series has two timestamps in rising order, so there is no step to "
        "learn"
    )
