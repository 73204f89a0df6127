"""`python ray_jobs/train.py` as a user runs it: real Ray, two DeepSpeed workers, a tiny LLaMA."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from tests.support.runs import EVERY_5_STEPS, JOB, ROOT, arguments, history, run_job
from timellama_dist import TimeLlamaForecaster
from timellama_dist.backbone.fingerprint import backbone_fingerprint
from timellama_dist.cli.evaluate import read_arguments
from timellama_dist.cli.train import main
from timellama_dist.cluster import connected
from timellama_dist.config.schema import RunConfig
from timellama_dist.data.check import check_datasets
from timellama_dist.evaluation.job import evaluate
from timellama_dist.model.card import read_card
from timellama_dist.train.checkpoint.position import read_position


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for the tests that call the programs instead of starting them."""
    with connected():
        yield


def test_the_run_directory_holds_what_the_contract_says(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tiny_llama: Path
) -> None:
    run_dir, _ = finished
    for name in (
        "config.yaml",
        "deepspeed.json",
        "metrics.json",
        "history.jsonl",
        "checkpoints",
        "model/config.json",
        "forecasts.png",
    ):
        assert (run_dir / name).exists(), name
    metrics = json.loads((run_dir / "metrics.json").read_text())
    for part in (
        metrics["test"],
        metrics["validation"],
        metrics["baselines"]["seasonal_naive"],
        metrics["baselines"]["linear"],
    ):
        assert np.isfinite([part["mse"], part["mae"]]).all()
    assert metrics["train"]["steps"] == 30
    assert metrics["train"]["windows"] == 240
    assert metrics["world_size"] == 2
    assert metrics["zero_stage"] == 3
    assert metrics["versions"]["deepspeed"]
    saved = metrics["checkpoints"]
    # Every 5 steps; the last one, with the model, is saved when these figures stand.
    assert saved["saved"] == 6
    newest = sorted((run_dir / "checkpoints").glob("checkpoint_*"))[-2]
    assert saved["bytes"] == sum(file.stat().st_size for file in newest.iterdir())
    assert 0 < saved["seconds"] < metrics["train"]["seconds"]
    card = read_card(run_dir / "model")
    backbone = backbone_fingerprint(RunConfig.from_dict(card.config), tiny_llama)
    assert backbone is not None
    assert {card.backbone, read_position(newest).backbone} == {backbone}
    counts = metrics["parameters"]
    assert 0 < counts["active"] < counts["trainable"]
    steps = [record["step"] for record in history(run_dir, "train")]
    assert steps == [5, 10, 15, 20, 25, 30]
    assert [record["step"] for record in history(run_dir, "validation")] == [10, 20, 30]


