"""From requests that fit the schema to forecasts: the model's own checks, and batches of many.

Shapes: B series, H horizon, C channels.
"""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pandas.tseries.frequencies import to_offset
from pandas.tseries.offsets import Day, Tick

from timellama_dist.data.tables.columns import ID_COLUMN, TIME_COLUMN
from timellama_dist.data.tables.long_form import Times, future_times
from timellama_dist.data.tables.origin import Origin
from timellama_dist.data.tables.series import Series, Table
from timellama_dist.errors import UserError
from timellama_dist.forecast.forecaster import KnownSet, TimeLlamaForecaster, table_options
from timellama_dist.model.intervals import cutoffs_before
from timellama_dist.serve.requests import (
    ForecastRequest,
    ForecastResponse,
    RequestError,
    SeriesIn,
    SeriesOut,
)

_UNNAMED = "series"


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """A request that has passed all checks."""

    known: KnownSet
    series: list[Series]
    """In the request's order."""
    unique_ids: list[str]
    """What the answer calls them."""
    times_BH: Times
    levels: list[float]
    recent: int


@dataclass(frozen=True)
class _RequestRows(Origin):
    """Rows of a request, told as its fields."""

    first_rows: tuple[int, ...] = ()
    """Where each series begins in the frame."""

    def where(self, code: int) -> str:
        number = bisect_right(self.first_rows, code) - 1
        return f"series[{number}]: row {code - self.first_rows[number] + 1}"


def check_requests(
    requests: Sequence[ForecastRequest], forecaster: TimeLlamaForecaster, max_forecasts: int
) -> list[Task | RequestError]:
    """Check what only the model can tell, as `TimeLlamaForecaster.predict` does.

    Args:
        requests: that fit the schema.
        forecaster: the model.
        max_forecasts: for one request.

    Returns:
        For each what is to be forecast, or why it is refused (422).
    """
    found: dict[int, Task | RequestError] = {}
    numbers: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        try:
            known = _known(request, forecaster)
            _check_fields(request, known)
            numbers.setdefault(known.card.name, []).append(number)
        except RequestError as error:
            found[number] = error
    for dataset, those in numbers.items():
        known = forecaster.known(dataset)
        together = _read_together([requests[number] for number in those], forecaster, known)
        for place, number in enumerate(those):
            request = requests[number]
            try:
                series = together[place] if together else _read(request, forecaster, known)
                found[number] = _task(request, known, series, max_forecasts)
            except RequestError as error:
                found[number] = error
    return [found[number] for number in range(len(requests))]


def _known(request: ForecastRequest, forecaster: TimeLlamaForecaster) -> KnownSet:
    try:
        return forecaster.known(request.dataset)
    except UserError as error:
        raise RequestError(422, ("dataset", str(error).removeprefix("dataset "))) from None


def _check_fields(request: ForecastRequest, known: KnownSet) -> None:
    most = known.card.horizon
    if request.horizon is not None and request.horizon > most:
        message = f"must be between 1 and {most}, got {request.horizon}"
        raise RequestError(422, ("horizon", message))
    if request.level and known.quantile_KHC is None:
        message = "the model was exported without what intervals are made of"
        raise RequestError(422, ("level", message))
    mistakes = [
        mistake
        for number, series in enumerate(request.series)
        for mistake in _channels(number, series, known.card.channels)
    ]
    if mistakes:
        raise RequestError(422, *mistakes)


def _channels(number: int, series: SeriesIn, channels: Sequence[str]) -> list[tuple[str, str]]:
    field = f"series[{number}].values"
    absent = [name for name in channels if name not in series.values]
    odd = [name for name in series.values if name not in channels]
    return [(f"{field}.{name}", "is missing: the model forecasts it") for name in absent] + [
        (f"{field}.{name}", f"is no channel of the model; it forecasts {list(channels)}")
        for name in odd
    ]


def _read(
    request: ForecastRequest, forecaster: TimeLlamaForecaster, known: KnownSet
) -> list[Series]:
    """A request's series, in its order.

    Raises:
        RequestError: what is wrong with them.
    """
    names = _names(request, forecaster, known)
    begins = np.cumsum([0, *(len(one.ds) for one in request.series[:-1])])
    origin = _RequestRows(("series",), first_rows=tuple(begins.tolist()))
    try:
        found = _table(request.series, names, forecaster, known, origin).series
    except UserError as error:
        field, _, message = str(error).partition(": ")
        raise RequestError(422, (field, message)) from None
    by_name = {one.unique_id: one for one in found}
    return [by_name[name] for name in names]


def _read_together(
    requests: Sequence[ForecastRequest], forecaster: TimeLlamaForecaster, known: KnownSet
) -> list[list[Series]] | None:
    """The series of many requests, read at once, which takes hardly longer than reading one.

    None if that might say of one what it doesn't say of it alone: if something is wrong, or where
    others could show a step that its own rows leave open.
    """
    series = [one for request in requests for one in request.series]
    fixed = isinstance(to_offset(known.card.frequency), Tick | Day)
    refuses_gaps = known.card.options.get("gaps", "refuse") == "refuse"
    rows = [max(len(one.ds) for one in request.series) for request in requests]
    if len(requests) < 2 or not fixed or not refuses_gaps or min(rows) < 2:
        return None
    try:
        # In the order of these names, which is that of the requests.
        table = _table(series, [f"{n:09d}" for n in range(len(series))], forecaster, known)
    except UserError:
        return None
    found = iter(table.series)
    return [
        [replace(next(found), unique_id=name) for name in _names(request, forecaster, known)]
        for request in requests
    ]


