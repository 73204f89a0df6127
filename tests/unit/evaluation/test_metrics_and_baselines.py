from itertools import pairwise
from random import Random

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from timellama_dist.errors import DataError
from timellama_dist.evaluation.baselines import seasonal_naive
from timellama_dist.evaluation.metrics import ErrorSums
from timellama_dist.evaluation.windows import evaluate, forecast_windows
from timellama_dist.model.linear_fit import fill_missing

RNG = np.random.default_rng(0)


def with_gaps(values: np.ndarray, share: float, seed: int = 1) -> np.ndarray:
    """The values, about `share` of them missing."""
    return np.where(np.random.default_rng(seed).random(values.shape) < share, np.nan, values)


def test_sums_over_batches_equal_numpy_over_all_windows() -> None:
    forecast, future = RNG.normal(size=(2, 7, 4, 3))
    sums = ErrorSums.zeros(4, 3)
    for part in (slice(0, 5), slice(5, 7)):
        sums.add(forecast[part], future[part], np.ones(len(forecast[part])))
    summary = sums.summary()
    assert summary["mse"] == pytest.approx(np.mean((forecast - future) ** 2))
    assert summary["mae"] == pytest.approx(np.mean(np.abs(forecast - future)))


def test_windows_of_weight_0_count_nothing() -> None:
    forecast, future = RNG.normal(size=(2, 4, 2, 1))
    sums = ErrorSums.zeros(2, 1)
    sums.add(forecast, future, np.array([1.0, 0.0, 1.0, 0.0]))
    assert sums.windows == 2
    assert sums.summary()["mse"] == pytest.approx(np.mean((forecast - future)[::2] ** 2))


def test_sums_survive_the_vector_that_ranks_add() -> None:
    sums = ErrorSums.zeros(3, 2)
    sums.add(RNG.normal(size=(5, 3, 2)), RNG.normal(size=(5, 3, 2)), np.ones(5))
    back = ErrorSums.from_vector(sums.to_vector(), 3, 2)
    np.testing.assert_array_equal(back.squared_HC, sums.squared_HC)
    np.testing.assert_array_equal(back.absolute_HC, sums.absolute_HC)
    np.testing.assert_array_equal(back.count_HC, sums.count_HC)
    assert back.windows == 5


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.0, 0.3, 0.9]),
    cuts=st.lists(st.integers(0, 12), max_size=3),
    order=st.randoms(use_true_random=False),
)
def test_errors_are_means_over_observed_targets_however_ranks_share_the_windows(
    seed: int, share: float, cuts: list[int], order: Random
) -> None:
    forecast, future = np.random.default_rng(seed).normal(size=(2, 12, 4, 3))
    future = with_gaps(future, share, seed)
    future[:, 2, 1] = np.nan  # a step and channel that is never observed
    future[0, 0, 0] = 0.5  # and one that is
    ranks = []
    for first, last in pairwise(sorted({0, 12, *cuts})):
        sums = ErrorSums.zeros(4, 3)
        sums.add(forecast[first:last], future[first:last], np.ones(last - first))
        ranks.append(sums.to_vector())
    order.shuffle(ranks)
    total = ErrorSums.from_vector(np.sum(ranks, axis=0), 4, 3)
    error = forecast - future
    assert total.windows == 12
    np.testing.assert_array_equal(total.count_HC, (~np.isnan(future)).sum(axis=0))
    np.testing.assert_allclose(total.squared_HC, np.nansum(error**2, axis=0))
    np.testing.assert_allclose(total.absolute_HC, np.nansum(np.abs(error), axis=0))
    assert total.summary()["mse"] == pytest.approx(np.nanmean(error**2))
    assert total.summary()["mae"] == pytest.approx(np.nanmean(np.abs(error)))


def test_a_forecast_that_is_not_finite_shows_unless_its_target_is_missing() -> None:
    forecast, future = np.array([[[np.nan], [2.0]]]), np.array([[[np.nan], [1.0]]])
    sums = ErrorSums.zeros(2, 1)
    sums.add(forecast, future, np.ones(1))
    assert sums.summary() == {"mse": 1.0, "mae": 1.0}
    sums.add(forecast, np.zeros_like(future), np.ones(1))
    assert np.isnan(sums.summary()["mse"])


def test_windows_without_any_observed_target_have_no_error() -> None:
    sums = ErrorSums.zeros(2, 1)
    sums.add(np.zeros((3, 2, 1)), np.full((3, 2, 1), np.nan), np.ones(3))
    with pytest.raises(DataError, match=r"^every target of 3 windows is missing: there is no"):
        sums.summary()


class MeanForecaster(nn.Module):
    """Repeats the mean of the observed past over two steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, past_BLC: Tensor, dataset: int = 0) -> Tensor:
        return self.weight * past_BLC.nanmean(dim=1, keepdim=True).expand(-1, 2, -1)


def test_evaluation_and_examples_take_windows_with_gaps() -> None:
    past, future = RNG.normal(size=(4, 6, 2)), with_gaps(RNG.normal(size=(4, 2, 2)), 0.4)
    past[:, 1:3] = np.nan
    weight = np.array([1.0, 1.0, 1.0, 0.0])
    batch = {"past": past, "future": future, "weight": weight}
    found = evaluate(MeanForecaster(), [batch], horizon=2, num_channels=2)[0][1.0].summary()
    error = (np.nanmean(past, axis=1, keepdims=True) - future)[:3]
    assert found["mse"] == pytest.approx(np.nanmean(error**2))
    examples = forecast_windows(MeanForecaster(), [batch])
    np.testing.assert_array_equal(examples["past"], past[:3])
    np.testing.assert_array_equal(examples["future"], future[:3])
    assert np.isfinite(examples["forecast"]).all()


def test_seasonal_naive_repeats_the_last_season() -> None:
    past = np.array([1, 2, 3, 4, 5, 6.0]).reshape(1, 6, 1)
    assert seasonal_naive(past, horizon=5, season_len=3).ravel().tolist() == [4, 5, 6, 4, 5]
    assert seasonal_naive(past, horizon=2, season_len=7).ravel().tolist() == [6, 6]


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    share=st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    steps=st.integers(1, 12),
)
def test_missing_values_are_filled_as_pandas_fills_each_channel(
    seed: int, share: float, steps: int
) -> None:
    past = with_gaps(np.random.default_rng(seed).normal(size=(4, steps, 3)), share, seed)
    expected = [pd.DataFrame(window).ffill().bfill().fillna(0.0) for window in past]
    np.testing.assert_array_equal(fill_missing(past), np.stack(expected))


def test_a_past_without_missing_values_is_not_copied() -> None:
    past = RNG.normal(size=(4, 6, 2)).astype(np.float32)
    assert fill_missing(past) is past
    assert fill_missing(with_gaps(past, 0.5).astype(np.float32)).dtype == np.float32


def test_seasonal_naive_repeats_what_a_filled_past_ends_with() -> None:
    past = np.array([np.nan, 2, 3, 4, np.nan, 6, np.nan]).reshape(1, 7, 1)
    forecast = seasonal_naive(fill_missing(past), horizon=5, season_len=3)
    assert forecast.ravel().tolist() == [4, 6, 6, 4, 6]
    nothing = np.full((1, 7, 1), np.nan)
    assert not seasonal_naive(fill_missing(nothing), horizon=5, season_len=3).any()