def test_it_prints_progress_and_the_table_and_no_third_party_noise(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    run_dir, done = finished
    assert "windows/s" in done.stderr
    assert "left" in done.stderr
    for text in ("Time-LlaMA", "linear (ridge)", "seasonal naive", str(run_dir / "model")):
        assert text in done.stdout
    noise = [
        line
        for line in done.stderr.splitlines()
        if any(word in line for word in ("Warning", "WARN", "INFO", "Traceback", "pid="))
    ]
    assert noise == []


def test_training_lowers_the_loss(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    losses = [record["loss"] for record in history(finished[0], "train")]
    assert losses[-1] < 0.8 * losses[0]


def test_stage_3_shards_the_4_bit_backbone(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    memory = json.loads((finished[0] / "metrics.json").read_text())["memory"]
    assert len(memory["frozen_bytes_per_rank"]) == 2
    for held in memory["frozen_bytes_per_rank"]:
        # A tiny model's norms, buffers and prompt, which stay whole, are a larger share than a
        # real one's: 0.55 is asserted of the real backbone.
        assert held < 0.75 * memory["frozen_bytes_unsharded"]


def test_the_exported_model_forecasts_what_the_workers_forecast(
    finished: tuple[Path, subprocess.CompletedProcess[str]], waves_csv: Path
) -> None:
    run_dir, _ = finished
    newest = sorted((run_dir / "checkpoints").glob("checkpoint_2*"))[-1]
    examples = load_file(newest / "examples.safetensors")
    forecaster = TimeLlamaForecaster.load(run_dir / "model")
    frame = pd.read_csv(waves_csv)
    # The last example is the last test window, whose future is the table's last 12 rows.
    forecast = forecaster.predict(frame.iloc[:-12])
    assert list(forecast.columns) == ["unique_id", "ds", "channel", "yhat"]
    assert forecast["ds"].iloc[0] == pd.Timestamp(frame["date"].iloc[-12])
    yhat_HC = forecast["yhat"].to_numpy().reshape(3, 12).T
    train = frame[["a", "b", "c"]].to_numpy()[:280]
    scaled = (yhat_HC - train.mean(axis=0)) / train.std(axis=0)
    np.testing.assert_allclose(scaled, examples["forecast"][-1], atol=2e-5)


def test_evaluating_the_exported_model_gives_what_training_measured(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run_dir, _ = finished
    output, plots = tmp_path / "scores.json", tmp_path / "plots"
    words = ["--model", str(run_dir / "model"), "--output", str(output), "--plots", str(plots)]
    program = [sys.executable, str(ROOT / "ray_jobs" / "evaluate.py"), *words]
    done = subprocess.run(program, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    # Nothing but progress, where it took its time.
    assert all(line.startswith("waves: ") for line in done.stderr.splitlines())
    measured = json.loads((run_dir / "metrics.json").read_text())["test"]
    scores = json.loads(output.read_text())
    for key in ("mse", "mae"):
        assert scores["test"][key] == pytest.approx(measured[key], rel=1e-5)
    assert (
        f"| waves | 48 | 12 | 69 | {measured['mse']:.4f} | {measured['mae']:.4f} |" in done.stdout
    )
    found = scores["by_dataset"]["waves"]
    assert found["windows"] == 69
    assert np.mean(found["by_step"]["mse"]) == pytest.approx(measured["mse"], rel=1e-5)
    assert list(found["by_channel"]) == ["a", "b", "c"]
    assert np.mean([one["mae"] for one in found["by_channel"].values()]) == pytest.approx(
        measured["mae"], rel=1e-5
    )
    assert output.with_suffix(".md").read_text() in done.stdout
    assert (plots / "waves-by-step.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_directory_in_use_is_not_overwritten(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tiny_llama: Path, waves_csv: Path
) -> None:
    again = run_job(*arguments(tiny_llama, waves_csv, finished[0]))
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: run.dir: {finished[0]} is not empty")
    assert again.stderr.count("\n") == 1


def test_ctrl_c_saves_a_checkpoint_and_resuming_ends_bit_for_bit_as_the_uninterrupted_run(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    tiny_llama: Path,
    waves_csv: Path,
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "stopped"
    process = subprocess.Popen(
        [*JOB, *arguments(tiny_llama, waves_csv, run_dir, **EVERY_5_STEPS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Its own group, as a terminal's Ctrl-C reaches the whole foreground group.
        start_new_session=True,
    )
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        # Between two validations, so that the best weights aren't the last.
        if (run_dir / "history.jsonl").exists() and history(run_dir, "validation"):
            break
        time.sleep(0.05)
    else:
        process.kill()
        pytest.fail("no validation within 180 s: this machine is too slow or too busy")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    stopped_at = history(run_dir, "train")[-1]["step"]
    assert f"stopped at step {stopped_at}; go on with: " in errors
    assert "--run.resume" in errors
    assert "Traceback" not in errors
    (run_dir / "history.jsonl").unlink()
    done = run_job("--run.dir", str(run_dir), "--run.resume")
    assert done.returncode == 0, done.stderr
    logged = [record["step"] for record in history(run_dir, "train")]
    assert logged == [step for step in (15, 20, 25, 30) if step > stopped_at]
    resumed, whole = (
        json.loads((path / "metrics.json").read_text()) for path in (run_dir, finished[0])
    )
    for key in ("validation", "test"):
        assert resumed[key] == whole[key]
    assert resumed["train"]["steps"] == whole["train"]["steps"]
    ours, theirs = (
        max((folder / "checkpoints").glob("checkpoint_*")) for folder in (run_dir, finished[0])
    )
    for file in ("weights", "optimizer", "best"):
        name = f"{file}.safetensors"
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name


@pytest.mark.slow
def test_a_finished_run_that_is_resumed_ends_as_it_did(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    run_dir = shutil.copytree(finished[0], tmp_path / "again")
    (run_dir / "metrics.json").unlink()
    again = run_job("--run.dir", str(run_dir), "--run.resume")
    assert again.returncode == 0, again.stderr
    resumed, whole = (
        json.loads((path / "metrics.json").read_text()) for path in (run_dir, finished[0])
    )
    assert resumed["test"] == whole["test"]


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_the_checkpoint_with_the_model_is_as_good_to_go_on_from_as_the_one_before(
    tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    # Without ZeRO the weights that are tested are put where the last ones are.
    (tmp_path / "zero0.json").write_text("{}")
    changes = {"deepspeed": tmp_path / "zero0.json", "scaling.num_workers": 1}
    changes |= {"train.max_steps": 10, "train.average_steps": 20}
    assert main(arguments(tiny_llama, waves_csv, tmp_path / "run", **changes)) == 0
    before, last = sorted((tmp_path / "run" / "checkpoints").glob("checkpoint_*_step-10"))
    assert (last / "model").exists()
    assert not (before / "model").exists()
    for file in ("weights", "optimizer", "best", "average"):
        name = f"{file}.safetensors"
        assert (last / name).exists(), name
        assert (last / name).read_bytes() == (before / name).read_bytes(), name
    weights, best = (load_file(last / f"{name}.safetensors") for name in ("weights", "best"))
    assert not np.array_equal(weights["head.weight"], best["head.weight"])


@pytest.mark.usefixtures("cluster")
def test_baselines_and_unseen_data_are_scored_by_the_same_protocol(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    waves_csv: Path,
    tmp_path: Path,
) -> None:
    run_dir, _ = finished
    metrics = json.loads((run_dir / "metrics.json").read_text())
    model, unseen = str(run_dir / "model"), tmp_path / "unseen.csv"
    frame = pd.read_csv(waves_csv).iloc[50:, :3]
    frame[["a", "b"]] = frame[["a", "b"]] ** 2
    frame.to_csv(unseen, index=False)
    lengths = ["--data.context_len", "48", "--data.horizon", "12"]
    for name, key in (("ridge", "linear"), ("seasonal_naive", "seasonal_naive")):
        config, known = read_arguments(["--model", name, "--data.path", str(waves_csv), *lengths])
        found = evaluate(config, known)["test"]
        assert found["mse"] == pytest.approx(metrics["baselines"][key]["mse"], rel=1e-5)
        assert found["mae"] == pytest.approx(metrics["baselines"][key]["mae"], rel=1e-5)
    words = ["--model", model, "--split", "validation", "--scaling.num_workers", "2"]
    words += ["--scaling.cpus_per_worker", "0.5", "--batch_size", "7"]
    found = evaluate(*read_arguments(words))["validation"]
    assert found["mse"] == pytest.approx(metrics["validation"]["mse"], rel=1e-5)
    zero_shot = ["--model", model, "--data.path", str(unseen), "--data.horizon", "5"]
    found = evaluate(*read_arguments(zero_shot))["test"]
    rows = frame[["a", "b"]].to_numpy()
    train = rows[: int(0.7 * len(rows))]
    scaled = ((rows - train.mean(axis=0)) / train.std(axis=0))[-int(0.2 * len(rows)) - 48 :]
    windows = np.lib.stride_tricks.sliding_window_view(scaled, 53, axis=0).transpose(0, 2, 1)
    forecaster = TimeLlamaForecaster.load(model)
    with torch.no_grad():
        past = torch.tensor(windows[:, :48], dtype=torch.float32)
        error = forecaster.model(past, 0).numpy()[:, :5] - windows[:, 48:]
    assert found["mse"] == pytest.approx(np.mean(error**2), rel=1e-4)


@pytest.mark.usefixtures("cluster")
def test_a_context_that_is_fitted_to_the_data_is_the_one_that_is_scored(waves_csv: Path) -> None:
    words = ["--model", "ridge", "--data.path", str(waves_csv), "--data.horizon", "12"]
    config, known = read_arguments([*words, "--data.fit_context", "true"])
    (checked,) = check_datasets(config.data)
    assert checked.spec.context_len < config.data.context_len
    fitted = evaluate(config, known)
    context_len = str(checked.spec.context_len)
    given = evaluate(*read_arguments([*words, "--data.context_len", context_len]))
    assert fitted["by_dataset"] == given["by_dataset"]
    assert fitted["by_dataset"]["waves"]["windows"] == checked.num_windows["test"]


@pytest.mark.usefixtures("cluster")
@pytest.mark.slow
def test_a_run_that_diverges_ends_once_with_what_it_knows(
    tiny_llama: Path, waves_csv: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "diverged"
    changes = {"train.learning_rate": 1e30, "train.max_skipped_steps": 3, "train.save_every": 1}
    # The first step is made; what it leads to can't be computed.
    changes |= {"train.log_every": 1, "train.schedule": "constant", "train.warmup_fraction": 0}
    assert main(arguments(tiny_llama, waves_csv, run_dir, **changes)) == 1
    assert (
        "FloatingPointError: loss or gradient were not finite in 3 steps in a row "
        "(train.max_skipped_steps), the last of them step 4, at a learning rate of 5e+29; "
        "lower train.learning_rate=1e+30; the last checkpoint is the newest in "
        f"{run_dir / 'checkpoints'}; go on with: "
    ) in capsys.readouterr().err
    steps = [(r["step"], r["skipped_steps"]) for r in history(run_dir, "train")]
    assert steps == [(1, 0), (2, 1), (3, 2), (4, 3)], "Ray Train started it again"
