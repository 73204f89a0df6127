"""Two data sets of different channels in one run, as `ray_jobs/train.py` runs it."""

import io
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.support.runs import JOB, arguments, history, run_job
from timellama_dist import TimeLlamaForecaster
from timellama_dist.cli.evaluate import read_arguments
from timellama_dist.cli.train import main
from timellama_dist.cluster import connected
from timellama_dist.errors import ConfigError
from timellama_dist.evaluation.job import evaluate

pytestmark = pytest.mark.slow

CONTEXT, HORIZON = 48, 12
# Of the second set, whose windows are shorter than the run's.
OWN_CONTEXT, OWN_HORIZON = 28, 7
MEAN = ("mse", "mae")


@pytest.fixture(scope="module")
def ramps_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 days of two saw-teeth."""
    rng = np.random.default_rng(4)
    frame = pd.DataFrame({"date": pd.date_range("2023-01-01", periods=300, freq="D")})
    for index, channel in enumerate("xy"):
        teeth = (np.arange(300) + 2 * index) % 7
        frame[channel] = 3.0 * teeth + 0.5 * rng.standard_normal(300) - 5
    path = tmp_path_factory.mktemp("data") / "ramps.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def words(tiny_llama: Path, waves_csv: Path, ramps_csv: Path) -> list[str]:
    mixture = [
        {"path": str(waves_csv), "weight": 2.0},
        {
            "path": str(ramps_csv),
            "weight": 1.0,
            "name": "saw",
            "prompt": "a b c of the d",
            "context_len": OWN_CONTEXT,
            "horizon": OWN_HORIZON,
        },
    ]
    path, run_dir = Path("none"), Path("none")
    words = arguments(
        tiny_llama, path, run_dir, **{"train.max_steps": 20, "model.shortcut": "frozen"}
    )
    kept = zip(words[::2], words[1::2], strict=True)
    shared = [word for pair in kept if pair[0] not in ("--data.path", "--run.dir") for word in pair]
    return [*shared, "--data.mixture", json.dumps(mixture)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with connected():
        yield


@pytest.fixture(scope="module")
def finished(
    words: list[str], cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The run's folder, and what it printed."""
    run_dir, printed = tmp_path_factory.mktemp("runs") / "mixture", io.StringIO()
    with redirect_stdout(printed):
        assert main([*words, "--run.dir", str(run_dir)]) == 0
    return run_dir, printed.getvalue()


def read_metrics(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "metrics.json").read_text())


def errors_by_hand(
    forecaster: TimeLlamaForecaster, table: Path, dataset: int, split: str
) -> list[float]:
    """MSE and MAE over a split's windows, cut and scaled by numpy."""
    context_len, horizon = [(CONTEXT, HORIZON), (OWN_CONTEXT, OWN_HORIZON)][dataset]
    rows = pd.read_csv(table).iloc[:, 1:].to_numpy()
    train, test = int(len(rows) * 0.7), len(rows) - int(len(rows) * 0.2)
    scaled = (rows - rows[:train].mean(axis=0)) / rows[:train].std(axis=0)
    first, last = (train, test) if split == "validation" else (test, len(rows))
    part = scaled[first - context_len : last]
    views = np.lib.stride_tricks.sliding_window_view(part, context_len + horizon, axis=0)
    windows = views.transpose(0, 2, 1).astype(np.float32)
    past = np.full((len(windows), CONTEXT, windows.shape[2]), np.nan, np.float32)
    past[:, CONTEXT - context_len :] = windows[:, :context_len]
    with torch.no_grad():
        found = forecaster.model(torch.tensor(past), dataset).numpy()[:, :horizon]
    error = found - windows[:, context_len:]
    return [float(np.mean(error**2)), float(np.mean(np.abs(error)))]


def test_evaluating_the_model_scores_each_of_its_data_sets_as_training_did(
    finished: tuple[Path, str],
) -> None:
    run_dir, _ = finished
    metrics = read_metrics(run_dir)
    scores = evaluate(*read_arguments(["--model", str(run_dir / "model")]))
    for key in MEAN:
        assert scores["test"][key] == pytest.approx(metrics["test"][key], rel=1e-5)
        for name, found in scores["by_dataset"].items():
            measured = metrics["by_dataset"][name]["test"][key]
            assert found["test"][key] == pytest.approx(measured, rel=1e-5)
    assert list(scores["by_dataset"]) == ["waves", "saw"]
    lengths = [(one["context_len"], one["horizon"]) for one in scores["by_dataset"].values()]
    assert lengths == [(CONTEXT, HORIZON), (OWN_CONTEXT, OWN_HORIZON)]


