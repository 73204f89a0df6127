"""What becomes of a run whose storage refuses: told, tried again, and stopped in the end."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from timellama_dist.model.tensors import read_tensors
from timellama_dist.storage import open_place
from timellama_dist.train.checkpoint import saving
from timellama_dist.train.checkpoint.contents import read_best
from timellama_dist.train.checkpoint.files import newest_valid, verify_checkpoint
from timellama_dist.train.checkpoint.position import Position, read_position
from timellama_dist.train.checkpoint.saving import Saver, SavingFailedError

pytestmark = pytest.mark.usefixtures("alone")


def trained() -> Any:
    """What of an engine is saved: a module and an optimizer that has made a step; no ZeRO."""
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(3)).sum().backward()
    optimizer.step()
    return SimpleNamespace(module=module, optimizer=optimizer, device="cpu")


def saver(checkpoints: Path, said: list[str], **options: Any) -> Saver:
    options = {"keep": 2, "max_failed": 3, "say": said.append} | options
    return Saver(open_place(checkpoints), **options)


def names(checkpoints: Path) -> list[str]:
    """By step alone; the rest of the name is the time."""
    return sorted(path.name.partition("_step-")[2] for path in checkpoints.iterdir())


def test_a_checkpoint_holds_what_trains_and_the_best_so_far(checkpoints: Path) -> None:
    said: list[str] = []
    engine, best = trained(), {"weight": torch.ones(2)}
    files = saver(checkpoints, said)
    assert files.save(engine, Position(step=5, best_step=3), best)
    folder = checkpoints / files.name
    assert verify_checkpoint(open_place(folder)) is None
    assert {path.name for path in folder.iterdir()} == {
        "state.json",
        "weights.safetensors",
        "optimizer.safetensors",
        "best.safetensors",
    }
    assert read_position(folder) == Position(step=5, best_step=3)
    weights = read_tensors(folder / "weights.safetensors")
    moments = read_tensors(folder / "optimizer.safetensors")
    for name, parameter in engine.module.named_parameters():
        assert torch.equal(weights[name], parameter)
        assert torch.equal(moments[f"exp_avg.{name}"], engine.optimizer.state[parameter]["exp_avg"])
    assert torch.equal((read_best(folder) or {})["weight"], best["weight"])
    assert said == []


def test_the_newest_are_kept(checkpoints: Path) -> None:
    files = saver(checkpoints, [])
    for step in (5, 10, 15):
        files.save(trained(), Position(step=step), None)
    assert names(checkpoints) == ["10", "15"]


def test_a_refused_save_is_told_and_the_next_one_is_tried(checkpoints: Path) -> None:
    said: list[str] = []
    files = saver(checkpoints, said)
    assert files.save(trained(), Position(step=5), None)
    # The storage goes, and comes back.
    away = checkpoints.rename(checkpoints.with_name("away"))
    assert not files.save(trained(), Position(step=10), None)
    assert not files.save(trained(), Position(step=15), None)
    away.rename(checkpoints)
    assert files.save(trained(), Position(step=20), None)
    assert files.failed == 0
    assert names(checkpoints) == ["20", "5"]
    assert said == [
        f"the checkpoint of step {step} could not be saved: {checkpoints}: cannot be written: the "
        "folder is gone; going on, the newest checkpoint is of step 5"
        for step in (10, 15)
    ]


def test_a_run_stops_after_as_many_refused_saves_as_allowed(checkpoints: Path) -> None:
    said: list[str] = []
    files = saver(checkpoints, said, max_failed=2)
    shutil.rmtree(checkpoints)
    checkpoints.write_text("a file where a folder should be")
    assert not files.save(trained(), Position(step=5), None)
    assert said[0].endswith("; going on, no checkpoint was saved yet")
    message = (
        rf"^the checkpoint of step 10 could not be saved: {checkpoints}: cannot be written: the "
        r"folder is gone; that makes run\.max_failed_saves=2 in a row; no checkpoint was saved yet$"
    )
    with pytest.raises(SavingFailedError, match=message):
        files.save(trained(), Position(step=10), None)


def test_a_full_disk_costs_no_checkpoint_that_was_there(small_disk: Path) -> None:
    said: list[str] = []
    files = saver(small_disk, said, keep=1)
    assert files.save(trained(), Position(step=5), None)
    filling = small_disk / "filling"
    filling.write_bytes(bytes(small_disk_left(small_disk) - 4096))
    large = {"weight": torch.ones(10_000)}
    assert not files.save(trained(), Position(step=10), large)
    assert said[0].startswith("the checkpoint of step 10 could not be saved: ")
    assert "cannot be written: No space left on device; going on, the newest" in said[0]
    assert newest_valid(open_place(small_disk))[0] == open_place(small_disk / files.name)
    filling.unlink()
    assert files.save(trained(), Position(step=15), large)
    assert names(small_disk) == ["15"]


def test_storage_that_becomes_read_only_keeps_what_it_holds(small_disk: Path) -> None:
    said: list[str] = []
    files = saver(small_disk, said)
    assert files.save(trained(), Position(step=5), None)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert not files.save(trained(), Position(step=10), None)
    assert said[0].endswith(
        "cannot be written: Read-only file system; going on, the newest checkpoint is of step 5"
    )
    found, _ = newest_valid(open_place(small_disk))
    assert found == open_place(small_disk / files.name)


def small_disk_left(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def test_the_last_save_is_tried_until_the_storage_takes_it(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    files = saver(checkpoints, said)
    away = checkpoints.rename(checkpoints.with_name("away"))
    # The storage comes back while the run waits for it.
    monkeypatch.setattr(saving.time, "sleep", lambda seconds: away.rename(checkpoints))
    files.save_at_last(trained(), Position(step=5), None)
    assert len(said) == 1
    assert names(checkpoints) == ["5"]
