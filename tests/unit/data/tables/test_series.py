"""What is done about tables as they really are, by option, with what is said of it."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from timellama_dist.data.prepared.write import write_prepared
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.table import read_table, table_from_frame
from timellama_dist.errors import ConfigError, DataError


def hourly(values: list[float], start: str = "2024-01-01", name: str | None = None) -> pd.DataFrame:
    stamps = pd.date_range(start, periods=len(values), freq="h")
    frame = pd.DataFrame({"ds": stamps, "y": values})
    return frame if name is None else frame.assign(unique_id=name)


def refused(message: str):
    """Asserts that this is the error's whole text."""
    return pytest.raises(DataError, match="^" + re.escape(message) + "$")


def values_of(frame: pd.DataFrame, **options: str) -> list[float]:
    [series] = table_from_frame(frame, TableOptions(**options)).series
    return series.values[:, 0].tolist()


NAN = float("nan")


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("ffill", [1, 1, 1, 4, 5, 5]),
        ("interpolate", [1, 2, 3, 4, 5, 5]),
        ("mask", [1, NAN, NAN, 4, 5, NAN]),
    ],
)
def test_empty_values_are_filled_as_asked(missing: str, expected: list[float]) -> None:
    frame = hourly([1, NAN, NAN, 4, 5, NAN])

    np.testing.assert_array_equal(values_of(frame, missing=missing), expected)


def test_filling_does_not_reach_from_one_series_into_the_next() -> None:
    frame = pd.concat([hourly([1, 2, 3], name="a"), hourly([NAN, 5, 6], name="b")])

    message = (
        "frame: row 4: column 'y' is empty at the start of series 'b', with no value before to "
        "fill it with (1 such values); data.missing=mask leaves them out"
    )
    with refused(message):
        table_from_frame(frame, TableOptions(missing="ffill"))
    table = table_from_frame(frame, TableOptions(missing="interpolate"))
    assert table.values[:, 0].tolist() == [1, 2, 3, 5, 5, 6]


def test_a_channel_empty_in_a_whole_series_can_only_be_masked() -> None:
    frame = pd.concat([hourly([1, 2, 3], name="a"), hourly([NAN, NAN, NAN], name="b")])

    with refused(
        "frame: row 4: column 'y' is empty in all of series 'b' (3 such values); data.missing=mask "
        "leaves them out"
    ):
        table_from_frame(frame, TableOptions(missing="interpolate"))
    assert np.isnan(table_from_frame(frame, TableOptions(missing="mask")).values[3:]).all()


def test_files_of_other_channels_are_taken_where_missing_values_are_masked(tmp_path) -> None:
    hourly([1, 2, 3], name="a").to_csv(tmp_path / "1.csv", index=False)
    hourly([4, 5, 6], name="b").rename(columns={"y": "z"}).to_csv(tmp_path / "2.csv", index=False)

    with pytest.raises(DataError, match=r"2.csv: columns .*; data.missing=mask would allow it$"):
        read_table(tmp_path)
    table = read_table(tmp_path, TableOptions(missing="mask"))

    assert table.channels == ("y", "z")
    expected = [[1, NAN], [2, NAN], [3, NAN], [NAN, 4], [NAN, 5], [NAN, 6]]
    np.testing.assert_array_equal(table.values, expected)


def test_gaps_become_rows_without_values() -> None:
    frame = hourly([1, 2, 3, 4, 5, 6, 7]).drop(index=[2, 3])

    expected = [1, 2, NAN, NAN, 5, 6, 7]
    np.testing.assert_array_equal(values_of(frame, gaps="reindex", missing="mask"), expected)
    assert values_of(frame, gaps="reindex", missing="interpolate") == [1, 2, 3, 4, 5, 6, 7]
    table = table_from_frame(frame, TableOptions(gaps="reindex", missing="ffill"))
    assert table.timestamps.tolist() == hourly([0] * 7)["ds"].tolist()


def test_only_the_series_with_gaps_grows() -> None:
    whole, broken = hourly([1, 2, 3, 4], name="a"), hourly([5, 6, 7, 8, 9], name="b").drop(index=3)

    table = table_from_frame(
        pd.concat([broken, whole]), TableOptions(gaps="reindex", missing="ffill")
    )

    assert table.unique_ids == ("a", "b")
    assert table.num_rows.tolist() == [4, 5]
    assert table.values[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7, 7, 9]


def test_a_time_off_the_grid_cannot_be_placed() -> None:
    frame = hourly([1, 2, 3, 4, 5])
    frame.loc[2, "ds"] = pd.Timestamp("2024-01-01 02:07")

    with refused(
        "frame: row 3: 2024-01-01 02:07:00 does not lie on the grid of step 'h' from 2024-01-01 "
        "00:00:00 on (1 such rows), so data.gaps=reindex cannot place it; "
        "data.gaps=refuse with data.timestamps=ignore keeps the rows as they stand"
    ):
        values_of(frame, gaps="reindex", missing="mask")


