"""What a forecaster must beat: the last season repeated, and one linear map.

Both see the very windows that the model sees. NumPy only.

Shapes: B batch, L context, H horizon, C channels.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

RIDGE_STRENGTHS = (1e1, 1e2, 1e3, 1e4, 3e4, 1e5)


def seasonal_naive(past_BLC: FloatArray, *, horizon: int, season_len: int) -> FloatArray:
    """Repeat the last season of each channel; shape (B, H, C).

    A context shorter than a season repeats its last value.
    """
    context_len = past_BLC.shape[1]
    season = season_len if season_len <= context_len else 1
    steps = context_len - season + np.arange(horizon) % season
    return past_BLC[:, steps]


@dataclass
class NormalEquations:
    """Sums X'X and X'Y over windows, for a ridge from context to horizon.

    One map serves all channels; each window has its last value subtracted, which the forecast gets
    back. float64 throughout, since the windows of a series are nearly collinear.
    """

    gram_LL: NDArray[np.float64]
    moment_LH: NDArray[np.float64]

    @classmethod
    def of(cls, past_BLC: FloatArray, future_BHC: FloatArray) -> "NormalEquations":
        """The sums over one batch of windows."""
        past_NL, future_NH = _centred(past_BLC), _centred(future_BHC, past_BLC[:, -1:])
        return cls(past_NL.T @ past_NL, past_NL.T @ future_NH)

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        return NormalEquations(self.gram_LL + other.gram_LL, self.moment_LH + other.moment_LH)

    def solve(self, strengths: tuple[float, ...] = RIDGE_STRENGTHS) -> NDArray[np.float64]:
        """The maps for several ridge strengths, shape (strengths, L, H)."""
        eye = np.eye(len(self.gram_LL))
        return np.stack(
            [
                np.linalg.solve(self.gram_LL + strength * eye, self.moment_LH)
                for strength in strengths
            ]
        )


def linear_forecast(past_BLC: FloatArray, map_LH: FloatArray) -> FloatArray:
    """Forecast by one map of `NormalEquations.solve`; shape (B, H, C)."""
    last_B1C = past_BLC[:, -1:]
    return np.einsum("blc,lh->bhc", past_BLC - last_B1C, map_LH, optimize=True) + last_B1C


def _centred(values_BTC: FloatArray, last_B1C: FloatArray | None = None) -> NDArray[np.float64]:
    last = values_BTC[:, -1:] if last_B1C is None else last_B1C
    centred_BTC = values_BTC.astype(np.float64) - last
    return centred_BTC.transpose(0, 2, 1).reshape(-1, values_BTC.shape[1])
