"""The server's routes with a model behind them, without Ray: what is answered, what is refused."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient

from tests.support.forecasters import CONTEXT, HORIZON, SCALERS, forecaster, long_frame
from timellama_dist.cli.serve import main
from timellama_dist.data.prepared.scaling import Scaler
from timellama_dist.errors import ConfigError
from timellama_dist.forecast.forecaster import TimeLlamaForecaster
from timellama_dist.serve.api import build_api
from timellama_dist.serve.forecasts import answer
from timellama_dist.serve.requests import ForecastRequest, RequestError, parse_request
from timellama_dist.serve.settings import ServeConfig

MOST_BYTES = 20_000
ONE = {"ds": ["2024-01-01"], "values": {"a": [1]}}


def asked(frame: pd.DataFrame) -> dict[str, Any]:
    """A frame of `long_frame` as a request."""
    series = []
    for name, rows in frame.groupby("unique_id", sort=False):
        values = rows[["a", "b"]].astype(object).where(rows[["a", "b"]].notna(), None)
        times = rows["ds"].dt.strftime("%Y-%m-%dT%H:%M:%S").tolist()
        series.append({"unique_id": name, "ds": times, "values": values.to_dict("list")})
    return {"series": series}


def long_form(content: dict[str, Any]) -> pd.DataFrame:
    """An answer as `predict` gives it."""
    parts = []
    for forecast in content["forecasts"]:
        for channel, values in forecast["values"].items():
            names = {"unique_id": forecast["unique_id"], "ds": pd.to_datetime(forecast["ds"])}
            parts.append(pd.DataFrame({**names, "channel": channel, **values}))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def own(tiny_llama: Path) -> TimeLlamaForecaster:
    return forecaster(tiny_llama, missing="mask")


@pytest.fixture(scope="module")
def client(own: TimeLlamaForecaster) -> TestClient:
    config = ServeConfig(
        model="m", max_body_bytes=MOST_BYTES, max_series=3, max_forecasts=20, timeout_s=5
    )

    async def ask(request: ForecastRequest) -> bytes:
        (actual,) = answer([request], own, "f" * 16, config.max_forecasts)
        if isinstance(actual, RequestError):
            raise actual
        return actual.model_dump_json().encode()

    async def describe() -> dict[str, Any]:
        raise RequestError(503, ("server", "no copy of the model is up"))

    return TestClient(build_api(config, ask, describe), raise_server_exceptions=False)


def test_an_answer_holds_what_predict_gives(client: TestClient, own: TimeLlamaForecaster) -> None:
    frame = long_frame(CONTEXT + HORIZON + 2)
    reply = client.post("/forecast", json=asked(frame) | {"level": [80, 95], "recent": 3})
    assert reply.status_code == 200
    assert reply.json()["model"] == "f" * 16
    expected = own.predict(frame, level=[80, 95], recent=3)
    pd.testing.assert_frame_equal(long_form(reply.json()), expected, check_dtype=False)
    reply = client.post("/forecast", json=asked(frame) | {"horizon": 2})
    pd.testing.assert_frame_equal(long_form(reply.json()), own.predict(frame, 2), check_dtype=False)


def test_forecasts_come_in_the_order_of_the_request(client: TestClient) -> None:
    request = asked(long_frame())
    request["series"].reverse()
    actual = client.post("/forecast", json=request).json()["forecasts"]
    assert [forecast["unique_id"] for forecast in actual] == ["y", "x"]


def test_the_only_series_needs_no_name(tiny_llama: Path) -> None:
    own = forecaster(tiny_llama, {"table": SCALERS["x"]}, missing="mask")
    request = asked(long_frame())
    del request["series"][1:], request["series"][0]["unique_id"]
    wide = long_frame().query("unique_id == 'x'").drop(columns="unique_id")
    (actual,) = answer([parse_request(json.dumps(request).encode(), 1)], own, "m", 1)
    assert not isinstance(actual, RequestError)
    pd.testing.assert_frame_equal(
        long_form(actual.model_dump()), own.predict(wide), check_dtype=False
    )


def test_a_name_that_the_model_does_not_know_is_of_another_series(tiny_llama: Path) -> None:
    own = forecaster(tiny_llama, {"x": SCALERS["x"]}, missing="mask")
    frame = long_frame().query("unique_id == 'y'")
    request = parse_request(json.dumps(asked(frame)).encode(), 1)
    for actual in (*answer([request], own, "m", 1), *answer([request, request], own, "m", 1)):
        assert not isinstance(actual, RequestError)
        pd.testing.assert_frame_equal(
            long_form(actual.model_dump()), own.predict(frame), check_dtype=False
        )


def test_series_that_were_channels_of_one_table_are_channels_here(tiny_llama: Path) -> None:
    names = ["x:a", "x:b", "y:a", "y:b"]
    scaler = Scaler(np.zeros(4), np.ones(4))
    own = forecaster(
        tiny_llama, {"table": scaler}, " ".join(names), series="channels", missing="mask"
    )
    frame = long_frame()
    parts = [part.reset_index(drop=True) for _, part in frame.groupby("unique_id")]
    columns = [part[name] for part in parts for name in "ab"]
    values = {
        name: [None if pd.isna(value) else value for value in column]
        for name, column in zip(names, columns, strict=True)
    }
    times = parts[0]["ds"].dt.strftime("%Y-%m-%d %H:%M").tolist()
    request = {"series": [{"ds": times, "values": values}]}
    (actual,) = answer([parse_request(json.dumps(request).encode(), 1)], own, "m", 1)
    assert not isinstance(actual, RequestError)
    np.testing.assert_array_equal(
        long_form(actual.model_dump())["yhat"], own.predict(frame)["yhat"]
    )


def change(path: str, value: Any) -> dict[str, Any]:
    """A good request with one field replaced; `...` takes it away."""
    request: Any = asked(long_frame()) | {"horizon": 2, "level": [80]}
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    place = request
    for key in parents:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return request


@pytest.mark.parametrize(
    ("path", "value", "field", "message"),
    [
        ("series", ..., "series", "Field required"),
        ("series", [], "series", "at least 1 item"),
        ("series", {}, "series", "valid array"),
        (
            "series",
            [{"ds": ["2024-01-01"], "values": {"a": [1]}}] * 4,
            "series",
            "at most 3 .* got 4",
        ),
        ("series.1.unique_id", "x", "series[1].unique_id", "'x' is there 2 times"),
        ("series.1.unique_id", None, "series[1].unique_id", "must be given where"),
        ("series.0.unique_id", 7, "series[0].unique_id", "valid string"),
        ("series.0.unique_id", "", "series[0].unique_id", "at least 1 character"),
        ("series.0.ds.3", "noon", "series[0].ds[3]", "should match pattern"),
        ("series.0.ds.3", "01/02/2024", "series[0].ds[3]", "should match pattern"),
        ("series.0.ds.3", "2024-02-30", "series[0]", "row 4: .* '2024-02-30', .* not a time"),
        ("series.0.ds.3", "2024-01-01T03:00Z", "series[0]", "row 4: .*with a UTC offset"),
        ("series.1.ds.3", None, "series[1].ds[3]", "valid string"),
        ("series.1.ds.3", "2024-01-01T02:00:00", "series[1]", "row 4: .*2024-01-01 02:00"),
        ("series.1.ds.3", 3, "series[1].ds[3]", "valid string"),
        ("series.0.ds.14", "2200-01-01T00:00:00", "series[0]", "row 15: .*step"),
        ("series.0.values.a", ..., "series[0].values.a", "is missing: the model forecasts it"),
        ("series.0.values.a", [1.0], "series[0].values.a", "1 values for the 15 times of ds"),
        ("series.0.values.c", [1.0] * 15, "series[0].values.c", "is no channel of the model"),
        ("series.1.values.b.2", "1", "series[1].values.b[2]", "valid number"),
        ("series.1.values.b.2", True, "series[1].values.b[2]", "valid number"),
        ("series.1.values.b.2", float("nan"), "series[1].values.b[2]", "finite number"),
        ("series.1.values.b.2", float("-inf"), "series[1].values.b[2]", "finite number"),
        ("series.0.value", {}, "series[0].value", "Extra inputs are not permitted"),
        ("horizons", 3, "horizons", "Extra inputs are not permitted"),
        ("horizon", 0, "horizon", "greater than or equal to 1"),
        ("horizon", 5, "horizon", "must be between 1 and 4, got 5"),
        ("horizon", 10**30, "horizon", "must be between 1 and 4"),
        ("horizon", "2", "horizon", "valid integer"),
        ("level", [0], "level[0]", "greater than 0"),
        ("level", [99.5], "level[0]", "less than or equal to 99"),
        ("level", 80, "level", "valid array"),
        ("recent", 43, "recent", "less than or equal to 42"),
        ("dataset", "cars", "dataset", "must be one of table, got 'cars'"),
    ],
)
def test_a_mistake_is_told_with_its_field(
    path: str, value: Any, field: str, message: str, client: TestClient
) -> None:
    # Written as Python writes NaN, which no other writer of JSON does.
    body = json.dumps(change(path, value))
    reply = client.post("/forecast", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422, reply.text
    first = reply.json()["detail"][0]
    assert first["field"] == field
    assert re.search(message, first["message"]), first


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Invalid JSON"),
        (b"{", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b'{"series": "\xed\xa0\x80"}', "Invalid JSON"),
        (b"[" * 5000, "recursion limit"),
    ],
)
def test_what_is_no_json_is_refused(body: bytes, message: str, client: TestClient) -> None:
    reply = client.post("/forecast", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert message in reply.json()["detail"][0]["message"]


def test_a_large_body_is_refused_before_it_is_read(client: TestClient) -> None:
    sent = 0

    def chunks() -> Any:
        nonlocal sent
        for _ in range(100):
            sent += 1000
            yield b" " * 1000

    headers = {"content-type": "application/json"}
    for length in ({}, {"content-length": "100000"}):
        reply = client.post("/forecast", content=chunks(), headers=headers | length)
        assert reply.status_code == 413
        assert reply.json() == {"detail": [{"field": "body", "message": "at most 20000 bytes"}]}


def test_too_much_work_is_refused(client: TestClient) -> None:
    reply = client.post("/forecast", json=asked(long_frame(70)) | {"level": [80]})
    assert reply.status_code == 422
    message = reply.json()["detail"][0]["message"]
    assert "would take 30 forecasts, at most 20: send fewer series or rows" in message
    assert client.post("/forecast", json=asked(long_frame(70))).status_code == 200


def test_other_mistakes_have_the_same_form(client: TestClient) -> None:
    for reply, status, field in (
        (client.get("/forecasts"), 404, "path"),
        (client.get("/forecast"), 405, "method"),
        (client.post("/forecast", content=b"{}"), 415, "content-type"),
        (client.get("/ready"), 503, "server"),
    ):
        assert reply.status_code == status
        assert reply.json()["detail"][0]["field"] == field
    assert client.get("/ready").headers["retry-after"] == "1"
    assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("value", "message"),
    [(1e308, "their standard deviation overflows"), (1e200, "overflows|isn't finite")],
)
def test_values_that_have_no_forecast_are_refused_and_are_no_other_s_fault(
    value: float, message: str, own: TimeLlamaForecaster
) -> None:
    request = asked(long_frame())
    request["series"][0]["unique_id"] = "unseen"
    request["series"][0]["values"]["a"][-1] = value
    asks = [request, asked(long_frame()), request]
    parsed = [parse_request(json.dumps(request).encode(), 9) for request in asks]
    actual = answer(parsed, own, "m", 9)
    errors = [result for result in actual if isinstance(result, RequestError)]
    (good,) = [result for result in actual if not isinstance(result, RequestError)]
    for error in errors:
        assert error.status == 422
        assert error.mistakes[0][0].startswith("series[0].values")
        assert re.search(message, error.mistakes[0][1])
    np.testing.assert_allclose(
        long_form(good.model_dump())["yhat"], own.predict(long_frame())["yhat"], rtol=1e-5
    )


def test_requests_read_together_are_answered_as_each_alone(own: TimeLlamaForecaster) -> None:
    wrong = asked(long_frame())
    del wrong["series"][1]["ds"][4]
    for values in wrong["series"][1]["values"].values():
        del values[4]
    other_step = asked(long_frame())
    for series in other_step["series"]:
        series["ds"] = pd.date_range("2024-01-01", periods=15).strftime("%Y-%m-%d").tolist()
    named = asked(long_frame(20)) | {"horizon": 1, "level": [50], "recent": 2}
    del named["series"][0]
    good = [asked(long_frame()), named, {**asked(long_frame(13)), "dataset": "table"}]
    for asks in (good, [*good, wrong], [wrong, *good, other_step], [other_step, wrong]):
        parsed = [parse_request(json.dumps(request).encode(), 9) for request in asks]
        together = answer(parsed, own, "m", 99)
        for request, response in zip(parsed, together, strict=True):
            (alone,) = answer([request], own, "m", 99)
            if isinstance(alone, RequestError):
                assert isinstance(response, RequestError)
                assert response.mistakes == alone.mistakes
                continue
            assert not isinstance(response, RequestError)
            pd.testing.assert_frame_equal(
                long_form(response.model_dump()), long_form(alone.model_dump()), rtol=1e-4
            )


def test_times_beyond_the_calendar_are_refused(client: TestClient) -> None:
    request = asked(long_frame())
    for series in request["series"]:
        series["ds"] = [f"9999-12-31T{hour:02d}:00:00" for hour in range(9, 24)]
    reply = client.post("/forecast", json=request)
    assert reply.status_code == 422
    assert reply.json()["detail"][0]["field"] == "series[0].ds"


def test_an_answer_never_grows_with_what_is_wrong(client: TestClient) -> None:
    for request in (
        {f"unknown {n}": n for n in range(900)},
        {"series": [{"ds": ["x" * 39] * 300, "values": {"a": ["x"] * 300, "b": []}}]},
        {"series": [], "y" * 15_000: 1},
    ):
        reply = client.post("/forecast", json=request)
        assert reply.status_code == 422
        assert len(reply.content) < 10_000


def test_the_page_describes_requests_and_every_reference_resolves(client: TestClient) -> None:
    content = client.get("/openapi.json").json()
    post = content["paths"]["/forecast"]["post"]
    schema = post["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ForecastRequest"}
    schemas = content["components"]["schemas"]
    for name in set(re.findall(r'"\$ref": "#/components/schemas/(\w+)"', json.dumps(content))):
        assert name in schemas
    assert schemas["SeriesIn"]["additionalProperties"] is False
    assert set(post["responses"]) == {"200", "400", "413", "415", "422", "503", "504"}
    assert "At most 3 series and 20000" in content["info"]["description"]
    assert client.get("/docs").status_code == 200


def test_an_error_goes_from_process_to_process() -> None:
    error = pickle.loads(pickle.dumps(RequestError(422, ("a", "b"), ("c", "d"))))
    assert error.content == RequestError(422, ("a", "b"), ("c", "d")).content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "model must be given"),
        ({"port": 0}, "port must be between 1 and 65535, got 0"),
        ({"replicas": 0}, "replicas must be at least 1, got 0"),
        ({"max_queued": -1}, "max_queued must be at least 0, got -1"),
        ({"timeout_s": 0.0}, r"timeout_s must be above 0, got 0\.0"),
    ],
)
def test_a_server_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        ServeConfig(**{"model": "m"} | changes)


def test_a_missing_model_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", str(tmp_path / "none")]) == 2
    assert "model must be the folder of an exported model" in capsys.readouterr().err