def test_one_wrong_year_does_not_make_a_million_rows() -> None:
    frame = hourly([1, 2, 3, 4, 5])
    frame.loc[4, "ds"] = pd.Timestamp("2099-01-01")

    with refused(
        "frame: row 1: data.gaps=reindex would make more than 20 times as many rows: its 5 rows "
        "span 2024-01-01 00:00:00 to 2099-01-01 00:00:00 at step 'h' (1 such series); is a time "
        "wrong?"
    ):
        values_of(frame, gaps="reindex", missing="mask")


@pytest.mark.parametrize("steps", [("W-SUN", "W-MON"), ("QS-FEB", "QS-MAR"), ("QE-JAN", "QE-FEB")])
def test_gaps_are_filled_where_series_begin_on_other_weekdays_or_months(
    steps: tuple[str, str],
) -> None:
    parts = [
        pd.DataFrame(
            {"unique_id": step, "ds": pd.date_range("2024", periods=6, freq=step), "y": 1.0}
        )
        for step in sorted(steps)
    ]
    whole = pd.concat(parts, ignore_index=True)

    table = table_from_frame(whole.drop([3, 8]), TableOptions(gaps="reindex", missing="mask"))

    np.testing.assert_array_equal(table.timestamps, whole["ds"].to_numpy("datetime64[us]"))
    assert np.flatnonzero(np.isnan(table.values[:, 0])).tolist() == [3, 8]


@pytest.mark.parametrize(("keep", "expected"), [("first", [1, 2, 4]), ("last", [1, 3, 4])])
def test_of_rows_with_the_same_time_one_is_kept_and_the_others_are_counted(
    keep: str, expected: list[float], tmp_path
) -> None:
    frame = hourly([1, 2, 4]).iloc[[0, 1, 1, 2]].assign(y=[1.0, 2, 3, 4])
    frame.to_csv(tmp_path / "t.csv", index=False)

    assert values_of(frame, duplicates=keep) == expected
    options = TableOptions(duplicates=keep)
    table = read_table(tmp_path / "t.csv", options)
    manifest = write_prepared(table, tmp_path / "out", options=options)
    assert [note for note in manifest.notes if "dropped" in note] == [
        f"1 rows dropped that repeat a timestamp (data.duplicates={keep}), the first at "
        f"{tmp_path / 't.csv'}: row 3: 2024-01-01 01:00:00"
    ]


def test_series_of_different_steps_are_refused_with_both() -> None:
    quarters = pd.DataFrame(
        {"ds": pd.date_range("2024", periods=4, freq="15min"), "y": 1.0, "unique_id": "fast"}
    )
    frame = pd.concat([hourly([1, 2, 3, 4, 5, 6], name="slow"), quarters])

    with refused(
        "frame: series of different steps: '15min' in 'fast', 'h' in others; prepare them apart"
    ):
        table_from_frame(frame)


def test_series_differ_in_length_and_a_single_row_has_the_others_step() -> None:
    frame = pd.concat([hourly([1, 2, 3], name="a"), hourly([4], name="b")])

    table = table_from_frame(frame)

    assert (table.frequency, table.num_rows.tolist()) == ("h", [3, 1])


def local_times(start: str, end: str) -> pd.DataFrame:
    """What a clock in Paris shows every half hour."""
    stamps = pd.date_range(start, end, freq="30min", tz="UTC").tz_convert("Europe/Paris")
    return pd.DataFrame({"ds": stamps.tz_localize(None), "y": np.arange(float(len(stamps)))})


@pytest.mark.parametrize("day", ["2024-03-31", "2024-10-27"])
def test_local_times_become_utc_across_a_change_of_the_clock(day: str) -> None:
    frame = local_times(day, f"{day} 06:00")

    with pytest.raises(DataError, match=r"irregular step|not in order"):
        table_from_frame(frame)
    table = table_from_frame(frame, TableOptions(time_zone="Europe/Paris"))

    expected = pd.date_range(day, f"{day} 06:00", freq="30min")
    np.testing.assert_array_equal(table.timestamps, expected.to_numpy("datetime64[us]"))
    assert table.values[:, 0].tolist() == frame["y"].tolist()


def test_a_time_that_the_clock_never_showed_is_refused() -> None:
    frame = hourly([1, 2, 3, 4], start="2024-03-31 00:00")

    with refused(
        "frame: row 3: 2024-03-31 02:00:00 does not exist in data.time_zone=Europe/Paris, where "
        "the clock is put forward (1 such rows)"
    ):
        values_of(frame, time_zone="Europe/Paris")


