"""`ray_jobs/configs/generic.yaml` on such a table as nobody has tidied up."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from timellama_dist import TimeLlamaForecaster
from timellama_dist.cli.evaluate import read_arguments
from timellama_dist.cli.train import main
from timellama_dist.cluster import connected
from timellama_dist.evaluation.job import evaluate

GENERIC = Path(__file__).parents[2] / "timellama_dist" / "recipes" / "generic.yaml"
ROWS, HORIZON = 600, 12


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hours of three channels: empty cells and stretches, hours left out, hours told twice."""
    rng = np.random.default_rng(5)
    frame = pd.DataFrame({"date": pd.date_range("2024-03-01", periods=ROWS, freq="h")})
    for number, channel in enumerate("abc"):
        wave = np.sin(2 * np.pi * (np.arange(ROWS) + 5 * number) / 24)
        frame[channel] = 10 * number + wave + 0.2 * rng.standard_normal(ROWS)
    values = frame.iloc[:, 1:].to_numpy(copy=True)
    values[rng.random(values.shape) < 0.05] = np.nan
    values[300:360, 1] = np.nan
    frame.iloc[:, 1:] = values
    twice = frame.iloc[[7, 450]]
    frame = frame.drop(index=[20, 21, 430, 500, 590])
    path = tmp_path_factory.mktemp("data") / "untidy.csv"
    pd.concat([frame, twice]).sort_values("date", kind="stable").to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def run_dir(
    table: Path, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("runs") / "untidy"
    changes = {
        "data.path": table,
        "data.horizon": HORIZON,
        "backbone.name": tiny_llama,
        "model.alignment_heads": 4,
        "train.max_steps": 20,
        "train.validate_every": 10,
        "run.dir": folder,
    }
    words = [word for key, value in changes.items() for word in (f"--{key}", str(value))]
    with connected():
        assert main(["--config", str(GENERIC), *words]) == 0
        yield folder


def errors(metrics: dict[str, Any]) -> list[float]:
    return [metrics["mse"], metrics["mae"]]


def test_it_trains_and_beats_the_last_season(run_dir: Path) -> None:
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert np.isfinite(errors(metrics["test"])).all()
    naive = metrics["baselines"]["seasonal_naive"]
    assert np.less(errors(metrics["test"]), errors(naive)).all()


@pytest.mark.slow
def test_its_model_is_scored_as_training_did(run_dir: Path) -> None:
    metrics = json.loads((run_dir / "metrics.json").read_text())
    found = evaluate(*read_arguments(["--model", str(run_dir / "model")]))["test"]
    assert errors(found) == pytest.approx(errors(metrics["test"]), rel=1e-5)


def test_its_model_forecasts_the_table_with_intervals(run_dir: Path, table: Path) -> None:
    forecaster = TimeLlamaForecaster.load(run_dir / "model")
    frame = pd.read_csv(table, parse_dates=["date"])
    found = forecaster.predict(frame.drop_duplicates("date", keep="last"), level=[80])
    after = pd.date_range(frame["date"].max(), periods=HORIZON + 1, freq="h")[1:]
    for _, one in found.groupby("channel"):
        assert one["ds"].tolist() == after.tolist()
    assert np.isfinite(found[["yhat", "yhat-lo-80", "yhat-hi-80"]]).all(axis=None)
    assert (found["yhat-lo-80"] < found["yhat-hi-80"]).all()
