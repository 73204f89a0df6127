"""From series to the model's input and back: arranges contexts, scales them, undoes the scaling.

Shapes: B series, L context, H horizon, C channels.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from timellama_dist.data.tables.series import Series
from timellama_dist.forecast.datasets import TrainedDataset
from timellama_dist.model.timellama import TimeLlama


def forecast_batch(
    model: TimeLlama, context_len: int, dataset: TrainedDataset, batch: Sequence[Series]
) -> np.ndarray:
    """Forecast the steps after the last row of each series, by one forward pass.

    Args:
        model: in evaluation mode.
        context_len: L of the model; what a series or its data set has no rows for is missing.
        dataset: what the series are of.
        batch: in the data's units.

    Returns:
        In the data's units, shape (B, H, C) with the model's H, float64.
    """
    past_BLC = np.full((len(batch), context_len, len(dataset.card.channels)), np.nan)
    scalers = []
    for past_LC, series in zip(past_BLC, batch, strict=True):
        rows = dataset.context(series)
        scalers.append(dataset.scaler(series.unique_id, rows))
        past_LC[context_len - len(rows) :] = scalers[-1].transform(rows)
    device = next(model.parameters()).device
    past = torch.as_tensor(past_BLC, dtype=torch.float32, device=device)
    with torch.inference_mode():
        forecast_BHC = model(past, dataset.number)
    scaled_BHC = forecast_BHC.double().cpu().numpy()
    return np.stack(
        [scaler.inverse(yhat_HC) for scaler, yhat_HC in zip(scalers, scaled_BHC, strict=True)]
    )


def roll_forecasts(
    forecast: Callable[[Sequence[Series]], np.ndarray],
    series: Sequence[Series],
    times_BH: np.ndarray,
    horizon: int,
) -> np.ndarray:
    """Forecast any number of steps: what lies beyond the horizon is made from forecasts.

    Args:
        forecast: gives (B, horizon, C) of series.
        series: in the data's units.
        times_BH: of all steps to forecast.
        horizon: steps of one forecast.

    Returns:
        Shape (B, number of times, C).
    """
    parts: list[np.ndarray] = []
    steps = times_BH.shape[1]
    for begin in range(0, steps, horizon):
        if parts:
            times_Bh = times_BH[:, begin - horizon : begin]
            series = [
                _extended(own, times_h, yhat_HC)
                for own, times_h, yhat_HC in zip(series, times_Bh, parts[-1], strict=True)
            ]
        parts.append(forecast(series))
    return np.concatenate(parts, axis=1)[:, :steps]


def first_rows(series: Series, count: int) -> Series:
    """Cut a series to its first rows."""
    return Series(series.unique_id, series.timestamps[:count], series.values[:count])


def _extended(series: Series, times_H: np.ndarray, yhat_HC: np.ndarray) -> Series:
    return Series(
        series.unique_id,
        np.append(series.timestamps, times_H),
        np.concatenate([series.values, yhat_HC]),
    )
