"""Naive2 against the competition's own words, step by step in plain Python."""

import numpy as np
import pytest

from timellama_dist.evaluation.naive2 import is_seasonal, naive2, seasonal_indices

RNG = np.random.default_rng(1)


def autocorrelation(history: list[float], lag: int) -> float:
    mean = sum(history) / len(history)
    centred = [value - mean for value in history]
    products = [a * b for a, b in zip(centred, centred[lag:], strict=False)]
    return sum(products) / sum(value * value for value in centred)


def seasonal_by_hand(history: list[float], season: int) -> bool:
    if len(history) < 3 * season:
        return False
    squares = [autocorrelation(history, lag) ** 2 for lag in range(1, season)]
    limit = 1.645 / len(history) ** 0.5 * (1 + 2 * sum(squares)) ** 0.5
    return abs(autocorrelation(history, season)) > limit


def naive2_by_hand(history: list[float], season: int, horizon: int) -> list[float]:
    """Of positive values."""
    if not seasonal_by_hand(history, season):
        return [history[-1]] * horizon
    ratios: list[list[float]] = [[] for _ in range(season)]
    half = season // 2
    for step in range(half, len(history) - half):
        window = history[step - half : step + half + 1]
        total = sum(window) if season % 2 else sum(window) - (window[0] + window[-1]) / 2
        ratios[step % season].append(history[step] / (total / season))
    means = [sum(one) / len(one) for one in ratios]
    index = [mean / (sum(means) / season) for mean in means]
    length = len(history)
    adjusted = history[-1] / index[(length - 1) % season]
    return [adjusted * index[(length + step) % season] for step in range(horizon)]


@pytest.mark.parametrize(("season", "length"), [(4, 30), (7, 50), (12, 43), (24, 120)])
def test_forecasts_are_those_of_the_definition(season: int, length: int) -> None:
    wave = np.sin(2 * np.pi * np.arange(length) / season)
    strengths = np.array([0.0, 0.3, 2.0, 5.0])[:, None]
    history = 20 + strengths * wave + RNG.normal(size=(4, length)) + 0.1 * np.arange(length)
    expected = [naive2_by_hand(one.tolist(), season, 2 * season + 1) for one in history]
    found = naive2(history, horizon=2 * season + 1, season_len=season)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    by_hand = [seasonal_by_hand(one.tolist(), season) for one in history]
    assert is_seasonal(history, season).tolist() == by_hand
    assert by_hand[-1]


def test_a_history_of_less_than_three_seasons_is_not_adjusted() -> None:
    history = 5 + np.tile([0.0, 1, 2, 3], 3)[None]
    assert is_seasonal(history, 4).all()
    assert not is_seasonal(history[:, :11], 4).any()
    np.testing.assert_array_equal(naive2(history[:, :11], horizon=2, season_len=4), [[7.0, 7.0]])


@pytest.mark.parametrize("season", [1, 4])
def test_a_season_of_one_step_and_a_constant_history_give_the_last_value(season: int) -> None:
    history = np.full((1, 40), 0.1) if season > 1 else RNG.normal(size=(1, 40))
    forecast = naive2(history, horizon=3, season_len=season)
    np.testing.assert_array_equal(forecast, np.repeat(history[:, -1:], 3, axis=1))


def test_a_history_with_negative_values_is_adjusted_by_differences() -> None:
    season = np.array([-3.0, 0.0, 1.0, 2.0])
    history = np.tile(season, 6)[None] + 0.5 * np.arange(24)
    index = seasonal_indices(history, 4, multiplicative=False)
    np.testing.assert_allclose(index, [season - season.mean()], atol=1e-12)
    forecast = naive2(history, horizon=4, season_len=4)
    np.testing.assert_allclose(forecast, [history[0, -1] - season[3] + season])
