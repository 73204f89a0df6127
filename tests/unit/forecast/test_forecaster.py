"""Forecasts from frames with missing values."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from tests.support.forecasters import CONTEXT, HORIZON, SCALERS, forecaster, long_frame
from timellama_dist.data.prepared.scaling import Scaler
from timellama_dist.errors import ConfigError, DataError
from timellama_dist.forecast.forecaster import TimeLlamaForecaster
from timellama_dist.model.intervals import tracked_radius


def by_the_model_itself(
    own: TimeLlamaForecaster, values: np.ndarray, mean: np.ndarray, std: np.ndarray
) -> np.ndarray:
    scaled = torch.from_numpy((values[-CONTEXT:] - mean) / std).float()
    with torch.no_grad():
        return own.model(scaled[None])[0].double().numpy() * std + mean


def test_gaps_stay_where_they_are_in_every_series_and_channel(tiny_llama: Path) -> None:
    own, frame = forecaster(tiny_llama, missing="mask"), long_frame()
    forecast = own.predict(frame)
    assert np.isfinite(forecast["yhat"]).all()
    for name, scaler in SCALERS.items():
        values = frame.loc[frame["unique_id"] == name, ["a", "b"]].to_numpy()
        assert np.isnan(values).any()
        actual = forecast[forecast["unique_id"] == name]["yhat"].to_numpy().reshape(2, HORIZON).T
        expected = by_the_model_itself(own, values, scaler.mean, scaler.std)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_series_that_training_did_not_see_is_scaled_by_its_observed_values(
    tiny_llama: Path,
) -> None:
    own, frame = forecaster(tiny_llama, missing="mask"), long_frame()
    frame["unique_id"] = frame["unique_id"].replace("x", "new")
    values = frame.loc[frame["unique_id"] == "new", ["a", "b"]].to_numpy()
    forecast = own.predict(frame)
    actual = forecast[forecast["unique_id"] == "new"]["yhat"].to_numpy().reshape(2, HORIZON).T
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    np.testing.assert_allclose(actual, by_the_model_itself(own, values, mean, std), atol=1e-4)


def test_the_only_series_that_a_model_knows_is_no_other_s(tiny_llama: Path) -> None:
    own = forecaster(tiny_llama, {"x": SCALERS["x"]}, missing="mask")
    several = forecaster(tiny_llama, missing="mask")
    frame = long_frame().query("unique_id == 'x'")
    expected = several.predict(frame)
    pd.testing.assert_frame_equal(own.predict(frame), expected)
    pd.testing.assert_frame_equal(own.predict(frame.drop(columns="unique_id")), expected)
    other = frame.assign(unique_id="new", a=1000 + frame["a"])
    pd.testing.assert_frame_equal(own.predict(other), several.predict(other))


def test_series_that_are_channels_may_have_gaps_of_their_own(tiny_llama: Path) -> None:
    scaler = Scaler(np.zeros(4), np.ones(4))
    own = forecaster(
        tiny_llama, {"table": scaler}, "x:a x:b y:a y:b", series="channels", missing="mask"
    )
    frame = long_frame()
    values = np.concatenate(
        [frame.loc[frame["unique_id"] == name, ["a", "b"]].to_numpy() for name in "xy"], axis=1
    )
    actual = own.predict(frame)["yhat"].to_numpy().reshape(4, HORIZON).T
    expected = by_the_model_itself(own, values, scaler.mean, scaler.std)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_channel_without_any_value_is_forecast_near_its_training_mean(tiny_llama: Path) -> None:
    own, frame = forecaster(tiny_llama, missing="mask"), long_frame()
    frame["b"] = np.nan
    forecast = own.predict(frame)
    means = forecast[forecast["channel"] == "b"].groupby("unique_id")["yhat"].mean()
    assert means.to_dict() == pytest.approx({"x": -5.0, "y": 1.0}, abs=0.1)


@pytest.mark.parametrize("written_as", [None, pd.NA, float("nan")])
def test_a_missing_value_may_be_written_in_any_of_the_ways_of_pandas(
    written_as: object, tiny_llama: Path
) -> None:
    own, frame = forecaster(tiny_llama, missing="mask"), long_frame()
    expected = own.predict(frame)
    frame["b"] = frame["b"].astype(object).where(frame["b"].notna(), written_as)
    pd.testing.assert_frame_equal(own.predict(frame), expected)


def test_a_model_trained_without_gaps_refuses_them_by_row_and_channel(tiny_llama: Path) -> None:
    message = (
        "frame: row 9: column 'b' is empty or NaN (2 rows of the column are empty, NaN or "
        "infinite); fill or drop them, or say what becomes of them: data.missing"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        forecaster(tiny_llama, missing="refuse").predict(long_frame()[:-1])


def test_gaps_are_filled_as_they_were_for_training(tiny_llama: Path) -> None:
    own, frame = forecaster(tiny_llama, missing="ffill"), long_frame()
    filled = frame.assign(**frame.groupby("unique_id")[["a", "b"]].ffill())
    pd.testing.assert_frame_equal(own.predict(frame), own.predict(filled))


def test_infinite_values_and_missing_names_are_refused_all_the_same(tiny_llama: Path) -> None:
    own, frame = forecaster(tiny_llama, missing="mask"), long_frame()
    nameless = frame.astype({"unique_id": object})
    nameless.loc[3, "unique_id"] = None
    with pytest.raises(DataError, match=r"column 'unique_id' is empty \(1 such rows\)"):
        own.predict(nameless)
    frame.loc[3, "a"] = np.inf
    with pytest.raises(DataError, match=r"row 4: column 'a' is infinite"):
        own.predict(frame)


def test_intervals_of_a_short_frame_are_those_of_the_validation_part(tiny_llama: Path) -> None:
    own, frame = forecaster(tiny_llama, missing="mask"), long_frame()
    actual = own.predict(frame, level=[80, 95])
    names = ["yhat-lo-80", "yhat-hi-80", "yhat-lo-95", "yhat-hi-95"]
    assert list(actual) == ["unique_id", "ds", "channel", "yhat", *names]
    std = [
        SCALERS[name].std["ab".index(c)]
        for name, c in zip(actual.unique_id, actual.channel, strict=True)
    ]
    np.testing.assert_allclose(actual["yhat"] - actual["yhat-lo-80"], 0.8 * np.array(std))
    np.testing.assert_allclose(actual["yhat-hi-95"] - actual["yhat"], 0.95 * np.array(std))
    pd.testing.assert_frame_equal(actual.iloc[:, :4], own.predict(frame))


def test_intervals_follow_the_errors_of_the_frame_s_own_past(tiny_llama: Path) -> None:
    own, frame = forecaster(tiny_llama, missing="mask"), long_frame(40)
    actual = own.predict(frame, level=[80], recent=3)
    for name, scaler in SCALERS.items():
        series = frame[frame["unique_id"] == name]
        values, errors = series[["a", "b"]].to_numpy(), []
        for seen in (40 - HORIZON - 8, 40 - HORIZON - 4, 40 - HORIZON):
            yhat = own.predict(series[:seen])["yhat"].to_numpy().reshape(2, HORIZON).T
            errors.append(np.abs(values[seen : seen + HORIZON] - yhat) / scaler.std)
        expected = tracked_radius(np.full((HORIZON, 2), 0.8), np.stack(errors)[None], 80)[0]
        here = actual[actual["unique_id"] == name]
        half = (here["yhat-hi-80"] - here["yhat"]).to_numpy().reshape(2, HORIZON).T
        np.testing.assert_allclose(half, expected * scaler.std, rtol=1e-5)
    kept = own.predict(frame, level=[80], recent=0)
    assert not np.allclose(kept["yhat-hi-80"], actual["yhat-hi-80"])
    with pytest.raises(ConfigError, match=r"^recent must be at least 0, got -1$"):
        own.predict(frame, level=[80], recent=-1)


def test_a_fit_does_not_write_over_a_file_that_is_there(tmp_path: Path) -> None:
    mine = tmp_path / "shops.parquet"
    long_frame()[:5].to_parquet(mine)
    before = mine.read_bytes()
    refused = f"run_dir: the frame goes to {mine}, which holds something else; choose another"
    with pytest.raises(ConfigError, match=f"^{re.escape(refused)}"):
        TimeLlamaForecaster.fit(long_frame(), tmp_path / "shops")
    assert mine.read_bytes() == before


def test_a_fit_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown key data\.horzon"):
        TimeLlamaForecaster.fit(long_frame(), tmp_path / "run", **{"data.horzon": 4})
    with pytest.raises(DataError, match=r"run\.parquet: row 9: column 'b' is empty"):
        TimeLlamaForecaster.fit(long_frame(), tmp_path / "run", **{"data.missing": "refuse"})
    assert not list(tmp_path.iterdir())


def test_a_longer_horizon_is_refused_or_rolled(tiny_llama: Path) -> None:
    own, frame = forecaster(tiny_llama, missing="mask"), long_frame()
    with pytest.raises(ConfigError, match="horizon must be between 1 and 4, got 7; roll=True"):
        own.predict(frame, 7)
    actual = own.predict(frame, 7, roll=True)
    first = own.predict(frame)
    wide = first.pivot(index=["unique_id", "ds"], columns="channel", values="yhat").reset_index()
    second = own.predict(pd.concat([frame, wide]), 3)
    both = pd.concat([first, second]).sort_values(["unique_id", "channel", "ds"])
    pd.testing.assert_frame_equal(actual, both.reset_index(drop=True))
    pd.testing.assert_frame_equal(
        own.predict(frame, 2), first[first.index % HORIZON < 2].reset_index(drop=True)
    )


@pytest.mark.parametrize(
    ("frequency", "step", "start"),
    [
        ("W-SUN", pd.Timedelta(days=7), "2024-01-01"),
        ("QS-JAN", pd.DateOffset(months=3), "2020-02-01"),
    ],
)
def test_a_frame_s_weeks_and_quarters_may_begin_elsewhere_than_the_model_s(
    frequency: str, step: Any, start: str, tiny_llama: Path
) -> None:
    own = forecaster(tiny_llama, frequency=frequency, missing="mask")
    stamps = pd.date_range(start, periods=15 + HORIZON, freq=step)
    frame = long_frame().assign(ds=np.repeat(stamps[:15], 2))
    actual = own.predict(frame)
    assert set(actual["ds"]) == set(stamps[15:])
    other = long_frame().assign(ds=np.repeat(pd.date_range(start, periods=15), 2))
    with pytest.raises(DataError, match=f"the model's step is '{frequency}', the frame's 'D'"):
        own.predict(other)


def test_one_row_a_series_is_enough_where_training_padded(tiny_llama: Path) -> None:
    padded = forecaster(tiny_llama, frequency="D", short_series="pad", missing="mask")
    frame = long_frame()[:2]
    actual = padded.predict(frame)
    assert np.isfinite(actual["yhat"]).all()
    days = [f"2024-01-0{day}" for day in range(2, 2 + HORIZON)]
    assert actual["ds"].dt.strftime("%Y-%m-%d").tolist() == days * 4
    with pytest.raises(DataError, match="the model's step is 'D', the frame's 'h'"):
        padded.predict(long_frame())
    with pytest.raises(DataError, match="frame: no series has two timestamps"):
        forecaster(tiny_llama).predict(frame)


def test_a_frame_comes_back_as_it_came(tiny_llama: Path) -> None:
    own, frame = forecaster(tiny_llama, missing="mask"), long_frame()
    expected = own.predict(frame)
    table = own.predict(pa.Table.from_pandas(frame))
    assert isinstance(table, pa.Table)
    pd.testing.assert_frame_equal(table.to_pandas(), expected)
    with pytest.raises(DataError, match=r"frame: expected a DataFrame .* got dict"):
        own.predict(frame.to_dict())


def test_a_frame_of_polars_comes_back_as_one(tiny_llama: Path) -> None:
    polars = pytest.importorskip("polars")
    own, frame = forecaster(tiny_llama, missing="mask"), long_frame()
    actual = own.predict(polars.from_pandas(frame))
    assert isinstance(actual, polars.DataFrame)
    pd.testing.assert_frame_equal(actual.to_pandas(), own.predict(frame), check_dtype=False)
