"""Widths of prediction intervals of series: the validation part's, following their own past errors.

`model.intervals` owns the mathematics; here are the forecasts that it looks back at.

Shapes: B series, T forecasts of a series in order, H horizon, C channels, K levels.
"""

from collections.abc import Callable, Sequence

import numpy as np

from timellama_dist.data.tables.series import Series
from timellama_dist.errors import ConfigError
from timellama_dist.forecast.contexts import first_rows
from timellama_dist.forecast.datasets import TrainedDataset
from timellama_dist.model.intervals import cutoffs_before, radius, tracked_radius


def interval_radii(
    dataset: TrainedDataset,
    forecast: Callable[[Sequence[Series]], np.ndarray],
    series: Sequence[Series],
    levels: Sequence[float],
    recent: int,
) -> dict[float, np.ndarray]:
    """Compute half the widths of intervals, by level in percent.

    Args:
        dataset: what the series are of.
        forecast: gives (B, H, C) of series, in the data's units.
        series: with as much of their past as is to be looked back at.
        levels: in percent.
        recent: forecasts of each series' own past to look back at.

    Returns:
        In the data's units, shape (B, H, C); empty without levels.

    Raises:
        ConfigError: the model was exported without quantiles of its errors.
    """
    if not levels:
        return {}
    if dataset.quantile_KHC is None:
        raise ConfigError("level: the model was exported without what intervals are made of")
    quantile_KHC = dataset.quantile_KHC[:, : dataset.card.horizon]
    std_BC = np.stack([dataset.scaler(own.unique_id, dataset.context(own)).std for own in series])
    error_BTHC = np.stack([_past_errors(dataset, forecast, own, recent) for own in series])
    error_BTHC /= std_BC[:, None, None]
    return {
        level: tracked_radius(radius(quantile_KHC, level), error_BTHC, level) * std_BC[:, None]
        for level in levels
    }


def _past_errors(
    dataset: TrainedDataset,
    forecast: Callable[[Sequence[Series]], np.ndarray],
    series: Series,
    recent: int,
) -> np.ndarray:
    """Compute absolute errors of forecasts of a series' own past, shape (T, H, C).

    NaN where the series is too short for the forecast.
    """
    horizon = dataset.card.horizon
    error_THC = np.full((recent, horizon, len(dataset.card.channels)), np.nan)
    cutoffs = cutoffs_before(len(series.values), horizon, recent)
    kept = cutoffs >= dataset.least_rows
    if kept.any():
        pasts = [first_rows(series, int(rows)) for rows in cutoffs[kept]]
        truth_THC = np.stack([series.values[rows : rows + horizon] for rows in cutoffs[kept]])
        error_THC[kept] = np.abs(truth_THC - forecast(pasts))
    return error_THC
