"""Scores of whole data sets, against sums over the tables that they were made of."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from timellama_dist.data.prepared.write import prepare
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.windows.reader import WindowReader
from timellama_dist.data.windows.spec import WindowSpec
from timellama_dist.errors import ConfigError
from timellama_dist.evaluation import scoring
from timellama_dist.evaluation.forecasters import linear_forecaster, seasonal_naive_forecaster
from timellama_dist.evaluation.naive2 import naive2
from timellama_dist.evaluation.scores import Scores
from timellama_dist.evaluation.scoring import Yardstick

HORIZON = 6


def read(path: Path, **options: object) -> WindowReader:
    arguments = {"context_len": 24, "horizon": HORIZON, "split": "test", **options}
    return WindowReader(path, WindowSpec(**arguments))


def total(yardstick: Yardstick, forecaster, padding: int = 0) -> Scores:
    """Scores of all windows, in batches of 5, the last filled up."""
    reader = yardstick.reader
    ids = np.append(np.arange(len(reader)), np.full(padding, -1))
    batches = [reader.read(ids[first : first + 5]) for first in range(0, len(ids), 5)]
    scores = Scores.zeros(reader.spec.horizon, reader.manifest.num_channels)
    for one in yardstick.score(forecaster, batches):
        scores += one
    return scores


@pytest.fixture
def collection(tmp_path: Path) -> tuple[Path, list[np.ndarray]]:
    """Hourly series of different lengths, a row each; the shortest has less than a context."""
    rng = np.random.default_rng(5)
    series = [
        100 + strength * np.sin(2 * np.pi * np.arange(length) / 24) + rng.normal(size=length)
        for strength, length in ((20, 130), (0, 110), (9, 95), (3, 27), (50, 130))
    ]
    lines = [
        ",".join([f"H{n}", *map(repr, one.tolist()), *[""] * (130 - len(one))])
        for n, one in enumerate(series)
    ]
    head = ",".join(f"V{n}" for n in range(131))
    (tmp_path / "hourly.csv").write_text("\n".join([head, *lines]) + "\n")
    table = TableOptions(layout="rows", frequency="h")
    prepare(tmp_path / "hourly.csv", tmp_path / "hourly", table=table, split=(0, HORIZON, HORIZON))
    return tmp_path / "hourly", series


@pytest.mark.parametrize("rows", [1 << 20, 150])
def test_a_collection_is_measured_as_the_m4_competition_does(
    collection: tuple[Path, list[np.ndarray]], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_MOST_ROWS", rows)
    path, series = collection
    yardstick = Yardstick(read(path, short_series="pad"), m4=True)
    found = total(yardstick, seasonal_naive_forecaster(horizon=HORIZON, season_len=1), padding=3)
    smapes, mases, references = [], [], []
    for values in series:
        past, target = values[:-HORIZON], values[-HORIZON:]
        scale = np.mean(np.abs(past[24:] - past[:-24])) if len(past) > 24 else np.nan
        for kind, forecast in (
            ("naive", np.full(HORIZON, past[-1])),
            ("naive2", naive2(past[None], horizon=HORIZON, season_len=24)[0]),
        ):
            error = np.abs(forecast - target)
            smape = np.mean(200 * error / (np.abs(forecast) + np.abs(target)))
            if kind == "naive":
                smapes.append(smape)
                mases.append(np.mean(error) / scale)
            else:
                references.append((smape, np.mean(error) / scale))
    # One series has no two values a season apart in its past: its MASE doesn't exist.
    assert np.isnan(mases).sum() == 1
    summary, (smape2, mase2) = found.summary(), np.nanmean(references, axis=0)
    assert found.errors.windows == len(series)
    assert summary["smape"] == pytest.approx(np.mean(smapes), rel=1e-5)
    assert summary["mase"] == pytest.approx(np.nanmean(mases), rel=1e-5)
    assert found.naive2_summary() == pytest.approx({"smape": smape2, "mase": mase2}, rel=1e-5)
    assert summary["owa"] == pytest.approx(
        (np.mean(smapes) / smape2 + np.nanmean(mases) / mase2) / 2, rel=1e-5
    )


@pytest.mark.parametrize("m4", [False, True])
def test_naive2_itself_has_an_owa_of_exactly_1(
    collection: tuple[Path, list[np.ndarray]], m4: bool
) -> None:
    yardstick = Yardstick(read(collection[0], short_series="pad", context_len=80), m4=m4)
    assert total(yardstick, yardstick.naive2).summary()["owa"] == 1.0


def test_windows_are_measured_by_the_training_part_and_naive2_sees_their_context(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(6)
    steps = np.arange(400)
    values = np.stack([np.sin(2 * np.pi * steps / 24), 3 + steps / 100], axis=1)
    values += 0.2 * rng.normal(size=values.shape)
    frame = pd.DataFrame(values, columns=["a", "b"])
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=400, freq="h"))
    frame.to_csv(tmp_path / "wide.csv", index=False)
    prepare(tmp_path / "wide.csv", tmp_path / "wide")
    yardstick = Yardstick(read(tmp_path / "wide", context_len=96), m4=False)
    train = values[:280]
    scale = np.abs(train[24:] - train[:-24]).mean(axis=0)
    np.testing.assert_allclose(yardstick.scale_SC, [scale], rtol=1e-5)
    last_value = np.tile(np.eye(96)[:, -1:], HORIZON)
    found = total(yardstick, linear_forecaster(last_value))
    test = np.lib.stride_tricks.sliding_window_view(values[320 - 96 :], 96 + HORIZON, axis=0)
    past, target = test[:, :, :96], test[:, :, 96:]
    errors = np.abs(target - past[:, :, -1:])
    assert found.errors.windows == 80 - HORIZON + 1
    np.testing.assert_allclose(
        found.errors.summary()["mae"], np.mean(errors / train.std(axis=0)[:, None]), rtol=1e-5
    )
    assert found.summary()["mase"] == pytest.approx(np.mean(errors / scale[:, None]), rel=1e-5)
    reference = naive2(past.reshape(-1, 96), horizon=HORIZON, season_len=24)
    expected = np.mean(np.abs(reference.reshape(target.shape) - target) / scale[:, None])
    assert found.naive2_summary()["mase"] == pytest.approx(expected, rel=1e-4)


def test_series_that_are_cut_by_series_share_one_in_sample_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    dates = pd.date_range("2024-01-01", periods=60, freq="h")
    values = {f"s{n}": rng.normal(size=60).cumsum() for n in range(10)}
    parts = [pd.DataFrame({"unique_id": k, "ds": dates, "y": v}) for k, v in values.items()]
    pd.concat(parts).to_csv(tmp_path / "long.csv", index=False)
    prepare(tmp_path / "long.csv", tmp_path / "long", split_by="series")
    reader = read(tmp_path / "long")
    train = WindowReader(
        tmp_path / "long", WindowSpec(context_len=24, horizon=HORIZON, split="train")
    )
    seen = {str(train.unique_ids[n]) for n in train.read(np.arange(len(train)))["series"]}
    assert len(seen) == 7
    scale = np.mean([np.abs(values[name][24:] - values[name][:-24]) for name in seen])
    found = Yardstick(reader, m4=False).scale_SC
    np.testing.assert_allclose(found, np.full((10, 1), scale), rtol=1e-5)
    with pytest.raises(ConfigError, match=r"^protocol=m4 .* data\.split_by=series: use protocol="):
        Yardstick(reader, m4=True)
