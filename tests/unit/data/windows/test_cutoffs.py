"""Which forecasts are made, against a loop."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from timellama_dist.data.prepared.history import SeriesReader
from timellama_dist.data.prepared.write import prepare
from timellama_dist.data.tables.long_form import future_times
from timellama_dist.data.windows.cutoffs import CutoffIndex


@pytest.mark.parametrize(("cutoffs", "stride"), [(0, 1), (1, 4), (3, 1), (3, 4), (9, 2)])
def test_cutoffs_are_counted_back_from_the_last_with_a_known_truth(
    cutoffs: int, stride: int
) -> None:
    num_rows, least, horizon = [30, 5, 11, 12, 13, 40], 8, 4
    index = CutoffIndex.build(
        num_rows, least_rows=least, cutoffs=cutoffs, stride=stride, horizon=horizon
    )
    expected = []
    for number, rows in enumerate(num_rows):
        seen = [rows - horizon - k * stride for k in range(cutoffs)] if cutoffs else [rows]
        expected += [(number, one) for one in sorted(seen) if one >= least]
    assert len(index) == len(expected)
    assert list(zip(*index.locate(np.arange(len(index))), strict=True)) == expected
    assert index.num_skipped == len(num_rows) - len({number for number, _ in expected})


def test_a_series_reader_gives_any_rows_of_any_series(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = [
        pd.DataFrame(
            {
                "unique_id": name,
                "ds": pd.date_range("2024-01-01", periods=rows, freq="h"),
                "y": 1e9 + rng.standard_normal(rows),
            }
        )
        for name, rows in (("b", 70), ("a", 31), ("c", 50))
    ]
    pd.concat(parts).to_csv(tmp_path / "table.csv", index=False)
    prepare(tmp_path / "table.csv", tmp_path / "prepared", rows_per_group=20, rows_per_file=60)
    reader = SeriesReader(tmp_path / "prepared")
    assert list(reader.unique_ids) == ["a", "b", "c"]
    frames = {part["unique_id"][0]: part for part in parts}
    for number, begin, end in [(0, 0, 31), (1, 10, 70), (2, 49, 50), (1, 0, 1)]:
        found, frame = reader.read(number, begin, end), frames["abc"[number]][begin:end]
        assert found.unique_id == "abc"[number]
        np.testing.assert_array_equal(found.values[:, 0], frame["y"])
        np.testing.assert_array_equal(found.timestamps, frame["ds"].to_numpy())


def test_times_follow_the_calendar() -> None:
    last = np.array(["2024-01-01", "2023-12-01", "2024-01-01"], "datetime64[us]")
    found = future_times(last, "MS", 2)
    expected = [["2024-02-01", "2024-03-01"], ["2024-01-01", "2024-02-01"]]
    np.testing.assert_array_equal(found, np.array([*expected, expected[0]], "datetime64[us]"))


@pytest.mark.parametrize(
    ("frequency", "last", "expected"),
    [
        ("W-SUN", "2024-03-24", ["2024-03-31", "2024-04-07"]),
        ("W-SUN", "2024-03-25", ["2024-04-01", "2024-04-08"]),
        ("QS-JAN", "2021-05-01", ["2021-08-01", "2021-11-01"]),
        ("QE-MAR", "2021-01-31", ["2021-04-30", "2021-07-31"]),
        ("ME", "2024-01-31", ["2024-02-29", "2024-03-31"]),
        ("YS-JAN", "2020-07-01", ["2021-07-01", "2022-07-01"]),
        ("YE-DEC", "2023-02-28", ["2024-02-29", "2025-02-28"]),
        ("B", "2024-01-05", ["2024-01-08", "2024-01-09"]),
        ("B", "2024-01-06", ["2024-01-08", "2024-01-09"]),
        ("D", "2024-01-01T05", ["2024-01-02T05", "2024-01-03T05"]),
    ],
)
def test_times_follow_the_last_row_wherever_the_alias_is_anchored(
    frequency: str, last: str, expected: list[str]
) -> None:
    found = future_times(np.array([last], "datetime64[us]"), frequency, 2)
    np.testing.assert_array_equal(found, np.array([expected], "datetime64[us]"))
