"""Time order, duplicates, steps and gaps of whole series."""

import numpy as np
from numpy.typing import NDArray

from timellama_dist.data.tables.findings import Findings
from timellama_dist.data.tables.frequency import infer_frequency, same_step, time_grid
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.origin import Origin, file_of
from timellama_dist.data.tables.rows import Rows, stamp

_MOST_GROWTH = 20


def in_time_order(rows: Rows, origin: Origin, findings: Findings) -> Rows:
    """Sort by time across files; inside a file the rows of a series must be in order."""
    steps = np.diff(rows.times).astype(np.int64)
    backward = np.flatnonzero((np.diff(rows.codes) == 0) & (steps < 0))
    if not backward.size:
        return rows
    files = file_of(rows.rows)
    inside = backward[files[backward] == files[backward + 1]]
    if inside.size:
        first = int(inside[0])
        findings.add(
            "order",
            f"{origin.where(rows.rows[first + 1])}: timestamps are not in order"
            f"{rows.of_series(first)}: {stamp(rows.times[first])} is followed by "
            f"{stamp(rows.times[first + 1])} ({{count}} such rows); sort the table by time, or "
            f"keep the rows as they stand with {origin.key('timestamps')}=ignore",
            count=inside.size,
            row=int(rows.rows[first + 1]),
        )
    return rows.take(np.lexsort((rows.rows, rows.times, rows.codes)))


def without_duplicates(
    rows: Rows, options: TableOptions, origin: Origin, findings: Findings
) -> Rows:
    """Refuse rows of one series with the same time, or keep one of them."""
    same = (np.diff(rows.codes) == 0) & (np.diff(rows.times).astype(np.int64) == 0)
    repeated = np.flatnonzero(same)
    if not repeated.size:
        return rows
    first = int(repeated[0])
    at = f"{stamp(rows.times[first])}{rows.of_series(first)}"
    where = int(rows.rows[first + 1])
    if options.duplicates == "refuse":
        findings.add(
            "duplicate",
            f"{origin.where(where)}: duplicate timestamp {at} ({{count}} such rows); remove it, "
            f"or keep the rows as they stand with {origin.key('timestamps')}=ignore, or one of "
            f"them: {origin.key('duplicates')}",
            count=repeated.size,
            row=where,
        )
    kept = np.ones(len(rows.codes), bool)
    kept[repeated if options.duplicates == "last" else repeated + 1] = False
    if options.duplicates != "refuse":
        findings.add(
            "dropped",
            f"{{count}} rows dropped that repeat a timestamp "
            f"({origin.key('duplicates')}={options.duplicates}), the first at "
            f"{origin.where(where)}: {at}",
            count=repeated.size,
            row=where,
            fatal=False,
        )
    return rows.take(kept)


def check_frequency(
    learned: str | None, wanted: str, rows: Rows, origin: Origin, findings: Findings
) -> str:
    """Compare the step that the times show, if they show one, with the one that was asked for."""
    if learned is not None and not same_step(learned, wanted):
        findings.add(
            "frequency",
            f"{origin.place}: {origin.key('frequency')}={wanted}, but the "
            f"step{rows.of_series(0)} is {learned!r}",
            count=1,
            row=int(rows.rows[0]),
        )
    return wanted if learned is None else learned


def without_gaps(
    rows: Rows,
    gaps: NDArray[np.int64],
    frequency: str,
    options: TableOptions,
    origin: Origin,
    findings: Findings,
) -> Rows:
    """Refuse gaps, or put in rows of NaN; a series of another step is refused either way."""
    first = int(gaps[0])
    for code in np.unique(rows.codes[gaps]):
        here = slice(*np.searchsorted(rows.codes, [code, code + 1]))
        own, _ = infer_frequency(rows.times[here], rows.codes[here])
        if own is not None and not same_step(own, frequency) and here.stop - here.start > 2:
            findings.add(
                "frequency",
                f"{origin.place}: series of different steps: {own!r} in {rows.ids[code]!r}, "
                f"{frequency!r} in others; prepare them apart"
                if len(rows.ids) > 1
                else f"{origin.place}: the step is {own!r}",
                count=1,
                row=int(rows.rows[here.start]),
            )
            return rows
    if options.gaps == "refuse":
        where = int(rows.rows[first + 1])
        findings.add(
            "gap",
            f"{origin.where(where)}: irregular step{rows.of_series(first)}: "
            f"{stamp(rows.times[first])} is followed by {stamp(rows.times[first + 1])} where the "
            f"step is {frequency!r} ({{count}} such in the table); fill the gaps "
            f"({origin.key('gaps')}=reindex with {origin.key('missing')}=mask), or keep the rows "
            f"as they stand with {origin.key('timestamps')}=ignore",
            count=gaps.size,
            row=where,
        )
        return rows
    return _reindexed(rows, np.unique(rows.codes[gaps]), frequency, origin, findings)


