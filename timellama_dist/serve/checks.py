"""Checks what only the model can tell of a request: its channels, step, rows and limits.

Shapes: B series, H horizon.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset
from pandas.tseries.offsets import Day, Tick

from timellama_dist.data.tables.columns import ID_COLUMN, TIME_COLUMN
from timellama_dist.data.tables.long_form import Times, future_times
from timellama_dist.data.tables.origin import Origin
from timellama_dist.data.tables.series import Series, Table
from timellama_dist.errors import UserError
from timellama_dist.forecast.datasets import TrainedDataset
from timellama_dist.forecast.forecaster import TimeLlamaForecaster
from timellama_dist.forecast.tables import table_options
from timellama_dist.model.intervals import cutoffs_before
from timellama_dist.serve.requests import ForecastRequest, RequestError, SeriesIn

_UNNAMED = "series"


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A request that has passed all checks."""

    dataset: TrainedDataset
    series: list[Series]
    """In the request's order."""
    unique_ids: list[str]
    """What the answer calls them."""
    times_BH: Times
    levels: list[float]
    recent: int


@dataclass(frozen=True)
class _RequestRows(Origin):
    """Rows of a request, which messages name as its fields."""

    first_rows: tuple[int, ...] = ()
    """Where each series begins in the frame."""

    def where(self, code: int) -> str:
        number = bisect_right(self.first_rows, code) - 1
        return f"series[{number}]: row {code - self.first_rows[number] + 1}"


def check_requests(
    requests: Sequence[ForecastRequest], forecaster: TimeLlamaForecaster, max_forecasts: int
) -> list[Task | RequestError]:
    """Check requests as `TimeLlamaForecaster.predict` does.

    Args:
        requests: that fit the schema.
        forecaster: the model.
        max_forecasts: for one request.

    Returns:
        For each request what is to be forecast, or why it is refused (422).
    """
    results: dict[int, Task | RequestError] = {}
    numbers: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        try:
            dataset = _find_dataset(request, forecaster)
            _check_fields(request, dataset)
            numbers.setdefault(dataset.card.name, []).append(number)
        except RequestError as error:
            results[number] = error
    for name, group in numbers.items():
        dataset = forecaster.dataset(name)
        together = _read_together([requests[number] for number in group], forecaster, dataset)
        for place, number in enumerate(group):
            request = requests[number]
            try:
                series = together[place] if together else _read(request, forecaster, dataset)
                results[number] = _task(request, dataset, series, max_forecasts)
            except RequestError as error:
                results[number] = error
    return [results[number] for number in range(len(requests))]


def _find_dataset(request: ForecastRequest, forecaster: TimeLlamaForecaster) -> TrainedDataset:
    try:
        return forecaster.dataset(request.dataset)
    except UserError as error:
        raise RequestError(422, ("dataset", str(error).removeprefix("dataset "))) from None


def _check_fields(request: ForecastRequest, dataset: TrainedDataset) -> None:
    most = dataset.card.horizon
    if request.horizon is not None and request.horizon > most:
        message = f"must be between 1 and {most}, got {request.horizon}"
        raise RequestError(422, ("horizon", message))
    if request.level and dataset.quantile_KHC is None:
        message = "the model was exported without what intervals are made of"
        raise RequestError(422, ("level", message))
    mistakes = [
        mistake
        for number, series in enumerate(request.series)
        for mistake in _wrong_channels(number, series, dataset.card.channels)
    ]
    if mistakes:
        raise RequestError(422, *mistakes)


def _wrong_channels(
    number: int, series: SeriesIn, channels: Sequence[str]
) -> list[tuple[str, str]]:
    field = f"series[{number}].values"
    absent = [name for name in channels if name not in series.values]
    odd = [name for name in series.values if name not in channels]
    return [(f"{field}.{name}", "is missing: the model forecasts it") for name in absent] + [
        (f"{field}.{name}", f"is no channel of the model; it forecasts {list(channels)}")
        for name in odd
    ]


def _read(
    request: ForecastRequest, forecaster: TimeLlamaForecaster, dataset: TrainedDataset
) -> list[Series]:
    """Read a request's series, in its order.

    Raises:
        RequestError: what is wrong with them.
    """
    names = _names(request, dataset)
    begins = np.cumsum([0, *(len(series.ds) for series in request.series[:-1])])
    origin = _RequestRows(("series",), first_rows=tuple(begins.tolist()))
    try:
        table = _table(request.series, names, forecaster, dataset, origin)
    except UserError as error:
        field, _, message = str(error).partition(": ")
        raise RequestError(422, (field, message)) from None
    by_name = {series.unique_id: series for series in table.series}
    return [by_name[name] for name in names]


def _read_together(
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
        [replace(next(in_order), unique_id=name) for name in _names(request, dataset)]
        for request in requests
    ]


def _names(request: ForecastRequest, dataset: TrainedDataset) -> Sequence[str]:
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


def _task(
    request: ForecastRequest, dataset: TrainedDataset, series: list[Series], max_forecasts: int
) -> Task:
    card = dataset.card
    for number, own in enumerate(series):
        try:
            dataset.scaler(own.unique_id, dataset.context(own))
        except UserError as error:
            raise RequestError(422, (f"series[{number}].values", str(error))) from None
    if request.level:
        _check_count(request, dataset, series, max_forecasts)
    return Task(
        dataset=dataset,
        series=series,
        unique_ids=[
            asked.unique_id or own.unique_id
            for asked, own in zip(request.series, series, strict=True)
        ],
        times_BH=_times(series, card.frequency, request.horizon or card.horizon),
        levels=request.level,
        recent=request.recent,
    )


def _check_count(
    request: ForecastRequest, dataset: TrainedDataset, series: list[Series], max_forecasts: int
) -> None:
    """Refuse intervals that would take more forecasts than a request may."""
    total = len(series)
    for own in series:
        cutoffs = cutoffs_before(len(own.values), dataset.card.horizon, request.recent)
        total += int((cutoffs >= dataset.least_rows).sum())
    if total > max_forecasts:
        message = (
            f"intervals that follow the past's errors would take {total} forecasts, at most "
            f"{max_forecasts}: send fewer series or rows, or say recent: 0"
        )
        raise RequestError(422, ("level", message))


def _times(series: Sequence[Series], frequency: str, steps: int) -> Times:
    lasts = np.array([own.timestamps[-1] for own in series])
    try:
        times_BH = future_times(lasts, frequency, steps)
    except (ValueError, OverflowError):
        times_BH = np.full((len(series), 1), np.datetime64("NaT"))
    # Beyond, ISO 8601 has no four digits for the year.
    bad = np.flatnonzero(
        np.isnat(times_BH[:, -1]) | ~(times_BH[:, -1] < np.datetime64("10000-01-01"))
    )
    if bad.size:
        raise RequestError(
            422, (f"series[{bad[0]}].ds", f"the steps after {lasts[bad[0]]} have no times")
        )
    return times_BH
