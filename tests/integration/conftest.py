"""Integration tests start real Ray on loopback; each stops what it started."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

# Two logical CPUs are what CI has; the tests must pass with no more.
os.environ.setdefault("RAY_DISABLE_IMPORT_WARNING", "1")


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
