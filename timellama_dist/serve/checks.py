"""Checks what only the model can tell of a request: its channels, step, rows and limits.

Shapes: B series, H horizon.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from timellama_dist.data.tables.long_form import Times, future_times
from timellama_dist.data.tables.series import Series
from timellama_dist.errors import UserError
from timellama_dist.forecast.datasets import TrainedDataset
from timellama_dist.forecast.forecaster import TimeLlamaForecaster
from timellama_dist.model.intervals import cutoffs_before
from timellama_dist.serve.reading import read_series, read_together
from timellama_dist.serve.requests import ForecastRequest, RequestError, SeriesIn


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
        together = read_together([requests[number] for number in group], forecaster, dataset)
        for place, number in enumerate(group):
            request = requests[number]
            try:
                series = together[place] if together else read_series(request, forecaster, dataset)
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
