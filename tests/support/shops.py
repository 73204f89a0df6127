"""A table of shops, and a model with random weights that forecasts it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from tests.support.runs import plain, plain_run
from timellama_dist.config.schema import (
    BackboneSection,
    DataSection,
    DLoraSection,
    ModelSection,
)
from timellama_dist.model.build import build_model
from timellama_dist.model.card import DatasetCard, ModelCard
from timellama_dist.model.exported import save_model
from timellama_dist.model.intervals import LEVELS

CONTEXT, HORIZON, SERIES = 24, 6, 23


def export_model(llama: Path, folder: Path, known: Sequence[str] = ("s003", "s011")) -> Path:
    """An exported model with random weights that knows the scalers of some of the series."""
    config = plain_run(
        data=plain(DataSection, context_len=CONTEXT, horizon=HORIZON),
        backbone=plain(BackboneSection, name=str(llama), num_blocks=1),
        dlora=DLoraSection(num_experts=2, rank=2, top_n=5),
        model=plain(ModelSection, alignment_heads=4),
    )
    own = build_model(config, llama, num_channels=2, prompts=["the price of a b"])
    torch.manual_seed(1)
    weights = {n: p.detach() for n, p in own.named_parameters() if p.requires_grad}
    for weight in weights.values():
        nn.init.normal_(weight, std=0.2)
    card = DatasetCard(
        name="shops",
        channels=["a", "b"],
        frequency="h",
        prompt="the price of a b",
        season_len=24,
        options={},
        context_len=CONTEXT,
        horizon=HORIZON,
    )
    count = len(known)
    rows = {"unique_id": known, "mean": [[10.0, 5.0]] * count, "std": [[2.0, 3.0]] * count}
    pq.write_table(pa.table(rows), folder / "series.parquet")
    quantiles = np.array(LEVELS)[:, None, None] / 50 * np.ones((HORIZON, 2), np.float32)
    save_model(
        own,
        weights,
        folder / "model",
        ModelCard(config=config.to_dict(), datasets=[card]),
        [folder / "series.parquet"],
        [quantiles.astype(np.float32)],
    )
    return folder / "model"


def write_table(path: Path) -> Path:
    """A long table of series of 40 to 62 rows, and one that is too short."""
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "unique_id": f"s{number:03d}",
                "ds": pd.date_range("2024-01-01", periods=rows, freq="h"),
                "a": rng.normal(10, 2, rows),
                "b": rng.normal(5, 3, rows),
            }
        )
        for number, rows in enumerate([*range(40, 40 + SERIES), 9])
    ]
    pd.concat(parts).to_csv(path, index=False)
    return path


def long_enough(table: Path) -> pd.DataFrame:
    """The table without the series that is too short."""
    frame = pd.read_csv(table, parse_dates=["ds"])
    return frame[frame["unique_id"] != f"s{SERIES:03d}"]
