"""Baselines over the very windows of a run, streamed by Ray Data; one of them is its shortcut."""

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

import numpy as np

from timellama_dist.config.schema import ModelSection
from timellama_dist.data.prepared.manifest import Manifest
from timellama_dist.data.windows.orders import spread_ids
from timellama_dist.data.windows.reader import WindowReader
from timellama_dist.data.windows.spans import Batch
from timellama_dist.data.windows.spec import WindowSpec
from timellama_dist.data.windows.stream import Block, window_dataset
from timellama_dist.errors import DataError
from timellama_dist.evaluation.baselines import seasonal_naive
from timellama_dist.model.linear_fit import (
    Float64,
    WindowSums,
    fill_missing,
    fit_each,
    fit_linear,
    linear_forecast,
)
from timellama_dist.storage import Location

# Windows per task: the sums are L x L, so small batches would ship more sums than windows.
_BATCH = 1024
_MOST_FITTED = 1 << 18
# Of a map that all channels share, each channel of a window is a row.
_MOST_ROWS = 1 << 20


def fit_shortcut(path: Location, spec: WindowSpec, model: ModelSection | None = None) -> Float64:
    """Fit the linear map of a data set on its training windows.

    At most 262,144 of them, and for a map that all channels share 1,048,576 windows x channels,
    evenly spread over the training part; what is chosen is chosen on as many windows of the
    validation part (see `model.linear_fit`).

    Args:
        path: the prepared data.
        spec: its windows; of the training and the validation part, whatever its split.
        model: how windows are clipped, and what kind of map it is; the plain one if not given.

    Returns:
        The map, shape (L, H), or that of each channel, shape (C, L, H).

    Raises:
        DataError: every target of the validation part is missing.
    """
    model = model or ModelSection()
    train = _channel_sums(path, spec.of("train"), model)
    validation = _channel_sums(path, spec.of("validation"), model)
    if not sum(sums.observed for sums in validation):
        raise _nothing_observed("validation")
    if model.shortcut_per_channel:
        return fit_each(train, validation)
    return fit_linear(*train, *validation)


def _channel_sums(path: Location, spec: WindowSpec, model: ModelSection) -> list[WindowSums]:
    """Sum up each channel's windows, or all channels' as one."""
    by_channel: dict[int, WindowSums] = {}
    most = _MOST_FITTED
    if not model.shortcut_per_channel:
        most = max(1, min(most, _MOST_ROWS // Manifest.load(path).num_channels))
    how = {"clip": model.clip, "per_channel": model.shortcut_per_channel}
    # Added up as they come: each is L x L.
    for row in _rows(path, spec, _sums, most, **how):
        number, sums = row.pop("channel"), WindowSums(**row)
        by_channel[number] = by_channel[number] + sums if number in by_channel else sums
    return [by_channel[number] for number in sorted(by_channel)]


def score_baselines(
    path: Location, spec: WindowSpec, map_LH: Float64, clip: float | None = None
) -> dict[str, dict[str, float]]:
    """Score seasonal-naive and a linear map on the test windows, by MSE and MAE.

    Missing values of the past are filled (`fill_missing`), missing targets aren't scored.

    Args:
        path: the prepared data.
        spec: its windows; of the test part, whatever its split.
        map_LH: as `fit_shortcut` gives it.
        clip: as far as the map sees values of a window.

    Returns:
        "seasonal_naive" and "linear", each with "mse" and "mae" on z-scored values.

    Raises:
        DataError: every target of the test part is missing.
    """
    season_len = Manifest.load(path).season_len
    how = {"map_LH": map_LH, "clip": clip, "season_len": season_len}
    scores = _rows(path, spec.of("test"), _score, None, **how)
    (naive_mse, naive_mae), (linear_mse, linear_mae) = _mean_errors("test", scores)
    return {
        "seasonal_naive": {"mse": float(naive_mse), "mae": float(naive_mae)},
        "linear": {"mse": float(linear_mse), "mae": float(linear_mae)},
    }


def _rows(
    path: Location, spec: WindowSpec, fn: Any, most: int | None, **arguments: Any
) -> Iterator[dict[str, Any]]:
    """Apply a function to the windows of a split, or to `most`, evenly spread, by batch."""
    ids = None
    if most is not None and (num_windows := len(WindowReader(path, spec))) > most:
        ids = spread_ids(num_windows, most)
    dataset = window_dataset(path, spec, window_ids=ids, batch_size=_BATCH)
    made = dataset.map_batches(fn, batch_size=_BATCH, fn_kwargs=arguments)
    return iter(made.iter_rows())


def _mean_errors(split: str, scores: Iterator[dict[str, Any]]) -> np.ndarray:
    """Average the errors over all observed targets of a split, from their sums by batch."""
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


def _sums(batch: Batch, clip: float | None, per_channel: bool) -> Block:
    """Sum up a batch, in a row for each channel or one row for all."""
    # A target that is far out would weigh by its square.
    past, future = _clipped(batch["past"], clip), _clipped(batch["future"], clip)
    num_rows = past.shape[2] if per_channel else 1
    parts = zip(*(np.split(values, num_rows, axis=2) for values in (past, future)), strict=True)
    by_row = [vars(WindowSums.of(*part)) for part in parts]
    rows = {name: np.stack([np.asarray(sums[name]) for sums in by_row]) for name in by_row[0]}
    return {"channel": np.arange(len(by_row)), **rows}


def _clipped(values: np.ndarray, clip: float | None) -> np.ndarray:
    return values if clip is None else values.clip(-clip, clip)


def _score(batch: Batch, map_LH: np.ndarray, clip: float | None, season_len: int) -> Block:
    """Sum up squared and absolute errors of both baselines, and the number of observed targets."""
    past, future = fill_missing(batch["past"].astype(np.float64)), batch["future"]
    missing = np.isnan(future)
    forecasts: Mapping[str, np.ndarray] = {
        "seasonal_naive": seasonal_naive(past, horizon=future.shape[1], season_len=season_len),
        "linear": linear_forecast(_clipped(past, clip), map_LH),
    }
    sums = []
    for forecast in forecasts.values():
        error = _observed(forecast - future, missing)
        sums.append([np.square(error).sum(), np.abs(error).sum()])
    return {"errors": np.array(sums)[None], "observed": np.array([np.sum(~missing)])}


def _observed(error: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Set the errors to 0 where the target is missing."""
    error[missing] = 0.0
    return error
