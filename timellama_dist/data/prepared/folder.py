"""The folder of a prepared data set: what lies in it, and which of its files are ours."""

import json
import re

from timellama_dist.data.prepared.manifest import MANIFEST_NAME, Manifest
from timellama_dist.errors import DataError
from timellama_dist.storage import Place

_FILE = r"(series-[0-9a-f]{16}|[0-9a-f]{16}-\d{5,})\.parquet"
_WRITTEN = re.compile(rf"{_FILE}|\.({_FILE}|{re.escape(MANIFEST_NAME)})\.[0-9a-f]{{12}}")
"""Names of files of ours but the manifest's, and of files that are being written."""


def existing_data(output: Place) -> Manifest | None:
    """Open the usable data set at `output`; None if there is none or a damaged one.

    Raises:
        DataError: `output` is something else, which must not be replaced.
    """
    if not output.exists():
        return None
    if not (output.is_dir() and _is_ours(output)):
        raise DataError(f"{output}: exists and is not a prepared data set; choose another output")
    try:
        return Manifest.load(output)
    except DataError:
        return None


def _is_ours(folder: Place) -> bool:
    manifest = folder / MANIFEST_NAME
    if manifest.is_file():
        text = manifest.read_text()
        try:
            fields = json.loads(text)
        except ValueError:
            return False
        # Other programs have files of that name.
        return isinstance(fields, dict) and {"schema_version", "content_hash"} <= fields.keys()
    # What a run that was killed may have left.
    data = folder / "data"
    inside = [child for child in folder.children() if child.name != data.name]
    inside += data.children() if data.is_dir() else []
    return all(_WRITTEN.fullmatch(child.name) for child in inside)


def remove_strays(output: Place, manifest: Manifest | None) -> None:
    """Remove files of ours that the manifest doesn't name; without any, also folders left empty.

    Only in a folder that `existing_data` has accepted; what else lies in it stays.
    """
    if manifest is None and (output / MANIFEST_NAME).exists():
        return
    kept = set()
    if manifest is not None:
        kept = {manifest.series_file.path, *(file.path for file in manifest.files)}
    for folder, prefix in ((output / "data", "data/"), (output, "")):
        if not folder.is_dir():
            continue
        for child in folder.children():
            if _WRITTEN.fullmatch(child.name) and f"{prefix}{child.name}" not in kept:
                child.delete()
        if manifest is None and not folder.children():
            folder.delete()
