"""The HTTP side of the server: routes, limits and errors; it knows neither Ray nor the model."""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from timellama_dist.serve.requests import (
    ForecastRequest,
    ForecastResponse,
    Problem,
    RequestError,
    parse_request,
)
from timellama_dist.serve.settings import ServeConfig

Ask = Callable[[ForecastRequest], Awaitable[bytes]]
Describe = Callable[[], Awaitable[dict[str, Any]]]

_JSON = "application/json"
_RETRY_AFTER_S = "1"
_SCHEMAS = "#/components/schemas/{model}"
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body is not JSON."},
    413: {"model": Problem, "description": "The body is too large."},
    415: {"model": Problem, "description": "The body is not said to be JSON."},
    422: {"model": Problem, "description": "A field is wrong; which is said."},
    503: {
        "model": Problem,
        "description": "Too many wait, or no model is up: come again.",
    },
    504: {"model": Problem, "description": "It took too long."},
}
_DESCRIPTION = """Forecasts of a trained Time-LlaMA. `POST /forecast` takes the past of some series
and gives what `TimeLlamaForecaster.predict` gives. At most {max_series} series and {max_body_bytes}
bytes a request; each series needs as many rows as `context_len` of `GET /ready`."""


def build_api(config: ServeConfig, ask: Ask, describe: Describe) -> FastAPI:
    """Build the routes of a server.

    Args:
        config: its limits.
        ask: gives a `ForecastResponse` as JSON; raises `RequestError`.
        describe: what the model says of itself; raises `RequestError` if it isn't loaded.
    """
    api = FastAPI(
        title="Time-LlaMA",
        description=_DESCRIPTION.format(
            max_series=config.max_series, max_body_bytes=config.max_body_bytes
        ),
    )
    api.add_exception_handler(RequestError, _refuse)
    api.add_exception_handler(HTTPException, _refuse_route)

    @api.get("/health", summary="Is the server alive?")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @api.get("/ready", summary="Is the model loaded, and which?", responses={503: _PROBLEMS[503]})
    async def ready() -> dict[str, Any]:
        return await describe()

    @api.post(
        "/forecast",
        summary="Forecast the steps after the last row of each series.",
        response_model=ForecastResponse,
        responses=_PROBLEMS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {_JSON: {"schema": {"$ref": _SCHEMAS.format(model="ForecastRequest")}}},
            }
        },
    )
    async def forecast(request: Request) -> Response:
        body = await _read_json(request, config.max_body_bytes)
        return Response(await ask(parse_request(body, config.max_series)), media_type=_JSON)

    _declare_request(api)
    return api


async def _read_json(request: Request, most: int) -> bytes:
    """Read the body, and never hold more of it than is allowed.

    Raises:
        RequestError: not JSON by its header, or too large.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != _JSON:
        raise RequestError(415, ("content-type", f"must be {_JSON}, got {kind!r}"))
    too_large = RequestError(413, ("body", f"at most {most} bytes"))
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_large
    return bytes(body)


async def _refuse(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    headers = {"retry-after": _RETRY_AFTER_S} if error.status == 503 else None
    return JSONResponse(error.content, error.status, headers)


async def _refuse_route(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    field = "method" if error.status_code == 405 else "path"
    content = RequestError(error.status_code, (field, str(error.detail))).content
    return JSONResponse(content, error.status_code, error.headers)


def _declare_request(api: FastAPI) -> None:
    """Put the request's schema, which is read here without FastAPI, among its schemas."""
    generate = api.openapi

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            own = ForecastRequest.model_json_schema(ref_template=_SCHEMAS)
            schemas = generate()["components"]["schemas"]
            schemas |= own.pop("$defs") | {"ForecastRequest": own}
        assert api.openapi_schema is not None
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]
