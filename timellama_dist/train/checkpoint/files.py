"""A checkpoint's files in a run's storage: written whole, verified, and the old ones removed.

`state.json` is written last and holds size and sha256 of every other file and its own sha256: a
folder is a valid checkpoint if all of that holds. So a crash at any byte leaves a folder that is
none, and those before it as they were. What the files hold is `checkpoint.contents`'s.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from timellama_dist.errors import CheckpointError, DataError
from timellama_dist.storage import Place, copy_tree, open_place

SCHEMA_VERSION = 3
STATE = "state.json"
DAMAGED = "damaged-"
"""Before the name of a checkpoint that was set aside."""
_CHECKPOINT = re.compile(r"checkpoint_\d")
_CHUNK_BYTES = 8 << 20
_SCRATCH = "timellama-checkpoint-"


@dataclass(frozen=True, kw_only=True)
class State:
    """The content of `state.json`."""

    step: int
    position: dict[str, Any]
    """`Position` as plain values; in the file its key is `progress`."""
    files: dict[str, dict[str, Any]]
    """By path inside the folder: `bytes` and `sha256`."""


def checkpoint_name(step: int) -> str:
    """A name of its own for every save, also for a second one of the same step."""
    return f"checkpoint_{datetime.now(UTC):%Y%m%d-%H%M%S-%f}_step-{step}"


def seal(folder: Path, position: Mapping[str, Any]) -> None:
    """Write `state.json` over all the files in a folder, which makes it a checkpoint.

    Args:
        folder: holds the other files, in subfolders too.
        position: plain values; `step` among them.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    content = {
        "schema_version": SCHEMA_VERSION,
        "step": position["step"],
        "progress": dict(position),
        "files": {
            path.relative_to(folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": _sha256(open_place(path)),
            }
            for path in paths
        },
    }
    text = json.dumps(content | {"sha256": _own_sha256(content)}, indent=2)
    (folder / STATE).write_text(text, encoding="utf-8")


