"""Naive2, by which the M4 competition measures: the last value, seasonally adjusted if it pays.

As the competition's own program defines it (its `SeasonalityTest` and `Benchmarks`): the season is
tested by the autocorrelation at its lag, at 90 %, and taken out by classical multiplicative
decomposition. All of M4's values are positive; a history with others is decomposed additively.
NumPy only.

Shapes: N histories, T steps of the past, S steps of a season, H horizon.
"""

import numpy as np
from numpy.typing import NDArray

_CRITICAL = 1.645


def naive2(
    history_NT: NDArray[np.float64], *, horizon: int, season_len: int
) -> NDArray[np.float64]:
    """Forecast histories without missing values; shape (N, H)."""
    forecast_NH = np.repeat(history_NT[:, -1:], horizon, axis=1)
    seasonal_N = is_seasonal(history_NT, season_len)
    if not seasonal_N.any():
        return forecast_NH
    length = history_NT.shape[1]
    steps = (length + np.arange(horizon)) % season_len
    positive_N = (history_NT > 0).all(axis=1)
    for chosen_N, multiplicative in ((positive_N, True), (~positive_N, False)):
        chosen_N = chosen_N & seasonal_N
        if not chosen_N.any():
            continue
        some_NT = history_NT[chosen_N]
        index_NS = seasonal_indices(some_NT, season_len, multiplicative=multiplicative)
        last_N1, last_index_N1 = some_NT[:, -1:], index_NS[:, [(length - 1) % season_len]]
        forecast_NH[chosen_N] = (
            last_N1 / last_index_N1 * index_NS[:, steps]
            if multiplicative
            else last_N1 - last_index_N1 + index_NS[:, steps]
        )
    return forecast_NH


def is_seasonal(history_NT: NDArray[np.float64], season_len: int) -> NDArray[np.bool_]:
    """Test whether the autocorrelation at the season's lag leaves its 90 % band; shape (N,).

    Never of less than three seasons, a season of one step, or a constant history.
    """
    length = history_NT.shape[1]
    if season_len < 2 or length < 3 * season_len:
        return np.zeros(len(history_NT), np.bool_)
    centred_NT = history_NT - history_NT.mean(axis=1, keepdims=True)
    # Wiener-Khinchin, padded so that the ends don't meet: one pass for all lags.
    spectrum = np.fft.rfft(centred_NT, n=2 * length, axis=1)
    covariance_NK = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, : season_len + 1]
    constant_N = np.ptp(history_NT, axis=1) == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation_NK = covariance_NK[:, 1:] / covariance_NK[:, :1]
    # The band at a lag is widened by all lags before it.
    spread_N = 1 + 2 * np.square(correlation_NK[:, :-1]).sum(axis=1)
    limit_N = _CRITICAL * np.sqrt(spread_N / length)
    return ~constant_N & (np.abs(correlation_NK[:, -1]) > limit_N)


def seasonal_indices(
    history_NT: NDArray[np.float64], season_len: int, *, multiplicative: bool
) -> NDArray[np.float64]:
    """Compute indices of classical decomposition by phase (step modulo season), shape (N, S).

    The mean ratio (difference, if additive) of each phase to a centred moving average over one
    season, scaled to a mean of 1 (0).
    """
    num, length = history_NT.shape
    half = season_len // 2
    # An even season's average takes half of each end, so that it is centred on a step.
    weights = np.full(2 * half + 1, 1.0)
    if season_len % 2 == 0:
        weights[[0, -1]] = 0.5
    windows_NKT = np.lib.stride_tricks.sliding_window_view(history_NT, len(weights), axis=1)
    trend_NK = windows_NKT @ (weights / season_len)
    inner_NK = history_NT[:, half : length - half]
    detrended_NT = np.full((num, -(-length // season_len) * season_len), np.nan)
    detrended_NT[:, half : length - half] = (
        inner_NK / trend_NK if multiplicative else inner_NK - trend_NK
    )
    index_NS = np.nanmean(detrended_NT.reshape(num, -1, season_len), axis=1)
    mean_N1 = index_NS.mean(axis=1, keepdims=True)
    return index_NS / mean_N1 if multiplicative else index_NS - mean_N1
