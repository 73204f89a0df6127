import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from timellama_dist.data.prepared.manifest import Manifest
from timellama_dist.data.prepared.options import PrepareOptions
from timellama_dist.data.prepared.write import prepare, write_prepared
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.table import read_table
from timellama_dist.errors import ConfigError, DataError


@pytest.fixture
def source(tmp_path, make_frame):
    """A long table of two series, 60 and 45 rows."""
    parts = [make_frame(60, seed=1).assign(unique_id="x"), make_frame(45).assign(unique_id="y")]
    path = tmp_path / "walks.csv"
    pd.concat(parts).rename(columns={"date": "ds"}).to_csv(path, index=False)
    return path


def test_rows_lie_series_by_series_across_files_and_row_groups(tmp_path, source):
    table = read_table(source)
    manifest = write_prepared(table, tmp_path / "out", rows_per_file=50, rows_per_group=20)

    assert [file.row_groups for file in manifest.files] == [(20, 20, 10), (20, 20, 10), (5,)]
    rows = pd.concat(pd.read_parquet(tmp_path / "out" / file.path) for file in manifest.files)
    assert rows.columns.tolist() == ["unique_id", "ds", "a", "b"]
    assert rows["unique_id"].tolist() == ["x"] * 60 + ["y"] * 45
    values = np.concatenate([series.values for series in table.series])
    np.testing.assert_array_equal(rows[["a", "b"]].to_numpy(), values)
    times = np.concatenate([series.timestamps for series in table.series])
    np.testing.assert_array_equal(rows["ds"].to_numpy(), times)


def test_each_series_has_its_place_and_its_training_part_s_scaler(tmp_path, source):
    table = read_table(source)
    manifest = write_prepared(table, tmp_path / "out", split=(0.6, 0.2, 0.2))

    rows = pq.read_table(tmp_path / "out" / manifest.series_file.path).to_pylist()
    assert [(row["unique_id"], row["first_row"], row["num_rows"]) for row in rows] == [
        ("x", 0, 60),
        ("y", 60, 45),
    ]
    for row, series, num_train in zip(rows, table.series, (36, 27), strict=True):
        np.testing.assert_allclose(row["mean"], series.values[:num_train].mean(axis=0))
        np.testing.assert_allclose(row["std"], series.values[:num_train].std(axis=0))
        assert row["first_ds"] == pd.Timestamp("2024-01-01")
        assert row["last_ds"] == pd.Timestamp(series.timestamps[-1])


def test_the_manifest_loads_as_it_was_written(tmp_path, source):
    manifest = prepare(source, tmp_path / "out", split=(60 / 100, 0.2, 0.2), name="n", prompt="p")

    assert Manifest.load(tmp_path / "out") == manifest
    assert (manifest.name, manifest.prompt, manifest.frequency) == ("n", "p", "h")
    assert (manifest.num_series, manifest.num_rows, manifest.season_len) == (2, 105, 24)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["schema_version"] == 2


def test_the_default_prompt_describes_the_table(tmp_path, source):
    assert prepare(source, tmp_path / "out").prompt == (
        "The walks data set holds 2 channels (a, b) in each of 2 series, recorded every hour from "
        "2024-01-01 to 2024-01-03. The task is to forecast the next values of each channel from "
        "its past values."
    )


def test_the_default_prompt_does_not_list_hundreds_of_channels(tmp_path, make_frame):
    frame = make_frame(30, columns=[f"c{number}" for number in range(300)], freq="15min")
    frame.to_parquet(tmp_path / "t.parquet")

    prompt = prepare(tmp_path / "t.parquet", tmp_path / "out").prompt
    assert "300 channels (c0, c1, " in prompt
    assert "c23, ...), recorded every 15 minutes" in prompt


def test_the_same_content_is_not_written_again(tmp_path, source):
    first = prepare(source, tmp_path / "out")
    stamp = (tmp_path / "out/manifest.json").stat().st_mtime_ns
    again = prepare(source, tmp_path / "out")

    assert again == first
    assert (tmp_path / "out/manifest.json").stat().st_mtime_ns == stamp