def read_state(place: Place) -> State:
    """Read the `state.json` of a checkpoint and none of its other files.

    Raises:
        CheckpointError: it is missing or damaged, or of an unknown schema version.
        DataError: the storage doesn't answer.
    """
    if not (place / STATE).is_file():
        raise CheckpointError(f"{STATE} is missing: half written, or half removed")
    try:
        content = json.loads((place / STATE).read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{STATE} cannot be read: {error}") from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise CheckpointError(f"{STATE}: schema_version must be {SCHEMA_VERSION}, got {version!r}")
    if content.pop("sha256", None) != _own_sha256(content):
        raise CheckpointError(f"{STATE}: sha256 differs")
    return State(step=content["step"], position=content["progress"], files=content["files"])


def verify_checkpoint(place: Place) -> str | None:
    """Read every file of a checkpoint; returns what is wrong with it, None if nothing.

    Raises:
        DataError: the storage doesn't answer, which says nothing of the checkpoint.
    """
    try:
        files = read_state(place).files
    except CheckpointError as error:
        return str(error)
    for name, size in zip(files, place.sizes(list(files)), strict=True):
        if size is None:
            return f"{name} is missing"
        if size != files[name]["bytes"]:
            return f"{name} has {size} bytes, not {files[name]['bytes']}"
    for name, entry in files.items():
        if _sha256(place / name) != entry["sha256"]:
            return f"{name}: sha256 differs"
    return None


def newest_valid(checkpoints: Place) -> tuple[Place | None, list[tuple[Place, str]]]:
    """The valid checkpoint of the highest step, of the last save if there are two of it.

    Args:
        checkpoints: the folder of checkpoints; may be missing.

    Returns:
        The checkpoint, None if there is none; and with its problem each damaged one that was met
        on the way, those without a readable step first.

    Raises:
        DataError: the storage doesn't answer.
    """
    damaged, ordered = _by_step(checkpoints)
    for _, place in reversed(ordered):
        if (problem := verify_checkpoint(place)) is None:
            return place, damaged
        damaged.append((place, problem))
    return None, damaged


def newest_state(checkpoints: Place) -> State | None:
    """Read the `state.json` of the checkpoint of the highest step.

    Raises:
        DataError: the storage doesn't answer.
    """
    _, ordered = _by_step(checkpoints)
    return read_state(ordered[-1][1]) if ordered else None


def refuse_damaged(checkpoints: Place) -> None:
    """See that a run can be resumed from its checkpoints; changes nothing.

    Raises:
        CheckpointError: there are some, but none is valid; each is named with its problem.
        DataError: the storage doesn't answer.
    """
    place, damaged = newest_valid(checkpoints)
    if place is None and damaged:
        raise CheckpointError(none_valid(checkpoints, damaged))


def none_valid(checkpoints: Place, damaged: Sequence[tuple[Place, str]]) -> str:
    """The message for a folder in which `newest_valid` met only damaged checkpoints."""
    problems = "; ".join(f"{place.name}: {problem}" for place, problem in damaged)
    return f"{checkpoints} holds no valid checkpoint: {problems}"


def set_aside(place: Place) -> str:
    """Put a damaged checkpoint out of the way; returns what became of it.

    One without `state.json` never was a checkpoint: it is removed. Object storage cannot rename a
    folder: there it is left as it is.

    Raises:
        DataError: the storage refuses.
    """
    if not (place / STATE).exists():
        place.delete()
        return "removed"
    if not place.is_local:
        return "left as it is"
    aside = Path(place.path).with_name(DAMAGED + place.name)
    try:
        Path(place.path).rename(aside)
    except OSError as error:
        raise DataError(f"{place}: cannot be set aside: {error.strerror}") from error
    return f"set aside as {aside.name}"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder of this machine for a checkpoint on its way; removes those of killed processes."""
    for left in Path(gettempdir()).glob(f"{_SCRATCH}*"):
        if not _runs(left.name.removeprefix(_SCRATCH).partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    with TemporaryDirectory(prefix=f"{_SCRATCH}{os.getpid()}-") as folder:
        yield Path(folder)


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        # Of no process's name, or another user's.
        return True
    return True


def publish(folder: Path, checkpoints: Place, name: str) -> Place:
    """Copy a sealed folder into the storage, `state.json` last, and verify what lies there.

    Args:
        folder: what `seal` made a checkpoint of.
        checkpoints: where to; must be there, as a storage that is gone is not to be made anew on
            the disk below its mount point.
        name: not in use there.

    Raises:
        DataError: the storage refuses; what was written of it is removed if that can be.
    """
    if checkpoints.is_local and not checkpoints.is_dir():
        raise DataError(f"{checkpoints}: cannot be written: the folder is gone")
    place, source = checkpoints / name, open_place(folder)
    try:
        for file in [*read_state(source).files, STATE]:
            copy_tree(source / file, place / file)
        if problem := verify_checkpoint(place):
            raise DataError(f"{place}: was written, but {problem}")
    except BaseException:
        with suppress(DataError):
            _remove(place)
        raise
    return place


def remove_old(checkpoints: Place, *, keep: int, ignored: Collection[str] = ()) -> None:
    """Remove checkpoints except the newest ones by step.

    Args:
        checkpoints: the folder of checkpoints.
        keep: how many stay.
        ignored: names of those that neither count nor are removed.

    Raises:
        DataError: the storage refuses.
    """
    _, ordered = _by_step(checkpoints)
    counted = [place for _, place in ordered if place.name not in ignored]
    for place in counted[:-keep]:
        _remove(place)


def _by_step(checkpoints: Place) -> tuple[list[tuple[Place, str]], list[tuple[int, Place]]]:
    """Checkpoints without a readable state, with the problem; and the others, oldest first."""
    if not checkpoints.is_dir():
        return [], []
    unreadable: list[tuple[Place, str]] = []
    readable: list[tuple[int, Place]] = []
    for place in checkpoints.children():
        if not _CHECKPOINT.match(place.name):
            continue
        try:
            readable.append((read_state(place).step, place))
        except CheckpointError as error:
            unreadable.append((place, str(error)))
    return unreadable, sorted(readable, key=lambda entry: (entry[0], entry[1].name))


def _remove(place: Place) -> None:
    # First the file that makes it a checkpoint: half removed, it shall not pass for a damaged one.
    (place / STATE).delete()
    place.delete()


def _own_sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(place: Place) -> str:
    digest = hashlib.sha256()
    with place.open_input_file() as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