def _names(
    request: ForecastRequest, forecaster: TimeLlamaForecaster, known: KnownSet
) -> Sequence[str]:
    """Names of a request's series; its only one may go by the model's name of its only one."""
    names = [one.unique_id for one in request.series if one.unique_id is not None]
    return names or forecaster.known_ids([_UNNAMED], known.card.name)


def _table(
    series: Sequence[SeriesIn],
    names: Sequence[str],
    forecaster: TimeLlamaForecaster,
    known: KnownSet,
    origin: Origin | None = None,
) -> Table:
    channels = tuple(known.card.channels)
    columns: dict[str, Any] = {
        ID_COLUMN: np.repeat(np.array(names, object), [len(one.ds) for one in series]),
        TIME_COLUMN: [time for one in series for time in one.ds],
    }
    for channel in channels:
        values = [value for one in series for value in one.values[channel]]
        columns[channel] = np.array(values, np.float64)
    # The channels are columns here, even if they were series of the table trained on.
    options = replace(table_options(known.card), series="separate", columns=channels)
    return forecaster.table(pd.DataFrame(columns), options, known.card.name, origin)


def _task(
    request: ForecastRequest, known: KnownSet, series: list[Series], max_forecasts: int
) -> Task:
    card = known.card
    for number, one in enumerate(series):
        try:
            known.scaler(one.unique_id, one.values[-card.context_len :])
        except UserError as error:
            raise RequestError(422, (f"series[{number}].values", str(error))) from None
    if request.level:
        total = len(series)
        for one in series:
            seen = cutoffs_before(len(one.values), card.horizon, request.recent)
            total += int((seen >= known.least_rows).sum())
        if total > max_forecasts:
            message = (
                f"intervals that follow the past's errors would take {total} forecasts, at most "
                f"{max_forecasts}: send fewer series or rows, or say recent: 0"
            )
            raise RequestError(422, ("level", message))
    return Task(
        known=known,
        series=series,
        unique_ids=[
            asked.unique_id or one.unique_id
            for asked, one in zip(request.series, series, strict=True)
        ],
        times_BH=_times(series, card.frequency, request.horizon or card.horizon),
        levels=request.level,
        recent=request.recent,
    )


def _times(series: Sequence[Series], frequency: str, steps: int) -> Times:
    lasts = np.array([one.timestamps[-1] for one in series])
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


def answer(
    requests: Sequence[ForecastRequest],
    forecaster: TimeLlamaForecaster,
    model: str,
    max_forecasts: int,
) -> list[ForecastResponse | RequestError]:
    """Check and forecast requests together.

    Args:
        requests: that fit the schema.
        forecaster: the model.
        model: its fingerprint.
        max_forecasts: for one request.

    Returns:
        For each a response, or why it has no forecast, which is no other's fault.
    """
    found: dict[int, ForecastResponse | RequestError] = {}
    tasks: dict[str, list[tuple[int, Task]]] = {}
    for number, one in enumerate(check_requests(requests, forecaster, max_forecasts)):
        if isinstance(one, RequestError):
            found[number] = one
        else:
            tasks.setdefault(one.known.card.name, []).append((number, one))
    for dataset, those in tasks.items():
        series = [one for _, task in those for one in task.series]
        yhat_BHC = forecaster.forecast_series(series, dataset=dataset)
        ends = np.cumsum([len(task.series) for _, task in those])
        for (number, task), own_BHC in zip(those, np.split(yhat_BHC, ends[:-1]), strict=True):
            try:
                found[number] = _answer_one(task, own_BHC, forecaster, model)
            except UserError as error:
                found[number] = RequestError(422, ("series", str(error)))
    return [found[number] for number in range(len(requests))]


def _answer_one(
    task: Task, yhat_BHC: NDArray[np.float64], forecaster: TimeLlamaForecaster, model: str
) -> ForecastResponse | RequestError:
    card, steps = task.known.card, task.times_BH.shape[1]
    yhat_BHC = yhat_BHC[:, :steps]
    values = {"yhat": yhat_BHC}
    radii = forecaster.radii(task.series, task.levels, card.name, recent=task.recent)
    for level, radius_BHC in radii.items():
        values[f"yhat-lo-{level:g}"] = yhat_BHC - radius_BHC[:, :steps]
        values[f"yhat-hi-{level:g}"] = yhat_BHC + radius_BHC[:, :steps]
    for value_BHC in values.values():
        bad = np.argwhere(~np.isfinite(value_BHC))
        if bad.size:
            number, _, channel = bad[0]
            field = f"series[{number}].values.{card.channels[channel]}"
            return RequestError(422, (field, "such values have no forecast: it isn't finite"))
    forecasts = []
    for number, (name, times_H) in enumerate(zip(task.unique_ids, task.times_BH, strict=True)):
        own = {key: value_BHC[number] for key, value_BHC in values.items()}
        forecasts.append(_series_out(name, times_H, own, card.channels))
    return ForecastResponse(model=model, dataset=card.name, forecasts=forecasts)


def _series_out(
    name: str,
    times_H: Times,
    values: Mapping[str, NDArray[np.float64]],
    channels: Sequence[str],
) -> SeriesOut:
    stamps = np.datetime_as_string(times_H, unit="us").tolist()
    return SeriesOut(
        unique_id=name,
        ds=[re.sub(r"\.000000$", "", stamp) for stamp in stamps],
        values={
            channel: {key: value_HC[:, number].tolist() for key, value_HC in values.items()}
            for number, channel in enumerate(channels)
        },
    )
