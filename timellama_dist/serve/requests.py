"""The JSON schema of requests and answers, and what is wrong with a request.

What only the model can tell (its channels, its step, how much past it needs) is checked in
`checks`.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from timellama_dist.model.intervals import RECENT

_MOST_NAMED = 10
"""Mistakes that one answer names."""
_LONGEST = 300
"""Characters of one."""

_ISO_8601 = r"^\d{4}-\d{2}-\d{2}([T ]\d{2}(:\d{2}(:\d{2}(\.\d{1,9})?)?)?(Z|[+-]\d{2}:?\d{2})?)?$"

Name = Annotated[str, Field(min_length=1, max_length=256)]
Time = Annotated[str, Field(pattern=_ISO_8601, max_length=40)]
Value = Annotated[float, Field(allow_inf_nan=False)] | None


class SeriesIn(BaseModel):
    """The past of one series, a list for each column."""

    model_config = ConfigDict(extra="forbid", strict=True)

    unique_id: Name | None = Field(
        default=None,
        description="Its name; the scaler of a series seen in training is found by it. May be left "
        "out where there is but one.",
    )
    ds: Annotated[list[Time], Field(fail_fast=True)] = Field(
        min_length=1, description="Times of the rows, ISO 8601."
    )
    values: Annotated[
        dict[Name, Annotated[list[Value], Field(fail_fast=True)]], Field(min_length=1)
    ] = Field(
        description="By the model's channels, as many values as there are times; null is missing."
    )


class ForecastRequest(BaseModel):
    """A request: the series to forecast, how far, with which intervals."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={
            "examples": [
                {
                    "series": [
                        {
                            "unique_id": "shop 7",
                            "ds": ["2024-01-01T00:00:00", "2024-01-01T01:00:00"],
                            "values": {"sales": [12.0, 15.5]},
                        }
                    ],
                    "horizon": 24,
                    "level": [80],
                }
            ]
        },
    )

    series: Annotated[list[SeriesIn], Field(fail_fast=True)] = Field(min_length=1)
    horizon: int | None = Field(
        default=None, ge=1, description="Steps, at most the model's; all if not given."
    )
    level: list[Annotated[float, Field(gt=0, le=99)]] = Field(
        default=[], max_length=10, description="Percents of prediction intervals, such as 80."
    )
    recent: int = Field(
        default=RECENT,
        ge=0,
        le=RECENT,
        description="Intervals follow the errors of that many forecasts of the series' own past.",
    )
    dataset: Name | None = Field(
        default=None, description="Which of the model's data sets the series are like."
    )


class SeriesOut(BaseModel):
    """The forecast of one series."""

    unique_id: str
    ds: list[str] = Field(description="Times of the steps, in UTC where the request's had offsets.")
    values: dict[str, dict[str, list[float]]] = Field(
        description="By channel: yhat, and yhat-lo-80, yhat-hi-80 for a level of 80."
    )


class ForecastResponse(BaseModel):
    """Forecasts in the order of the request's series."""

    model: str = Field(description="The exported model's fingerprint.")
    dataset: str
    forecasts: list[SeriesOut]


class Mistake(BaseModel):
    """One thing that is wrong."""

    field: str = Field(description="Where, such as series[0].values.sales[3].")
    message: str


class Problem(BaseModel):
    """The answer without a forecast: what is wrong."""

    detail: list[Mistake]


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        mistakes: field and message of each.
    """

    def __init__(self, status: int, *mistakes: tuple[str, str]) -> None:
        super().__init__(status, *mistakes)
        self.status = status
        self.mistakes = mistakes

    @property
    def content(self) -> dict[str, Any]:
        """The mistakes as a `Problem`."""
        return {
            "detail": [
                {"field": _short(field), "message": _short(message)}
                for field, message in self.mistakes[:_MOST_NAMED]
            ]
        }


def parse_request(body: bytes, max_series: int) -> ForecastRequest:
    """Read a request.

    Raises:
        RequestError: no JSON (400), or not as the schema says (422); names the fields.
    """
    try:
        request = ForecastRequest.model_validate_json(body)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        if errors[0]["type"] == "json_invalid":
            raise RequestError(400, ("body", errors[0]["msg"])) from None
        raise RequestError(
            422, *((_field(mistake["loc"]), mistake["msg"]) for mistake in errors[:_MOST_NAMED])
        ) from None
    mistakes = list(_mismatches(request, max_series))
    if mistakes:
        raise RequestError(422, *mistakes)
    return request


def _mismatches(request: ForecastRequest, max_series: int) -> Iterable[tuple[str, str]]:
    """Find the mistakes that the schema cannot describe."""
    if len(request.series) > max_series:
        yield "series", f"at most {max_series} in a request, got {len(request.series)}"
    names = [series.unique_id for series in request.series]
    if None in names and len(names) > 1:
        yield f"series[{names.index(None)}].unique_id", "must be given where there are several"
    for name, count in Counter(names).items():
        if count > 1 and name is not None:
            second = names.index(name, names.index(name) + 1)
            yield f"series[{second}].unique_id", f"{name!r} is there {count} times"
    for number, series in enumerate(request.series):
        for channel, values in series.values.items():
            if len(values) != len(series.ds):
                yield (
                    f"series[{number}].values.{channel}",
                    f"{len(values)} values for the {len(series.ds)} times of ds",
                )


def _field(loc: tuple[int | str, ...]) -> str:
    """Write pydantic's ("series", 0, "values", "sales", 3) as `series[0].values.sales[3]`."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".") or "body"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
