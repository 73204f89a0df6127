"""Fits the best linear map from context to horizon, in closed form from sums over windows.

A ridge sees a window with a centre of its own subtracted, which the forecast gets back: the last
value, or a mean. Centre, context and strength of the ridge are chosen by their error on validation
windows, and several such maps are averaged while that lowers it. All of that follows from X'X and
X'Y of both parts, so the windows are read once. NumPy only.

Shapes: B batch, L context, H horizon, C channels, K candidates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
Float64 = NDArray[np.float64]

CONTEXT_SHARES = (1.0, 0.75, 0.5, 0.25, 0.125)
"""Of the window's end; the rest has no weight."""
STRENGTHS = (1e-3, 1e-2, 3e-2, 0.1, 0.2, 0.4, 0.8, 1.6, 5.0)
"""Of the ridge, in units of the mean diagonal of its X'X."""
_MOST_AVERAGED = 20


@dataclass
class WindowSums:
    """X'X, X'Y and the sum of Y² over windows, each channel of a window a row.

    A row counts only if all of its targets are observed. float64 throughout, since the windows of
    a series are nearly collinear.
    """

    gram_LL: Float64
    moment_LH: Float64
    squares: float
    rows: int
    observed: int
    """Targets, also of rows that don't count."""

    @classmethod
    def of(cls, past_BLC: FloatArray, future_BHC: FloatArray) -> "WindowSums":
        """Sum over one batch of windows; missing values of either part are NaN."""
        past_NL, future_NH = _rows(fill_missing(past_BLC)), _rows(future_BHC)
        complete_N = ~np.isnan(future_NH).any(axis=1)
        if not complete_N.all():
            past_NL, future_NH = past_NL[complete_N], future_NH[complete_N]
        return cls(
            gram_LL=past_NL.T @ past_NL,
            moment_LH=past_NL.T @ future_NH,
            squares=float(np.square(future_NH).sum()),
            rows=len(past_NL),
            observed=int(np.sum(~np.isnan(future_BHC))),
        )

    def __add__(self, other: "WindowSums") -> "WindowSums":
        return WindowSums(
            gram_LL=self.gram_LL + other.gram_LL,
            moment_LH=self.moment_LH + other.moment_LH,
            squares=self.squares + other.squares,
            rows=self.rows + other.rows,
            observed=self.observed + other.observed,
        )


def fit_linear(train: WindowSums, validation: WindowSums) -> Float64:
    """Fit the map whose forecast of a context without NaN is `past @ map`, shape (L, H).

    Its columns add up to 1: a window that is shifted shifts its forecast. Where one of the parts
    has no complete row, the map repeats the last value.
    """
    context_len, horizon = train.moment_LH.shape
    if not train.rows or not validation.rows:
        return np.tile(np.eye(context_len)[:, -1:], horizon)
    candidates_KLH = np.stack(list(_candidates(train, validation)))
    return _averaged(candidates_KLH, validation)


def fit_each(train: Sequence[WindowSums], validation: Sequence[WindowSums]) -> Float64:
    """Fit a map for each channel: the mean of the map of all channels and its own.

    A channel's own windows are few, and what all channels have in common isn't all of it.

    Args:
        train: the sums of each channel.
        validation: likewise.

    Returns:
        The maps, shape (C, L, H).
    """
    shared_LH = fit_linear(reduce(add, train), reduce(add, validation))
    return np.stack(
        [
            (shared_LH + fit_linear(*own)) / 2
            # Nothing is known of a channel whose windows all miss a target.
            if all(part.rows for part in own)
            else shared_LH
            for own in zip(train, validation, strict=True)
        ]
    )


def _candidates(train: WindowSums, validation: WindowSums) -> Iterator[Float64]:
    """Fit the best map of each context and centre."""
    context_len = len(train.gram_LL)
    for share in CONTEXT_SHARES:
        seen = max(1, round(share * context_len))
        for centre_L in _centres(context_len, seen):
            maps = list(_ridges(train, seen, centre_L))
            yield min(maps, key=lambda map_LH: _error(map_LH, validation))


def _centres(context_len: int, seen: int) -> Iterator[Float64]:
    """List weights of the values that make up a window's centre: the last value, or a mean."""
    yield np.eye(context_len)[-1]
    mean_L = np.zeros(context_len)
    mean_L[-seen:] = 1 / seen
    if seen > 1:
        yield mean_L


def _ridges(sums: WindowSums, seen: int, centre_L: Float64) -> Iterator[Float64]:
    """Fit maps of every strength that see the last steps of a window, less its centre."""
    context_len = len(sums.gram_LL)
    # Of a window x, x @ project is x less its centre, cut to what is seen.
    project_LS = np.eye(context_len)[:, -seen:] - centre_L[:, None]
    gram_SS = project_LS.T @ sums.gram_LL @ project_LS
    moment_SH = project_LS.T @ (sums.moment_LH - (sums.gram_LL @ centre_L)[:, None])
    values_S, vectors_SS = np.linalg.eigh(gram_SS)
    turned_SH = vectors_SS.T @ moment_SH
    # A constant series has nothing to be scaled by.
    scale = max(float(np.trace(gram_SS)) / seen, np.finfo(float).tiny)
    for strength in STRENGTHS:
        solved_SH = vectors_SS @ (turned_SH / (values_S.clip(0) + strength * scale)[:, None])
        yield centre_L[:, None] + project_LS @ solved_SH


def _error(map_LH: Float64, sums: WindowSums) -> float:
    """Sum the squared errors of a map over all rows."""
    fitted = np.vdot(map_LH, sums.gram_LL @ map_LH) - 2 * np.vdot(map_LH, sums.moment_LH)
    return sums.squares + float(fitted)


def _averaged(candidates_KLH: Float64, sums: WindowSums) -> Float64:
    """Average candidates, counting each as often as it lowers the error of the mean before it."""
    products_KK = np.einsum(
        "klh,jlh->kj", candidates_KLH, sums.gram_LL @ candidates_KLH, optimize=True
    )
    moments_K = np.einsum("klh,lh->k", candidates_KLH, sums.moment_LH)

    def error(counts_K: Float64) -> float:
        weights_K = counts_K / counts_K.sum()
        return float(weights_K @ products_KK @ weights_K - 2 * weights_K @ moments_K)

    counts_K, lowest = np.zeros(len(candidates_KLH)), np.inf
    for _ in range(_MOST_AVERAGED):
        tried = [counts_K + one_K for one_K in np.eye(len(counts_K))]
        best = min(tried, key=error)
        if error(best) >= lowest:
            break
        counts_K, lowest = best, error(best)
    return np.tensordot(counts_K / counts_K.sum(), candidates_KLH, axes=1)


def linear_forecast(past_BLC: FloatArray, map_LH: FloatArray) -> FloatArray:
    """Forecast a past without NaN by a map (L, H), or by each channel's (C, L, H); (B, H, C)."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(past_BLC, 2, 0)) @ map_LH, 0, 2)


def _rows(values_BTC: FloatArray) -> Float64:
    return values_BTC.astype(np.float64).transpose(0, 2, 1).reshape(-1, values_BTC.shape[1])


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
