"""Quantiles of errors, and how radii follow them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from timellama_dist.errors import ConfigError
from timellama_dist.model.intervals import (
    LEVELS,
    RECENT,
    check_levels,
    cutoffs_before,
    error_quantiles,
    radius,
    tracked_radius,
)


def test_quantiles_are_the_order_statistics_of_split_conformal() -> None:
    error = np.random.default_rng(0).random((99, 2, 3))
    actual = error_quantiles(error)
    ordered = np.sort(error, axis=0)
    for level, quantile in zip(LEVELS, actual, strict=True):
        # The k-th smallest of 99 covers the next with probability k / 100.
        np.testing.assert_allclose(quantile, ordered[level - 1], rtol=1e-6)


def test_missing_truth_counts_nothing() -> None:
    error = np.random.default_rng(0).random((99, 1, 2))
    holes = np.concatenate([error, np.full((0, 1, 2), np.nan)])
    holes[:, 0, 1] = np.nan
    actual = error_quantiles(holes)
    np.testing.assert_array_equal(actual[:, 0, 0], error_quantiles(error)[:, 0, 0])
    assert np.isnan(actual[:, 0, 1]).all()


def test_quantiles_of_errors_with_gaps_can_be_saved_as_they_are() -> None:
    error = np.random.default_rng(0).random((99, 4, 3))
    error[5, 1, 2] = np.nan
    actual = error_quantiles(error)
    np.testing.assert_array_equal(load(save({"0": torch.from_numpy(actual)}))["0"], actual)


def test_a_level_between_two_is_interpolated() -> None:
    quantiles = error_quantiles(np.random.default_rng(0).random((500, 2, 1)))
    np.testing.assert_allclose(radius(quantiles, 80), quantiles[LEVELS.index(80)])
    between = (quantiles[LEVELS.index(80)] + quantiles[LEVELS.index(90)]) / 2
    np.testing.assert_allclose(radius(quantiles, 85), between, rtol=1e-6)
    np.testing.assert_allclose(radius(quantiles, 5), quantiles[0] / 2, rtol=1e-6)


@pytest.mark.parametrize("level", [0, 100, -5, "80", 99.5])
def test_a_level_out_of_bounds_is_refused(level: object) -> None:
    with pytest.raises(ConfigError, match="level must be above 0 and at most 99 percent"):
        check_levels([level])


@pytest.mark.parametrize("level", [80, 95])
def test_radii_that_follow_errors_cover_as_they_should_where_errors_have_doubled(
    level: float,
) -> None:
    rng = np.random.default_rng(1)
    begin = radius(error_quantiles(np.abs(rng.standard_normal((2000, 4, 2)))), level)
    errors = 2 * np.abs(rng.standard_normal((200, RECENT + 1, 4, 2)))
    followed = tracked_radius(begin, errors[:, :RECENT], level)
    assert (errors[:, RECENT] <= begin).mean() < level / 100 - 0.1
    assert (errors[:, RECENT] <= followed).mean() == pytest.approx(level / 100, abs=0.04)


def test_without_errors_a_radius_stays() -> None:
    begin = np.full((4, 2), 0.5)
    actual = tracked_radius(begin, np.full((3, 7, 4, 2), np.nan), 80)
    np.testing.assert_allclose(actual, np.full((3, 4, 2), 0.5))


def test_what_is_missing_moves_no_radius_of_what_is_there() -> None:
    begin = np.full((4, 2), 0.5)
    errors = np.abs(np.random.default_rng(0).standard_normal((3, 7, 4, 2)))
    whole = tracked_radius(begin[:, :1], errors[..., :1], 80)
    holes = errors.copy()
    holes[..., 1] = np.nan
    np.testing.assert_allclose(tracked_radius(begin, holes, 80)[..., :1], whole)
    begin[:, 1] = np.nan
    actual = tracked_radius(begin, errors, 80)
    np.testing.assert_allclose(actual[..., :1], whole)
    assert np.isnan(actual[..., 1]).all()


def test_forecasts_looked_back_at_have_their_whole_truth() -> None:
    np.testing.assert_array_equal(cutoffs_before(100, 24, 3), [68, 72, 76])
    assert len(cutoffs_before(100, 24)) == RECENT
    assert len(cutoffs_before(100, 24, 0)) == 0
