"""Answers requests that fit the schema, in batches of many.

Shapes: B series, H horizon, C channels.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from timellama_dist.data.tables.long_form import Times
from timellama_dist.errors import UserError
from timellama_dist.forecast.forecaster import TimeLlamaForecaster, with_bounds
from timellama_dist.serve.checks import Task, check_requests
from timellama_dist.serve.requests import (
    ForecastRequest,
    ForecastResponse,
    RequestError,
    SeriesOut,
)


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
        model: the model's fingerprint.
        max_forecasts: for one request.

    Returns:
        For each request a response, or why it has no forecast; a bad request spoils no other.
    """
    answers: dict[int, ForecastResponse | RequestError] = {}
    tasks: dict[str, list[tuple[int, Task]]] = {}
    for number, result in enumerate(check_requests(requests, forecaster, max_forecasts)):
        if isinstance(result, RequestError):
            answers[number] = result
        else:
            tasks.setdefault(result.dataset.card.name, []).append((number, result))
    for name, group in tasks.items():
        series = [own for _, task in group for own in task.series]
        yhat_BHC = forecaster.forecast_series(series, dataset=name)
        ends = np.cumsum([len(task.series) for _, task in group])
        for (number, task), own_BHC in zip(group, np.split(yhat_BHC, ends[:-1]), strict=True):
            try:
                answers[number] = _response(task, own_BHC, forecaster, model)
            except UserError as error:
                answers[number] = RequestError(422, ("series", str(error)))
    return [answers[number] for number in range(len(requests))]


def _response(
    task: Task, yhat_BHC: NDArray[np.float64], forecaster: TimeLlamaForecaster, model: str
) -> ForecastResponse | RequestError:
    card, steps = task.dataset.card, task.times_BH.shape[1]
    radii = forecaster.radii(task.series, task.levels, card.name, recent=task.recent)
    columns = with_bounds(yhat_BHC[:, :steps], radii)
    for value_BHC in columns.values():
        bad = np.argwhere(~np.isfinite(value_BHC))
        if bad.size:
            number, _, channel = bad[0]
            field = f"series[{number}].values.{card.channels[channel]}"
            return RequestError(422, (field, "such values have no forecast: it isn't finite"))
    forecasts = []
    for number, (name, times_H) in enumerate(zip(task.unique_ids, task.times_BH, strict=True)):
        own = {key: value_BHC[number] for key, value_BHC in columns.items()}
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
