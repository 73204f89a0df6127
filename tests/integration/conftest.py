"""Integration tests start real Ray on loopback; each stops what it started."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.shops import export_model, write_table

# Two logical CPUs are what CI has; the tests must pass with no more.
os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")
# A run without an address would join whatever Ray another program has started on this machine.
os.environ.setdefault("RAY_ADDRESS", "local")


@pytest.fixture(scope="session")
def waves_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wide table: 400 hours of three noisy daily waves."""
    rng = np.random.default_rng(3)
    hours = np.arange(400)
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=400, freq="h")})
    for index, channel in enumerate("abc"):
        wave = np.sin(2 * np.pi * (hours + 3 * index) / 24) + 0.1 * index
        frame[channel] = 10 * (index + 1) * (wave + 0.2 * rng.standard_normal(400))
    path = tmp_path_factory.mktemp("data") / "waves.csv"
    frame.to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def shops_model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported model that nobody has trained."""
    return export_model(tiny_llama, tmp_path_factory.mktemp("shops-model"))


@pytest.fixture(scope="session")
def shops_table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it forecasts."""
    return write_table(tmp_path_factory.mktemp("shops") / "shops.csv")


@pytest.fixture(scope="session")
def finished(
    tiny_llama: Path, waves_csv: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A whole run of `ray_jobs/train.py`: its folder, which nobody writes to, and what it said."""
    from tests.support.runs import EVERY_5_STEPS, arguments, run_job

    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    done = run_job(*arguments(tiny_llama, waves_csv, run_dir, **EVERY_5_STEPS))
    assert done.returncode == 0, done.stderr
    return run_dir, done
