"""Exported models that nobody has trained, and frames for them."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from tests.support.runs import plain, plain_run
from timellama_dist.config.schema import (
    BackboneSection,
    DataSection,
    DLoraSection,
    ModelSection,
)
from timellama_dist.data.prepared.scaling import Scaler
from timellama_dist.forecast.forecaster import TimeLlamaForecaster
from timellama_dist.model.build import build_model
from timellama_dist.model.card import DatasetCard, ModelCard
from timellama_dist.model.intervals import LEVELS

CONTEXT, HORIZON = 12, 4
PROMPT = "the price of a b"


SCALERS = {
    "x": Scaler(np.array([10.0, -5.0]), np.array([2.0, 3.0])),
    "y": Scaler(np.array([0.0, 1.0]), np.array([1.0, 0.5])),
}


def forecaster(
    llama: Path,
    scalers: dict[str, Scaler] = SCALERS,
    channels: str = "a b",
    frequency: str = "h",
    short_series: Literal["skip", "pad"] = "skip",
    **options: Any,
) -> TimeLlamaForecaster:
    config = plain_run(
        data=plain(DataSection, context_len=CONTEXT, horizon=HORIZON, short_series=short_series),
        backbone=plain(BackboneSection, name=str(llama), num_blocks=1, quantization="none"),
        dlora=DLoraSection(num_experts=2, rank=2, top_n=5),
        model=plain(ModelSection, alignment_heads=4),
    )
    names = channels.split()
    model = build_model(config, llama, num_channels=len(names), prompts=[PROMPT]).eval()
    known = DatasetCard(
        name="table",
        channels=names,
        frequency=frequency,
        prompt=PROMPT,
        season_len=24,
        options=options,
        context_len=CONTEXT,
        horizon=HORIZON,
    )
    card = ModelCard(config=config.to_dict(), datasets=[known])
    levels = np.array(LEVELS)[:, None, None] / 100
    quantiles = levels * np.ones((HORIZON, len(names)), np.float32)
    return TimeLlamaForecaster(model, card, [scalers], [quantiles])


def long_frame(rows: int = 15) -> pd.DataFrame:
    """Two series whose rows are interleaved, two values missing in x and one in y."""
    rng = np.random.default_rng(0)
    stamps = pd.date_range("2024-01-01", periods=rows, freq="h")
    frame = pd.DataFrame(
        {
            "unique_id": ["x", "y"] * rows,
            "ds": np.repeat(stamps, 2),
            "a": rng.normal(10, 2, 2 * rows),
            "b": rng.normal(-5, 3, 2 * rows),
        }
    )
    frame.loc[[8, 10], "b"] = np.nan  # x at 04:00 and 05:00
    frame.loc[2 * rows - 1, "a"] = np.nan  # the last row of y
    return frame
