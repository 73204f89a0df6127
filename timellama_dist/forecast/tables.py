"""Reads a user's table as the one that a model was trained on, and refuses another kind."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from timellama_dist.data.tables.frequency import same_step
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.data.tables.parsing import ID_COLUMN, Origin
from timellama_dist.data.tables.series import Table
from timellama_dist.data.tables.table import table_from_frame
from timellama_dist.errors import DataError
from timellama_dist.forecast.datasets import TrainedDataset
from timellama_dist.model.card import DatasetCard


def table_options(card: DatasetCard) -> TableOptions:
    """Return how a table like the one that a model was trained on is read."""
    options = TableOptions.of(card.options)
    # As columns of one series the channels carry the ids; else they are the table's columns.
    columns = options.columns if options.series == "channels" else tuple(card.channels)
    return replace(options, layout="auto", frequency=None, columns=columns)


def read_frame(
    dataset: TrainedDataset,
    frame: pd.DataFrame,
    options: TableOptions,
    origin: Origin | None = None,
) -> Table:
    """Read the series of a frame and check all that a forecast needs of them.

    Args:
        dataset: what the frame is of.
        frame: wide or long.
        options: how it is read, see `table_options`.
        origin: what messages call the frame and its rows.

    Raises:
        DataError: the frame lacks a channel, rows or values, has another step, or holds what
            `table_from_frame` refuses.
    """
    place = origin.place if origin else "frame"
    step = dataset.card.frequency if dataset.least_rows == 1 else None
    table = table_from_frame(frame, options, origin, step=step)
    if ID_COLUMN not in frame.columns or options.series == "channels":
        table = replace(table, unique_ids=tuple(dataset.names_of(table.unique_ids)))
    check_table(dataset.card, table.channels, str(table.frequency), place)
    for series in table.series:
        if len(series.values) < dataset.least_rows:
            raise DataError(
                f"{place}: series {series.unique_id!r} has {len(series.values)} rows, the "
                f"model needs the last {dataset.card.context_len}"
            )
    return table


def check_table(card: DatasetCard, channels: Sequence[str], frequency: str, place: str) -> None:
    """Refuse a table of other channels, or another step, than a model's.

    Raises:
        DataError: the table is one.
    """
    if list(channels) != card.channels:
        raise DataError(
            f"{place}: the model forecasts {card.channels}, the {_kind(place)} holds "
            f"{list(channels)}"
        )
    if not same_step(frequency, card.frequency):
        raise DataError(
            f"{place}: the model's step is {card.frequency!r}, the {_kind(place)}'s {frequency!r}"
        )


def _kind(place: str) -> str:
    return "frame" if place == "frame" else "table"
