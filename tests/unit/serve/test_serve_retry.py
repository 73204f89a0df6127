"""The proxy's middleware before replicas that die."""

import asyncio
from importlib import import_module
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from timellama_dist.serve import retry as serve_retry
from timellama_dist.serve.retry import PROXY_CALLBACK, RetryDeadReplicas


class Dying:
    """An application that says nothing, or half of it, as often as told, and then answers."""

    def __init__(self, deaths: int, half: bool = False) -> None:
        self.deaths, self.half = deaths, half
        self.bodies: list[bytes] = []
        self.headers: list[Any] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        self.headers = scope["headers"]
        scope["path"] = "changed"
        dies = len(self.bodies) <= self.deaths
        if not dies or self.half:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if not dies:
            await send({"type": "http.response.body", "body": b"one ", "more_body": True})
            await send({"type": "http.response.body", "body": b"two"})


def run(app: Any, messages: list[Message], headers: Any = ()) -> list[Message]:
    sent: list[Message] = []
    scope = {"type": "http", "path": "/forecast", "headers": list(headers)}

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(RetryDeadReplicas(app)(scope, receive, send))
    assert scope["path"] == "/forecast"
    return sent


def request() -> list[Message]:
    return [
        {"type": "http.request", "body": b"ab", "more_body": True},
        {"type": "http.request", "body": b"c", "more_body": False},
    ]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_retry, "_PAUSE_S", 0.0)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("deaths", [0, 1, 4])
def test_a_request_whose_replica_died_is_sent_again_whole(deaths: int, half: bool) -> None:
    app = Dying(deaths, half)
    sent = run(app, request())
    assert app.bodies == [b"abc"] * (deaths + 1)
    assert [message["type"] for message in sent] == [
        "http.response.start",
        *["http.response.body"] * 2,
    ]
    assert b"".join(message.get("body", b"") for message in sent) == b"one two"


def test_a_request_that_kills_every_replica_is_given_up() -> None:
    app = Dying(99)
    assert run(app, request()) == []
    assert len(app.bodies) == 5


def test_nothing_is_sent_again_for_who_has_gone() -> None:
    app = Dying(1)
    assert run(app, [*request()[:1], {"type": "http.disconnect"}]) == []
    assert app.bodies == []


def test_what_is_too_large_to_keep_is_passed_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_retry, "_MOST_BYTES", 2)
    app = Dying(1)
    assert run(app, request()) == []
    assert app.bodies == [b"abc"]
    assert len(run(Dying(0), request())) == 3


def test_clients_do_not_steer_serve() -> None:
    app = Dying(0)
    steering = [(b"x-request-timeout-seconds", b"0"), (b"X-Session-Id", b"\xff")]
    kept = [(b"accept", b"\xff"), (b"x-request-id", b"7")]
    run(app, request(), [*steering, (b"X-Request-ID", b"\xff"), *kept])
    assert app.headers == kept


def test_serve_finds_the_middleware() -> None:
    (path,) = PROXY_CALLBACK.values()
    module, _, name = path.rpartition(".")
    (actual,) = getattr(import_module(module), name)()
    assert actual.cls is RetryDeadReplicas
