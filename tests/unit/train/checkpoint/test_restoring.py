"""Which checkpoint an attempt begins with; several ranks are in tests/integration."""

from collections.abc import Callable
from pathlib import Path

import pytest

from timellama_dist.errors import CheckpointError
from timellama_dist.storage import open_place
from timellama_dist.train.checkpoint.restoring import Start, find_checkpoint, local_checkpoint

Make = Callable[[str, int], Path]
pytestmark = pytest.mark.usefixtures("alone")


def found_in(checkpoints: Path, said: list[str]) -> Start:
    return find_checkpoint(open_place(checkpoints), said.append)


def test_an_attempt_begins_with_the_newest_valid_checkpoint(checkpoints: Path, make: Make) -> None:
    said: list[str] = []
    assert found_in(checkpoints, said) == Start()
    for name, step in (("1", 20), ("2", 40), ("3", 60)):
        make(name, step)
    (checkpoints / "checkpoint_2" / "weights.safetensors").write_bytes(b"Weights" * 1000)
    (checkpoints / "checkpoint_3" / "state.json").unlink()
    found = found_in(checkpoints, said)
    assert found == Start(name="checkpoint_1", step=20)
    assert said == [
        "checkpoint_3 is damaged (state.json is missing: half written, or half "
        "removed): removed, going on from step 20",
        "checkpoint_2 is damaged (weights.safetensors: sha256 differs): set aside as "
        "damaged-checkpoint_2, going on from step 20",
    ]
    assert {path.name for path in checkpoints.iterdir()} == {
        "checkpoint_1",
        "damaged-checkpoint_2",
    }
    with local_checkpoint(open_place(checkpoints), found) as folder:
        assert folder == checkpoints / "checkpoint_1"
    with local_checkpoint(open_place(checkpoints), Start()) as folder:
        assert folder is None


def test_what_was_never_finished_is_no_reason_not_to_begin(checkpoints: Path) -> None:
    said: list[str] = []
    (checkpoints / "checkpoint_1").mkdir()
    assert found_in(checkpoints, said) == Start()
    assert said[0].endswith(": removed, going on from step 0: none was finished")


def test_a_damaged_checkpoint_alone_never_means_step_0(checkpoints: Path) -> None:
    (checkpoints / "checkpoint_1").mkdir()
    (checkpoints / "checkpoint_1" / "state.json").write_text("{")
    message = rf"^{checkpoints} holds no valid checkpoint: checkpoint_1: state\.json cannot be read"
    with pytest.raises(CheckpointError, match=message):
        found_in(checkpoints, [])


def test_a_folder_that_the_first_rank_does_not_see_is_named(checkpoints: Path) -> None:
    message = r"/elsewhere is not seen on \S+: run\.storage_path must be a folder that every node"
    with pytest.raises(CheckpointError, match=message):
        found_in(checkpoints / "elsewhere", [])
