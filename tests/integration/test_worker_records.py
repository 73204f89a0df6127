"""What a worker tells a driver that is slow to listen."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import ray

from timellama_dist.console.monitor import Monitor
from timellama_dist.train.worker.rank import _mailbox


@pytest.fixture(autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def test_what_was_saved_is_with_the_driver_before_the_worker_goes_on() -> None:
    class SlowMonitor(Monitor):
        async def append(self, record: dict[str, Any]) -> None:
            # The first takes longest: nothing but waiting keeps the order.
            await asyncio.sleep(0.5 if record["kind"] == "train" else 0.1)
            super().append(record)

    monitor = ray.remote(SlowMonitor).options(name="slow", num_cpus=0).remote()
    tell, _ = _mailbox("slow", 0)
    records = [{"kind": "train", "step": 5}, {"kind": "saved", "step": 5}]
    for record in records:
        tell(record)
    assert ray.get(monitor.drain.remote()) == records


def test_a_worker_whose_driver_is_gone_goes_on() -> None:
    monitor = ray.remote(Monitor).options(name="gone", num_cpus=0).remote()
    tell, _ = _mailbox("gone", 0)
    ray.kill(monitor)
    tell({"kind": "saved", "step": 5})
