"""Events of a worker on their way to a driver that is slow to listen, or gone."""

import asyncio
import time
from collections.abc import Iterator

import pytest
import ray

from timellama_dist.compat.ray import this_node
from timellama_dist.console.events import Event, Phase, Saved
from timellama_dist.console.monitor import Monitor
from timellama_dist.train.worker.reporter import RayReporter
from timellama_dist.train.worker.signals import RaySignals

SAVED = Saved(
    step=5,
    checkpoint="checkpoint_1",
    validation={"mse": 0.5, "mae": 0.25},
    best_step=5,
    finished=False,
    seconds=1.0,
    peak_bytes=100,
    parameters={},
)


@pytest.fixture(autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


def test_what_was_saved_is_with_the_driver_before_the_worker_goes_on() -> None:
    class SlowMonitor(Monitor):
        async def append(self, event: Event) -> None:
            # The first takes longest: nothing but waiting keeps the order.
            await asyncio.sleep(0.5 if isinstance(event, Phase) else 0.1)
            super().append(event)

    monitor = ray.remote(SlowMonitor).options(name="slow", num_cpus=0).remote()
    reporter = RayReporter(0, monitor)
    events = [Phase(text="step 5"), SAVED]
    for event in events:
        reporter.tell(event)
    assert ray.get(monitor.drain.remote()) == events


def test_the_log_of_records_gets_a_line_of_json_for_an_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    monitor = ray.remote(Monitor).options(num_cpus=0).remote()
    with caplog.at_level("INFO", logger="timellama_dist.records"):
        RayReporter(0, monitor).tell(Phase(text="loading the backbone"))
    assert caplog.messages == ['{"kind": "phase", "text": "loading the backbone"}']


def test_a_worker_whose_driver_is_gone_goes_on() -> None:
    monitor = ray.remote(Monitor).options(name="gone", num_cpus=0).remote()
    reporter = RayReporter(0, monitor)
    ray.kill(monitor)
    reporter.tell(SAVED)


def test_a_worker_hears_once_the_driver_asks_it_to_stop() -> None:
    monitor = ray.remote(Monitor).options(num_cpus=0).remote()
    signals = RaySignals(monitor)
    assert not signals.asked_to_stop()
    ray.get(monitor.request_stop.remote())
    deadline = time.monotonic() + 10
    while not signals.asked_to_stop():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_node_has_a_resource_of_its_own_name() -> None:
    assert ray.cluster_resources()[this_node()] == 1
