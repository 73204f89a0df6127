"""Batches of requests: those that come while a batch is computed are the next.

Serve's own `serve.batch` cuts a new batch every few milliseconds, also while one is computed: under
load it computes many small ones.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Batches(Generic[Asked, Answer]):
    """Computes what is asked in batches, one at a time, in a thread.

    Args:
        compute: an answer for each of a batch.
        most: in a batch.
    """

    def __init__(self, compute: Callable[[Sequence[Asked]], Sequence[Answer]], most: int) -> None:
        self._compute = compute
        self._most = most
        self._waiting: deque[tuple[Asked, asyncio.Future[Answer]]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, asked: Asked) -> Answer:
        """Wait for the batch that holds this and return its answer; raise what `compute` raises."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((asked, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while batch := self._next():
            try:
                answers = await asyncio.to_thread(self._compute, [asked for asked, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    if not future.done():
                        future.set_result(answer)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
        self._task = None

    def _next(self) -> list[tuple[Asked, asyncio.Future[Answer]]]:
        batch: list[tuple[Asked, asyncio.Future[Answer]]] = []
        while self._waiting and len(batch) < self._most:
            waiting = self._waiting.popleft()
            # Who asked may have gone.
            if not waiting[1].done():
                batch.append(waiting)
        return batch