def test_the_hash_is_of_the_content_and_not_of_how_files_are_cut(tmp_path, source):
    table = read_table(source)
    hashes = {
        write_prepared(table, tmp_path / str(rows), rows_per_file=rows).content_hash
        for rows in (30, 50, 1000)
    }
    assert len(hashes) == 1
    for number, options in enumerate(({"prompt": "p"}, {"split": (0.5, 0.2, 0.3)}, {"name": "n"})):
        hashes.add(write_prepared(table, tmp_path / f"other{number}", **options).content_hash)
    assert len(hashes) == 4


def test_new_content_replaces_the_old_data_set_and_nothing_is_left_beside_it(tmp_path, source):
    prepare(source, tmp_path / "out")
    changed = prepare(source, tmp_path / "out", split=(0.5, 0.2, 0.3))

    assert Manifest.load(tmp_path / "out") == changed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "walks.csv"]


def test_a_damaged_data_set_is_prepared_again(tmp_path, source):
    first = prepare(source, tmp_path / "out")
    (tmp_path / "out" / first.files[0].path).unlink()

    assert prepare(source, tmp_path / "out") == first
    assert Manifest.load(tmp_path / "out") == first


def test_a_crash_leaves_nothing(tmp_path, source, monkeypatch):
    def crash(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(Manifest, "save", crash)
    with pytest.raises(RuntimeError, match="disk full"):
        prepare(source, tmp_path / "out")

    assert [path.name for path in tmp_path.iterdir()] == ["walks.csv"]


def test_a_folder_of_other_things_is_not_replaced(tmp_path, source):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")

    message = "out: exists and is not a prepared data set; choose another output"
    with pytest.raises(DataError, match=message):
        prepare(source, tmp_path / "out")
    assert (tmp_path / "out/thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "text", ['{"name": "my web app", "icons": []}', "{", "[]", '{"schema_version": 2}']
)
def test_a_folder_with_a_manifest_of_another_program_is_not_replaced(tmp_path, source, text):
    out = tmp_path / "out"
    (out / "src").mkdir(parents=True)
    (out / "manifest.json").write_text(text)
    (out / "src/main.py").write_text("years of work")

    message = "^" + re.escape(f"{out}: exists and is not a prepared data set; choose another")
    with pytest.raises(DataError, match=message):
        prepare(source, out)
    assert (out / "manifest.json").read_text() == text
    assert (out / "src/main.py").read_text() == "years of work"


def test_a_folder_of_someone_s_data_is_not_replaced(tmp_path, source):
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/data/own.csv").write_text("years of work")

    with pytest.raises(DataError, match="out: exists and is not a prepared data set"):
        prepare(source, tmp_path / "out")
    assert (tmp_path / "out/data/own.csv").read_text() == "years of work"


def test_only_files_of_ours_are_removed_from_a_prepared_folder(tmp_path, source, monkeypatch):
    out = tmp_path / "out"
    prepare(source, out)
    mine = {"raw.csv", "NOTES.md", "data/own.parquet", "plots/a.png"}
    for name in mine:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("mine")
    (out / "raw.csv").write_bytes(source.read_bytes())
    ours = ("series-0123456789abcdef.parquet", "data/0123456789abcdef-00000.parquet")
    for name in (*ours, "data/.0123456789abcdef-00001.parquet.0123456789ab"):
        (out / name).write_text("of a run that was killed")

    manifest = prepare(out / "raw.csv", out, prompt="p")

    kept = {"manifest.json", manifest.series_file.path, *(file.path for file in manifest.files)}
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == kept | mine

    def crash(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(Manifest, "save", crash)
    with pytest.raises(RuntimeError, match="disk full"):
        prepare(source, out, prompt="q")
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert found == kept | mine


def test_what_a_killed_run_left_is_cleared(tmp_path, source):
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "data/0123456789abcdef-00000.parquet").write_text("half")
    (out / ".manifest.json.0123456789ab").write_text("half")

    manifest = prepare(source, out)

    assert {path.name for path in out.iterdir()} == {
        "manifest.json",
        "data",
        manifest.series_file.path,
    }
    assert [f"data/{path.name}" for path in (out / "data").iterdir()] == [
        file.path for file in manifest.files
    ]


def test_a_series_without_training_rows_is_refused(tmp_path, source):
    message = (
        r"nothing is left to train on: 2 series dropped that data.split \[0, 0, 1\] leaves no .*'x'"
    )
    with pytest.raises(ConfigError, match=message):
        prepare(source, tmp_path / "out", split=(0, 0, 1))
    assert not (tmp_path / "out").exists()


def test_scalers_of_a_split_by_series_are_of_the_values_that_there_are(tmp_path, make_frame):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    both, one = make_frame(60, seed=1), make_frame(60, columns="a")
    both["b"] += 1000
    both.loc[:9, "b"] = np.nan
    for name, frame in (("x", both), ("y", one)):
        long = frame.assign(unique_id=name).rename(columns={"date": "ds"})
        long.to_parquet(folder / f"{name}.parquet")

    manifest = prepare(
        folder, out, split=(1, 0, 0), split_by="series", table=TableOptions(missing="mask")
    )

    rows = pq.read_table(out / manifest.series_file.path).to_pylist()
    a = pd.concat([both["a"], one["a"]])
    for row in rows:
        np.testing.assert_allclose(row["mean"], [a.mean(), both["b"].mean()])
        np.testing.assert_allclose(row["std"], [a.std(ddof=0), both["b"].std(ddof=0)])


def test_a_split_by_series_that_leaves_none_to_train_on_is_refused(tmp_path, source):
    message = (
        "data.split [0.4, 0.3, 0.3] of 2 series (data.split_by=series) leaves none to train on"
    )
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        prepare(source, tmp_path / "out", split_by="series", split=(0.4, 0.3, 0.3))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"split_by": "series", "split": (100, 10, 10)},
            "data.split must be three fractions of the number of series where data are split by "
            "series, got [100, 10, 10]",
        ),
        ({"rows_per_group": -5}, "rows_per_group must be at least 1, got -5"),
        ({"rows_per_group": 0}, "rows_per_group must be at least 1, got 0"),
        ({"rows_per_file": 0}, "rows_per_file must be at least 1, got 0"),
    ],
)
def test_options_of_preparing_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        PrepareOptions(**options)


