"""Decides, without Ray, what preparing a table has to read: only what changed."""

from dataclasses import dataclass

from timellama_dist.data.prepared.changes import Kept, kept_files
from timellama_dist.data.prepared.draft import Draft
from timellama_dist.data.prepared.folder import existing_data
from timellama_dist.data.prepared.manifest import InputFile, Manifest
from timellama_dist.data.prepared.options import PrepareOptions
from timellama_dist.data.tables.files import Piece, Source, cut_pieces, list_files, source_name
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.table import TableParser, make_parser
from timellama_dist.storage import Location, Place, open_place

_PIECE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """A job that has passed every check that needs no row."""

    parser: TableParser
    draft: Draft
    prepare: PrepareOptions
    pieces: tuple[Piece, ...]
    """What is to be read; none if nothing has changed, or files have only gone."""
    output: Place | None
    existing: Manifest | None
    kept: Kept
    files_read: int
    unchanged: bool
    """The output holds this data set already: there is nothing to do."""


def plan_job(
    source: Source,
    output: Location | None,
    *,
    table: TableOptions,
    prepare: PrepareOptions,
) -> JobPlan:
    """Decide what a job has to read; needs no Ray.

    Nothing if no file has changed. Else files of a long table with series=separate and
    split_by=time that are as they were, and whose series no changed file holds rows of, are not
    read again; all files of any other table are.

    Args:
        source: a file, a folder of files, or a list of files; paths or URIs.
        output: the data set's folder; None only checks, and finds all that is wrong.
        table: how to read the table.
        prepare: what to make of it.

    Raises:
        DataError: files that are missing, unreadable or of other columns, or an output that holds
            something else.
    """
    files = list_files(source)
    parser = make_parser(files, prepare.name or source_name(source, files), table)
    place = None if output is None else open_place(output)
    existing = None if place is None else existing_data(place)
    inputs = tuple(InputFile(path=file.uri, fingerprint=file.fingerprint()) for file in files)
    draft = Draft(
        name=parser.name,
        channels=parser.columns.values,
        frequency="",
        options=table,
        prepare=prepare,
        inputs=inputs,
        notes=(),
    )
    kept = Kept.nothing()
    needed = frozenset(range(len(files)))
    unchanged = False
    if existing is not None and place is not None and existing.options == draft.facts():
        if existing.inputs == inputs:
            unchanged, needed = True, frozenset()
        elif parser.columns.layout == "long" and table.series == "separate":
            kept = kept_files(existing, place, parser, files, inputs)
            needed = kept.needed_inputs(len(files))
    pieces = [piece for piece in cut_pieces(files, _PIECE_BYTES) if piece.file in needed]
    return JobPlan(
        parser=parser,
        draft=draft,
        prepare=prepare,
        pieces=tuple(pieces),
        output=place,
        existing=existing,
        kept=kept,
        files_read=len(needed),
        unchanged=unchanged,
    )
