"""What is refused before an actor starts: exact messages, nothing written."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.runs import PLAIN
from timellama_dist.backbone.fingerprint import backbone_fingerprint
from timellama_dist.config.load import config_from_flat
from timellama_dist.config.schema import RunConfig
from timellama_dist.data.prepared.manifest import Manifest
from timellama_dist.data.prepared.write import prepare
from timellama_dist.errors import CheckpointError, ConfigError, DataError, UserError
from timellama_dist.train.checkpoint.files import seal
from timellama_dist.train.describe import describe
from timellama_dist.train.driver import train
from timellama_dist.train.plan import plan_run
from timellama_dist.train.resume import check_content

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
        PLAIN
        | {
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
            {"data.path": "s3://me:secret@bucket/data"},
            ConfigError,
            r"^data\.path must not hold credentials, which config\.yaml and the exported model",
        ),
        (
            {"run.storage_path": "s3://me:secret@bucket/runs"},
            ConfigError,
            r"^run\.storage_path must not hold credentials",
        ),
        (
            {"data.context_len": 190},
            ConfigError,
            r"data\.context_len=190 \+ data\.horizon=4 is longer than the train part",
        ),
        (
            {"data.horizon": 30},
            ConfigError,
            r"data\.context_len=12 \+ data\.horizon=30 is longer than the validation part "
            r"\(data\.split=\[0\.7, 0\.1, 0\.2\]\) of every series; the longest has 200 rows in "
            r"all; data\.split=\[0, 30, 30\] would take the last 30 rows for the test part",
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


def test_a_plan_says_how_many_series_are_too_short(tmp_path: Path, tiny_llama: Path) -> None:
    parts = [frame().head(rows).assign(unique_id=f"s{rows}") for rows in (200, 20, 150)]
    long = write(tmp_path, pd.concat(parts))
    lines = describe(plan_run(config(long, tiny_llama))).splitlines()
    # 20 rows: 14 of training, 2 of validation, 4 of test.
    assert lines[1:] == [
        "1 of 3 series are too short for a train window of 16 rows and are skipped",
        "1 of 3 series are too short for a validation window of 16 rows and are skipped",
    ]
    padded = plan_run(config(long, tiny_llama, **{"data.short_series": "pad"}))
    assert describe(padded).splitlines()[1:] == [
        "1 of 3 series are too short for a validation window of 5 rows and are skipped",
    ]
    assert padded.num_windows["train"] == 125 + 10 + 90


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


@pytest.mark.parametrize("options", [{}, {"timestamps": "ignore"}, {"missing": "refuse"}])
def test_the_generic_recipe_takes_each_choice_about_faults_alone(
    options: dict[str, str], table: Path, tiny_llama: Path
) -> None:
    keys = {
        "data.path": str(table),
        "data.context_len": 12,
        "data.horizon": 4,
        "backbone.name": str(tiny_llama),
        "model.alignment_heads": 4,
    }
    plan = plan_run(config_from_flat(keys | {f"data.{key}": options[key] for key in options}))
    assert plan.num_windows == {"train": 125, "validation": 17, "test": 37}


@pytest.mark.parametrize("gaps", ["refuse", "reindex"])
def test_prepared_data_take_a_default_of_now_or_before(
    gaps: str, table: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    prepared = tmp_path / "prepared"
    prepare(table, prepared)
    keys = {"data.path": str(prepared), "data.gaps": gaps}
    assert plan_run(config(table, tiny_llama, **keys)).num_windows["test"] == 37
    with pytest.raises(
        ConfigError, match=r"data\.missing was decided when .*prepared was prepared"
    ):
        plan_run(config(table, tiny_llama, **keys, **{"data.missing": "ffill"}))


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


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another table, of three channels and another step."""
    rows = frame().assign(date=pd.date_range("2024-01-01", periods=200, freq="D"))
    rows = rows.assign(c=rows["a"] + rows["b"])
    path = tmp_path / "other.csv"
    rows.to_csv(path, index=False)
    return path


def mixture(llama: Path, *parts: dict[str, Any], **changes: Any) -> RunConfig:
    return config(Path("none"), llama, **{"data.path": None, "data.mixture": list(parts)} | changes)