def _reindexed(
    rows: Rows,
    broken: NDArray[np.int64],
    frequency: str,
    origin: Origin,
    findings: Findings,
) -> Rows:
    """Put the series of these codes onto the grid of their step, with NaN in the new rows."""
    parts: list[Rows] = []
    done = 0
    for code in broken:
        begin, end = (int(edge) for edge in np.searchsorted(rows.codes, [code, code + 1]))
        here = rows.take(np.arange(begin, end))
        grid = _grid(here, frequency, origin, findings)
        if grid is None:
            continue
        places = np.searchsorted(grid, here.times)
        values = np.full((len(grid), here.values.shape[1]), np.nan)
        values[places] = here.values
        before = np.searchsorted(places, np.arange(len(grid)), side="right") - 1
        codes = np.full(len(grid), code)
        parts.append(rows.take(np.arange(done, begin)))
        parts.append(Rows(rows.ids, codes, grid, values, here.rows[before]))
        done = end
        gap = int(np.flatnonzero(np.diff(places) > 1)[0])
        findings.add(
            "inserted",
            f"{{count}} rows put in where times were missing ({origin.key('gaps')}=reindex), the "
            f"first after {origin.where(int(here.rows[gap]))}{here.of_series(gap)}",
            count=len(grid) - len(places),
            row=int(here.rows[gap]),
            fatal=False,
        )
    parts.append(rows.take(np.arange(done, len(rows.codes))))
    return Rows(
        rows.ids,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.times for part in parts]),
        np.concatenate([part.values for part in parts]),
        np.concatenate([part.rows for part in parts]),
    )


def _grid(
    here: Rows, frequency: str, origin: Origin, findings: Findings
) -> NDArray[np.datetime64] | None:
    """Make all times of one series' step from its first to its last; None if they don't fit it."""
    times, of_series = here.times, here.of_series(0)
    if _expected_rows(times, frequency) > _MOST_GROWTH * len(times):
        findings.add(
            "grid",
            f"{origin.where(int(here.rows[0]))}: {origin.key('gaps')}=reindex would make more than "
            f"{_MOST_GROWTH} times as many rows{of_series}: its {len(times)} rows span "
            f"{stamp(times[0])} to {stamp(times[-1])} at step {frequency!r} ({{count}} such "
            "series); is a time wrong?",
            count=1,
            row=int(here.rows[0]),
        )
        return None
    grid = time_grid(times[0], frequency, end=times[-1])
    places = np.minimum(np.searchsorted(grid, times), len(grid) - 1)
    off = np.flatnonzero(grid[places] != times)
    if off.size:
        where = int(here.rows[off[0]])
        findings.add(
            "grid",
            f"{origin.where(where)}: {stamp(times[off[0]])}{of_series} does not lie on the grid of "
            f"step {frequency!r} from {stamp(times[0])} on ({{count}} such rows), so "
            f"{origin.key('gaps')}=reindex cannot place it; {origin.key('gaps')}=refuse with "
            f"{origin.key('timestamps')}=ignore keeps the rows as they stand",
            count=off.size,
            row=where,
        )
        return None
    return grid


def _expected_rows(times: NDArray[np.datetime64], frequency: str) -> float:
    first, second = time_grid(times[0], frequency, periods=2)
    return float((times[-1] - times[0]) / (second - first)) + 1
