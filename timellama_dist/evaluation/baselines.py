"""Baselines that fit nothing; the linear map is `model.linear_fit`'s.

They see the very windows that the model sees. Where a value of the past is missing (NaN) they see
the last value before it (`fill_missing`). NumPy only.

Shapes: B batch, L context, H horizon, C channels.
"""

import numpy as np

from timellama_dist.model.linear_fit import FloatArray


def seasonal_naive(past_BLC: FloatArray, *, horizon: int, season_len: int) -> FloatArray:
    """Repeat the last season of each channel of a past without NaN; shape (B, H, C).

    A context shorter than a season repeats its last value.
    """
    context_len = past_BLC.shape[1]
    season = season_len if season_len <= context_len else 1
    steps = context_len - season + np.arange(horizon) % season
    return past_BLC[:, steps]
