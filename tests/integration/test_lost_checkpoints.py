"""Runs whose checkpoints were damaged, or whose disk is full: real Ray, two DeepSpeed workers."""

import contextlib
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from os import kill, killpg
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import JOB, arguments, history, run_job
from timellama_dist.storage import open_place
from timellama_dist.train.checkpoint.files import newest_valid, read_state, verify_checkpoint

# Whole jobs, most of a minute each.
pytestmark = pytest.mark.slow


def checkpoints(folder: Path) -> list[Path]:
    """Finished ones, in the order in which they were saved."""
    return sorted(path.parent for path in folder.glob("checkpoints/checkpoint_*/state.json"))


def damage(checkpoint: Path) -> None:
    weights = checkpoint / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)


def metrics(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "metrics.json").read_text())


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    pytest.fail(f"in vain for {what}")


@pytest.fixture(scope="module")
def whole(tiny_llama: Path, waves_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that went well: checkpoints of steps 10, 20, 30 and the last one."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    done = run_job(*arguments(tiny_llama, waves_csv, run_dir, **{"run.keep_checkpoints": 4}))
    assert done.returncode == 0, done.stderr
    return run_dir


def test_every_checkpoint_of_a_run_is_valid(whole: Path) -> None:
    places = [open_place(folder) for folder in checkpoints(whole)]
    assert [read_state(place).step for place in places] == [10, 20, 30, 30]
    assert [verify_checkpoint(place) for place in places] == [None] * 4
    assert [(place / "model").exists() for place in places] == [False, False, False, True]
    assert all((place / "best.safetensors").is_file() for place in places)


def test_a_run_goes_on_from_before_the_damage_and_ends_as_if_there_were_none(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "damaged"
    shutil.copytree(whole, run_dir)
    (run_dir / "metrics.json").unlink()
    shutil.rmtree(run_dir / "model")
    first, second, third, last = checkpoints(run_dir)
    damage(second)
    (third / "optimizer.safetensors").unlink()
    (last / "state.json").unlink()
    done = run_job("--run.dir", str(run_dir), "--run.resume")
    assert done.returncode == 0, done.stderr
    lost = "state.json is missing: half written, or half removed"
    for name, problem, became in (
        (last.name, lost, "removed"),
        (third.name, "optimizer.safetensors is missing", f"set aside as damaged-{third.name}"),
        (second.name, "weights.safetensors: sha256 differs", f"set aside as damaged-{second.name}"),
    ):
        line = f"{name} is damaged ({problem}): {became}, going on from step 10"
        assert line in done.stderr.splitlines()
    assert (run_dir / "checkpoints" / f"damaged-{second.name}").exists()
    assert first in checkpoints(run_dir)
    assert metrics(run_dir)["test"]["mse"] == pytest.approx(metrics(whole)["test"]["mse"], rel=1e-5)
    assert (run_dir / "model" / "config.json").exists()


def test_a_run_without_a_valid_checkpoint_is_refused_and_left_alone(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "lost"
    shutil.copytree(whole, run_dir)
    for folder in checkpoints(run_dir):
        damage(folder)
    before = sorted(run_dir.rglob("*"))
    done = run_job("--run.dir", str(run_dir), "--run.resume")
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {run_dir}/checkpoints holds no valid checkpoint: ")
    assert done.stderr.count("weights.safetensors: sha256 differs") == 4
    assert done.stderr.count("\n") == 1
    assert sorted(run_dir.rglob("*")) == before


def descendants(pid: int) -> Iterator[int]:
    children: list[str] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children += path.read_text().split()
    for child in map(int, children):
        yield child
        yield from descendants(child)


def train_workers(pid: int) -> list[int]:
    """Process ids of the run's workers."""
    return [
        child
        for child in descendants(pid)
        if b"RayTrainWorker" in Path(f"/proc/{child}/cmdline").read_bytes()
    ]


def test_a_restart_takes_the_newest_valid_checkpoint(
    tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "killed"
    changes = {
        "train.epochs": 9,
        "train.max_steps": 100,
        "train.validate_every": 20,
        "train.patience": 0,
    }
    process = subprocess.Popen(
        [*JOB, *arguments(tiny_llama, waves_csv, run_dir, **changes)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: len(checkpoints(run_dir)) == 2, "two checkpoints")
    for worker in train_workers(process.pid):
        kill(worker, signal.SIGKILL)
    newest = checkpoints(run_dir)[-1]
    damage(newest)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    step = int(newest.name.partition("_step-")[2])
    line = (
        f"{newest.name} is damaged (weights.safetensors: sha256 differs): set aside as "
        f"damaged-{newest.name}, going on from step {step - 20}"
    )
    assert line in errors.splitlines()
    validated = [record["step"] for record in history(run_dir, "validation")]
    assert validated[-1] == 100
    assert validated.count(step) == 2


def test_a_full_disk_stops_the_run_in_the_end_and_costs_nothing_saved(
    whole: Path, tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    storage, run_dir = tmp_path / "disk", tmp_path / "full"
    storage.mkdir()
    size = sum(path.stat().st_size for path in checkpoints(whole)[0].iterdir())
    # Room for a checkpoint and a half.
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "none", str(storage)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        changes = {"run.storage_path": storage, "run.max_failed_saves": 2}
        done = run_job(*arguments(tiny_llama, waves_csv, run_dir, **changes))
        assert done.returncode == 1, done.stderr
        told, stopped = (
            f"the checkpoint of step {step} could not be saved: {storage}/full/checkpoints/"
            for step in (20, 30)
        )
        end = "cannot be written: No space left on device; "
        assert any(
            line.startswith(told)
            and line.endswith(f"{end}going on, the newest checkpoint is of step 10")
            for line in done.stderr.splitlines()
        )
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"RuntimeError: {stopped}")
        assert last.endswith(
            f"{end}that makes run.max_failed_saves=2 in a row; the newest checkpoint is of step "
            f"10; go on with: python ray_jobs/train.py --run.dir {run_dir} --run.resume"
        )
        found, damaged = newest_valid(open_place(storage / "full" / "checkpoints"))
        assert found is not None
        assert (read_state(found).step, damaged) == (10, [])
        assert len(history(run_dir, "train")) == 6
        # The disk was made larger.
        subprocess.run(["mount", "-o", "remount,size=64m", str(storage)], check=True)
        done = run_job("--run.dir", str(run_dir), "--run.resume")
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", "-l", str(storage)], check=True)
    found = metrics(run_dir)["test"]["mse"]
    assert found == pytest.approx(metrics(whole)["test"]["mse"], rel=1e-5)


def test_a_run_that_is_stopped_while_its_disk_is_full_saves_all_of_it_once_there_is_room(
    tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    storage, run_dir, said = tmp_path / "disk", tmp_path / "stopped", tmp_path / "said"
    storage.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "none", str(storage)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        changes: dict[str, Any] = {"run.storage_path": storage, "run.max_failed_saves": 999}
        changes |= {"train.epochs": 10_000, "train.max_steps": 100_000, "train.average_steps": 10}
        words = arguments(tiny_llama, waves_csv, run_dir, **changes, **{"train.patience": 0})
        with said.open("w") as errors:
            process = subprocess.Popen(
                [*JOB, *words], stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )
        wait_for(lambda: checkpoints(storage / "stopped"), "a checkpoint")
        filling = storage / "filling"
        with filling.open("wb") as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 16)):
                file.flush()
        wait_for(lambda: "could not be saved" in said.read_text(), "a full disk")
        killpg(process.pid, signal.SIGINT)
        wait_for(lambda: "stopping" in said.read_text(), "the order to stop")
        stopped = wait_for(lambda: refused_twice(said.read_text()), "the last save")
        filling.unlink()
        assert process.wait(timeout=120) == 130, said.read_text()
        found, _ = newest_valid(open_place(storage / "stopped" / "checkpoints"))
        assert found is not None
        assert read_state(found).step == stopped
        assert (found / "average.safetensors").is_file()
    finally:
        subprocess.run(["umount", "-l", str(storage)], check=True)


def refused_twice(said: str) -> int | None:
    """The step whose checkpoint was tried a second time: the last one of the run."""
    steps = re.findall(r"the checkpoint of step (\d+) could not be saved", said)
    return next((int(one) for one in steps if steps.count(one) > 1), None)
