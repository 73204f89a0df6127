"""The table of a prepared data set's series: a row each with its length, times and scaler."""

import hashlib

import numpy as np
import pyarrow as pa

from timellama_dist.data.prepared.scaling import Scaler
from timellama_dist.data.tables.columns import ID_COLUMN, TIME_COLUMN
from timellama_dist.data.tables.findings import Findings
from timellama_dist.data.tables.series import Table
from timellama_dist.data.windows.splits import SplitRule
from timellama_dist.errors import ConfigError, DataError

SERIES_SCHEMA = pa.schema(
    [
        (ID_COLUMN, pa.string()),
        ("num_rows", pa.int64()),
        ("first_ds", pa.timestamp("us")),
        ("last_ds", pa.timestamp("us")),
        ("mean", pa.list_(pa.float64())),
        ("std", pa.list_(pa.float64())),
        ("digest", pa.binary(16)),
        ("num_observed", pa.list_(pa.int64())),
    ]
)
"""One row a series, see `describe_series`; `num_observed` is not kept in the series file."""

UNTRAINED = "series dropped that "
"""In the note about series without a training row."""


def drop_untrained(table: Table, rule: SplitRule, findings: Findings) -> Table:
    """Leave out, and count, series without a training row, since nothing tells their scale.

    Raises:
        ConfigError: a split that the series cannot be cut into.
    """
    if rule.by == "series":
        return table
    trained = rule.train_rows(table.num_rows) >= 1
    if trained.all():
        return table
    first = int(np.flatnonzero(~trained)[0])
    findings.add(
        "untrained",
        f"{{count}} {UNTRAINED}{rule.key} {list(rule.split)} leaves no training row, "
        f"so that they cannot be scaled; the first is {table.unique_ids[first]!r} of "
        f"{table.num_rows[first]} rows",
        count=int((~trained).sum()),
        row=0,
        fatal=False,
    )
    return table.select(trained)


def no_training(num_series: int, rule: SplitRule, findings: Findings) -> ConfigError | None:
    """Make the error about series none of which is trained on; None if one is.

    Args:
        num_series: how many `drop_untrained` has left.
        rule: how series are divided.
        findings: those of `drop_untrained`.
    """
    if not num_series:
        [untrained] = [finding for finding in findings if finding.kind == "untrained"]
        return ConfigError(f"nothing is left to train on: {untrained.text()}")
    if rule.by == "series" and not rule.members(num_series, "train").any():
        return ConfigError(
            f"{rule.key} {list(rule.split)} of {num_series} series ({rule.section}.split_by=series)"
            " leaves none to train on"
        )
    return None


def describe_series(table: Table, rule: SplitRule) -> pa.Table:
    """Describe each series in a row: its id, length, times, scaler and digest.

    Args:
        table: the series, each with a training row.
        rule: how series are divided, by which the scaler's rows are chosen.

    Returns:
        The columns of `SERIES_SCHEMA`.

    Raises:
        DataError: a channel named like another column, or values that are too large.
    """
    for channel in table.channels:
        if channel in (ID_COLUMN, TIME_COLUMN):
            raise DataError(f"a channel may not be named {channel!r}; rename the column")
    begins, ends = table.first_rows[:-1], table.first_rows[1:]
    if rule.by == "series":
        # Pooled later, where a constant series has no spread of its own.
        scaler = Scaler.fit_parts(table.values, begins, ends, constant_scale=0.0)
    else:
        num_train = rule.train_rows(table.num_rows)
        scaler = Scaler.fit_parts(table.values, begins, begins + num_train)
    columns = [
        pa.array(table.unique_ids, pa.string()),
        pa.array(table.num_rows, pa.int64()),
        pa.array(table.timestamps[begins], pa.timestamp("us")),
        pa.array(table.timestamps[ends - 1], pa.timestamp("us")),
        _lists(scaler.mean),
        _lists(scaler.std),
        pa.array(_digests(table), pa.binary(16)),
        _lists(np.add.reduceat(np.isfinite(table.values), begins, axis=0, dtype=np.int64)),
    ]
    return pa.table(columns, schema=SERIES_SCHEMA)


def _lists(rows: np.ndarray) -> pa.Array:
    flat = pa.array(rows.ravel())
    return pa.FixedSizeListArray.from_arrays(flat, rows.shape[1]).cast(pa.list_(flat.type))


def _digests(table: Table) -> list[bytes]:
    times, values = table.timestamps, np.ascontiguousarray(table.values)
    return [
        hashlib.blake2b(
            times[begin:end].tobytes() + values[begin:end].tobytes(), digest_size=16
        ).digest()
        for begin, end in zip(table.first_rows[:-1], table.first_rows[1:], strict=True)
    ]


def with_pooled_scalers(series: pa.Table, rule: SplitRule) -> pa.Table:
    """Give every series the scaler of the training series together, weighted by observed values."""
    train = rule.members(len(series), "train")
    mean, std, num = (
        np.array(series[name].to_pylist())[train] for name in ("mean", "std", "num_observed")
    )
    # A channel that none of them has is a constant 0, as in `Scaler.fit`.
    total = np.maximum(num.sum(axis=0), 1)
    pooled = (mean * num).sum(axis=0) / total
    spread = np.sqrt(((np.square(std) + np.square(mean - pooled)) * num).sum(axis=0) / total)
    for name, row in (("mean", pooled), ("std", np.where(spread == 0, 1.0, spread))):
        column = _lists(np.tile(row, (len(series), 1)))
        series = series.set_column(series.column_names.index(name), name, column)
    return series
