"""The linear map equals ridges fitted and averaged window by window, without normal equations."""

import numpy as np
import pytest

from timellama_dist.model import linear_fit as linear
from timellama_dist.model.linear_fit import WindowSums, fit_each, fit_linear, linear_forecast

CONTEXT, HORIZON = 8, 3


def windows(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Three channels of noisy waves."""
    rng = np.random.default_rng(seed)
    steps = np.arange(CONTEXT + HORIZON)[:, None] + rng.uniform(0, 20, size=(count, 1, 3))
    values = np.sin(steps / 2) + 0.3 * rng.normal(size=steps.shape) + rng.normal(size=(count, 1, 3))
    return values[:, :CONTEXT], values[:, CONTEXT:]


def sums(past: np.ndarray, future: np.ndarray) -> WindowSums:
    return WindowSums.of(past[:7], future[:7]) + WindowSums.of(past[7:], future[7:])


def rows(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[:, :, channel] for channel in range(values.shape[2])])


def ridge(x: np.ndarray, y: np.ndarray, strength: float) -> np.ndarray:
    """As least squares with extra rows."""
    scale = np.sqrt(strength * np.square(x).sum() / x.shape[1])
    padding = np.zeros((x.shape[1], y.shape[1]))
    solved, *_ = np.linalg.lstsq(
        np.vstack([x, scale * np.eye(x.shape[1])]), np.vstack([y, padding]), rcond=None
    )
    return solved


def by_hand(
    train: tuple[np.ndarray, np.ndarray], judged: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Forecasts of the judged windows by the mean of ridges that judges best, step by step."""
    (x, y), (judged_x, judged_y) = (tuple(map(rows, part)) for part in (train, judged))
    forecasts = []
    for seen in (CONTEXT, CONTEXT // 2):
        for centre in (lambda x: x[:, -1:], lambda x: x.mean(axis=1, keepdims=True)):
            near, judged_near = x[:, -seen:], judged_x[:, -seen:]
            tried = []
            for strength in (0.01, 0.3):
                solved = ridge(near - centre(near), y - centre(near), strength)
                tried.append((judged_near - centre(judged_near)) @ solved + centre(judged_near))
            forecasts.append(min(tried, key=lambda forecast: np.square(forecast - judged_y).sum()))
    chosen: list[np.ndarray] = []
    while len(chosen) < 20:
        best = min(
            ([*chosen, forecast] for forecast in forecasts),
            key=lambda some: np.square(np.mean(some, axis=0) - judged_y).sum(),
        )
        after, before = (
            np.square(np.mean(some, axis=0) - judged_y).sum() for some in (best, chosen or [0])
        )
        if chosen and after >= before:
            break
        chosen = best
    return np.mean(chosen, axis=0)


def test_it_is_the_mean_of_ridges_that_judges_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "CONTEXT_SHARES", (1.0, 0.5))
    monkeypatch.setattr(linear, "STRENGTHS", (0.01, 0.3))
    train, judged = windows(0), windows(1)
    map_LH = fit_linear(sums(*train), sums(*judged))
    np.testing.assert_allclose(
        rows(linear_forecast(judged[0], map_LH)), by_hand(train, judged), atol=1e-9
    )


def test_a_channels_map_is_half_its_own_and_half_that_of_all() -> None:
    train, judged = windows(0), windows(1)
    train[1][:, 0, 2] = np.nan

    def of(part: tuple[np.ndarray, np.ndarray], *channels: int) -> WindowSums:
        return WindowSums.of(part[0][..., channels], part[1][..., channels])

    actual = fit_each([of(train, c) for c in range(3)], [of(judged, c) for c in range(3)])
    shared_LH = fit_linear(of(train, 0, 1, 2), of(judged, 0, 1, 2))
    for channel in (0, 1):
        own_LH = fit_linear(of(train, channel), of(judged, channel))
        np.testing.assert_allclose(actual[channel], (shared_LH + own_LH) / 2, atol=1e-10)
    # No window of this one is complete.
    np.testing.assert_allclose(actual[2], shared_LH, atol=1e-10)
    forecast = linear_forecast(judged[0], actual)
    for channel in range(3):
        alone = linear_forecast(judged[0][..., [channel]], actual[channel])
        np.testing.assert_allclose(forecast[..., [channel]], alone, atol=1e-12)


def test_a_shifted_window_shifts_its_forecast() -> None:
    past, future = windows(0)
    map_LH = fit_linear(sums(past, future), sums(*windows(1)))
    np.testing.assert_allclose(map_LH.sum(axis=0), 1.0, atol=1e-10)


def test_a_channel_of_a_window_with_a_missing_target_is_left_out() -> None:
    past, future = windows(0)
    gappy = future.copy()
    gappy[4, 1, 2] = gappy[9, :, 0] = np.nan
    actual = sums(past, gappy)
    kept = np.ones((60, 3), bool)
    kept[4, 2] = kept[9, 0] = False
    x, y = (values.transpose(0, 2, 1)[kept] for values in (past, future))
    assert actual.rows == len(x) == 178
    assert actual.observed == 60 * 3 * HORIZON - 4
    np.testing.assert_allclose(actual.gram_LL, x.T @ x)
    np.testing.assert_allclose(actual.moment_LH, x.T @ y)
    assert actual.squares == pytest.approx(np.square(y).sum())


def test_without_a_complete_window_the_last_value_is_repeated() -> None:
    past, future = windows(0)
    nothing = sums(past, np.full_like(future, np.nan))
    for parts in ((nothing, sums(past, future)), (sums(past, future), nothing)):
        forecast = linear_forecast(past, fit_linear(*parts))
        np.testing.assert_array_equal(forecast, np.repeat(past[:, -1:], HORIZON, axis=1))


def test_constant_series_are_forecast_as_they_are() -> None:
    past, future = np.full((5, CONTEXT, 1), 2.0), np.full((5, HORIZON, 1), 2.0)
    actual = fit_linear(WindowSums.of(past, future), WindowSums.of(past, future))
    np.testing.assert_allclose(linear_forecast(past, actual), future)
