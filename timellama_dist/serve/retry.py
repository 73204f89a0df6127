"""A middleware of Serve's HTTP proxy: a request whose replica dies is sent to another one.

A proxy hands a request to a replica of the routes (`api`) and answers 500 if that process
dies before it has answered. Forecasts change nothing, so the request can be sent again. Serve takes
middlewares by an environment variable alone, `PROXY_CALLBACK`, which must be set where it starts.
"""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PROXY_CALLBACK = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "timellama_dist.serve.retry.middlewares"
}
_ATTEMPTS = 5
_PAUSE_S = 0.2
_MOST_BYTES = 64 * 1024 * 1024
"""A request or an answer that is larger is passed on as it comes, once."""
# By these Serve itself is steered, and timeouts are switched off.
_NOT_FOR_CLIENTS = {
    b"serve_multiplexed_model_id",
    b"serve-multiplexed-model-id",
    b"x-session-id",
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
}


def middlewares() -> list[Middleware]:
    """List the middlewares, as Serve's proxy asks for them."""
    return [Middleware(RetryDeadReplicas)]


class RetryDeadReplicas:
    """Sends a request again whose answer never began."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = {**scope, "headers": [header for header in scope["headers"] if _passes(*header)]}
        body = _Body(receive)
        for attempt in range(_ATTEMPTS):
            answer = _Answer(send)
            # The proxy changes the scope's paths.
            await self.app({**scope}, body.replay(), answer)
            if answer.complete or not body.can_replay:
                break
            await asyncio.sleep(_PAUSE_S * attempt)
        await answer.flush()


def _passes(name: bytes, value: bytes) -> bool:
    """Tell whether Serve may see a header; it decodes some of its own without a check."""
    name = name.lower()
    return name not in _NOT_FOR_CLIENTS and (name != b"x-request-id" or value.isascii())


class _Body:
    """A client's request, kept so that it can be read again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[MutableMapping[str, Any]] = []
        self._bytes = 0
        self.can_replay = True

    def replay(self) -> Receive:
        """Return a `receive` that begins at the beginning."""
        position = 0

        async def receive() -> Message:
            nonlocal position
            if position < len(self._kept):
                message = self._kept[position]
            else:
                message = await self._receive()
                self._bytes += len(message.get("body", b""))
                # Nobody waits for the answer any more, or too much would be kept.
                if message["type"] == "http.disconnect" or self._bytes > _MOST_BYTES:
                    self.can_replay = False
                if self.can_replay:
                    self._kept.append(message)
            position += 1
            return message

        return receive


class _Answer:
    """A replica's answer, held back until it is whole."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held: list[Message] = []
        self._bytes = 0
        self._streams = False
        self.complete = False

    async def __call__(self, message: Message) -> None:
        self._held.append(message)
        self._bytes += len(message.get("body", b""))
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
        if self.complete or self._streams or self._bytes > _MOST_BYTES:
            self._streams = self.complete = True
            await self.flush()

    async def flush(self) -> None:
        """Send what is held back: nothing, where nobody answered."""
        held, self._held = self._held, []
        for message in held:
            await self._send(message)
