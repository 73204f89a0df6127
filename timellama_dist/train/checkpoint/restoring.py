"""Finds the checkpoint that an attempt starts from, alike on every rank; knows nothing of Ray."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from timellama_dist.errors import CheckpointError, DataError
from timellama_dist.ranks import from_first_rank, gathered
from timellama_dist.storage import Place, copy_tree, open_place
from timellama_dist.train.checkpoint.files import (
    STATE,
    newest_valid,
    none_valid,
    read_state,
    scratch_folder,
    set_aside,
    verify_checkpoint,
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The checkpoint that an attempt starts from, as the first rank sees the folder."""

    name: str | None = None
    """Name of the checkpoint; None to begin at step 0."""
    step: int | None = None
    damaged: tuple[str, ...] = ()
    """Names of damaged checkpoints that could not be set aside."""
    problem: str | None = None
    """Why there is nothing to start from."""


def find_checkpoint(
    checkpoints: Place, say: Callable[[str], None], device: torch.device | str = "cpu"
) -> Start:
    """Look for the newest valid checkpoint; every rank must call, the first one looks.

    Damaged ones are named and set aside. Ray Train's own choice isn't asked: it knows of no
    damage, and of no checkpoint at all in a run that is resumed.

    Raises:
        CheckpointError: there are checkpoints, but none is valid.
        DataError: the storage doesn't answer.
    """
    start = Start()
    if torch.distributed.get_rank() == 0:
        try:
            start = _look(checkpoints, say)
        except (CheckpointError, DataError) as error:
            start = Start(problem=str(error))
    start = from_first_rank(start, device)
    if start.problem is not None:
        raise CheckpointError(start.problem)
    return start


@contextmanager
def local_checkpoint(
    checkpoints: Place, start: Start, device: torch.device | str = "cpu"
) -> Iterator[Path | None]:
    """The checkpoint to start from as a folder of this machine; every rank must call.

    A folder that this rank sees is taken as it is, and one in object storage is copied. Where a
    rank doesn't see the first one's folder, it is sent the files.

    Raises:
        CheckpointError: the copy is damaged.
        DataError: the storage doesn't answer.
    """
    if start.name is None:
        yield None
        return
    place = checkpoints / start.name
    seen = place.is_local and (place / STATE).is_file()
    with scratch_folder() as scratch:
        folder = Path(place.path) if seen else scratch
        if not place.is_local:
            copy_tree(place, open_place(scratch))
        elif not all(gathered(seen)):
            _send(folder, receive=not seen, device=device)
        if not seen and (problem := verify_checkpoint(open_place(folder))):
            raise CheckpointError(f"{place}: the copy of it is damaged: {problem}")
        yield folder


def _look(checkpoints: Place, say: Callable[[str], None]) -> Start:
    if checkpoints.is_local and not checkpoints.is_dir():
        raise CheckpointError(
            f"{checkpoints} is not seen on {socket.gethostname()}: run.storage_path must be a "
            "folder that every node sees, or a URI"
        )
    newest, damaged = newest_valid(checkpoints)
    half_written = [place for place, _ in damaged if not (place / STATE).exists()]
    if newest is None and len(half_written) < len(damaged):
        raise CheckpointError(none_valid(checkpoints, damaged))
    step = read_state(newest).step if newest is not None else None
    on = "going on from " + (f"step {step}" if step is not None else "step 0: none was finished")
    left = []
    for place, problem in damaged:
        outcome = set_aside(place)
        say(f"{place.name} is damaged ({problem}): {outcome}, {on}")
        if (place / STATE).exists():
            left.append(place.name)
    return Start(name=None if newest is None else newest.name, step=step, damaged=tuple(left))


def _send(folder: Path, *, receive: bool, device: torch.device | str) -> None:
    """Send the first rank's checkpoint, one file after the other; every rank must call."""
    place = open_place(folder)
    names = from_first_rank([] if receive else [*read_state(place).files, STATE], device)
    for name in names:
        content = b"" if receive else (folder / name).read_bytes()
        content = from_first_rank(content, device)
        if receive:
            (place / name).write_bytes(content)