def test_a_time_zone_that_is_not_used_is_told() -> None:
    frame = hourly([1, 2, 3, 4], start="2024-01-01 00:00")
    frame["ds"] = pd.to_datetime(frame["ds"]).dt.tz_localize("UTC")

    table = table_from_frame(frame, TableOptions(time_zone="Europe/Paris"))

    assert table.timestamps[0] == np.datetime64("2024-01-01")
    assert table.notes == (
        "frame: row 1: time column 'ds' says its offset from UTC, which is what counts; "
        "data.time_zone=Europe/Paris is not used (4 rows)",
    )


def test_times_with_and_without_an_offset_are_not_mixed(tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ds,y\n2024-01-01T00:00+01:00,1\n2024-01-01T01:00,2\n")

    with refused(
        f"{path}: row 2: time column 'ds' holds '2024-01-01T01:00' with no UTC offset, unlike the "
        "first row (1 such rows)"
    ):
        read_table(path)


def test_parquet_files_with_and_without_a_time_zone_are_not_mixed(tmp_path: Path) -> None:
    paths = [tmp_path / "1.parquet", tmp_path / "2.parquet"]
    local = hourly([1, 2, 3])
    zoned = local.assign(ds=pd.date_range("2024-01-01 04:00", periods=3, freq="h", tz="Asia/Tokyo"))
    local.to_parquet(paths[0])
    zoned.to_parquet(paths[1])

    kinds = ("timestamp[us, tz=Asia/Tokyo], with a", "timestamp[us], with no")
    for order, kind in zip((paths, paths[::-1]), kinds, strict=True):
        with refused(
            f"{order[1]}: row 1: time column 'ds' is of {kind} time zone, unlike the first row "
            "(3 such rows)"
        ):
            read_table(order)


@pytest.mark.parametrize(
    "text",
    [
        "2024-07-01 00:00:00+02",
        "2024-07-01 00:00:00.125+02:00",
        "2024-07-01 00:00 +0200",
        "2024-07-01T00+02",
        "20240701T000000+0200",
        "2024-06-30T22:00Z",
    ],
)
def test_an_offset_after_a_time_of_day_is_what_counts(text: str) -> None:
    frame = hourly([1]).assign(ds=[text])

    table = table_from_frame(
        pd.concat([frame, frame]),
        TableOptions(time_zone="Asia/Tokyo", timestamps="ignore", frequency="h"),
    )

    assert table.timestamps[0].astype("datetime64[s]") == np.datetime64("2024-06-30T22:00:00")
    assert "says its offset from UTC, which is what counts" in table.notes[0]


def test_the_year_of_a_date_is_no_offset() -> None:
    days = pd.date_range("2015-12-25", periods=10)
    frame = hourly(range(10)).assign(ds=days.strftime("%d-%m-%Y"))

    assert table_from_frame(frame).notes == ()
    table = table_from_frame(frame, TableOptions(time_zone="Europe/Paris"))
    assert table.timestamps[0] == np.datetime64("2015-12-24T23:00")
    assert table.notes == ()


def test_an_offset_that_changes_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ds,y\n2024-03-31T01:00+01:00,1\n2024-03-31T03:00+02:00,2\n")

    assert read_table(path).notes == (
        f"{path}: row 2: the UTC offset changes from +01:00 to +02:00 (1 changes); all times "
        "become UTC",
    )


def test_what_is_put_in_and_filled_is_noted_with_its_counts() -> None:
    frame = hourly([1, 2, 3, NAN, 5, 6, 7, 8]).drop(index=[5, 6])

    notes = table_from_frame(frame, TableOptions(gaps="reindex", missing="ffill")).notes

    assert notes == (
        "3 empty values of column 'y' filled with the last value before (data.missing=ffill), the "
        "first at frame: row 4",
        "2 rows put in where times were missing (data.gaps=reindex), the first after frame: row 5",
    )


@pytest.mark.parametrize(
    ("frame", "options", "message"),
    [
        (
            hourly([1, 2]),
            {"layout": "long"},
            "frame: data.layout=long, but it has no column 'unique_id'",
        ),
        (
            hourly([1, 2], name="a"),
            {"layout": "wide"},
            "frame: data.layout=wide, but it has column 'unique_id'",
        ),
        (
            pd.DataFrame({"ds": pd.array([None, None], dtype="string"), "y": [1.0, 2.0]}),
            {},
            "frame: time column 'ds' is empty in its first rows",
        ),
        (
            hourly([1, "x", 2.0]),
            {},
            "frame: row 2: column 'y' holds 'x', which is not a number (1 such rows)",
        ),
        (
            hourly([1, 2]).set_axis(["ds", "ds"], axis=1),
            {},
            "frame: two columns are named 'ds'",
        ),
    ],
)
def test_a_frame_that_is_not_what_it_is_said_to_be_is_refused(
    frame: pd.DataFrame, options: dict[str, str], message: str
) -> None:
    with refused(message):
        table_from_frame(frame, TableOptions(**options))


def test_a_row_can_hold_a_whole_series(tmp_path) -> None:
    path = tmp_path / "Hourly-train.csv"
    path.write_text('"V1","V2","V3","V4","V5"\n"H2",5,6,,\n"H1",1,2,3,4\n')

    with refused(
        f"{path}: a row holds a whole series and no times (data.layout=rows): give "
        "data.frequency, for example h"
    ):
        read_table(path)
    table = read_table(path, TableOptions(frequency="h", start="2020-01-01"))

    assert (table.unique_ids, table.num_rows.tolist()) == (("H1", "H2"), [4, 2])
    assert table.values[:, 0].tolist() == [1, 2, 3, 4, 5, 6]
    assert table.timestamps[3] == np.datetime64("2020-01-01T03:00")
    assert table.timestamps[4] == np.datetime64("2020-01-01T00:00")


def test_files_of_rows_go_on_with_each_other_s_series(tmp_path) -> None:
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    train.write_text("V1,V2,V3,V4\nA,1,2,3\nB,10,20,\n")
    test.write_text("V1,V2,V3\nA,4,5\nB,30,40\n")

    table = read_table([train, test], TableOptions(frequency="W"))

    values = [series.values[:, 0].tolist() for series in table.series]
    assert values == [[1, 2, 3, 4, 5], [10, 20, 30, 40]]


def test_a_hole_in_a_row_of_values_is_a_missing_value(tmp_path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("V1,V2,V3,V4\nA,1,,3\nB,10,20,30\n")

    with refused(
        f"{path}: row 1: column 'y' is empty or NaN (1 such values); fill them, or say what "
        "becomes of them: data.missing"
    ):
        read_table(path, TableOptions(frequency="D"))
    table = read_table(path, TableOptions(frequency="D", missing="interpolate"))
    assert table.values[:3, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gaps": "reindex"}, "data.gaps=reindex puts in rows without values: say with data.miss"),
        (
            {"gaps": "reindex", "missing": "mask", "timestamps": "ignore"},
            "data.gaps=reindex needs data.timestamps=check, got ignore",
        ),
        ({"time_zone": "Paris"}, "data.time_zone must be a name such as Europe/Paris, got 'Paris'"),
        ({"frequency": "often"}, "data.frequency must be a pandas alias such as h, 15min or MS"),
        ({"layout": "rows"}, "data.layout=rows has no times: give data.frequency, for example h"),
        ({"missing": "zero"}, "data.missing must be one of refuse, ffill, interpolate, mask, got"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        TableOptions(**options)


def test_a_frequency_that_is_not_the_table_s_is_refused() -> None:
    with refused("frame: data.frequency=D, but the step is 'h'"):
        values_of(hourly([1, 2, 3]), frequency="D")
    assert values_of(hourly([1, 2, 3]), frequency="60min") == [1, 2, 3]
    assert values_of(hourly([1.0]), frequency="D") == [1]


@pytest.mark.parametrize("count", [2, 6, 100, 200])
def test_sentinels_are_noted_however_frequent_they_are(count: int, tmp_path) -> None:
    values = np.random.default_rng(0).normal(size=300)
    values[-count:] = -9999
    hourly(values.tolist()).to_parquet(tmp_path / "t.parquet")

    (note,) = read_table(tmp_path / "t.parquet").notes

    assert note.startswith(f"channel 'y' holds {count} values more than 20 robust standard dev")
    assert f"such as -9999 ({count} times), the first at " in note


def test_frequent_extremes_that_lie_with_the_others_are_not_noted(tmp_path) -> None:
    rng = np.random.default_rng(0)
    frame = hourly(rng.poisson(0.3, 300).tolist())
    frame.assign(flag=rng.integers(0, 2, 300)).to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").notes == ()


def test_sentinels_and_constant_channels_are_noted_with_their_counts(tmp_path) -> None:
    rng = np.random.default_rng(0)
    frame = hourly(rng.normal(size=300).tolist()).assign(flat=3.0)
    frame.loc[[10, 20], "y"] = -9999
    frame.to_parquet(tmp_path / "t.parquet")

    manifest = write_prepared(read_table(tmp_path / "t.parquet"), tmp_path / "out")

    assert manifest.notes == (
        "channel 'flat' never changes in 1 series, the first 't'",
        "channel 'y' holds 2 values more than 20 robust standard deviations from its median, such "
        f"as -9999 (2 times), the first at {tmp_path / 't.parquet'}: row 11",
    )
