"""The manifest of a prepared data set: what its folder holds, and whether it is all there."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from timellama_dist.errors import DataError

SCHEMA_VERSION = 1
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
    scaler: str
    """How channels are scaled: "standard", by each series' training part."""
    prompt: str
    """Text about the data set; the window's lengths are added when a model is built."""
    files: tuple[DataFile, ...]
    series_file: DataFile
    """One row a series: where its rows lie, and its scaler."""
    content_hash: str
    """SHA-256 of values, timestamps, names, split and prompt: not of how files are cut."""
    source: tuple[str, ...]

    @property
    def num_channels(self) -> int:
        return len(self.channels)

    def save(self, folder: Path) -> None:
        """Write `manifest.json` into the folder."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Manifest":
        """Read and check the manifest of a prepared folder.

        Raises:
            DataError: no manifest, one that cannot be read, an unknown schema version, a data file
                that is missing or of another size.
        """
        folder = Path(path)
        file = folder / MANIFEST_NAME
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(
                f"{folder}: no {MANIFEST_NAME}, so this is not a prepared data set; "
                "ray_jobs/prepare.py makes one of a CSV or Parquet table"
            ) from None
        except (OSError, ValueError) as error:
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

    def _check_files(self, folder: Path) -> None:
        for file in (self.series_file, *self.files):
            path = folder / file.path
            if not path.is_file():
                raise DataError(f"{path}: the data file is missing; prepare the data again")
            size = path.stat().st_size
            if size != file.num_bytes:
                raise DataError(
                    f"{path}: expected {file.num_bytes} bytes, found {size}; prepare the data again"
                )


def _from_json(fields: dict[str, Any]) -> Manifest:
    lists = {key: tuple(fields[key]) for key in ("channels", "split", "source")}
    files = tuple(_file_from_json(file) for file in fields["files"])
    series_file = _file_from_json(fields["series_file"])
    return Manifest(**(fields | lists | {"files": files, "series_file": series_file}))


def _file_from_json(fields: dict[str, Any]) -> DataFile:
    return DataFile(**(fields | {"row_groups": tuple(fields["row_groups"])}))
