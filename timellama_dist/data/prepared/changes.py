"""Decides what of a prepared data set can stay when some files of its table have changed."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from timellama_dist.data.prepared.manifest import DataFile, InputFile, Manifest
from timellama_dist.data.prepared.series_table import UNTRAINED
from timellama_dist.data.tables.columns import ID_COLUMN
from timellama_dist.data.tables.files import cut_pieces, read_piece
from timellama_dist.data.tables.series import Table
from timellama_dist.data.tables.table import TableParser
from timellama_dist.storage import Place

_THREADS = 8
_EARLIER = "of an earlier preparation, some of whose files have changed since: "


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Files of the data set that stay, by ranges of ids that no written file may touch."""

    files: tuple[DataFile, ...]
    """In the order of ids."""
    firsts: NDArray[np.object_]
    """First id of each range, ascending."""
    lasts: NDArray[np.object_]
    series: pa.Table | None
    """Their series, as `describe_series` gives them."""
    needed: frozenset[int] | None
    """Inputs that must be read; None for all."""
    frequency: str | None
    notes: tuple[str, ...]
    """Of the data set as it was; they say so unless all of its files stay."""

    @classmethod
    def nothing(cls) -> "Kept":
        """Keep nothing: all is made anew."""
        none = np.zeros(0, object)
        return cls(
            files=(),
            firsts=none,
            lasts=none,
            series=None,
            needed=None,
            frequency=None,
            notes=(),
        )

    def needed_inputs(self, count: int) -> frozenset[int]:
        """Numbers of the inputs to read, of `count`."""
        return frozenset(range(count)) if self.needed is None else self.needed

    def without(self, typed: pa.Table) -> pa.Table:
        """Typed rows of series that don't stay as they are."""
        if not len(self.firsts) or not len(typed):
            return typed
        ids = typed[ID_COLUMN].to_pandas().to_numpy(object)
        return typed.filter(pa.array(~self.holds(ids)))

    def apart(self, table: Table) -> Iterator[Table]:
        """Cut a table where a range that stays lies between two of its series."""
        if not table.unique_ids:
            return
        gaps = np.searchsorted(self.firsts, np.array(table.unique_ids, object), side="right")
        for gap in np.unique(gaps):
            here = gaps == gap
            yield table if here.all() else table.select(here)

    def merged(
        self, files: Iterable[DataFile], series: pa.Table
    ) -> tuple[list[DataFile], pa.Table]:
        """Files and series that stay, and those that were made, in the order of ids."""
        # By path too: the files of one very long series have all the same ids.
        every = sorted((*self.files, *files), key=lambda file: (file.first_id, file.path))
        if self.series is not None:
            kept = self.series.drop_columns("first_row")
            # The file lacks what is only needed to publish.
            series = pa.concat_tables([kept, series], promote_options="default")
        return every, series.sort_by(ID_COLUMN)

    def holds(self, ids: NDArray[np.object_]) -> NDArray[np.bool_]:
        """Mark the ids that lie in a range that stays, shape (ids,)."""
        place = np.searchsorted(self.firsts, ids, side="right") - 1
        return (place >= 0) & (ids <= self.lasts[np.maximum(place, 0)])


def kept_files(
    existing: Manifest,
    output: Place,
    parser: TableParser,
    files: Sequence[Place],
    inputs: Sequence[InputFile],
) -> Kept:
    """Decide what stays: ranges of ids without a row from, or for, a file that changed.

    Args:
        existing: the data set as it is, made with the same options.
        output: its folder.
        parser: how the table is read.
        files: the table's files now.
        inputs: the same, with fingerprints.
    """
    if existing.split_by == "series" or existing.channels != parser.columns.values:
        return Kept.nothing()
    now = {file.path: number for number, file in enumerate(inputs)}
    same = {
        number: now[file.path]
        for number, file in enumerate(existing.inputs)
        if file.path in now and inputs[now[file.path]].fingerprint == file.fingerprint
    }
    changed = [number for number in range(len(inputs)) if number not in set(same.values())]
    ranges = [
        group
        for group in _ranges(existing.files)
        if all(number in same for file in group for number in file.inputs)
    ]
    fresh = _ids([files[number] for number in changed], parser)
    ranges = [group for group in ranges if not _holds(fresh, group)]
    with (output / existing.series_file.path).open_input_file() as file:
        series = pq.read_table(file)
    ids = series[ID_COLUMN].to_pandas().to_numpy(object)
    # A new series may be one that was dropped, with rows in a file that has not changed.
    dropped = any(UNTRAINED in note for note in existing.notes)
    if not ranges or (dropped and not set(fresh) <= set(ids)):
        return Kept.nothing()
    stay = {file.path for group in ranges for file in group}
    redone = [file for file in existing.files if file.path not in stay]
    needed = {*changed, *(same[n] for file in redone for n in file.inputs if n in same)}
    firsts, lasts = (
        _column(names)
        for names in ([g[0].first_id for g in ranges], [g[-1].last_id for g in ranges])
    )
    kept = Kept(
        files=tuple(
            replace(file, inputs=tuple(same[number] for number in file.inputs))
            for group in ranges
            for file in group
        ),
        firsts=firsts,
        lasts=lasts,
        series=None,
        needed=frozenset(needed),
        frequency=existing.frequency,
        notes=_earlier(existing.notes) if redone else existing.notes,
    )
    return replace(kept, series=series.filter(pa.array(kept.holds(ids))))


def _earlier(notes: Sequence[str]) -> tuple[str, ...]:
    """Notes that may count rows of series that are made anew."""
    marked = (note if note.startswith(_EARLIER) else _EARLIER + note for note in notes)
    return tuple(dict.fromkeys(marked))


def _ranges(files: Sequence[DataFile]) -> list[list[DataFile]]:
    """Files in order, together where a series begins in one and ends in another."""
    groups: list[list[DataFile]] = []
    for file in files:
        if groups and file.first_id <= groups[-1][-1].last_id:
            groups[-1].append(file)
        else:
            groups.append([file])
    return groups


def _ids(files: Sequence[Place], parser: TableParser) -> NDArray[np.object_]:
    """Ids of which these files hold rows, ascending."""
    # Only the column of ids is needed.
    columns = replace(parser.columns, time=ID_COLUMN, values=())

    def ids_of(file: Place) -> set[str]:
        ids: set[str] = set()
        for piece in cut_pieces([file]):
            for _, raw in read_piece(piece, columns):
                ids |= set(pc.unique(raw[ID_COLUMN].cast(pa.string())).to_pylist())
        return ids

    with ThreadPoolExecutor(_THREADS) as pool:
        every = set().union(*pool.map(ids_of, files))
    return _column(sorted(unique_id for unique_id in every if unique_id is not None))


def _holds(ids: NDArray[np.object_], group: Sequence[DataFile]) -> bool:
    """Is one of the ascending ids in the range of these files?"""
    place = int(np.searchsorted(ids, group[0].first_id))
    return place < len(ids) and bool(ids[place] <= group[-1].last_id)


def _column(names: Sequence[str]) -> NDArray[np.object_]:
    column = np.empty(len(names), object)
    column[:] = names
    return column
