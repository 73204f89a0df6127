"""What is refused before an actor starts: exact messages, nothing written."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from timellama_dist.config.load import config_from_flat
from timellama_dist.config.schema import RunConfig
from timellama_dist.data.prepare import prepare
from timellama_dist.errors import ConfigError, DataError, UserError
from timellama_dist.launch.plan import plan_run

ROOT = Path(__file__).parents[3]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path, frame())


def frame() -> pd.DataFrame:
    hours = np.arange(200)
    return pd.DataFrame(
        {
            "date": pd.date_range("2024-01-01", periods=200, freq="h"),
            "a": np.sin(hours / 4),
            "b": np.cos(hours / 5),
        }
    )


def write(folder: Path, rows: pd.DataFrame) -> Path:
    path = folder / "table.csv"
    rows.to_csv(path, index=False)
    return path


def config(table: Path, llama: Path, **changes: Any) -> RunConfig:
    return config_from_flat(
        {
            "data.path": str(table),
            "data.context_len": 12,
            "data.horizon": 4,
            "backbone.name": str(llama),
            "backbone.num_blocks": 2,
            "model.alignment_heads": 4,
        }
        | changes
    )


def test_a_plan_counts_the_windows_of_each_split(table: Path, tiny_llama: Path) -> None:
    plan = plan_run(config(table, tiny_llama))
    # 140, 20 and 40 rows; validation and test begin 12 rows earlier.
    assert plan.num_windows == {"train": 125, "validation": 17, "test": 37}
    assert plan.hidden_size == 64


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"data.path": "nothing"},
            ConfigError,
            r"data\.path must be a prepared folder, a CSV or Parquet file, or one of epf; "
            r"got 'nothing', which is none of them",
        ),
        ({"data.path": "/nowhere/table.csv"}, DataError, r"/nowhere/table\.csv: no such file"),
        (
            {"data.context_len": 190},
            ConfigError,
            r"data\.context_len=190 \+ data\.horizon=4 is longer than the train part",
        ),
        (
            {"data.horizon": 30},
            ConfigError,
            r"data\.context_len=12 \+ data\.horizon=30 is longer than the validation part",
        ),
        (
            {"dlora.top_n": 29},
            ConfigError,
            r"dlora\.top_n must be between 1 and 28 \(7 modules x dlora\.num_experts=4\), got 29",
        ),
        (
            {"backbone.num_blocks": 3},
            ConfigError,
            r"backbone\.num_blocks must be between 1 and 2 .*, got 3",
        ),
        ({"backbone.name": "/nowhere/llama"}, ConfigError, r"backbone\.name.*/nowhere/llama"),
        (
            {"model.alignment_heads": 5},
            ConfigError,
            r"model\.alignment_heads must divide the backbone's hidden size 64, got 5",
        ),
        ({"data.columns": ["c"]}, DataError, r"'c'"),
        ({"data.split": [150, 40, 20]}, ConfigError, r"data\.split .* asks for 210 rows"),
        ({"deepspeed": "/nowhere.json"}, ConfigError, r"deepspeed: cannot read /nowhere\.json"),
    ],
)
def test_a_run_that_cannot_be_is_refused(
    changes: dict[str, Any],
    kind: type[UserError],
    message: str,
    table: Path,
    tiny_llama: Path,
) -> None:
    with pytest.raises(kind, match=message):
        plan_run(config(table, tiny_llama, **changes))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows.assign(a=["x", *rows["a"][1:]]), r"row 1: column 'a' holds 'x'"),
        (lambda rows: rows.assign(b=rows["b"].where(rows.index != 6)), r"row 7: column 'b' is em"),
        (lambda rows: rows.assign(b=rows["b"].where(rows.index != 6, np.inf)), r"'b' is infinite"),
        (lambda rows: rows.iloc[[*range(50), 49, *range(50, 200)]], r"row 51: duplicate timestamp"),
        (lambda rows: rows.iloc[[1, 0, *range(2, 200)]], r"row 2: timestamps are not in order"),
        (lambda rows: rows.drop(index=9), r"row 10: irregular step.* \(1 such in the table\)"),
    ],
)
def test_a_bad_table_is_refused_by_column_and_row(
    spoil: Any, message: str, tmp_path: Path, tiny_llama: Path
) -> None:
    with pytest.raises(DataError, match=message):
        plan_run(config(write(tmp_path, spoil(frame())), tiny_llama))


def test_a_deepspeed_file_that_contradicts_the_run_is_refused(
    table: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps({"train_batch_size": 3}))
    with pytest.raises(ConfigError, match=r"train_batch_size=3 .* contradicts 64"):
        plan_run(config(table, tiny_llama, deepspeed=str(policy)))


def test_what_preparing_decided_is_not_decided_again(
    table: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    prepare(table, tmp_path / "prepared", split=(0.6, 0.2, 0.2))
    again = config(tmp_path / "prepared", tiny_llama)
    assert plan_run(again).num_windows["train"] == 105
    split = replace(again, data=replace(again.data, split=(0.7, 0.1, 0.2)))
    with pytest.raises(ConfigError, match=r"data\.split was decided when .*prepared was prepared"):
        plan_run(split)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.horzon", "3"], "error: unknown key data.horzon; did you mean data.horizon?\n"),
        (["--data.path", "/nowhere.csv"], "error: /nowhere.csv: no such file\n"),
    ],
)
def test_the_command_tells_a_mistake_in_one_line_and_exits_2(
    words: list[str], message: str, tmp_path: Path, tiny_llama: Path
) -> None:
    run_dir = tmp_path / "run"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "ray_jobs/train.py"), *words),
            *("--run.dir", str(run_dir), "--backbone.name", str(tiny_llama)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (2, message, "")
    assert not run_dir.exists()
