"""The command `timellama`: one screen of help, close suggestions, a start that loads nothing."""

import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest

from timellama_dist import __version__
from timellama_dist.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_is_one_screen_with_every_command_and_three_examples(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    assert [name for name in COMMANDS if not any(f"  {name} " in line for line in lines)] == []
    assert sum(line.startswith("  timellama ") for line in lines) == 3


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"timellama {__version__}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [("trian", "did you mean train?"), ("xyz", "one of train, prepare, "), ("--json", "one of")],
)
def test_an_unknown_command_is_a_mistake(
    word: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: unknown command {word}; {hint}")
    assert error.count("\n") == 1


def test_the_dispatcher_loads_no_command_and_a_module_runs_it() -> None:
    text = (
        "import sys; from timellama_dist.cli.main import main; main(['--help']);"
        "ours = {name for name in sys.modules if name.startswith('timellama_dist')};"
        "assert ours == {'timellama_dist', 'timellama_dist.cli', 'timellama_dist.cli.main',"
        " 'timellama_dist.program'}, ours"
    )
    subprocess.run([sys.executable, "-c", text], check=True, capture_output=True)
    words = [sys.executable, "-m", "timellama_dist", "recipes", "zero3"]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert done.stdout == (ROOT / "ds_configs" / "zero3.json").read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_opens_with_a_sentence_and_three_examples(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = import_module(f"timellama_dist.cli.{name}")
    with suppress(SystemExit):
        command.main(["--help"])
    text = capsys.readouterr().out
    assert f"usage: timellama {name}" in text
    examples = [line for line in text.splitlines() if line.startswith(f"  timellama {name}")]
    assert len(examples) == 3


@pytest.mark.parametrize("script", sorted((ROOT / "ray_jobs").glob("*.py")), ids=lambda p: p.stem)
def test_a_script_of_ray_jobs_is_the_command_of_its_name(script: Path) -> None:
    assert f"from timellama_dist.cli.{script.stem} import main\n" in script.read_text()
