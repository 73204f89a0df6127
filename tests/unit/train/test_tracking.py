"""Numbers of a run in TensorBoard, MLflow and Weights & Biases, without a server or a network."""

import importlib.util
import re
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from tests.support.runs import plain_run
from timellama_dist.config.schema import RunConfig, RunSection, TrackingSection
from timellama_dist.console.events import Event, Phase, TrainStep, Validation
from timellama_dist.errors import ConfigError
from timellama_dist.train import tracking
from timellama_dist.train.tracking import Tracking, check_tracking, numbers_of

GRAFANA = Path(__file__).parents[3] / "clusters" / "grafana.json"


def train_step(step: int, **changes: Any) -> TrainStep:
    fields: dict[str, Any] = {
        "loss": None,
        "balance_loss": None,
        "learning_rate": 0.5,
        "gradient_norm": None,
        "skipped_steps": 0,
        "windows_per_s": 80.0,
        "seconds": 1.0,
    }
    return TrainStep(step=step, **fields | changes)


EVENTS: list[Event] = [
    Phase(text="loading the backbone"),
    train_step(10, loss=0.5),
    Validation(step=10, metrics={"mse": 0.25, "by_dataset": {"epf": {"mse": 0.25}}}),
    train_step(20, loss=0.25, gradient_norm=1.5, windows_per_s=90.0),
]
EXPECTED = {
    ("train/loss", 10, 0.5),
    ("train/windows_per_s", 10, 80.0),
    ("validation/mse", 10, 0.25),
    ("validation/by_dataset/epf/mse", 10, 0.25),
    ("train/loss", 20, 0.25),
    ("train/gradient_norm", 20, 1.5),
    ("train/windows_per_s", 20, 90.0),
    *(
        (f"train/{key}", step, value)
        for step in (10, 20)
        for key, value in (("learning_rate", 0.5), ("skipped_steps", 0.0), ("seconds", 1.0))
    ),
}


def config(run_dir: Path, **keys: Any) -> RunConfig:
    chosen = {"tensorboard": False} | keys
    return plain_run(run=RunSection(dir=str(run_dir)), tracking=TrackingSection(**chosen))


def track(configured: RunConfig, said: list[str]) -> None:
    tracking = Tracking(configured, said.append)
    tracking.write(EVENTS[:2])
    tracking.write(EVENTS[2:])
    tracking.close(finished=True)


def test_numbers_of_nested_values_and_lists_are_found_and_words_are_left_out() -> None:
    record = {"kind": "train", "step": 3, "loss": None, "expert_load": [0.25, 0.75], "note": "x"}
    assert numbers_of(record) == {"train/expert_load/0": 0.25, "train/expert_load/1": 0.75}


def test_tensorboard_reads_what_was_written(tmp_path: Path) -> None:
    said: list[str] = []
    track(config(tmp_path, tensorboard=True), said)
    (file,) = (tmp_path / "tensorboard").iterdir()
    found = {
        (value.tag, event.step, value.simple_value)
        for event in events(file)
        for value in event.summary.value
    }
    assert found == EXPECTED
    assert said == []


def events(file: Path) -> list[Any]:
    """TensorBoard's format: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    data, found = file.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_mlflow_keeps_metrics_and_configuration_in_a_file(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    said: list[str] = []
    track(config(tmp_path, mlflow=f"sqlite:///{tmp_path}/mlflow.db"), said)
    assert said == []
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        metrics = set(database.execute("select key, step, value from metrics"))
        params = dict(database.execute("select key, value from params"))
        runs = list(database.execute("select name, status from runs"))
    assert metrics == EXPECTED
    assert params["train.batch_size"] == "64"
    assert runs == [(tmp_path.name, "FINISHED")]


def test_wandb_offline_writes_into_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    said: list[str] = []
    track(config(tmp_path, wandb="timellama"), said)
    assert said == []
    # The run has ended, but the process that writes its file may not have come so far yet; a
    # program waits for it when it exits.
    wandb.teardown()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert b"validation/by_dataset/epf/mse" in content


def test_a_tracker_that_fails_is_told_of_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def __init__(self, config: RunConfig) -> None:
            pass

        def write(self, step: int, numbers: tracking.Numbers) -> None:
            raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(tracking, "_TensorBoard", Broken)
    said: list[str] = []
    track(config(tmp_path, tensorboard=True), said)
    assert said == ["Broken takes no more of this run's numbers: no route to host"]


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_a_tracker_without_its_package_is_refused(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_tracking(config(tmp_path))
    with pytest.raises(ConfigError, match=rf"tracking\.{package} needs the package {package}"):
        check_tracking(config(tmp_path, **{package: "x"}))


def test_grafana_shows_gauges_that_there_are() -> None:
    shown = set(re.findall(r"ray_timellama_(\w+)", GRAFANA.read_text()))
    record = {"kind": "train", "step": 1}
    record |= dict.fromkeys(
        ("loss", "balance_loss", "learning_rate", "gradient_norm", "skipped_steps"), 0.0
    )
    there = {*numbers_of(record | {"windows_per_s": 1.0}), "train/step"}
    there |= numbers_of({"kind": "validation", "step": 1, "mse": 0.0}).keys()
    assert shown <= {path.replace("/", "_") for path in there}
    assert {"train_loss", "train_windows_per_s"} <= shown
