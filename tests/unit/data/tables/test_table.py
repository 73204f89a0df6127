import gzip
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.table import read_table
from timellama_dist.errors import ConfigError, DataError


def to_long(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    parts = [frame.assign(unique_id=name) for name, frame in frames.items()]
    return pd.concat(parts, ignore_index=True).rename(columns={"date": "ds"})


def write(tmp_path, text: str, name: str = "t.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def refused(path, message: str):
    """Asserts that the error's whole text is `message` after the file's name."""
    return pytest.raises(DataError, match="^" + re.escape(f"{path}: {message}") + "$")


def hours(*numbers: float) -> str:
    lines = [f"2024-01-01 {hour:02d}:00:00,{value}" for hour, value in enumerate(numbers)]
    return "\n".join(["date,a", *lines])


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_a_wide_table_is_one_series_named_after_its_file(tmp_path, make_frame, suffix):
    frame, path = make_frame(50), tmp_path / f"walk.{suffix}"
    if suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)

    table = read_table(path)

    assert (table.name, table.channels, table.frequency) == ("walk", ("a", "b"), "h")
    assert [series.unique_id for series in table.series] == ["walk"]
    # Every digit: a CSV of repr() floats gives the same bits as Parquet.
    np.testing.assert_array_equal(table.series[0].values, frame[["a", "b"]].to_numpy())
    np.testing.assert_array_equal(table.series[0].timestamps, frame["date"].to_numpy())


def test_a_folder_of_files_is_one_table_in_the_order_of_names(tmp_path, make_frame):
    frame = make_frame(60)
    frame[:25].to_parquet(tmp_path / "1.parquet")
    frame[25:].to_csv(tmp_path / "2.csv", index=False)
    (tmp_path / "notes.txt").write_text("not data")

    table = read_table(tmp_path)

    assert table.name == tmp_path.name
    np.testing.assert_array_equal(table.series[0].values, frame[["a", "b"]].to_numpy())
    assert read_table([tmp_path / "1.parquet", tmp_path / "2.csv"]).name == "1"


def test_a_long_table_keeps_its_series_apart_even_interleaved(tmp_path, make_frame):
    frames = {"007": make_frame(30, seed=1), "x": make_frame(20, seed=2)}
    frame = to_long(frames).sort_values("ds", kind="stable")
    frame.to_csv(tmp_path / "t.csv", index=False)

    table = read_table(tmp_path / "t.csv")

    assert [series.unique_id for series in table.series] == ["007", "x"]
    for series in table.series:
        expected = frames[series.unique_id][["a", "b"]].to_numpy()
        np.testing.assert_array_equal(series.values, expected)


def test_a_long_table_s_series_can_be_channels(tmp_path, make_frame):
    frames = {"x": make_frame(30, seed=1), "y": make_frame(30, seed=2)}
    to_long(frames).to_parquet(tmp_path / "t.parquet")

    table = read_table(tmp_path / "t.parquet", TableOptions(series="channels"))

    assert table.channels == ("x:a", "x:b", "y:a", "y:b")
    expected = np.hstack([frame[["a", "b"]].to_numpy() for frame in frames.values()])
    np.testing.assert_array_equal(table.series[0].values, expected)


def test_channels_of_different_times_are_refused(tmp_path, make_frame):
    long = to_long({"x": make_frame(30), "y": make_frame(30).shift(1)[1:].assign(date=None)})
    long["ds"] = [
        *pd.date_range("2024-01-01", periods=30, freq="h"),
        *pd.date_range("2024-01-01 01:00", periods=29, freq="h"),
    ]
    long.to_parquet(tmp_path / "t.parquet")

    message = (
        "data.series=channels needs the same timestamps in every series, but the first that "
        "differs, number 1, is 2024-01-01 01:00:00 in 'y' and 2024-01-01 00:00:00 in 'x'"
    )
    with refused(tmp_path / "t.parquet", message):
        read_table(tmp_path / "t.parquet", TableOptions(series="channels"))


def test_channels_of_different_lengths_are_refused(tmp_path, make_frame):
    to_long({"x": make_frame(30), "y": make_frame(29)}).to_parquet(tmp_path / "t.parquet")

    with pytest.raises(DataError, match="number 30, is no row in 'y' and 2024-01-02 05:00:00 in"):
        read_table(tmp_path / "t.parquet", TableOptions(series="channels"))


def test_chosen_columns_come_in_the_order_asked_for(tmp_path, make_frame):
    frame = make_frame(30, columns="abc").assign(label="text")
    frame.to_parquet(tmp_path / "t.parquet")

    table = read_table(tmp_path / "t.parquet", TableOptions(columns=("c", "a")))

    assert table.channels == ("c", "a")
    np.testing.assert_array_equal(table.series[0].values, frame[["c", "a"]].to_numpy())


def test_a_chosen_column_that_is_not_there_is_refused(tmp_path):
    path = write(tmp_path, hours(1, 2, 3))

    with refused(path, "no value column 'z' (data.columns); there are ['a']"):
        read_table(path, TableOptions(columns=("z",)))
    with pytest.raises(
        ConfigError, match=r"data.columns must name each column once, got \['a', 'a'"
    ):
        read_table(path, TableOptions(columns=("a", "a")))


@pytest.mark.parametrize("name", ["Date", "timestamp", "time", "ds"])
def test_the_time_column_is_found_by_name(tmp_path, name):
    path = write(tmp_path, f"v,{name}\n1,2024-01-01\n2,2024-01-02\n3,2024-01-03\n")

    assert (read_table(path).channels, read_table(path).frequency) == (("v",), "D")


def test_the_first_column_is_the_time_column_whatever_its_name(tmp_path):
    path = write(tmp_path, "when,v\n2016/7/1 2:00,1\n2016/7/1 3:00,2\n2016/7/1 4:00,3\n")

    assert read_table(path).series[0].timestamps[0] == np.datetime64("2016-07-01T02:00")


def test_a_saved_pandas_index_is_the_time_or_nothing(tmp_path, make_frame):
    frame = make_frame(30)
    frame.sample(frac=1, random_state=0).sort_values("date").to_parquet(tmp_path / "1.parquet")
    frame.set_index("date").rename_axis(None).to_parquet(tmp_path / "2.parquet")

    for name in ("1", "2"):
        table = read_table(tmp_path / f"{name}.parquet")
        assert table.channels == ("a", "b")
        assert table.series[0].timestamps[0] == np.datetime64("2024-01-01")


def test_time_zones_become_utc(tmp_path):
    path = write(tmp_path, "ds,v\n2024-01-01T00:00+02:00,1\n2024-01-01T01:00+02:00,2\n")

    assert read_table(path).series[0].timestamps[0] == np.datetime64("2023-12-31T22:00")


def test_sentinels_are_values(tmp_path):
    path = write(tmp_path, hours(1, -9999, 3))

    assert read_table(path).series[0].values[1, 0] == -9999


NOT_A_TIME = "time column 'date' holds 'soon', which is not a time (1 such rows)"
KEEP = "keep the rows as they stand with data.timestamps=ignore"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("date,a\n", "the file holds no rows"),
        ("date,a,a\n2024-01-01,1,2\n", "two columns are named 'a'"),
        (",date,a\n0,2024-01-01,1\n", "column 1 has no name (a saved index?); remove it"),
        ("date\n2024-01-01\n", "no value columns beside 'date'"),
        (
            "a,b\n1,2\n",
            "no time column: name it one of date, ds, timestamp, time, datetime, or put it first; "
            "the columns are ['a', 'b']",
        ),
        ("date,a\n2024-01-01,1\nsoon,2\n", f"row 2: {NOT_A_TIME}"),
        (
            hours(1, 2, "x", 4, "y"),
            "row 3: column 'a' holds 'x', which is not a number (2 such rows)",
        ),
        (
            "date,a\n2024-01-01,\"0,5\"\n2024-01-02,\"1,5\"\n",
            "row 1: column 'a' holds '0,5', which is not a number (2 such rows); write decimals "
            "with a point",
        ),
        (
            "id,date,a\nx,2024-01-01,1\nx,2024-01-02,1\n",
            "row 1: column 'id' holds 'x', which is not a number (2 such rows); data.columns "
            "says which columns to take; if it names series, call it unique_id",
        ),
        (
            "date;a\n2024-01-01;0,5\n",
            "the first line is one column, 'date;a': separate the columns by commas",
        ),
        (
            hours(1, "", 3, "NaN"),
            "row 2: column 'a' is empty or NaN (2 rows of the column are empty, NaN or infinite); "
            "fill or drop them, or say what becomes of them: data.missing",
        ),
        (
            hours(1, 2, "-inf"),
            "row 3: column 'a' is infinite (1 rows of the column are empty, NaN or infinite); "
            "fill or drop them",
        ),
        (
            "date,a\n2024-01-01,1\n2024-01-03,1\n2024-01-02,1\n",
            "row 3: timestamps are not in order: 2024-01-03 00:00:00 is followed by "
            f"2024-01-02 00:00:00 (1 such rows); sort the table by time, or {KEEP}",
        ),
        (
            "date,a\n2024-01-01,1\n2024-01-02,1\n2024-01-02,1\n2024-01-02,1\n",
            "row 3: duplicate timestamp 2024-01-02 00:00:00 (2 such rows); remove it, or "
            f"{KEEP}, or one of them: data.duplicates",
        ),
        (
            "date,a\n2024-01-01,1\n2024-01-02,1\n2024-01-05,1\n2024-01-06,1\n2024-01-07,1\n",
            "row 3: irregular step: 2024-01-02 00:00:00 is followed by 2024-01-05 00:00:00 where "
            f"the step is 'D' (1 such in the table); fill the gaps "
            f"(data.gaps=reindex with data.missing=mask), or {KEEP}",
        ),
        (
            "date,a\n2024-01-01,1\n",
            "no series has two timestamps in rising order, so there is no step to learn",
        ),
        ("unique_id,ds,y\nx,2024-01-01,1\n,2024-01-02,1\n", "row 2: column 'unique_id' is empty "
         "(1 such rows)"),
    ],
)  # fmt: skip
def test_a_bad_csv_is_refused_in_one_line(tmp_path, text, message):
    path = write(tmp_path, text)

    with refused(path, message):
        read_table(path)


