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

from timellama_dist.data.long_form import Times, future_times
from timellama_dist.data.parsing import ID_COLUMN, TIME_COLUMN, Origin
from timellama_dist.data.series import Series
from timellama_dist.errors import UserError
from timellama_dist.forecaster import KnownSet, TimeLlamaForecaster, table_options
from timellama_dist.launch.serve_requests import (
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


def check_request(
    request: ForecastRequest, forecaster: TimeLlamaForecaster, max_forecasts: int
) -> Task:
    """Check what only the model can tell, as `TimeLlamaForecaster.predict` does.

    Raises:
        RequestError: 422, naming the field.
    """
    known = _known(request, forecaster)
    card = known.card
    steps = card.horizon if request.horizon is None else request.horizon
    if steps > card.horizon:
        raise RequestError(422, ("horizon", f"must be between 1 and {card.horizon}, got {steps}"))
    if request.level and known.quantile_KHC is None:
        raise RequestError(
            422, ("level", "the model was exported without what intervals are made of")
        )
    mistakes = [
        one
        for n, series in enumerate(request.series)
        for one in _channels(n, series, card.channels)
    ]
    if mistakes:
        raise RequestError(422, *mistakes)
    series, unique_ids = _series(request, forecaster, known)
    for number, one in enumerate(series):
        try:
            known.scaler(one.unique_id, one.values[-card.context_len :])
        except UserError as error:
            raise RequestError(422, (f"series[{number}].values", str(error))) from None
    if request.level:
        past = [len(one.values) - card.horizon - known.least_rows + 1 for one in series]
        total = len(series) + sum(min(max(rows, 0), request.recent) for rows in past)
        if total > max_forecasts:
            message = (
                f"intervals that follow the past's errors would take {total} forecasts, at most "
                f"{max_forecasts}: send fewer series or rows, or say recent: 0"
            )
            raise RequestError(422, ("level", message))
    return Task(
        known=known,
        series=series,
        unique_ids=unique_ids,
        times_BH=_times(series, card.frequency, steps),
        levels=request.level,
        recent=request.recent,
    )


def _known(request: ForecastRequest, forecaster: TimeLlamaForecaster) -> KnownSet:
    try:
        return forecaster.known(request.dataset)
    except UserError as error:
        raise RequestError(422, ("dataset", str(error).removeprefix("dataset "))) from None


def _channels(number: int, series: SeriesIn, channels: Sequence[str]) -> list[tuple[str, str]]:
    field = f"series[{number}].values"
    absent = [name for name in channels if name not in series.values]
    odd = [name for name in series.values if name not in channels]
    return [(f"{field}.{name}", "is missing: the model forecasts it") for name in absent] + [
        (f"{field}.{name}", f"is no channel of the model; it forecasts {list(channels)}")
        for name in odd
    ]


def _series(
    request: ForecastRequest, forecaster: TimeLlamaForecaster, known: KnownSet
) -> tuple[list[Series], list[str]]:
    """The series in the request's order, and what the answer calls them."""
    asked = request.series
    names = [one.unique_id or _UNNAMED for one in asked]
    lengths = [len(one.ds) for one in asked]
    columns: dict[str, Any] = {
        ID_COLUMN: np.repeat(np.array(names, object), lengths),
        TIME_COLUMN: [time for one in asked for time in one.ds],
    }
    for channel in known.card.channels:
        columns[channel] = np.array(
            [value for one in asked for value in one.values[channel]], np.float64
        )
    # The channels are columns here, even if they were series of the table trained on.
    options = replace(
        table_options(known.card), series="separate", columns=tuple(known.card.channels)
    )
    origin = _RequestRows(("series",), first_rows=tuple(np.cumsum([0, *lengths[:-1]]).tolist()))
    try:
        table = forecaster.table(pd.DataFrame(columns), options, known.card.name, origin)
    except UserError as error:
        field, _, message = str(error).partition(": ")
        raise RequestError(422, (field, message)) from None
    found = dict(zip(table.unique_ids, table.series, strict=True))
    if len(asked) == 1:
        # It may go by the name that the model knows its only series by.
        ((own, only),) = found.items()
        return [only], [asked[0].unique_id or own]
    return [found[name] for name in names], names


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
    tasks: Sequence[Task], forecaster: TimeLlamaForecaster, model: str
) -> list[ForecastResponse | RequestError]:
    """Forecast many requests together.

    Args:
        tasks: of any data sets.
        forecaster: the model.
        model: its fingerprint.

    Returns:
        For each a response, or why it has no forecast, which is no other's fault.
    """
    numbers: dict[str, list[int]] = {}
    for number, task in enumerate(tasks):
        numbers.setdefault(task.known.card.name, []).append(number)
    found: dict[int, ForecastResponse | RequestError] = {}
    for dataset, those in numbers.items():
        series = [one for number in those for one in tasks[number].series]
        yhat_BHC = forecaster.forecast_series(series, dataset=dataset)
        ends = np.cumsum([len(tasks[number].series) for number in those])
        for number, own_BHC in zip(those, np.split(yhat_BHC, ends[:-1]), strict=True):
            try:
                found[number] = _answer_one(tasks[number], own_BHC, forecaster, model)
            except UserError as error:
                found[number] = RequestError(422, ("series", str(error)))
    return [found[number] for number in range(len(tasks))]


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
