"""Reads the value columns of a table as numbers; what is none becomes a finding."""

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from timellama_dist.data.tables.columns import ID_COLUMN, is_text
from timellama_dist.data.tables.findings import Findings
from timellama_dist.data.tables.origin import Origin
from timellama_dist.errors import DataError

NULLS = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "#N/A"]
"""Texts that stand for a missing value."""


def read_numbers(
    raw: pa.Table,
    name: str,
    codes: NDArray[np.int64],
    origin: Origin,
    findings: Findings,
) -> NDArray[np.float64]:
    """Read the values of one column, NaN where it is empty or not there."""
    if name not in raw.column_names:
        return np.full(len(raw), np.nan)
    column = raw[name]
    if pa.types.is_temporal(column.type):
        raise DataError(f"{origin.place}: column {name!r} holds times, not numbers")
    if is_text(column.type):
        has_id = ID_COLUMN in raw.column_names
        values = _numbers_of_text(column, name, codes, origin, findings, has_id=has_id)
    else:
        try:
            values = np.array(pc.cast(column, pa.float64(), safe=False).to_numpy())
        except pa.ArrowException as error:
            raise DataError(
                f"{origin.place}: column {name!r} is of {column.type}, not of numbers"
            ) from error
    infinite = np.flatnonzero(np.isinf(values))
    if infinite.size:
        _add_empty(findings, name, "infinite", infinite, codes, origin)
    return values


def refuse_empty(
    raw: pa.Table,
    name: str,
    values: NDArray[np.float64],
    codes: NDArray[np.int64],
    origin: Origin,
    findings: Findings,
) -> None:
    """Find empty values of a column where `options.missing` refuses them."""
    missing = np.isnan(values)
    if name in raw.column_names and is_text(raw[name].type):
        texts = raw[name].to_pandas()
        # What is no number is a finding of its own.
        missing &= (texts.isna() | texts.isin(NULLS)).to_numpy()
    empty = np.flatnonzero(missing)
    if empty.size:
        _add_empty(findings, name, "empty or NaN", empty, codes, origin)


def _add_empty(
    findings: Findings,
    name: str,
    kind: str,
    rows: NDArray[np.int64],
    codes: NDArray[np.int64],
    origin: Origin,
) -> None:
    first = int(codes[rows[0]])
    findings.add(
        "empty",
        f"{origin.where(first)}: column {name!r} is {kind} ({{count}} rows of the column are "
        "empty, NaN or infinite); fill or drop them"
        + ("" if kind == "infinite" else f", or say what becomes of them: {origin.key('missing')}"),
        count=rows.size,
        row=first,
        channel=name,
    )


def _numbers_of_text(
    column: pa.ChunkedArray,
    name: str,
    codes: NDArray[np.int64],
    origin: Origin,
    findings: Findings,
    *,
    has_id: bool,
) -> NDArray[np.float64]:
    raw = column.to_pandas()
    numbers = pd.to_numeric(raw, errors="coerce")
    bad = np.flatnonzero(numbers.isna() & ~(raw.isna() | raw.isin(NULLS)))
    if bad.size:
        first, text = int(codes[bad[0]]), str(raw.iloc[bad[0]])
        hint = ""
        if re.fullmatch(r"[+-]?\d+,\d+", text):
            hint = "; write decimals with a point"
        elif bad.size == len(raw):
            hint = f"; {origin.key('columns')} says which columns to take"
            if not has_id:
                hint += f"; if it names series, call it {ID_COLUMN}"
        findings.add(
            "number",
            f"{origin.where(first)}: column {name!r} holds {text!r}, which is not a "
            "number ({count} such rows)" + hint,
            count=bad.size,
            row=first,
            channel=name,
        )
    return numbers.to_numpy(dtype=np.float64, na_value=np.nan)
