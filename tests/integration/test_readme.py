"""The README's programs run as they are printed, in a folder with `my_table.csv`.

The first one's model is put where `ray_jobs/train.py` would have put it.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.serving import running_server

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def program(word: str) -> str:
    (found,) = [text for text in PROGRAMS if word in text]
    return found


def run(text: str, folder: Path, *launcher: str) -> str:
    file = folder / "my_program.py"
    file.write_text(text)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *launcher, str(file)],
        cwd=folder,
        env=os.environ | {"LOCAL_WORLD_SIZE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(waves_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copy(waves_csv, folder / "my_table.csv")
    return folder


def test_each_program_is_under_15_lines() -> None:
    assert len(PROGRAMS) == 6
    for text in PROGRAMS:
        assert len([line for line in text.splitlines() if line.strip()]) < 15


def test_the_trainer_and_the_forecaster(folder: Path) -> None:
    assert "mse" in run(program("build_trainer"), folder)
    (model,) = (folder / "my_run" / "checkpoints").glob("checkpoint_*/model")
    # `ray_jobs/train.py` puts it there; a program of one's own finds it in the last checkpoint.
    shutil.copytree(model, folder / "my_run" / "model")
    run(program("TimeLlamaForecaster") + "assert len(forecast) == 3 * 12\n", folder)


@pytest.mark.slow
def test_asking_the_server(shops_model: Path, shops_table: Path, tmp_path: Path) -> None:
    table = pd.read_csv(shops_table).query("unique_id == 's003'").rename(columns={"ds": "date"})
    table[["date", "a", "b"]].to_csv(tmp_path / "my_table.csv", index=False)
    with running_server(shops_model) as address:
        text = program("requests.post").replace("http://127.0.0.1:8000", address)
        said = run(text.replace('"horizon": 12', '"horizon": 6'), tmp_path)
    assert [line.split()[0] for line in said.splitlines()] == ["a", "b"]


def test_the_table_of_shops(folder: Path) -> None:
    run(program("shops.parquet").replace("10_000", "50"), folder)
    table = pd.read_parquet(folder / "shops.parquet")
    assert list(table) == ["unique_id", "ds", "sales"]
    assert table.groupby("unique_id").size().tolist() == [180] * 50


def test_dlora_in_a_deepspeed_loop_of_one_s_own(folder: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run(program("deepspeed.initialize"), folder, *launcher)


def test_the_windows_alone(folder: Path) -> None:
    assert "(32, 48, 3) (32, 12, 3)" in run(program("window_dataset"), folder)
