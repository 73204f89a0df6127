"""Frames of pandas, polars and pyarrow: taken as they come, given back as they came."""

from importlib import import_module
from typing import Any

import pandas as pd
import pyarrow as pa

from timellama_dist.errors import DataError

Frame = Any
"""A DataFrame of pandas or polars, or a Table of pyarrow."""


def to_pandas(frame: Frame) -> pd.DataFrame:
    """Turn a frame into one of pandas.

    Raises:
        DataError: it is of none of the three kinds.
    """
    if isinstance(frame, pd.DataFrame):
        return frame
    if isinstance(frame, pa.Table):
        return frame.to_pandas()
    # By its method: polars needn't be installed.
    if hasattr(frame, "to_arrow"):
        return frame.to_arrow().to_pandas()
    raise DataError(
        "frame: expected a DataFrame of pandas or polars or a Table of pyarrow, got "
        f"{type(frame).__name__}"
    )


def like(frame: Frame, table: pa.Table) -> Frame:
    """Turn a table into a frame of another's kind."""
    if isinstance(frame, pa.Table):
        return table
    if isinstance(frame, pd.DataFrame):
        return table.to_pandas()
    return import_module("polars").from_arrow(table)
