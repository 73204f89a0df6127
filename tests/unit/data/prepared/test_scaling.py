import numpy as np
import pytest

from timellama_dist.data.prepared.scaling import Scaler
from timellama_dist.errors import DataError


def test_statistics_are_the_population_s():
    scaler = Scaler.fit(np.array([[1.0, 10.0], [3.0, 30.0]]))

    assert scaler.mean.tolist() == [2.0, 20.0]
    assert scaler.std.tolist() == [1.0, 10.0]


@pytest.mark.parametrize("value", [0.0, 5.0, 0.1])
def test_a_constant_channel_has_scale_one(value):
    # The computed standard deviation of a constant 0.1 is about 1e-17, not 0.
    scaler = Scaler.fit(np.full((1000, 1), value))

    assert scaler.std.tolist() == [1.0]
    assert abs(scaler.transform(np.array([value]))[0]) < 1e-12


def test_inverse_undoes_transform_at_any_leading_shape():
    values = np.random.default_rng(0).normal(5, 3, size=(4, 6, 2))
    scaler = Scaler.fit(values.reshape(-1, 2))

    np.testing.assert_allclose(scaler.inverse(scaler.transform(values)), values, rtol=1e-12)
    assert scaler.transform(values.astype(np.float32)).dtype == np.float64


def test_values_whose_variance_overflows_are_refused():
    message = "^values of channel 2 are too large: their standard deviation overflows float64$"
    values = np.array([[1.0, 1e300], [0.0, -1e300]])
    with pytest.raises(DataError, match=message):
        Scaler.fit(values)
    with pytest.raises(DataError, match=message):
        Scaler.fit_parts(values, np.array([0]), np.array([2]))


def test_missing_values_take_no_part():
    values = np.random.default_rng(0).normal(5, 3, size=(50, 3))
    values[np.random.default_rng(1).random(values.shape) < 0.3] = np.nan
    values[:, 2] = 7.0
    values[::2, 2] = np.nan

    scaler = Scaler.fit(values)

    np.testing.assert_allclose(scaler.mean, np.nanmean(values, axis=0))
    np.testing.assert_allclose(scaler.std[:2], np.nanstd(values, axis=0)[:2])
    assert scaler.std[2] == 1.0
    np.testing.assert_array_equal(np.isnan(scaler.transform(values)), np.isnan(values))


@pytest.mark.filterwarnings("error")
def test_a_channel_without_observed_values_counts_as_a_constant_0():
    scaler = Scaler.fit(np.array([[np.nan, 1.0], [np.nan, 3.0]]))

    assert scaler.mean.tolist() == [0.0, 2.0]
    assert scaler.std.tolist() == [1.0, 1.0]


def test_missing_values_do_not_hide_an_overflow():
    with pytest.raises(DataError, match="their standard deviation overflows float64"):
        Scaler.fit(np.array([[1e300], [np.nan], [-1e300]]))
