"""Notes what is worth knowing of a table: channels that never change, values far from the rest.

Nothing here is refused or changed.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from timellama_dist.data.tables.findings import Findings
from timellama_dist.data.tables.origin import Origin
from timellama_dist.data.tables.rows import Rows

_FEWEST_ROWS = 64
_FAR = 20.0
"""Robust standard deviations from the median."""


def profile_values(
    rows: Rows,
    channels: Sequence[str],
    origin: Origin,
    findings: Findings,
) -> None:
    """Note constant channels and outliers of whole series.

    Args:
        rows: rows of whole series.
        channels: names of the columns.
        origin: the table's files.
        findings: added to.
    """
    starts = rows.starts
    ends = np.append(starts[1:], len(rows.codes))
    _note_constant(rows, starts, ends, channels, findings)
    for begin, end in zip(starts, ends, strict=True):
        if end - begin >= _FEWEST_ROWS:
            here = slice(begin, end)
            _note_outliers(rows.values[here], rows.rows[here], channels, origin, findings)


def _note_constant(
    rows: Rows,
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    channels: Sequence[str],
    findings: Findings,
) -> None:
    # fmin and fmax: an empty value is neither.
    low, high = (extreme.reduceat(rows.values, starts, axis=0) for extreme in (np.fmin, np.fmax))
    same = (low == high) & (ends - starts > 1)[:, None]
    for number, channel in enumerate(channels):
        constant = np.flatnonzero(same[:, number])
        if constant.size:
            first = starts[constant[0]]
            findings.add(
                "constant",
                f"channel {channel!r} never changes in {{count}} series, "
                f"the first {rows.ids[rows.codes[first]]!r}",
                count=constant.size,
                row=int(rows.rows[first]),
                fatal=False,
                channel=channel,
            )


def _note_outliers(
    values: NDArray[np.float64],
    rows: NDArray[np.int64],
    channels: Sequence[str],
    origin: Origin,
    findings: Findings,
) -> None:
    finite = np.where(np.isfinite(values), values, np.nan)
    seen = np.flatnonzero(np.isfinite(finite).sum(axis=0) >= _FEWEST_ROWS)
    if not seen.size:
        return
    finite = finite[:, seen]
    far = _far_from(finite, finite)
    for extreme in (np.nanmin(finite, axis=0), np.nanmax(finite, axis=0)):
        # A sentinel may be frequent enough to stretch the scale: it is judged by the others.
        same = finite == extreme
        others = np.where(same, np.nan, finite)
        judged = (same.sum(axis=0) > 1) & (np.isfinite(others).sum(axis=0) >= _FEWEST_ROWS)
        if judged.any():
            far[:, judged] |= same[:, judged] & _far_from(finite[:, judged], others[:, judged])
    for column in np.flatnonzero(far.any(axis=0)):
        places = np.flatnonzero(far[:, column])
        channel = channels[seen[column]]
        [(value, times)] = Counter(finite[places, column].tolist()).most_common(1)
        where = int(rows[places[0]])
        findings.add(
            "outlier",
            f"channel {channel!r} holds {{count}} values more than {_FAR:g} robust standard "
            f"deviations from its median, such as {value:g}"
            + (f" ({times} times)" if times > 1 else "")
            + f", the first at {origin.where(where)}",
            count=places.size,
            row=where,
            fatal=False,
            channel=channel,
        )


def _far_from(values: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark values, shape (rows, C), that lie far from the others of their column."""
    low, quarter, median, upper, high = np.nanpercentile(others, [1, 25, 50, 75, 99], axis=0)
    # A channel that is mostly one value (rain) has no quartiles apart: its middle 98 % then.
    scale = np.maximum((upper - quarter) / 1.349, (high - low) / 6)
    with np.errstate(invalid="ignore"):
        far: NDArray[np.bool_] = (np.abs(values - median) > _FAR * scale) & (scale > 0)
    return far