def test_a_row_of_too_many_fields_is_refused(tmp_path):
    path = write(tmp_path, "date,a\n2024-01-01,1,9\n")

    with pytest.raises(DataError, match=r"t.csv: cannot be read: .*Expected 2 columns, got 3"):
        read_table(path)


def test_the_row_is_counted_in_its_own_file(tmp_path, make_frame):
    frame = make_frame(40)
    frame.loc[29, "b"] = np.nan
    frame[:25].to_parquet(tmp_path / "1.parquet")
    frame[25:].to_parquet(tmp_path / "2.parquet")

    with pytest.raises(DataError, match=r"2.parquet: row 5: column 'b' is empty or NaN \(1 rows"):
        read_table(tmp_path)


def test_the_series_is_named_where_there_are_several(tmp_path, make_frame):
    to_long({"x": make_frame(30), "y": make_frame(30).drop(index=10)}).to_csv(
        tmp_path / "t.csv", index=False
    )

    with pytest.raises(DataError, match=r"t.csv: row 41: irregular step in series 'y': 2024-01-01"):
        read_table(tmp_path / "t.csv")


def test_ignored_timestamps_keep_every_row(tmp_path):
    text = "date,a\n2024-01-01,1\n2024-01-02,2\n2024-01-02,3\n2024-01-09,4\n2024-01-10,5\n"
    path = write(tmp_path, text)

    table = read_table(path, TableOptions(timestamps="ignore"))

    assert table.series[0].values[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert table.frequency == "D"


def test_missing_and_foreign_files_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with refused(tmp_path / "no.csv", "no such file"):
        read_table(tmp_path / "no.csv")
    with refused(tmp_path / "empty", "the folder holds no .csv, .csv.gz, .parquet file"):
        read_table(tmp_path / "empty")
    path = write(tmp_path, "x", "t.xlsx")
    with refused(path, "expected a .csv, .csv.gz, .parquet file"):
        read_table(path)
    with pytest.raises(DataError, match="no input file was given"):
        read_table([])


@pytest.mark.parametrize("name", ["t.parquet", "t.csv.gz"])
def test_a_damaged_file_is_refused(tmp_path, name):
    path = write(tmp_path, "these are not the bytes", name)

    with pytest.raises(DataError, match=rf"{name}: cannot be read: "):
        read_table(path)


def test_a_truncated_gzip_is_refused(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(hours(*range(20)).encode())[:-12])

    with pytest.raises(DataError, match=r"t.csv.gz: cannot be read: "):
        read_table(path)


def test_columns_may_be_asked_for_that_only_some_files_have(tmp_path, make_frame):
    make_frame(20, columns="a").to_parquet(tmp_path / "1.parquet")
    later = make_frame(40, columns="bc")[20:]
    later.to_parquet(tmp_path / "2.parquet")

    table = read_table(tmp_path, TableOptions(columns=("b", "a"), missing="mask"))

    assert table.channels == ("b", "a")
    assert np.isnan(table.values).any(axis=1).all()
    np.testing.assert_array_equal(table.values[20:, 0], later["b"])
    place = f"{tmp_path / '1.parquet'} (and 1 more files)"
    with refused(place, "no value column 'd' (data.columns); there are ['a', 'b', 'c']"):
        read_table(tmp_path, TableOptions(columns=("a", "d"), missing="mask"))


def test_files_of_other_columns_are_refused(tmp_path, make_frame):
    make_frame(20).to_parquet(tmp_path / "1.parquet")
    make_frame(20, columns="ac").to_parquet(tmp_path / "2.parquet")

    with pytest.raises(DataError, match=r"2.parquet: columns \['date', 'a', 'c'\] differ from"):
        read_table(tmp_path)


def test_numbers_and_times_in_the_wrong_place_are_refused(tmp_path):
    stamps = pd.date_range("2024-01-01", periods=3)
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"ds": [1, 2, 3], "y": [1.0, 2.0, 3.0]}), path)
    with pytest.raises(DataError, match="time column 'ds' holds numbers such as 1; write dates"):
        read_table(path)
    pq.write_table(pa.table({"ds": stamps, "then": stamps}), path)
    with refused(path, "column 'then' holds times, not numbers"):
        read_table(path)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [([[1.0], [2.0], [3.0]], "list<item: double>"), ([b"1", b"2", b"x"], "binary")],
)
def test_a_column_that_holds_no_numbers_is_refused(tmp_path, cells, kind):
    path = tmp_path / "t.parquet"
    stamps = pd.date_range("2024-01-01", periods=3)
    pq.write_table(pa.table({"ds": stamps, "y": pa.array(cells)}), path)

    with pytest.raises(DataError, match=r"t.parquet: column 'y' is of .*, not of numbers$") as told:
        read_table(path)
    assert kind.partition("<")[0] in str(told.value)


def test_ignored_timestamps_that_fall_have_no_step(tmp_path):
    path = write(tmp_path, "date,a\n2024-01-02,1\n2024-01-01,2\n")

    message = "no series has two timestamps in rising order, so there is no step to learn"
    with refused(path, message):
        read_table(path, TableOptions(timestamps="ignore"))


def test_an_unknown_choice_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"data.series must be one of separate, channels, got 'x'"
    ):
        read_table(tmp_path, TableOptions(series="x"))
    with pytest.raises(ConfigError, match=r"data.timestamps must be one of check, ignore, got 'x'"):
        read_table(tmp_path, TableOptions(timestamps="x"))