def test_each_set_s_metrics_are_those_of_the_exported_model_on_its_windows(
    finished: tuple[Path, str], waves_csv: Path, ramps_csv: Path
) -> None:
    run_dir, _ = finished
    metrics = read_metrics(run_dir)
    forecaster = TimeLlamaForecaster.load(run_dir / "model")
    assert forecaster.datasets == list(metrics["by_dataset"]) == ["waves", "saw"]
    for split in ("validation", "test"):
        by_hand = [
            errors_by_hand(forecaster, table, number, split)
            for number, table in enumerate((waves_csv, ramps_csv))
        ]
        for name, expected in zip(("waves", "saw"), by_hand, strict=True):
            found = metrics["by_dataset"][name][split]
            assert [found[key] for key in MEAN] == pytest.approx(expected, rel=1e-4)
        overall = [metrics[split][key] for key in MEAN]
        assert overall == pytest.approx(np.mean(by_hand, axis=0), rel=1e-4)


def test_metrics_say_by_set_what_was_trained_on_and_the_baselines(
    finished: tuple[Path, str],
) -> None:
    metrics = read_metrics(finished[0])
    waves, saw = (metrics["by_dataset"][name] for name in ("waves", "saw"))
    assert waves["windows"] + saw["windows"] == metrics["train"]["windows"] == 160
    assert waves["windows"] > saw["windows"] > 0
    for kind in ("linear", "seasonal_naive"):
        for key in MEAN:
            both = [one["baselines"][kind][key] for one in (waves, saw)]
            assert both[0] != both[1]
            assert metrics["baselines"][kind][key] == pytest.approx(np.mean(both))
    validations = history(finished[0], "validation")
    # With a shortcut, what it forecasts alone is judged first.
    assert [one["step"] for one in validations] == [0, 10, 20]
    last = validations[-1]
    assert last["by_dataset"].keys() == metrics["by_dataset"].keys()


def test_it_shows_each_set_and_leaves_each_set_s_data_and_picture(
    finished: tuple[Path, str],
) -> None:
    run_dir, printed = finished
    assert "waves: 3 channels, windows: 221 train, 29 validation, 69 test\n" in printed
    assert "saw: 2 channels, windows: 176 train, 24 validation, 54 test\n" in printed
    for line in ("Time-LlaMA (this run)", "this run on waves", "this run on saw"):
        assert line in printed
    for name in ("data/waves/manifest.json", "data/saw/manifest.json", "forecasts-saw.png"):
        assert (run_dir / name).exists(), name


def test_the_exported_model_forecasts_the_set_it_is_told(
    finished: tuple[Path, str], ramps_csv: Path
) -> None:
    forecaster = TimeLlamaForecaster.load(finished[0] / "model")
    frame = pd.read_csv(ramps_csv)
    forecast = forecaster.predict(frame, dataset="saw")
    assert forecast["channel"].tolist() == ["x"] * OWN_HORIZON + ["y"] * OWN_HORIZON
    assert forecast["ds"].iloc[0] == pd.Timestamp("2023-10-28")
    with pytest.raises(ConfigError, match=r"^dataset must be given, .* several: waves, saw$"):
        forecaster.predict(frame)


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_the_uninterrupted_one(
    finished: tuple[Path, str], words: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "stopped"
    process = subprocess.Popen(
        [*JOB, *words, "--run.dir", str(run_dir)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run_dir / "history.jsonl").exists() and history(run_dir, "train"):
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    done = run_job("--run.dir", str(run_dir), "--run.resume")
    assert done.returncode == 0, done.stderr
    resumed, whole = read_metrics(run_dir), read_metrics(finished[0])
    for name in ("waves", "saw"):
        found, expected = resumed["by_dataset"][name], whole["by_dataset"][name]
        assert found["windows"] == expected["windows"]
        assert found["test"] == pytest.approx(expected["test"], rel=1e-5)
