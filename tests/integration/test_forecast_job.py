"""`python ray_jobs/forecast.py` with a random model: real Ray Data actors, real Parquet."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.shops import HORIZON, SERIES, export_model, long_enough
from timellama_dist import TimeLlamaForecaster
from timellama_dist.cli.forecast import main
from timellama_dist.cluster import connected
from timellama_dist.data.prepared.write import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def model(shops_model: Path) -> Path:
    return shops_model


@pytest.fixture
def table(shops_table: Path) -> Path:
    return shops_table


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with connected():
        yield


def words(model: Path, source: Path, output: Path, *more: str) -> list[str]:
    paths = ("--model", model, "--input", source, "--output", output)
    return [*map(str, paths), *more]


def test_it_forecasts_every_series_once_as_the_forecaster_does(
    model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "forecasts"
    assert main(words(model, table, output, "--part_windows", "8")) == 0
    said = capsys.readouterr().out
    assert "23 of 23 forecasts made now" in said
    assert "steps x channels: 6 x 2, parts: 3" in said
    assert "forecasts/s" in said
    assert "1 of 24 series are skipped: they have fewer than 24 rows" in said
    # Nothing but the parts is read as the table.
    found = pd.read_parquet(output)
    expected = TimeLlamaForecaster.load(model).predict(long_enough(table))
    pd.testing.assert_frame_equal(
        found[["unique_id", "ds", "channel"]], expected[["unique_id", "ds", "channel"]]
    )
    np.testing.assert_allclose(found["yhat"], expected["yhat"], rtol=0, atol=2e-6)
    last = long_enough(table).groupby("unique_id")["ds"].max()
    assert (found["cutoff"] == found["unique_id"].map(last)).all()
    assert found["model"].unique().tolist() == [
        json.loads((output / "_forecast.json").read_text())["model"]
    ]
    assert not (output / "_data").exists()


def test_a_backtest_is_what_a_forecaster_at_each_cutoff_would_have_said(
    model: Path, table: Path, tmp_path: Path
) -> None:
    prepare(table, tmp_path / "prepared")
    output = tmp_path / "backtest"
    more = ("--cutoffs", "3", "--stride", "4", "--horizon", "5", "--scaling.num_workers", "2")
    assert main(words(model, tmp_path / "prepared", output, *more, "--part_windows", "10")) == 0
    found = pd.read_parquet(output)
    frame = long_enough(table)
    assert len(found) == SERIES * 3 * 2 * 5
    assert not found.duplicated(["unique_id", "cutoff", "ds", "channel"]).any()
    forecaster = TimeLlamaForecaster.load(model)
    for back in (13, 9, 5):
        part = frame.groupby("unique_id").apply(
            lambda one, back=back: one.iloc[:-back], include_groups=False
        )
        expected = forecaster.predict(part.reset_index("unique_id"), 5)
        here = found.merge(expected, on=["unique_id", "ds", "channel"], suffixes=("", "_api"))
        cutoff = part.groupby("unique_id")["ds"].max()
        here = here[here["cutoff"] == here["unique_id"].map(cutoff)]
        assert len(here) == len(expected)
        np.testing.assert_allclose(here["yhat"], here["yhat_api"], rtol=0, atol=2e-6)
    truth = frame.melt(["unique_id", "ds"], var_name="channel", value_name="truth")
    joined = found.merge(truth, on=["unique_id", "ds", "channel"])
    assert len(joined) == len(found)
    np.testing.assert_array_equal(joined["y"], joined["truth"])


@pytest.mark.slow
def test_only_a_wide_table_goes_by_the_name_of_the_model_s_only_series(
    tiny_llama: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = export_model(tiny_llama, tmp_path, ["s003"])
    forecaster = TimeLlamaForecaster.load(model)
    frame = long_enough(table).query("unique_id == 's005'")
    source = tmp_path / "s005.csv"
    for one, name in ((frame, "s005"), (frame.drop(columns="unique_id"), "s003")):
        one.to_csv(source, index=False)
        assert main(words(model, source, tmp_path / f"as-{name}")) == 0
        assert "1 of 1 forecasts made now" in capsys.readouterr().out
        found, expected = pd.read_parquet(tmp_path / f"as-{name}"), forecaster.predict(one)
        assert set(found["unique_id"]) == set(expected["unique_id"]) == {name}
        np.testing.assert_allclose(found["yhat"], expected["yhat"], rtol=0, atol=2e-6)


@pytest.mark.slow
def test_a_job_of_another_kind_is_refused_its_output(
    model: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "forecasts"
    assert main(words(model, table, output, "--horizon", "2")) == 0
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert main(words(model, table, output, "--horizon", "2")) == 0
    assert "0 of 23 forecasts made now" in capsys.readouterr().out
    assert main(words(model, table, output, "--horizon", "3")) == 2
    assert "holds forecasts of another horizon: 2, now 3" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    assert main(words(model, table, tmp_path / "mine")) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--horizon", "7"), "horizon must be between 1 and 6, got 7"),
        (("--dataset", "cars"), "dataset must be one of shops, got 'cars'"),
        (("--stride", "2"), "stride must be at least 1, and given with cutoffs, got 2"),
        (("--input", "nowhere.csv"), "nowhere.csv: no such file or folder"),
        (("--cutoffs", "1", "--horizon", "6"), None),
    ],
)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(
    more: tuple[str, ...],
    message: str | None,
    model: Path,
    table: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = table
    if message is None:
        source = tmp_path / "short.csv"
        frame = pd.read_csv(table)
        frame[frame["unique_id"] == f"s{SERIES:03d}"].to_csv(source, index=False)
        message = "every series is shorter than the 30 rows that are needed; the longest has 9"
    code = main(words(model, source, tmp_path / "out", *more))
    error = capsys.readouterr().err
    assert code == 2
    # A slow machine also says how far it is.
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in error
    assert not list(tmp_path.glob("out/part-*"))


@pytest.mark.slow
def test_a_forecaster_fits_a_frame(tiny_llama: Path, table: Path, tmp_path: Path) -> None:
    frame = long_enough(table)
    keys = {
        "data.context_len": 12,
        "data.horizon": 4,
        "backbone.name": str(tiny_llama),
        "backbone.num_blocks": 1,
        "model.alignment_heads": 4,
        "train.max_steps": 4,
        "train.batch_size": 8,
        "train.micro_batch_size": 4,
    }
    own = TimeLlamaForecaster.fit(frame, tmp_path / "run", **keys)
    found = own.predict(frame, level=[80], recent=4)
    assert len(found) == SERIES * 2 * 4
    assert (found["yhat-lo-80"] < found["yhat-hi-80"]).all()
    assert (tmp_path / "run" / "report.html").stat().st_size > 50_000


@pytest.mark.slow
def test_a_killed_job_goes_on_without_doing_finished_parts_again(
    model: Path, table: Path, tmp_path: Path
) -> None:
    output = tmp_path / "forecasts"
    job = [sys.executable, str(ROOT / "ray_jobs" / "forecast.py")]
    command = [*job, *words(model, table, output, "--part_windows", "1")]
    with subprocess.Popen(command, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while len(list(output.glob("part-*"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        # The driver alone: Ray ends what it started.
        os.kill(process.pid, signal.SIGKILL)
    # Until then an actor may still finish a part.
    time.sleep(5)
    done = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert 3 <= len(done) < SERIES
    subprocess.run(command, check=True, timeout=240)
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert len(after) == SERIES
    assert {name: after[name] for name in done} == done
    found = pd.read_parquet(output)
    assert len(found) == SERIES * 2 * HORIZON
    assert not found.duplicated(["unique_id", "ds", "channel"]).any()
