"""A checkpoint holds byte by byte, or is no checkpoint; real files, damaged one way or another."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from timellama_dist.errors import CheckpointError, DataError
from timellama_dist.storage import open_place
from timellama_dist.train.checkpoint.files import (
    checkpoint_name,
    newest_valid,
    publish,
    refuse_damaged,
    remove_old,
    scratch_folder,
    seal,
    set_aside,
    verify_checkpoint,
)
from timellama_dist.train.checkpoint.position import Position, read_position

Make = Callable[[str, int], Path]


def flip(path: Path, position: int) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_state_json_tells_size_and_hash_of_every_other_file(make: Make) -> None:
    folder = make("1", 40)
    state = json.loads((folder / "state.json").read_text())
    assert (state["schema_version"], state["step"]) == (3, 40)
    weights = b"weights" * 1000
    assert state["files"] == {
        "model/config.json": {"bytes": 1, "sha256": hashlib.sha256(b"1").hexdigest()},
        "weights.safetensors": {"bytes": 7000, "sha256": hashlib.sha256(weights).hexdigest()},
    }
    assert verify_checkpoint(open_place(folder)) is None


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: os.truncate(f / "weights.safetensors", 6999), "has 6999 bytes, not 7000"),
        (lambda f: os.truncate(f / "weights.safetensors", 0), "has 0 bytes, not 7000"),
        (lambda f: flip(f / "weights.safetensors", 3456), "weights.safetensors: sha256 differs"),
        (lambda f: flip(f / "model/config.json", 0), "model/config.json: sha256 differs"),
        (lambda f: (f / "model/config.json").unlink(), "model/config.json is missing"),
        (lambda f: shutil.rmtree(f / "model"), "model/config.json is missing"),
        (lambda f: (f / "state.json").unlink(), "state.json is missing: half written, or half"),
        (lambda f: os.truncate(f / "state.json", 30), "state.json cannot be read: "),
        (lambda f: (f / "state.json").write_bytes(b"\xff"), "state.json cannot be read: "),
        (lambda f: (f / "state.json").write_text("[1]"), "schema_version must be 3, got None"),
        (
            lambda f: (f / "state.json").write_text('{"schema_version": 1}'),
            "state.json: schema_version must be 3, got 1",
        ),
        (
            # A step of another value is no broken JSON.
            lambda f: (f / "state.json").write_text(
                (f / "state.json").read_text().replace('"step": 40', '"step": 41', 1)
            ),
            "state.json: sha256 differs",
        ),
    ],
)
def test_damage_is_found_and_named(
    damage: Callable[[Path], None], problem: str, make: Make
) -> None:
    folder = make("1", 40)
    damage(folder)
    found = verify_checkpoint(open_place(folder))
    assert found is not None
    assert problem in found


def test_every_single_bit_of_a_small_checkpoint_counts(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint_1"
    folder.mkdir()
    (folder / "weights").write_bytes(b"ab")
    seal(folder, {"step": 1})
    text = (folder / "state.json").read_text()
    for position, character in enumerate(text):
        # Spaces between the words say nothing.
        if not character.isspace():
            flip(folder / "state.json", position)
            assert verify_checkpoint(open_place(folder)) is not None, text[position:]
            (folder / "state.json").write_text(text)
    assert verify_checkpoint(open_place(folder)) is None


def test_a_position_survives_the_disk(tmp_path: Path) -> None:
    position = Position(step=3, best_metrics={"mse": 0.1, "by_dataset": {"a": {}}}, best_step=2)
    with pytest.raises(CheckpointError, match=rf"^{tmp_path} holds no readable checkpoint: state"):
        read_position(tmp_path)
    seal(tmp_path, vars(position))
    assert read_position(tmp_path) == position
    seal(tmp_path, {"step": 3, "stp": 3})
    with pytest.raises(CheckpointError, match=r"holds no readable checkpoint: .*'stp'"):
        read_position(tmp_path)


def test_the_newest_is_the_one_of_the_highest_step_not_of_the_last_name(
    make: Make, tmp_path: Path
) -> None:
    checkpoints = open_place(tmp_path / "checkpoints")
    assert newest_valid(checkpoints) == (None, [])
    make("3", 20)
    make("1", 40)
    assert newest_valid(checkpoints) == (checkpoints / "checkpoint_1", [])
    make("2", 40)
    assert newest_valid(checkpoints) == (checkpoints / "checkpoint_2", [])


def test_a_damaged_one_is_passed_over_and_named(make: Make, tmp_path: Path) -> None:
    checkpoints = open_place(tmp_path / "checkpoints")
    make("1", 20)
    flip(make("2", 40) / "weights.safetensors", 0)
    (make("3", 60) / "state.json").unlink()
    # Ray Train's own.
    (checkpoints / "checkpoint_manager_snapshot.json").write_text("{}")
    refuse_damaged(checkpoints)
    found, damaged = newest_valid(checkpoints)
    assert found == checkpoints / "checkpoint_1"
    assert damaged == [
        (checkpoints / "checkpoint_3", "state.json is missing: half written, or half removed"),
        (checkpoints / "checkpoint_2", "weights.safetensors: sha256 differs"),
    ]
    done = [set_aside(place) for place, _ in damaged]
    assert done == ["removed", "set aside as damaged-checkpoint_2"]
    names = {path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()}
    assert names == {"checkpoint_1", "damaged-checkpoint_2"}
    assert newest_valid(checkpoints) == (found, [])


def test_a_run_without_a_valid_one_is_not_resumed(make: Make, tmp_path: Path) -> None:
    checkpoints = open_place(tmp_path / "checkpoints")
    refuse_damaged(checkpoints)
    os.truncate(make("1", 20) / "weights.safetensors", 5)
    (make("2", 40) / "state.json").unlink()
    message = (
        f"{checkpoints} holds no valid checkpoint: checkpoint_2: state.json is missing: half "
        "written, or half removed; checkpoint_1: weights.safetensors has 5 bytes, not 7000"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        refuse_damaged(checkpoints)


def test_the_newest_are_kept_by_step_and_the_ignored_dont_count(make: Make, tmp_path: Path) -> None:
    for name, step in (("4", 10), ("1", 20), ("2", 30), ("3", 40)):
        make(name, step)
    (make("5", 50) / "state.json").unlink()
    remove_old(open_place(tmp_path / "checkpoints"), keep=2, ignored=["checkpoint_3"])
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"checkpoint_1", "checkpoint_2", "checkpoint_3", "checkpoint_5"}


def test_two_saves_of_one_step_have_names_in_their_order() -> None:
    names = [checkpoint_name(40) for _ in range(3)]
    assert names == sorted(set(names))
    assert all(name.endswith("_step-40") for name in names)


def test_what_is_published_is_valid_and_whole(make: Make, tmp_path: Path) -> None:
    source = make("1", 40)
    (tmp_path / "there").mkdir()
    place = publish(source, open_place(tmp_path / "there"), "checkpoint_1")
    assert verify_checkpoint(place) is None
    copied, told = (
        {str(path.relative_to(top)) for path in top.rglob("*")}
        for top in (source, tmp_path / "there" / "checkpoint_1")
    )
    assert copied == told


def test_a_full_disk_leaves_what_was_there_and_nothing_else(make: Make, small_disk: Path) -> None:
    first = publish(make("1", 20), open_place(small_disk), "checkpoint_1")
    large = make("2", 40)
    (large / "weights.safetensors").write_bytes(os.urandom(1 << 20))
    seal(large, {"step": 40})
    message = r"checkpoint_2/weights\.safetensors: cannot be written: No space left on device$"
    with pytest.raises(DataError, match=message):
        publish(large, open_place(small_disk), "checkpoint_2")
    assert newest_valid(open_place(small_disk)) == (first, [])
    assert [path.name for path in small_disk.iterdir()] == ["checkpoint_1"]


def test_storage_that_is_gone_is_not_made_anew(make: Make, tmp_path: Path) -> None:
    message = rf"^{tmp_path}/gone: cannot be written: the folder is gone$"
    with pytest.raises(DataError, match=message):
        publish(make("1", 20), open_place(tmp_path / "gone"), "checkpoint_1")
    assert not (tmp_path / "gone").exists()


def test_a_killed_process_s_scratch_folder_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = (
        "import os\n"
        "from timellama_dist.train.checkpoint.files import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'weights').write_bytes(b'x')\n"
        "    os._exit(9)\n"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", killed], env=environment, check=False)
    (left,) = tmp_path.iterdir()
    with scratch_folder() as first, scratch_folder() as second:
        assert not left.exists()
        assert sorted(tmp_path.iterdir()) == sorted([first, second])
    assert list(tmp_path.iterdir()) == []


CRASH = """
import os, sys
from pathlib import Path
from timellama_dist.train.checkpoint.files import publish
from timellama_dist.storage import open_place

left, replace = int(sys.argv[3]), os.replace

def crash_instead(source, target):
    global left
    if left == 0:
        os._exit(9)
    left -= 1
    replace(source, target)

os.replace = crash_instead
publish(Path(sys.argv[1]), open_place(sys.argv[2]), "checkpoint_2")
"""


@pytest.mark.parametrize("files", range(3))
def test_a_process_that_dies_while_saving_leaves_the_one_before(
    files: int, make: Make, tmp_path: Path
) -> None:
    there = open_place(tmp_path / "there")
    there.make_dirs()
    first = publish(make("1", 20), there, "checkpoint_1")
    words = [str(make("2", 40)), there.path, str(files)]
    done = subprocess.run([sys.executable, "-c", CRASH, *words], check=False)
    assert done.returncode == 9
    # What was begun is in the way of nothing.
    problem = "state.json is missing: half written, or half removed"
    assert newest_valid(there) == (first, [(there / "checkpoint_2", problem)])
