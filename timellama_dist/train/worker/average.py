"""The running mean of the trained weights, which forecasts better than where the last step led."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from timellama_dist.model.tensors import read_tensors
from timellama_dist.train.checkpoint.state import Weights, in_engine, trained_weights

_FILE = "average.safetensors"
_NEWEST = 0.1
"""The newest weights' share of the mean, each time they are looked at."""


class Average:
    """Follows an engine's weights; every rank holds the whole mean and makes the same calls.

    Args:
        engine: the DeepSpeed engine.
        num_steps: `train.average_steps`; the weights are looked at ten times in so many steps. If
            0, nothing is averaged.
        folder: the checkpoint that the run goes on from.
    """

    def __init__(self, engine: Any, num_steps: int, folder: Path | None = None) -> None:
        self._engine = engine
        self._every = max(1, round(_NEWEST * num_steps)) if num_steps else 0
        self._mean: Weights | None = None
        if self._every and folder is not None and (folder / _FILE).exists():
            self._mean = read_tensors(folder / _FILE)

    def follow(self, step: int) -> None:
        """Take the weights after `step` steps into the mean, if it is time to."""
        if not self._every or step % self._every:
            return
        newest = trained_weights(self._engine)
        if self._mean is None:
            self._mean = newest
        for name, mean in self._mean.items():
            mean.lerp_(newest[name], _NEWEST)

    def restart(self) -> None:
        """Forget the mean: the weights have gone back."""
        self._mean = None

    def weights(self) -> Weights:
        """A copy of the mean, or of the weights themselves if there is none; every rank calls."""
        if self._mean is None:
            return trained_weights(self._engine)
        return {name: mean.clone() for name, mean in self._mean.items()}

    def in_engine(self) -> AbstractContextManager[None]:
        """Let the engine forecast with the mean for as long as the block lasts; no step in it."""
        return nullcontext() if self._mean is None else in_engine(self._engine, self._mean)

    def write(self, folder: Path) -> None:
        """Put the mean into a checkpoint, if there is one."""
        if self._mean is not None:
            save_file(self._mean, folder / _FILE)
