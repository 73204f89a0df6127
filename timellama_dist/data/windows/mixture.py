"""Decides which data set each training step draws from, and takes their batches in that order.

A function of (seed, step) alone, as the order of windows is; no Ray.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from timellama_dist.data.windows.spans import Batch

IntArray = NDArray[np.int64]

# Steps that are dealt out at once.
_BLOCK_STEPS = 1024
# Keeps the generator apart from those of the sets' own orders, which are seeded alike.
_STREAM = 0x6D6978


@dataclass(frozen=True)
class MixtureSchedule:
    """Draws by weight, stratified, so that short runs hold the shares too.

    Every block of 1024 steps holds each set within 1 of its share, spread at random but evenly over
    the block. Each block has a generator of its own, so a longer run begins as a shorter one does,
    and any step is found without walking through those before it.
    """

    weights: tuple[float, ...]
    """One for each set, positive; only their ratios count."""
    seed: int

    def datasets(self, first_step: int, last_step: int) -> IntArray:
        """Name, by number, the set that each of the steps [first_step, last_step) draws from."""
        first, last = first_step // _BLOCK_STEPS, -(-last_step // _BLOCK_STEPS)
        blocks = [self._block(number) for number in range(first, last)]
        begin = first * _BLOCK_STEPS
        steps = np.concatenate([np.empty(0, np.int64), *blocks])
        return steps[first_step - begin : last_step - begin]

    def steps_before(self, step: int) -> list[int]:
        """Count the steps of [0, step) that draw from each set."""
        drawn = np.bincount(self.datasets(0, step), minlength=len(self.weights))
        return [int(count) for count in drawn]

    def _block(self, number: int) -> IntArray:
        rng = np.random.Generator(np.random.PCG64([self.seed, number, _STREAM]))
        # Systematic sampling: evenly spaced points, moved by one random offset, on the line that
        # the sets share by weight.
        points = (np.arange(_BLOCK_STEPS) + rng.random()) / _BLOCK_STEPS
        ends = np.cumsum(np.asarray(self.weights) / np.sum(self.weights))[:-1]
        drawn = np.searchsorted(ends, points, side="right")
        # A shuffle of the whole block would leave the first steps' shares to chance: instead each
        # set's draws get a random place each in equal parts of the block.
        counts = np.bincount(drawn, minlength=len(self.weights))[drawn]
        before = np.arange(_BLOCK_STEPS) - np.searchsorted(drawn, drawn, side="left")
        return drawn[np.argsort((before + rng.random(_BLOCK_STEPS)) / counts, kind="stable")]


def interleaved(
    streams: Sequence[Generator[Batch, None, None]], datasets: Sequence[int] | IntArray, turns: int
) -> Generator[Batch, None, None]:
    """Interleave the sets' micro-batches in the schedule's order; closing it closes every stream.

    Args:
        streams: each set's own micro-batches.
        datasets: the set of each step.
        turns: micro-batches of this rank in one step.
    """
    try:
        for dataset in datasets:
            for _ in range(turns):
                yield next(streams[dataset])
    finally:
        for stream in streams:
            stream.close()
