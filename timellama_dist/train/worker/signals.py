"""Asks whether a run should end or save early: the user wants it, or a node will be taken away."""

import time
from typing import Any, NamedTuple, Protocol

import torch

from timellama_dist.compat.ray import node_leaves

_LOOK_AT_NODES_EVERY_S = 5.0
"""As often as Ray Train looks; a spot node is announced 30 to 120 s before it goes."""


class StopSignals(Protocol):
    """The questions that a `Trainer` asks between two steps."""

    def asked_to_stop(self) -> bool:
        """Whether this rank knows that the user wants the run to end; must not wait."""

    def node_leaves(self) -> bool:
        """Whether a node of the run will be taken away soon; every rank must call.

        The same on every rank.
        """


class RaySignals:
    """Signals of the driver's monitor and of Ray Train.

    Args:
        monitor: the handle of the driver's `Monitor`; None on all ranks but the first, and where no
            driver listens.
    """

    def __init__(self, monitor: Any = None) -> None:
        self._request = None if monitor is None else monitor.stop_requested.remote()

    def asked_to_stop(self) -> bool:
        """Whether the driver has asked the workers to end."""
        if self._request is None:
            return False
        # Not above: tests and loops of one's own do without Ray.
        import ray

        ready, _ = ray.wait([self._request], timeout=0)
        return bool(ready)

    def node_leaves(self) -> bool:
        """Whether Ray was told that a node will go; every rank must call.

        From what is saved from then on Ray Train starts elsewhere, once the node is gone.
        """
        return node_leaves()


class StopFlags(NamedTuple):
    """The answers that all ranks agree on after a step."""

    stop: bool
    """The user wants the run to end."""
    node_leaves: bool
    """A node will be taken away: time for a checkpoint."""


class SignalPoll:
    """Asks the signals after each step, so that every rank gets the same answer.

    Args:
        signals: this rank's.
        device: on which the ranks exchange flags.
    """

    def __init__(self, signals: StopSignals, device: torch.device | str) -> None:
        self._signals, self._device = signals, device
        self._looked_at_nodes = time.monotonic()

    def poll(self) -> StopFlags:
        """Ask once; every rank must call."""
        late = time.monotonic() >= self._looked_at_nodes + _LOOK_AT_NODES_EVERY_S
        # Clocks differ: the first rank's is everybody's.
        look = late and torch.distributed.get_rank() == 0
        flags = torch.tensor(
            [float(self._signals.asked_to_stop()), float(look)], device=self._device
        )
        torch.distributed.all_reduce(flags)
        stop, look = (flags > 0).tolist()
        if look:
            self._looked_at_nodes = time.monotonic()
        return StopFlags(stop, look and self._signals.node_leaves())
