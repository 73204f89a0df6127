"""Hints name the program that the user ran."""

import sys
from pathlib import Path

import pytest

from timellama_dist.config.load import config_from_flat
from timellama_dist.program import command_line, program
from timellama_dist.train.run_directory import resume_command

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        ("/opt/venv/bin/timellama", "timellama train"),
        ("my_program.py", "timellama train"),
        ("", "timellama train"),
        ("ray_jobs/tune.py", "python ray_jobs/train.py"),
        (str(ROOT / "ray_jobs" / "tune.py"), "python ray_jobs/train.py"),
        (str(ROOT / "timellama_dist" / "__main__.py"), "python -m timellama_dist train"),
        (str(ROOT / "timellama_dist" / "plan.py"), "python -m timellama_dist train"),
    ],
)
def test_a_hint_names_the_program_that_was_run(
    script: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [script, "--search", "small"])
    assert program("train") == shown
    config = config_from_flat({"run.dir": "/runs/my first"})
    expected = f"go on with: {shown} --run.dir '/runs/my first' --run.resume"
    assert resume_command(config) == expected


def test_a_script_that_is_not_there_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "ray_jobs" / "train.py")])
    assert program("plan") == "python -m timellama_dist plan"
    assert command_line("tune", "--run.dir", "x") == f"python {ROOT}/ray_jobs/tune.py --run.dir x"
