from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from timellama_dist.report.plots import plot_forecasts


@pytest.mark.filterwarnings("error")
def test_missing_values_are_gaps_in_the_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    examples = {
        "past": rng.normal(size=(2, 16, 3)),
        "future": rng.normal(size=(2, 4, 3)),
        "forecast": rng.normal(size=(2, 4, 3)),
    }
    plot_forecasts(examples, ["a", "b", "c"], tmp_path / "whole.png", title="whole")
    examples["past"][0, 10:14, 0] = np.nan
    examples["past"][1, :, 1] = np.nan
    examples["future"][1] = np.nan
    plot_forecasts(examples, ["a", "b", "c"], tmp_path / "gaps.png", title="whole")
    whole, gaps = imread(tmp_path / "whole.png"), imread(tmp_path / "gaps.png")
    # Less is drawn, and nothing else goes wrong.
    assert (gaps[..., :3] < 0.5).any(axis=2).sum() < (whole[..., :3] < 0.5).any(axis=2).sum()
