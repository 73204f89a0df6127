"""The manifest of a prepared data set: what its folder holds, and whether it is all there."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from timellama_dist.data.windows.splits import SplitBy, SplitRule
from timellama_dist.errors import DataError
from timellama_dist.storage import Location, Place, open_place

SCHEMA_VERSION = 2
MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class DataFile:
    """One Parquet file of a prepared data set."""

    path: str
    """Relative to the data set's folder."""
    num_rows: int
    num_bytes: int
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    sha256: str
    first_id: str = ""
    """The first series of which it holds rows, and the last, in the order of ids."""
    last_id: str = ""
    inputs: tuple[int, ...] = ()
    """Which of the data set's inputs its rows come from, by number in `Manifest.inputs`."""


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """A file of the user's table, as it was when it was prepared."""

    path: str
    fingerprint: str
    """Changes when the file does; empty if it was no file."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A prepared data set. The files' rows one after the other are its global rows."""

    schema_version: int
    name: str
    channels: tuple[str, ...]
    frequency: str
    """pandas offset alias."""
    season_len: int
    num_series: int
    num_rows: int
    split: tuple[float, ...]
    """As given: three fractions, or three numbers of rows."""
    split_by: SplitBy = "time"
    """ "time": each series has a part in each split; "series": each series belongs to one."""
    scaler: str
    """How channels are scaled: "standard", by each series' training part (with split_by="series",
    by the training series together)."""
    prompt: str
    """Text about the data set; the window's lengths are added when a model is built."""
    files: tuple[DataFile, ...]
    series_file: DataFile
    """One row a series: where its rows lie, and its scaler."""
    content_hash: str
    """SHA-256 of values, timestamps, names, split and prompt: not of how files are cut."""
    inputs: tuple[InputFile, ...]
    """The files of the table."""
    options: dict[str, Any]
    """How the table was read, and what was done about what was wrong with it."""
    notes: tuple[str, ...]
    """What was done to the table, with counts, and what is worth knowing about it. Where some files
    were read again later, notes from before remain and say so."""

    @property
    def num_channels(self) -> int:
        return len(self.channels)

    @property
    def split_rule(self) -> SplitRule:
        """How its series are divided into splits."""
        return SplitRule(self.split, self.split_by)

    def save(self, folder: Location) -> None:
        """Write `manifest.json` into the folder."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (open_place(folder) / MANIFEST_NAME).write_text(text + "\n")

    @classmethod
    def load(cls, path: Location) -> "Manifest":
        """Read and check the manifest of a prepared folder.

        Raises:
            DataError: no manifest, one that cannot be read, an unknown schema version, a data file
                that is missing or of another size, storage that doesn't answer.
        """
        folder = open_place(path)
        file = folder / MANIFEST_NAME
        if not file.is_file():
            raise DataError(
                f"{folder}: no {MANIFEST_NAME}, so this is not a prepared data set; "
                "the command `prepare` makes one of a CSV or Parquet table"
            )
        text = file.read_text()
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise DataError(f"{file}: cannot be read: {error}") from error
        version = fields.get("schema_version") if isinstance(fields, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{file}: schema_version must be {SCHEMA_VERSION}, got {version!r}; "
                "prepare the data again"
            )
        try:
            manifest = _from_json(fields)
        except (KeyError, TypeError) as error:
            raise DataError(f"{file}: damaged: {error}") from error
        manifest._check_files(folder)
        return manifest

    def _check_files(self, folder: Place) -> None:
        files = (self.series_file, *self.files)
        sizes = folder.sizes([file.path for file in files])
        for file, size in zip(files, sizes, strict=True):
            path = folder / file.path
            if size is None:
                raise DataError(f"{path}: the data file is missing; prepare the data again")
            if size != file.num_bytes:
                raise DataError(
                    f"{path}: expected {file.num_bytes} bytes, found {size}; prepare the data again"
                )


def _from_json(fields: dict[str, Any]) -> Manifest:
    lists = {key: tuple(fields[key]) for key in ("channels", "split", "notes")}
    made = {
        "files": tuple(_file_from_json(file) for file in fields["files"]),
        "series_file": _file_from_json(fields["series_file"]),
        "inputs": tuple(InputFile(**file) for file in fields["inputs"]),
    }
    return Manifest(**(fields | lists | made))


def _file_from_json(fields: dict[str, Any]) -> DataFile:
    lists = {key: tuple(fields[key]) for key in ("row_groups", "inputs")}
    return DataFile(**(fields | lists))
