"""The programs of the README and of the manual run as they are printed, beside `my_table.csv`.

The first one's model is put where `timellama train` would have put it.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.serving import running_server
from tests.support.documents import blocks, program

LOADED = 'TimeLlamaForecaster.load("my_run/model")'


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


@pytest.mark.slow
def test_the_trainer_and_every_program_that_loads_its_model(folder: Path) -> None:
    assert "mse" in run(program("build_trainer"), folder)
    (model,) = (folder / "my_run" / "checkpoints").glob("checkpoint_*/model")
    # `timellama train` puts it there; a program of one's own finds it in the last checkpoint.
    shutil.copytree(model, folder / "my_run" / "model")
    programs = [block.text for block in blocks("python") if LOADED in block.text]
    programs = [text for text in programs if "fit(" not in text]
    assert len(programs) > 1
    checks = "assert len(forecast) >= 3 * 12 and 'yhat' in forecast\n"
    run("\n".join(text + checks for text in programs), folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_fit_and_predict(page: str, folder: Path, tiny_llama: Path) -> None:
    (text,) = [
        block.text
        for block in blocks("python")
        if block.page == page and "TimeLlamaForecaster.fit(" in block.text
    ]
    keys = {"backbone.name": str(tiny_llama), "train.max_steps": 4, "data.context_len": 48}
    # A run directory of its own, and a run of seconds.
    text = text.replace('"my_run', '"readme_run')
    assert '"data.horizon": ' in text
    text = text.replace('"data.horizon": ', f'**{json.dumps(keys)}, "data.horizon": ')
    assert "yhat-lo-80" in run(text.replace("print(", "print(*"), folder)


@pytest.mark.slow
def test_asking_the_server(shops_model: Path, shops_table: Path, tmp_path: Path) -> None:
    table = pd.read_csv(shops_table).query("unique_id == 's003'").rename(columns={"ds": "date"})
    table[["date", "a", "b"]].to_csv(tmp_path / "my_table.csv", index=False)
    with running_server(shops_model) as address:
        text = program("requests.post").replace("http://127.0.0.1:8000", address)
        lines = run(text.replace('"horizon": 12', '"horizon": 6'), tmp_path).splitlines()
    assert [line.split()[0] for line in lines] == ["a", "b"]


def test_the_table_of_shops(folder: Path) -> None:
    run(program("shops.parquet").replace("10_000", "50"), folder)
    table = pd.read_parquet(folder / "shops.parquet")
    assert list(table) == ["unique_id", "ds", "sales"]
    assert table.groupby("unique_id").size().tolist() == [180] * 50


def test_dlora_in_plain_pytorch(folder: Path) -> None:
    assert "trainable params" in run(program("LlamaConfig(", "DLoraConfig("), folder)


def test_dlora_in_a_deepspeed_loop_of_one_s_own(folder: Path) -> None:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run(program("deepspeed.initialize"), folder, *launcher)


def test_the_windows_alone(folder: Path) -> None:
    assert "(32, 48, 3) (32, 12, 3)" in run(program("window_dataset"), folder)
