"""Prediction intervals by conformal calibration, from the errors of forecasts in z-scores.

Quantiles of absolute errors on validation windows, for each step and channel, are kept with an
exported model. A series' own last forecasts whose truth is known then scale them all by one factor
(quantile tracking, a form of adaptive conformal inference): errors of one time say little of
another's. A radius of each step and channel that follows alone is noisier than one factor for all,
and covers less than it should: a series' steps and channels are mostly off together.

Shapes: N windows, B series, T forecasts of a series in order, H horizon, C channels, K levels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from timellama_dist.errors import ConfigError

Array = NDArray[np.floating]

LEVELS = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99)
"""Percent of the errors that the kept quantiles cover; between them, they are interpolated."""
RECENT = 42
"""Forecasts of a series that are looked back at."""
_EVERY = 4
# All three were chosen on validation parts: calibrated on one third, looked at on the others.
_RATE = 0.4


def error_quantiles(error_NHC: Array) -> Array:
    """Compute quantiles of absolute errors at `LEVELS`, shape (K, H, C), float32.

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
    quantile_KHC = quantile(filled_NHC, shares, axis=0, method="inverted_cdf")
    # In order, because safetensors takes no other, and `nanquantile` leaves the levels innermost.
    return np.where(empty_HC, np.nan, quantile_KHC).astype(np.float32, order="C")


def check_levels(levels: Any) -> list[float]:
    """Check levels in percent and return them as a list.

    Raises:
        ConfigError: not numbers above 0 and at most 99.
    """
    given: list[Any] = list(levels) if isinstance(levels, list | tuple) else [levels]
    for level in given:
        if not isinstance(level, int | float) or not 0 < level <= LEVELS[-1]:
            raise ConfigError(
                key="level", must=f"be above 0 and at most {LEVELS[-1]} percent", got=level
            )
    return given


def radius(quantile_KHC: Array, level: float) -> Array:
    """Compute half the width of a level's intervals, shape (H, C), float64."""
    grid = np.array([0, *LEVELS])
    above = int(np.searchsorted(grid, level))
    share = (level - grid[above - 1]) / (grid[above] - grid[above - 1])
    whole = np.concatenate([np.zeros_like(quantile_KHC[:1]), quantile_KHC]).astype(np.float64)
    return whole[above - 1] * (1 - share) + whole[above] * share


def cutoffs_before(
    rows: int | NDArray[np.int64], horizon: int, recent: int = RECENT
) -> NDArray[np.int64]:
    """List the cut-offs of the forecasts that are looked back at, in order of time.

    The last one is the last whose whole truth is known; neighbours are 4 rows apart, for forecasts
    of neighbouring rows err alike.

    Args:
        rows: that are known of the series; or of several, shape (..., 1).
        horizon: H.
        recent: how many; those that the series is too short for are below the rows of a context, or
            negative.

    Returns:
        Rows that each forecast knew, shape (..., recent).
    """
    return rows - horizon - _EVERY * np.arange(recent)[::-1]


def tracked_radius(radius_HC: Array, error_BTHC: Array, level: float) -> Array:
    """Let radii follow each series' errors, shape (B, H, C).

    All of a series' radii share one factor. A forecast that more than the level allows for misses
    makes it larger, another smaller, so that in the long run the level's share of targets is hit,
    however errors change.

    Args:
        radius_HC: where they begin; NaN where nothing is known.
        error_BTHC: absolute errors of forecasts in order of time; NaN where there is none.
        level: in percent.
    """
    alpha = 1 - level / 100
    factor_B11 = np.ones((len(error_BTHC), 1, 1))
    for error_BHC in error_BTHC.swapaxes(0, 1):
        seen_BHC = ~np.isnan(error_BHC + radius_HC)
        missed_BHC = seen_BHC & (error_BHC > radius_HC * factor_B11)
        seen_B11 = seen_BHC.sum(axis=(1, 2), keepdims=True)
        share_B11 = missed_BHC.sum(axis=(1, 2), keepdims=True) / np.maximum(seen_B11, 1)
        factor_B11 *= np.exp(_RATE * np.where(seen_B11 > 0, share_B11 - alpha, 0.0))
    return radius_HC * factor_B11
