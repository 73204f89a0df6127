"""The step of a table's timestamps: its pandas alias, its gaps, its season."""

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset
from pandas.tseries.offsets import (
    DateOffset,
    MonthBegin,
    MonthEnd,
    QuarterBegin,
    QuarterEnd,
    Week,
    YearBegin,
    YearEnd,
)

_SEASONS = {"h": 24, "10min": 144, "15min": 96, "30min": 48, "D": 7}
_CALENDAR_SEASONS = {"W": 52, "MS": 12, "ME": 12, "QS": 4, "QE": 4}
# The M4 competition's: weekly and daily series count as without a season.
_M4_SEASONS = {"h": 24, "D": 1, "W": 1, "MS": 12, "ME": 12, "QS": 4, "QE": 4, "YS": 1, "YE": 1}
_DAY = 24 * 3600 * 1_000_000
_MONTHS = {
    MonthBegin: 1,
    MonthEnd: 1,
    QuarterBegin: 3,
    QuarterEnd: 3,
    YearBegin: 12,
    YearEnd: 12,
}
_UNITS = {
    "h": "hour",
    "min": "minute",
    "s": "second",
    "D": "day",
    "B": "business day",
    "W": "week",
    "MS": "month",
    "ME": "month",
    "QS": "quarter",
    "QE": "quarter",
    "YS": "year",
    "YE": "year",
}


def step_in_words(frequency: str) -> str:
    """ "15 minutes" of "15min"; "hour" of "h"."""
    alias = frequency.split("-")[0]
    unit = alias.lstrip("0123456789")
    count = alias[: len(alias) - len(unit)]
    word = _UNITS.get(unit, unit)
    return f"{count} {word}s" if count else word


def season_len(frequency: str) -> int:
    """Steps in the season that a step suggests: a day, week or year; 1 where none does."""
    return _SEASONS.get(frequency) or _CALENDAR_SEASONS.get(frequency.split("-")[0], 1)


def m4_season_len(frequency: str) -> int:
    """Steps in the season by which the M4 competition scales errors and deseasonalises."""
    return _M4_SEASONS.get(frequency.split("-")[0], season_len(frequency))


def same_step(first: str, second: str) -> bool:
    """Do two aliases mean the same step, whatever weekday or month they are anchored to?"""
    if first.split("-")[0] == second.split("-")[0]:
        return True
    lengths = [_fixed_length(to_offset(alias)) for alias in (first, second)]
    return lengths[0] is not None and lengths[0] == lengths[1]


def time_grid(start: np.datetime64, frequency: str, **bound: Any) -> NDArray[np.datetime64]:
    """Times a step apart from a stamp on, datetime64[us].

    Weeks, months, quarters and years are counted from the stamp, whatever weekday or month the
    alias is anchored to; from a month's last day it goes on to last days. A stamp that is no
    business day is left out of a grid of these.

    Args:
        start: the stamp.
        frequency: alias of the step.
        bound: `end`, the last time that may be there, or `periods`, how many there are.
    """
    first, step = pd.Timestamp(start), to_offset(frequency)
    months = step.n * _MONTHS.get(type(step), 0)
    if months:
        step = MonthEnd(months) if first.is_month_end else DateOffset(months=months)
    elif isinstance(step, Week):
        step = Week(step.n)
    times = pd.date_range(first, freq=step, unit="us", **bound)
    return times.to_numpy("datetime64[us]")


def _fixed_length(offset: Any) -> int | None:
    """Nanoseconds of a step that has the same length everywhere."""
    try:
        return int(offset.nanos)
    except ValueError:
        return None


def infer_frequency(
    times: NDArray[np.datetime64], codes: NDArray[np.int64]
) -> tuple[str | None, NDArray[np.int64]]:
    """Step of all series together, from the median of their steps.

    Steps are counted in microseconds, or in calendar months or business days where the stamps
    show that these are meant (every month's first day, say).

    Args:
        times: stamps series by series, each in order, datetime64[us], shape (rows,).
        codes: each row's series, shape (rows,).

    Returns:
        The pandas alias, None if no series has two rows; and the rows that are followed, in their
        series, by a step other than that.
    """
    inside = np.flatnonzero(np.diff(codes) == 0)
    if not inside.size:
        return None, inside
    steps = np.diff(times).astype(np.int64)[inside]
    # A step of 0 is a duplicate that the caller chose to keep.
    if not (steps > 0).any():
        return None, inside
    median = _middle(steps[steps > 0])
    calendar = _calendar_steps(times, inside, median)
    if calendar is not None:
        counts, alias = calendar
        return alias, inside[counts != _middle(counts[counts > 0])]
    return _fixed_alias(median, times[inside[0]]), inside[steps != median]


def _middle(steps: NDArray[np.int64]) -> int:
    # An element of the array, not the mean of two.
    return int(np.partition(steps, len(steps) // 2)[len(steps) // 2])


def _fixed_alias(step: int, first: np.datetime64) -> str:
    if step == 7 * _DAY:
        return f"W-{pd.Timestamp(first).strftime('%a').upper()}"
    if step % _DAY == 0:
        # pandas 3 would say "24h".
        return "D" if step == _DAY else f"{step // _DAY}D"
    return to_offset(pd.Timedelta(step, unit="us")).freqstr


def _calendar_steps(
    times: NDArray[np.datetime64], inside: NDArray[np.int64], median: int
) -> tuple[NDArray[np.int64], str] | None:
    """Steps between `inside` rows and their successors in months or business days, and the alias.

    None if the stamps do not follow the calendar.
    """
    days = times.astype("datetime64[D]")
    if (times != days).any():
        return None
    if median >= 28 * _DAY:
        months = times.astype("datetime64[M]")
        starts = (days == months).all()
        if not (starts or ((days + 1) == (months + 1).astype("datetime64[D]")).all()):
            return None
        counts = np.diff(months).astype(np.int64)[inside]
        return counts, _month_alias(
            _middle(counts[counts > 0]), "S" if starts else "E", months[inside[0]]
        )
    # Monday is 0; 1970-01-01 was a Thursday.
    weekdays = (days.astype(np.int64) + 3) % 7
    weekend_gaps = (np.diff(times).astype(np.int64)[inside] == 3 * _DAY).any()
    if median == _DAY and weekend_gaps and weekdays.max() < 5:
        return np.busday_count(days[inside], days[inside + 1]).astype(np.int64), "B"
    return None


def _month_alias(step: int, edge: str, first: np.datetime64) -> str:
    month = pd.Timestamp(first).strftime("%b").upper()
    if step == 12:
        return f"Y{edge}-{month}"
    if step == 3:
        return f"Q{edge}-{month}"
    return f"M{edge}" if step == 1 else f"{step}M{edge}"
