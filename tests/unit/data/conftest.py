"""Small tables of random walks, written as users have them."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest


@pytest.fixture
def make_frame() -> Callable[..., pd.DataFrame]:
    def make(rows: int, *, columns: str = "ab", freq: str = "h", seed: int = 0) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        dates = pd.date_range("2024-01-01", periods=rows, freq=freq)
        walks = {name: rng.normal(size=rows).cumsum() for name in columns}
        return pd.DataFrame({"date": dates} | walks)

    return make
