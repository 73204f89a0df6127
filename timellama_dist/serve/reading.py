"""Reads the series of requests as a frame is read: those of one request, or of many at once."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset
from pandas.tseries.offsets import Day, Tick

from timellama_dist.data.tables.columns import ID_COLUMN, TIME_COLUMN
from timellama_dist.data.tables.origin import Origin
from timellama_dist.data.tables.series import Series, Table
from timellama_dist.errors import UserError
from timellama_dist.forecast.datasets import TrainedDataset
from timellama_dist.forecast.forecaster import TimeLlamaForecaster
from timellama_dist.forecast.tables import table_options
from timellama_dist.serve.requests import ForecastRequest, RequestError, SeriesIn

_UNNAMED = "series"


@dataclass(frozen=True)
class _RequestRows(Origin):
    """Rows of a request, which messages name as its fields."""

    first_rows: tuple[int, ...] = ()
    """Where each series begins in the frame."""

    def where(self, code: int) -> str:
        number = bisect_right(self.first_rows, code) - 1
        return f"series[{number}]: row {code - self.first_rows[number] + 1}"


def read_series(
    request: ForecastRequest, forecaster: TimeLlamaForecaster, dataset: TrainedDataset
) -> list[Series]:
    """Read a request's series, in its order.

    Raises:
        RequestError: what is wrong with them.
    """
    names = _series_names(request, dataset)
    begins = np.cumsum([0, *(len(series.ds) for series in request.series[:-1])])
    origin = _RequestRows(("series",), first_rows=tuple(begins.tolist()))
    try:
        table = _table(request.series, names, forecaster, dataset, origin)
    except UserError as error:
        field, _, message = str(error).partition(": ")
        raise RequestError(422, (field, message)) from None
    by_name = {series.unique_id: series for series in table.series}
    return [by_name[name] for name in names]


def read_together(
    requests: Sequence[ForecastRequest], forecaster: TimeLlamaForecaster, dataset: TrainedDataset
) -> list[list[Series]] | None:
    """Read the series of many requests at once, hardly slower than those of one.

    None if that could give a request another answer than alone: if something is wrong with any, or
    where others could show a step that its own rows leave open.
    """
    columns = [series for request in requests for series in request.series]
    fixed = isinstance(to_offset(dataset.card.frequency), Tick | Day)
    refuses_gaps = dataset.card.options.get("gaps", "refuse") == "refuse"
    rows = [max(len(series.ds) for series in request.series) for request in requests]
    if len(requests) < 2 or not fixed or not refuses_gaps or min(rows) < 2:
        return None
    try:
        # In the order of these names, which is that of the requests.
        table = _table(columns, [f"{n:09d}" for n in range(len(columns))], forecaster, dataset)
    except UserError:
        return None
    in_order = iter(table.series)
    return [
        [replace(next(in_order), unique_id=name) for name in _series_names(request, dataset)]
        for request in requests
    ]


def _series_names(request: ForecastRequest, dataset: TrainedDataset) -> Sequence[str]:
    """Name a request's series; an only one without a name may be the model's only one."""
    names = [series.unique_id for series in request.series if series.unique_id is not None]
    return names or dataset.names_of([_UNNAMED])


def _table(
    series: Sequence[SeriesIn],
    names: Sequence[str],
    forecaster: TimeLlamaForecaster,
    dataset: TrainedDataset,
    origin: Origin | None = None,
) -> Table:
    channels = tuple(dataset.card.channels)
    columns: dict[str, Any] = {
        ID_COLUMN: np.repeat(np.array(names, object), [len(own.ds) for own in series]),
        TIME_COLUMN: [time for own in series for time in own.ds],
    }
    for channel in channels:
        values = [value for own in series for value in own.values[channel]]
        columns[channel] = np.array(values, np.float64)
    # The channels are columns here, even if they were series of the table trained on.
    options = replace(table_options(dataset.card), series="separate", columns=channels)
    return forecaster.table(pd.DataFrame(columns), options, dataset.card.name, origin)