def test_a_mixture_is_planned_set_by_set(
    table: Path, other: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    parts = ({"path": str(table)}, {"path": str(other), "name": "days", "prompt": "d e f"})
    plan = plan_run(mixture(tiny_llama, *parts))
    assert [part.name for part in plan.config.data.parts] == ["table", "days"]
    assert [one.num_channels for one in plan.sets] == [2, 3]
    assert plan.num_windows == {"train": 250, "validation": 34, "test": 74}
    assert describe(plan).splitlines()[:2] == [
        "table: 2 channels, windows: 125 train, 17 validation, 37 test",
        "days: 3 channels, windows: 125 train, 17 validation, 37 test",
    ]
    first, second = plan.prepared_data(tmp_path / "run")
    assert (first.path, second.path) == tuple(
        str(tmp_path / "run" / "data" / name) for name in ("table", "days")
    )
    assert second.prompt == (
        "d e f Task: forecast the next 4 steps from the previous 12 steps; one step is D."
    )


def test_a_context_is_fitted_to_each_set_and_the_run_takes_the_longest(
    table: Path, other: Path, tiny_llama: Path
) -> None:
    fit = {"data.fit_context": True, "data.context_len": 512}
    alone = plan_run(config(table, tiny_llama, **fit))
    # Two days; a quarter of the 140 training rows would be less.
    assert alone.config.data.context_len == 48
    assert alone.num_windows == {"train": 89, "validation": 17, "test": 37}
    both = plan_run(mixture(tiny_llama, {"path": str(table)}, {"path": str(other)}, **fit))
    assert both.config.data.context_len == 48
    assert [part.context_len for part in both.config.data.parts] == [48, 34]
    assert plan_run(both.config).config == both.config


def test_steps_and_validations_are_fitted_to_many_channels(
    tiny_llama: Path, tmp_path: Path
) -> None:
    rows = frame()
    wide = pd.concat([rows["date"], *(rows["a"].rename(f"c{n}") for n in range(400))], axis=1)
    fit = {"train.fit_channels": True, "train.batch_size": 64, "train.micro_batch_size": 32}
    path = write(tmp_path, wide)
    plan = plan_run(config(path, tiny_llama, **fit))
    train = plan.config.train
    assert (train.batch_size, train.micro_batch_size, train.validate_windows) == (4, 2, 327)
    assert plan_run(plan.config).config == plan.config
    few = describe(plan_run(config(path, tiny_llama, **fit, **{"train.validate_windows": 9})))
    assert few.splitlines()[1] == (
        "4 windows a step; a validation takes 9 of a data set, evenly spread"
    )


def test_one_set_is_prepared_in_the_run_s_data_folder(
    table: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    (only,) = plan_run(config(table, tiny_llama)).prepared_data(tmp_path / "run")
    assert (only.name, only.path) == ("table", str(tmp_path / "run" / "data"))


@pytest.mark.parametrize(
    ("part", "changes", "kind", "message"),
    [
        (
            {"path": "nothing"},
            {},
            ConfigError,
            r"^data\.mixture\[1\]\.path must be a prepared folder.*; got 'nothing', which is",
        ),
        (
            {"path": "/nowhere/table.csv"},
            {},
            DataError,
            r"^data\.mixture\[1\]: /nowhere/table\.csv: no such file",
        ),
        (
            {"split": [150, 40, 20]},
            {},
            ConfigError,
            r"^data\.mixture\[1\]\.split .* asks for 210 rows",
        ),
        (
            {"split": [180, 15, 5]},
            {"data.horizon": 6},
            ConfigError,
            r"^data\.mixture\[1\]: data\.context_len=12 \+ data\.horizon=6 is longer than the test "
            r"part \(data\.mixture\[1\]\.split=\[180\.0, 15\.0, 5\.0\]\) of every series",
        ),
        ({"columns": ["z"]}, {}, DataError, r"^data\.mixture\[1\]: .*'z'"),
        (
            {"name": "table"},
            {},
            ConfigError,
            r"^data\.mixture\[1\]\.name must not be that of data\.mixture\[0\], got 'table' twice",
        ),
        (
            {"name": "a/b"},
            {},
            ConfigError,
            r"^data\.mixture\[1\]\.name must be fit for a folder's name, got 'a/b'$",
        ),
        ({"name": ".."}, {}, ConfigError, r"name must be fit for a folder's name, got '\.\.'$"),
        (
            {},
            {"model.affine": True},
            ConfigError,
            r"^model\.affine .* equally many channels; table has 2, other has 3$",
        ),
        (
            {},
            {"model.shortcut": "frozen", "model.shortcut_per_channel": True},
            ConfigError,
            r"^model\.shortcut_per_channel .* equally many channels; table has 2, other has 3$",
        ),
    ],
)
def test_a_part_that_cannot_be_is_refused_by_its_place(
    part: dict[str, Any],
    changes: dict[str, Any],
    kind: type[UserError],
    message: str,
    table: Path,
    other: Path,
    tiny_llama: Path,
) -> None:
    second = {"path": str(other)} | part
    with pytest.raises(kind, match=message):
        plan_run(mixture(tiny_llama, {"path": str(table)}, second, **changes))


def test_maps_of_more_channels_than_a_node_can_sum_are_refused(
    table: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = {"model.shortcut": "frozen", "model.shortcut_per_channel": True}
    sizes = {"data.context_len": 12, "data.horizon": 4}
    asked = config(table, tiny_llama, **each, **sizes)
    monkeypatch.setattr("timellama_dist.train.plan._MOST_SUMMED", 8 * 2 * 12 * 16)
    plan_run(asked)
    monkeypatch.setattr("timellama_dist.train.plan._MOST_SUMMED", 8 * 2 * 12 * 16 - 1)
    expected = r"^model\.shortcut_per_channel .* \(2 channels, context 12, horizon 4\); at most"
    with pytest.raises(ConfigError, match=expected):
        plan_run(asked)


def test_a_run_is_not_resumed_on_a_table_that_has_grown(
    table: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    resumed = config(table, tiny_llama, **{"run.dir": str(run_dir), "run.resume": True})
    plan = plan_run(resumed)
    (prepared,) = plan.prepared_data(run_dir)
    begun = Manifest.load(prepared.path).content_hash
    assert plan.sets[0].content_hash == begun
    checkpoint = run_dir / "checkpoints" / "checkpoint_1"
    checkpoint.mkdir(parents=True)
    seal(checkpoint, {"step": 20, "data": [begun]})
    check_content(resumed, plan.sets)
    rows = frame()
    grown = pd.concat([rows, rows.tail(1).assign(date=rows["date"].max() + pd.Timedelta("1h"))])
    write(tmp_path, grown)
    message = (
        rf"^data\.path: {table} cannot be changed in a resumed run: its content is not what the run"
        r" was begun with; put it back, or begin another run$"
    )
    with pytest.raises(ConfigError, match=message):
        train(resumed)
    assert Manifest.load(prepared.path).content_hash == begun, "the copy was replaced"
    assert not (run_dir / "config.yaml").exists()


def test_a_hub_name_is_pinned_to_its_commit_and_nothing_else_is(
    table: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--owner--tiny"
    snapshot = Path(shutil.copytree(tiny_llama, cached / "snapshots" / commit))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    planned = plan_run(config(table, Path("owner/tiny"))).config
    assert (planned.backbone.name, planned.backbone.revision) == ("owner/tiny", commit)
    assert plan_run(planned).config.backbone == planned.backbone
    named = config(table, Path("owner/tiny"), **{"backbone.revision": "main"})
    assert plan_run(named).config.backbone.revision == "main"
    for folder in (snapshot, tiny_llama):
        assert plan_run(config(table, folder)).config.backbone.revision is None


def test_a_run_is_not_resumed_on_a_backbone_with_other_weights(
    table: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    llama, run_dir = Path(shutil.copytree(tiny_llama, tmp_path / "llama")), tmp_path / "run"
    resumed = config(table, llama, **{"run.dir": str(run_dir), "run.resume": True})
    expected = backbone_fingerprint(resumed, llama)
    sets = plan_run(resumed).sets
    progress = {"data": [sets[0].content_hash]}
    for step, backbone in enumerate(({}, {"backbone": expected})):
        checkpoint = run_dir / "checkpoints" / f"checkpoint_{step}"
        checkpoint.mkdir(parents=True)
        seal(checkpoint, {"step": step, **progress, **backbone})
    check_content(resumed, sets)
    weights = load_file(llama / "model.safetensors")
    weights = {name: torch.randn_like(weight) for name, weight in weights.items()}
    save_file(weights, llama / "model.safetensors")
    message = (
        f"backbone.name: '{llama}' has other weights now than those this run was trained with: "
        f"fingerprint {backbone_fingerprint(resumed, llama)}, not {expected} (read from {llama}); "
        "put the former ones back, or train anew"
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        train(resumed)
    assert not (run_dir / "config.yaml").exists()
    # A checkpoint from before there were fingerprints.
    shutil.rmtree(checkpoint)
    check_content(resumed, sets)
