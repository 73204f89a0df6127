"""Reports how a run goes: events to the driver, numbers to Ray Train."""

import json
import logging
from collections.abc import Mapping
from typing import Any, Protocol

from timellama_dist.console.events import Event, Phase, Saved

RECORDS = "timellama_dist.records"
"""Name of the logger that gets a line of JSON for each event."""

_MOST_WAITED_S = 10.0

_logger = logging.getLogger(__name__)


class Reporter(Protocol):
    """Takes a `Trainer`'s events and numbers."""

    def tell(self, event: Event) -> None:
        """Take an event; only the first rank's are heard."""

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Take numbers of the run, at the end and after each checkpoint; every rank must call."""


class RayReporter:
    """Tells the driver's monitor and Ray Train.

    Args:
        rank: this worker's number; only the first one says anything.
        monitor: the handle of the driver's `Monitor`; None on all other ranks, and where no driver
            listens.
    """

    def __init__(self, rank: int, monitor: Any = None) -> None:
        self._rank = rank
        self._monitor = monitor
        self._records = logging.getLogger(RECORDS)
        self._sent: list[Any] = []

    def tell(self, event: Event) -> None:
        """Log an event and send it to the monitor."""
        if self._monitor is None:
            return
        self._records.info(json.dumps(event.to_record()))
        # An async actor takes calls in any order: the event before has long arrived, mostly.
        self._wait()
        self._sent = [self._monitor.append.remote(event)]
        if isinstance(event, Saved):
            # What the driver must have before this worker ends, with all that came before it.
            self._wait()

    def say(self, text: str) -> None:
        """Tell the user a line that belongs into the worker's log too."""
        if self._rank == 0:
            _logger.warning(text)
            self.tell(Phase(text=text))

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Report to Ray Train; every rank must call."""
        # Not above: tests and loops of one's own do without Ray.
        import ray.train

        ray.train.report(dict(metrics))

    def _wait(self) -> None:
        import ray

        ray.wait(self._sent, timeout=_MOST_WAITED_S)
