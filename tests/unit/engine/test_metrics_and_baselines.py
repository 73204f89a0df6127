import numpy as np
import pytest

from timellama_dist.engine.baselines import NormalEquations, linear_forecast, seasonal_naive
from timellama_dist.engine.metrics import ErrorSums

RNG = np.random.default_rng(0)


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
    assert back.windows == 5


def test_seasonal_naive_repeats_the_last_season() -> None:
    past = np.array([1, 2, 3, 4, 5, 6.0]).reshape(1, 6, 1)
    assert seasonal_naive(past, horizon=5, season_len=3).ravel().tolist() == [4, 5, 6, 4, 5]
    assert seasonal_naive(past, horizon=2, season_len=7).ravel().tolist() == [6, 6]


def test_the_linear_map_is_the_ridge_solution_over_all_channels() -> None:
    past, future = RNG.normal(size=(30, 5, 2)), RNG.normal(size=(30, 3, 2))
    sums = NormalEquations.of(past[:10], future[:10]) + NormalEquations.of(past[10:], future[10:])
    (found,) = sums.solve((0.7,))
    last = past[:, -1:]
    x = np.concatenate([(past - last)[:, :, channel] for channel in range(2)])
    y = np.concatenate([(future - last)[:, :, channel] for channel in range(2)])
    # Ridge as least squares with extra rows, which doesn't form the normal equations.
    expected, *_ = np.linalg.lstsq(
        np.vstack([x, np.sqrt(0.7) * np.eye(5)]), np.vstack([y, np.zeros((5, 3))]), rcond=None
    )
    np.testing.assert_allclose(found, expected, atol=1e-10)
    by_hand = np.stack([(past - last)[:, :, c] @ expected for c in range(2)], axis=-1) + last
    np.testing.assert_allclose(linear_forecast(past, found), by_hand, atol=1e-10)