def test_a_channel_named_like_a_column_of_ours_is_refused(tmp_path, source):
    table = replace(read_table(source), channels=("a", "ds"))
    with pytest.raises(DataError, match="a channel may not be named 'ds'; rename the column"):
        write_prepared(table, tmp_path / "out")


def test_loading_refuses_what_is_not_whole(tmp_path, source):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"out: no manifest.json, so this is not a prepared data"):
        Manifest.load(out)

    manifest = prepare(source, out)
    part = out / manifest.files[0].path
    whole = part.read_bytes()
    part.write_bytes(whole[:-1])
    message = rf"{part.name}: expected {len(whole)} bytes, found {len(whole) - 1}"
    with pytest.raises(DataError, match=message):
        Manifest.load(out)
    part.unlink()
    with pytest.raises(DataError, match=rf"{part.name}: the data file is missing"):
        Manifest.load(out)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "manifest.json: cannot be read"),
        ("[]", "manifest.json: schema_version must be 2, got None"),
        ('{"schema_version": 1}', "manifest.json: schema_version must be 2, got 1; prepare the"),
        ('{"schema_version": 2}', "manifest.json: damaged: 'channels'"),
    ],
)
def test_loading_refuses_a_strange_manifest(tmp_path, text, message):
    (tmp_path / "manifest.json").write_text(text)

    with pytest.raises(DataError, match=message):
        Manifest.load(tmp_path)
