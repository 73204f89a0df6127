import numpy as np
import pytest

from timellama_dist.evaluation.scores import RawSums, Scores, overall, owa, smape_terms

RNG = np.random.default_rng(2)


def scores_of(
    forecast: np.ndarray, future: np.ndarray, reference: np.ndarray, scale: np.ndarray
) -> Scores:
    scores = Scores.zeros(*future.shape[1:])
    scores.errors.add(forecast, future, np.ones(len(future)))
    scores.raw.add(forecast, future, scale)
    scores.naive2.add(reference, future, scale)
    return scores


def test_smape_is_the_competitions_in_percent() -> None:
    terms = smape_terms(np.array([1.0, 3.0, 0.0, -2.0]), np.array([3.0, 3.0, 0.0, 2.0]))
    np.testing.assert_allclose(terms, [200 * 2 / 4, 0, 0, 200])


def test_two_series_by_hand() -> None:
    # Series 1: errors 1 and 2, scale 2; series 2: errors 0 and 5, scale 10. Steps of one channel.
    target = np.array([[[10.0], [20.0]], [[5.0], [5.0]]])
    forecast = np.array([[[11.0], [18.0]], [[5.0], [10.0]]])
    naive = np.array([[[14.0], [20.0]], [[5.0], [5.0]]])
    scores = scores_of(forecast, target, naive, np.array([[2.0], [10.0]]))
    smape = 200 * (1 / 21 + 2 / 38 + 0 + 5 / 15) / 4
    mase = (0.5 + 1 + 0 + 0.5) / 4
    naive2 = {"smape": 200 * (4 / 24) / 4, "mase": 2 / 4}
    assert scores.naive2_summary() == pytest.approx(naive2)
    assert scores.summary() == pytest.approx(
        {
            "mse": (1 + 4 + 25) / 4,
            "mae": 8 / 4,
            "smape": smape,
            "mase": mase,
            "owa": (smape / naive2["smape"] + mase / naive2["mase"]) / 2,
        }
    )
    assert scores.by_step()["mase"] == pytest.approx([0.25, 0.75])
    assert scores.by_channel()["mse"] == pytest.approx([30 / 4])


def test_sums_of_parts_are_those_of_the_whole() -> None:
    forecast, target, naive = RNG.normal(size=(3, 9, 4, 2))
    target[2, 1, 0] = np.nan
    scale = RNG.random((9, 2))
    parts = [
        scores_of(*(one[part] for one in (forecast, target, naive, scale)))
        for part in (slice(0, 4), slice(4, 9))
    ]
    whole = scores_of(forecast, target, naive, scale)
    assert (parts[0] + parts[1]).summary() == pytest.approx(whole.summary())
    assert (parts[0] + parts[1]).errors.windows == 9


def test_missing_targets_and_series_without_a_scale_do_not_count() -> None:
    forecast, target = np.ones((2, 1, 2)), np.full((2, 1, 2), 3.0)
    target[0, 0, 0] = np.nan
    raw = RawSums.zeros(1, 2)
    raw.add(forecast, target, np.array([[1.0, 4.0], [0.0, 0.0]]))
    np.testing.assert_array_equal(raw.mase_count_HC, [[0, 1]])
    np.testing.assert_array_equal(raw.mase_HC, [[0, 0.5]])
    np.testing.assert_array_equal(raw.smape_HC, [[100, 200]])
    assert raw.summary(np.array([[1.0, 2.0]]))["mase"] == 0.5


def test_collections_are_weighted_by_windows_as_the_competition_does() -> None:
    sets = [
        scores_of(*RNG.normal(size=(3, windows, horizon, 1)), np.ones((windows, 1)))
        for windows, horizon in ((6, 2), (2, 5))
    ]
    singles = [one.summary() for one in sets]
    references = [one.naive2_summary() for one in sets]
    found = overall(sets)
    mean = {key: (6 * singles[0][key] + 2 * singles[1][key]) / 8 for key in ("smape", "mase")}
    reference = {
        key: (6 * references[0][key] + 2 * references[1][key]) / 8 for key in ("smape", "mase")
    }
    assert found["smape"] == pytest.approx(mean["smape"])
    assert found["owa"] == pytest.approx(owa(mean["smape"], mean["mase"], reference))
    assert found["mse"] == pytest.approx((singles[0]["mse"] + singles[1]["mse"]) / 2)
    assert overall(sets[:1]) == pytest.approx(singles[0])


def test_owa_is_undefined_where_naive2_has_no_error() -> None:
    assert np.isnan(owa(1.0, 1.0, {"smape": 0.0, "mase": 1.0}))
