"""Baselines over the very windows of a run, streamed by Ray Data."""

from collections.abc import Mapping
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

from timellama_dist.config.schema import DataSection
from timellama_dist.data.manifest import Manifest
from timellama_dist.data.stream import window_dataset
from timellama_dist.engine.baselines import NormalEquations, linear_forecast, seasonal_naive

Batch = dict[str, np.ndarray]

# Windows per task: the sums are L x L, so small batches would ship more sums than windows.
_BATCH = 1024


def score_baselines(data: Path, section: DataSection) -> dict[str, dict[str, float]]:
    """Test MSE and MAE of seasonal-naive and of a ridge fitted on the training windows.

    The ridge's strength is chosen on the validation windows; the test windows are only scored.

    Args:
        data: the prepared data.
        section: the run's data section.

    Returns:
        "seasonal_naive" and "linear", each with "mse" and "mae" on z-scored values.
    """
    season_len = Manifest.load(data).season_len
    fit = {"context_len": section.context_len, "horizon": section.horizon}

    def rows(split: str, fn: Any, **arguments: Any) -> list[dict[str, Any]]:
        dataset = window_dataset(
            data, split=split, train_fraction=section.train_fraction, batch_size=_BATCH, **fit
        )
        scored = dataset.map_batches(fn, batch_size=_BATCH, fn_kwargs=arguments)
        return list(scored.iter_rows())

    sums = [NormalEquations(row["gram"], row["moment"]) for row in rows("train", _equations)]
    maps = reduce(add, sums).solve()
    errors = reduce(add, [row["squared"] for row in rows("validation", _score_maps, maps=maps)])
    best = maps[int(np.argmin(errors))]
    totals = reduce(
        add, [row["errors"] for row in rows("test", _score, map_LH=best, season_len=season_len)]
    )
    (naive_mse, naive_mae), (linear_mse, linear_mae) = totals[:2] / totals[2, 0]
    return {
        "seasonal_naive": {"mse": float(naive_mse), "mae": float(naive_mae)},
        "linear": {"mse": float(linear_mse), "mae": float(linear_mae)},
    }


def _equations(batch: Batch) -> Batch:
    sums = NormalEquations.of(batch["past"], batch["future"])
    return {"gram": sums.gram_LL[None], "moment": sums.moment_LH[None]}


def _score_maps(batch: Batch, maps: np.ndarray) -> Batch:
    squared = [
        np.square(linear_forecast(batch["past"], map_LH) - batch["future"]).sum() for map_LH in maps
    ]
    return {"squared": np.array(squared)[None]}


def _score(batch: Batch, map_LH: np.ndarray, season_len: int) -> Batch:
    """Sums of squared and absolute errors, and the number of values, of both baselines."""
    past, future = batch["past"].astype(np.float64), batch["future"]
    forecasts: Mapping[str, np.ndarray] = {
        "seasonal_naive": seasonal_naive(past, horizon=future.shape[1], season_len=season_len),
        "linear": linear_forecast(past, map_LH),
    }
    sums = [
        [np.square(forecast - future).sum(), np.abs(forecast - future).sum()]
        for forecast in forecasts.values()
    ]
    return {"errors": np.array([*sums, [future.size, future.size]])[None]}
