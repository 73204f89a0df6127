"""What a forecaster must beat without fitting anything; the linear map is `engine.linear`'s.

Both see the very windows that the model sees. Where a value of the past is missing (NaN) they see
the last one before it (`fill_missing`). NumPy only.

Shapes: B batch, L context, H horizon, C channels.
"""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


def fill_missing(past_BLC: FloatArray) -> FloatArray:
    """Replace each NaN by the last observed value before it in its window and channel.

    Leading ones get the first observed value; a channel without any gets 0, the training part's
    mean in z-scores. The array itself is returned where nothing is missing.
    """
    missing_BLC = np.isnan(past_BLC)
    if not missing_BLC.any():
        return past_BLC
    first_B1C = missing_BLC.argmin(axis=1, keepdims=True)
    steps_L1 = np.arange(past_BLC.shape[1])[:, None]
    source_BLC = np.maximum.accumulate(np.where(missing_BLC, first_B1C, steps_L1), axis=1)
    filled_BLC = np.take_along_axis(past_BLC, source_BLC, axis=1)
    return np.where(missing_BLC.all(axis=1, keepdims=True), 0.0, filled_BLC)


def seasonal_naive(past_BLC: FloatArray, *, horizon: int, season_len: int) -> FloatArray:
    """Repeat the last season of each channel of a past without NaN; shape (B, H, C).

    A context shorter than a season repeats its last value.
    """
    context_len = past_BLC.shape[1]
    season = season_len if season_len <= context_len else 1
    steps = context_len - season + np.arange(horizon) % season
    return past_BLC[:, steps]
