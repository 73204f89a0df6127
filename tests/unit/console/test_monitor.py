"""What the driver writes down of a run, and how it is asked to stop."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from timellama_dist.console.events import Evaluating, Started, TrainStep, Validation
from timellama_dist.console.monitor import Monitor, ProgressLine


def test_who_asks_whether_to_stop_is_told_when_the_driver_asks_for_it() -> None:
    async def ask() -> tuple[bool, bool]:
        monitor = Monitor()
        question = asyncio.create_task(monitor.stop_requested())
        await asyncio.sleep(0)
        before = question.done()
        monitor.request_stop()
        await asyncio.wait_for(question, timeout=5)
        return before, question.done()

    assert asyncio.run(ask()) == (False, True)


def train_step(**changes: Any) -> TrainStep:
    fields: dict[str, Any] = {
        "step": 5,
        "loss": 0.5,
        "balance_loss": 1.0,
        "learning_rate": 0.001,
        "gradient_norm": 2.0,
        "skipped_steps": 0,
        "windows_per_s": 80.0,
        "seconds": 1.0,
    }
    return TrainStep(**fields | changes)


def test_a_long_evaluation_says_how_far_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ProgressLine(tmp_path / "history.jsonl")
    line.show([Evaluating(split="test", done=40, total=37)])
    assert capsys.readouterr().err == "test: 37 of 37 windows\n"
    assert not (tmp_path / "history.jsonl").read_text()


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "step 5/0: loss 0.5000, 80 windows/s"),
        ({"skipped_steps": 2}, "step 5/0: loss 0.5000, 80 windows/s, 2 steps skipped"),
        ({"loss": None, "skipped_steps": 5}, "loss not finite, 80 windows/s, 5 steps skipped"),
    ],
)
def test_skipped_steps_are_shown(
    changes: dict[str, Any], shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ProgressLine(tmp_path / "history.jsonl", quiet_s=0)
    line.show([train_step(**changes)])
    assert shown in capsys.readouterr().err
    assert json.loads((tmp_path / "history.jsonl").read_text()) == {
        "kind": "train",
        "step": 5,
        "loss": changes.get("loss", 0.5),
        "balance_loss": 1.0,
        "learning_rate": 0.001,
        "gradient_norm": 2.0,
        "skipped_steps": changes.get("skipped_steps", 0),
        "windows_per_s": 80.0,
        "seconds": 1.0,
    }


def validation(step: int) -> Validation:
    return Validation(step=step, metrics={"mse": 0.5, "mae": 0.25})


def test_a_full_disk_costs_no_line_of_the_history(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history, filling = small_disk / "history.jsonl", small_disk / "filling"
    line = ProgressLine(history)
    line.show([validation(1)])
    filling.write_bytes(os.urandom(240 << 10))
    # More than fits into the page that the file has already.
    many = [validation(step) for step in range(2, 400)]
    line.show(many)
    line.show([validation(400)])
    assert capsys.readouterr().err.count(f"{history} cannot be written: No space left") == 1
    lines = [json.loads(text) for text in history.read_text().splitlines()]
    assert lines == [{"kind": "validation", "step": 1, "mse": 0.5, "mae": 0.25}]
    filling.unlink()
    line.show([validation(401)])
    found = [json.loads(text)["step"] for text in history.read_text().splitlines()]
    assert found == list(range(1, 402))


def test_workers_that_are_started_anew_get_a_bar_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    line = ProgressLine(tmp_path / "history.jsonl")
    line.show([Started(step=0, total_steps=10), train_step()])
    first = line._bar
    line.show([Started(step=4, total_steps=10)])
    assert first is not None
    assert first.disable, "not closed"
    assert line._bar is not None
    assert (line._bar.n, line._bar.total) == (4, 10)
    line.close()
