"""How requests are gathered into batches."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from timellama_dist.serve.batches import Batches


class Doubles:
    """Doubles numbers, one batch for each `release`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Semaphore(0)

    def __call__(self, batch: Sequence[int]) -> list[int]:
        self.batches.append(list(batch))
        self.gate.acquire()
        if 13 in batch:
            raise ValueError("13")
        return [2 * number for number in batch]


def test_what_comes_while_a_batch_is_computed_is_the_next_batch() -> None:
    doubles = Doubles()

    async def run() -> list[int]:
        batches = Batches(doubles, 4)
        first = asyncio.create_task(batches.ask(0))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batches.ask(number)) for number in range(1, 7)]
        await asyncio.sleep(0.05)
        doubles.gate.release(3)
        actual = list(await asyncio.gather(first, *others))
        # It begins again after nothing was asked for a while.
        doubles.gate.release()
        return [*actual, await batches.ask(7)]

    assert asyncio.run(run()) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert doubles.batches == [[0], [1, 2, 3, 4], [5, 6], [7]]


def test_who_has_gone_is_left_out_and_an_error_is_its_batch_s_own() -> None:
    doubles = Doubles()
    doubles.gate.release(9)

    async def run() -> None:
        batches = Batches(doubles, 2)
        tasks = [asyncio.create_task(batches.ask(number)) for number in (13, 13, 1, 2)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        for task in tasks[:2]:
            with pytest.raises(ValueError, match="13"):
                await task
        with pytest.raises(asyncio.CancelledError):
            await tasks[2]
        assert await tasks[3] == 4

    asyncio.run(run())
    assert doubles.batches == [[13, 13], [2]]
