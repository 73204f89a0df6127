"""The wheel in an empty folder: the command, its recipes, a run, forecasts, a served request.

What the package needs is this environment's; the package itself is the wheel's alone.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pandas as pd
import pytest
import requests

from benchmarks.serving import free_port, some_request, wait_until_ready
from tests.support.runs import arguments

ROOT = Path(__file__).parents[2]


def run(command: list[str | Path], folder: Path) -> str:
    """Run a program as a user does who has never seen the repository; what it printed."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=480,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def environment() -> dict[str, str]:
    """This one, without a path to the repository."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`timellama` of the wheel, installed into an environment of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    source, made = folder / "source", folder / "environment"
    # A build leaves folders in its source.
    source.mkdir()
    shutil.copytree(
        ROOT / "timellama_dist",
        source / "timellama_dist",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    run([*pip, *build], folder)
    (wheel,) = folder.glob("timellama_dist-*.whl")
    run([sys.executable, "-m", "venv", "--without-pip", made], folder)
    python = made / "bin" / "python"
    run([*pip, "--python", python, "install", "--no-deps", wheel], folder)
    (packages,) = made.glob("lib/python*/site-packages")
    (packages / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made / "bin" / "timellama"


@pytest.fixture(scope="module")
def folder(waves_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with a table."""
    folder = tmp_path_factory.mktemp("empty")
    shutil.copy(waves_csv, folder / "my_table.csv")
    return folder


def test_the_command_shows_what_there_is(program: Path, folder: Path) -> None:
    where = [program.with_name("python"), "-c", "import timellama_dist as t; print(t.__file__)"]
    assert Path(run(where, folder).strip()).is_relative_to(program.parents[1])
    shown = run([program, "--help"], folder)
    assert "  timellama train --data.path my_table.csv --data.horizon 24\n" in shown
    listed = run([program, "recipes"], folder)
    assert [name for name in ("etth1", "generic", "small", "zero3") if name not in listed] == []
    assert run([program, "recipes", "etth1"], folder).startswith("# ETTh1")


def test_a_model_is_trained_and_its_next_commands_run(
    program: Path, folder: Path, tiny_llama: Path
) -> None:
    words = arguments(tiny_llama, Path("my_table.csv"), Path("my_run"), **{"train.max_steps": 10})
    shown = run([program, "train", "--deepspeed", "zero2", *words], folder)
    assert "\ndeepspeed: zero2\n" in (folder / "my_run" / "config.yaml").read_text()
    model = folder / "my_run" / "model"
    next_commands = [line.split(maxsplit=1) for line in shown.splitlines()[-3:]]
    assert next_commands == [
        [
            "forecast",
            f"timellama forecast --model {model} --input my_table.csv "
            f"--output {folder / 'my_run' / 'forecasts'}",
        ],
        ["evaluate", f"timellama evaluate --model {model}"],
        ["serve", f"timellama serve --model {model}"],
    ]

    _, *forecast = shlex.split(next_commands[0][1])
    assert "1 of 1 forecasts made now" in run([program, *forecast], folder)
    forecasts = pd.read_parquet(folder / "my_run" / "forecasts")
    assert len(forecasts) == 3 * 12

    _, *serve = shlex.split(next_commands[2][1])
    port = free_port()
    command = [*map(str, [program, *serve]), "--port", str(port)]
    with subprocess.Popen(command, cwd=folder, env=environment(), start_new_session=True) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_ready(address, server)
            reply = requests.post(f"{address}/forecast", json=some_request(address), timeout=60)
            assert reply.status_code == 200, reply.text
            (answer,) = reply.json()["forecasts"]
            assert [len(values["yhat"]) for values in answer["values"].values()] == [12] * 3
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(120) == 130
