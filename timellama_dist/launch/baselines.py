"""Baselines over the very windows of a run, streamed by Ray Data; one of them is its shortcut."""

from collections.abc import Iterator, Mapping
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from timellama_dist.config.schema import DataSection, MixturePart
from timellama_dist.data.manifest import Manifest
from timellama_dist.data.reader import WindowReader
from timellama_dist.data.stream import window_dataset
from timellama_dist.engine.baselines import fill_missing, seasonal_naive
from timellama_dist.engine.linear import Float64, WindowSums, fit_linear, linear_forecast
from timellama_dist.errors import DataError
from timellama_dist.storage import Location

Batch = dict[str, np.ndarray]

# Windows per task: the sums are L x L, so small batches would ship more sums than windows.
_BATCH = 1024
_MOST_FITTED = 1 << 18


def fit_shortcut(data: Location, section: DataSection, part: MixturePart) -> Float64:
    """The linear map of a data set, shape (L, H), fitted on its training windows.

    At most 262,144 of them, evenly spread over the training part; what is chosen is chosen on as
    many windows of the validation part (see `engine.linear`).

    Args:
        data: the prepared data.
        section: the run's data section.
        part: what the run says of this data set.

    Raises:
        DataError: every target of the validation part is missing.
    """
    train, validation = (
        # Added up as they come: each is L x L.
        reduce(add, (WindowSums(**row) for row in _rows(data, section, part, split, _sums)))
        for split in ("train", "validation")
    )
    if not validation.observed:
        raise _nothing_observed("validation")
    return fit_linear(train, validation)


def score_baselines(
    data: Location, section: DataSection, part: MixturePart, map_LH: Float64
) -> dict[str, dict[str, float]]:
    """Test MSE and MAE of seasonal-naive and of a linear map.

    Missing values of the past are filled (`fill_missing`), missing targets aren't scored.

    Args:
        data: the prepared data.
        section: the run's data section.
        part: what the run says of this data set.
        map_LH: as `fit_shortcut` gives it.

    Returns:
        "seasonal_naive" and "linear", each with "mse" and "mae" on z-scored values.

    Raises:
        DataError: every target of the test part is missing.
    """
    season_len = Manifest.load(data).season_len
    scores = _rows(data, section, part, "test", _score, map_LH=map_LH, season_len=season_len)
    (naive_mse, naive_mae), (linear_mse, linear_mae) = _mean_errors("test", scores)
    return {
        "seasonal_naive": {"mse": float(naive_mse), "mae": float(naive_mae)},
        "linear": {"mse": float(linear_mse), "mae": float(linear_mae)},
    }


def _rows(
    data: Location, section: DataSection, part: MixturePart, split: str, fn: Any, **arguments: Any
) -> Iterator[dict[str, Any]]:
    """What a function makes of the windows of a split, by batch."""
    context_len, horizon = section.lengths(part)
    windows: dict[str, Any] = {
        "context_len": context_len,
        "horizon": horizon,
        "split": split,
        "train_fraction": part.train_fraction,
        "short_series": part.short_series,
    }
    some = None if split == "test" else _fitted(len(WindowReader(data, **windows)))
    dataset = window_dataset(data, window_ids=some, batch_size=_BATCH, **windows)
    made = dataset.map_batches(fn, batch_size=_BATCH, fn_kwargs=arguments)
    return iter(made.iter_rows())


def _fitted(num_windows: int) -> np.ndarray | None:
    """Windows of a split that the map is fitted to; None for all."""
    if num_windows <= _MOST_FITTED:
        return None
    return np.linspace(0, num_windows - 1, _MOST_FITTED).astype(np.int64)


def _mean_errors(split: str, scores: Iterator[dict[str, Any]]) -> np.ndarray:
    """Mean errors over all observed targets of a split, from their sums by batch."""
    errors, observed = reduce(
        lambda done, row: (done[0] + row["errors"], done[1] + int(row["observed"])),
        scores,
        (np.zeros(()), 0),
    )
    if observed == 0:
        raise _nothing_observed(split)
    return errors / observed


def _nothing_observed(split: str) -> DataError:
    return DataError(f"every target of the {split} part is missing: there is nothing to score")


def _sums(batch: Batch) -> Batch:
    sums = WindowSums.of(batch["past"], batch["future"])
    return {name: np.asarray(value)[None] for name, value in vars(sums).items()}


def _score(batch: Batch, map_LH: np.ndarray, season_len: int) -> Batch:
    """Sums of squared and absolute errors of both baselines, and the number of observed targets."""
    past, future = fill_missing(batch["past"].astype(np.float64)), batch["future"]
    missing = np.isnan(future)
    forecasts: Mapping[str, np.ndarray] = {
        "seasonal_naive": seasonal_naive(past, horizon=future.shape[1], season_len=season_len),
        "linear": linear_forecast(past, map_LH),
    }
    sums = []
    for forecast in forecasts.values():
        error = _observed(forecast - future, missing)
        sums.append([np.square(error).sum(), np.abs(error).sum()])
    return {"errors": np.array(sums)[None], "observed": np.array([np.sum(~missing)])}


def _observed(error: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """The errors themselves, set to 0 where the target is missing."""
    error[missing] = 0.0
    return error
