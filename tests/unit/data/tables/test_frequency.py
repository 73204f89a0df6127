import numpy as np
import pandas as pd
import pytest

from timellama_dist.data.tables.frequency import infer_frequency, season_len


def infer(stamps: pd.DatetimeIndex) -> tuple[str | None, list[int]]:
    times = stamps.to_numpy(dtype="datetime64[us]")
    frequency, gaps = infer_frequency(times, np.zeros(len(times), np.int64))
    return frequency, gaps.tolist()


@pytest.mark.parametrize(
    ("frequency", "season"),
    [
        ("h", 24),
        ("15min", 96),
        ("10min", 144),
        ("30min", 48),
        ("D", 7),
        ("W-TUE", 52),
        ("MS", 12),
        ("ME", 12),
        ("QS-JAN", 4),
        ("QE-MAR", 4),
        ("YS-JAN", 1),
        ("B", 1),
        ("7s", 1),
    ],
)
def test_a_regular_index_has_its_own_alias_and_season(frequency, season):
    stamps = pd.date_range("2020-01-01", periods=40, freq=frequency)

    assert infer(stamps) == (frequency, [])
    assert season_len(frequency) == season


def test_a_gap_is_found_where_it_is():
    stamps = pd.date_range("2020-01-01", periods=40, freq="h").delete([10, 11, 30])

    # Row 9 is followed by the first gap; after two deletions the second follows row 27.
    assert infer(stamps) == ("h", [9, 27])


def test_a_missing_month_is_a_gap_and_short_months_are_not():
    stamps = pd.date_range("2020-01-31", periods=24, freq="ME").delete(5)

    assert infer(stamps) == ("ME", [4])


def test_the_step_from_one_series_to_the_next_does_not_count():
    times = pd.date_range("2020-01-01", periods=6, freq="h").to_numpy(dtype="datetime64[us]")
    codes = np.repeat([0, 1], 6)

    frequency, gaps = infer_frequency(np.concatenate([times, times]), codes)

    assert (frequency, gaps.tolist()) == ("h", [])


def test_single_rows_have_no_step():
    assert infer(pd.DatetimeIndex(["2020-01-01"])) == (None, [])
