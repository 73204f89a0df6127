"""Fills empty values of arranged series, or refuses them, counted by channel."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from timellama_dist.data.tables.findings import Findings
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.origin import Origin
from timellama_dist.data.tables.rows import Rows

_DONE = {
    "ffill": "filled with the last value before",
    "interpolate": "interpolated in time",
    "mask": "left empty, for loss and metrics to leave out",
}


def fill_missing(
    rows: Rows,
    channels: Sequence[str],
    options: TableOptions,
    origin: Origin,
    findings: Findings,
) -> None:
    """Fill the empty values of whole series in place, as `options.missing` says.

    Interpolation is linear over rows, which are evenly spaced, and repeats the outermost value at
    the ends. It looks ahead: a window's past may hold a value made with one of its future.

    Args:
        rows: rows of whole series; their values are changed.
        channels: names of the columns.
        options: what to do.
        origin: the table's files.
        findings: added to.
    """
    starts = rows.starts
    ends = np.append(starts[1:], len(rows.codes))
    for number, channel in enumerate(channels):
        column = rows.values[:, number]
        empty = np.flatnonzero(np.isnan(column))
        if not empty.size:
            continue
        where = int(rows.rows[empty[0]])
        if options.missing == "refuse":
            findings.add(
                "empty",
                f"{origin.where(where)}: column {channel!r} is empty or NaN ({{count}} such "
                f"values); fill them, or say what becomes of them: {origin.key('missing')}",
                count=empty.size,
                row=where,
                channel=channel,
            )
            continue
        if options.missing == "ffill":
            _fill_forward(column, starts, ends)
        elif options.missing == "interpolate":
            _interpolate(column, starts, ends, empty)
        left = empty[np.isnan(column[empty])]
        if left.size and options.missing != "mask":
            name, first = rows.ids[rows.codes[left[0]]], int(rows.rows[left[0]])
            findings.add(
                "unfilled",
                f"{origin.where(first)}: column {channel!r} is empty"
                + (
                    f" at the start of series {name!r}, with no value before to fill it with"
                    if options.missing == "ffill"
                    else f" in all of series {name!r}"
                )
                + f" ({{count}} such values); {origin.key('missing')}=mask leaves them out",
                count=left.size,
                row=first,
                channel=channel,
            )
        findings.add(
            "filled",
            f"{{count}} empty values of column {channel!r} {_DONE[options.missing]} "
            f"({origin.key('missing')}={options.missing}), the first at {origin.where(where)}",
            count=empty.size,
            row=where,
            fatal=False,
            channel=channel,
        )


def _fill_forward(
    column: NDArray[np.float64], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> None:
    source = np.where(np.isnan(column), 0, np.arange(len(column)))
    np.maximum.accumulate(source, out=source)
    # Not from the series before.
    np.maximum(source, np.repeat(starts, ends - starts), out=source)
    column[:] = column[source]


def _interpolate(
    column: NDArray[np.float64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    empty: NDArray[np.int64],
) -> None:
    for series in np.unique(np.searchsorted(starts, empty, side="right") - 1):
        part = column[starts[series] : ends[series]]
        gone = np.isnan(part)
        if not gone.all():
            part[gone] = np.interp(np.flatnonzero(gone), np.flatnonzero(~gone), part[~gone])
