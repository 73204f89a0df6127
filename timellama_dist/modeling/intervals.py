"""Prediction intervals by conformal calibration: how far the truth was from forecasts, in z-scores.

Quantiles of absolute errors on validation windows, for each step and channel, are kept with an
exported model. A series' own last forecasts whose truth is known then move them (quantile tracking,
a form of adaptive conformal inference): errors of one time say little of another's.

Shapes: N windows, B series, T forecasts of a series in order, H horizon, C channels, K levels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from timellama_dist.errors import ConfigError

Array = NDArray[np.floating]

LEVELS = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99)
"""Percent of the errors that the kept quantiles cover; between them, they are interpolated."""
RECENT = 168
"""Forecasts of a series that are looked back at."""
# Both were chosen on validation parts: calibrated on the first half, looked at on the second.
_RATE = 0.05
_TINY = 1e-12


def error_quantiles(error_NHC: Array) -> Array:
    """Quantiles of absolute errors at `LEVELS`, shape (K, H, C), float32.

    They are the order statistics that cover one more window with the level's probability.

    Args:
        error_NHC: absolute errors; NaN where the truth is missing.
    """
    # Less a rounding error, which would ask for the next larger one.
    shares = [min(1.0, level / 100 * (1 + 1 / len(error_NHC))) - 1e-9 for level in LEVELS]
    # A step of a channel that was never observed has no quantile.
    empty_HC = np.isnan(error_NHC).all(axis=0)
    filled_NHC = np.where(empty_HC, 0.0, error_NHC)
    quantile: Any = np.nanquantile if np.isnan(filled_NHC).any() else np.quantile
    found = quantile(filled_NHC, shares, axis=0, method="inverted_cdf")
    return np.where(empty_HC, np.nan, found).astype(np.float32)


def check_levels(levels: Any) -> list[float]:
    """Levels in percent.

    Raises:
        ConfigError: not numbers above 0 and at most 99.
    """
    given: list[Any] = list(levels) if isinstance(levels, list | tuple) else [levels]
    for level in given:
        if not isinstance(level, int | float) or not 0 < level <= LEVELS[-1]:
            raise ConfigError(
                f"level must be above 0 and at most {LEVELS[-1]} percent, got {level}"
            )
    return given


def radius(quantile_KHC: Array, level: float) -> Array:
    """Half the width of intervals of a level in percent, shape (H, C), float64."""
    grid = np.array([0, *LEVELS])
    above = int(np.searchsorted(grid, level))
    share = (level - grid[above - 1]) / (grid[above] - grid[above - 1])
    whole = np.concatenate([np.zeros_like(quantile_KHC[:1]), quantile_KHC]).astype(np.float64)
    return whole[above - 1] * (1 - share) + whole[above] * share


def tracked_radius(radius_HC: Array, error_BTHC: Array, level: float) -> Array:
    """Radii that have followed each series' errors, shape (B, H, C).

    Each miss makes a radius larger, each hit smaller, so that in the long run the level's share of
    them hits, however errors change.

    Args:
        radius_HC: where they begin.
        error_BTHC: absolute errors of forecasts in order of time; NaN where there is none.
        level: in percent.
    """
    alpha = 1 - level / 100
    shape = (len(error_BTHC), *radius_HC.shape)
    log_BHC = np.broadcast_to(np.log(np.maximum(radius_HC, _TINY)), shape).copy()
    for error_BHC in error_BTHC.swapaxes(0, 1):
        step_BHC = (error_BHC > np.exp(log_BHC)) - alpha
        log_BHC += _RATE * np.where(np.isnan(error_BHC), 0.0, step_BHC)
    return np.exp(log_BHC)
