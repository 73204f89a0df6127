"""One worker's share of an evaluation: runs in a Ray task."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from timellama_dist.data.windows.orders import EvaluationOrder
from timellama_dist.data.windows.reader import WindowReader
from timellama_dist.data.windows.spec import WindowSpec
from timellama_dist.data.windows.stream import stream_batches
from timellama_dist.evaluation.forecasters import (
    Forecaster,
    linear_forecaster,
    model_forecaster,
    seasonal_naive_forecaster,
)
from timellama_dist.evaluation.scores import Scores
from timellama_dist.evaluation.scoring import Yardstick

_TELL_S = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """A model or baseline to be scored on one data set; plain values, for every worker."""

    model: str
    """Path or URI of an exported model, or a baseline's name."""
    dataset: int
    """Which of the model's data sets the windows are of."""
    prompt: str | None
    """Instead of the prompt that the model has for it."""
    path: str
    """The prepared data."""
    spec: WindowSpec
    m4: bool
    batch_size: int
    channels: tuple[str, ...]
    map_LH: np.ndarray | None = None
    """The fitted ridge."""

    def facts(self) -> dict[str, Any]:
        """Say what a reader of the figures must know."""
        return {
            "context_len": self.spec.context_len,
            "horizon": self.spec.horizon,
            "channels": self.channels,
            "protocol": "m4" if self.m4 else "windows",
        }

    def forecaster(self, yardstick: Yardstick) -> Forecaster:
        """Make the function that is scored.

        Raises:
            CheckpointError: the exported model can't be loaded.
        """
        if self.model == "naive2":
            return yardstick.naive2
        if self.map_LH is not None:
            return linear_forecaster(self.map_LH)
        if self.model == "seasonal_naive":
            # The season that training's own table has.
            season_len = yardstick.reader.manifest.season_len
            return seasonal_naive_forecaster(horizon=self.spec.horizon, season_len=season_len)
        return self._exported()

    def _exported(self) -> Forecaster:
        import torch

        from timellama_dist.model.exported import load_model

        device = "cuda" if torch.cuda.is_available() else "cpu"
        prompts = {} if self.prompt is None else {self.dataset: self.prompt}
        model, card = load_model(self.model, device=device, prompts=prompts)
        return model_forecaster(
            model,
            dataset=self.dataset,
            context_len=card.config["data"]["context_len"],
            horizon=self.spec.horizon,
        )


def score_share(
    subject: Subject, rank: int, world_size: int
) -> Iterator[tuple[int, Scores | None]]:
    """Score this worker's batches of a split.

    Yields:
        Windows scored since the last time, now and then; with the last of them all their scores.
    """
    reader = WindowReader(subject.path, subject.spec)
    yardstick = Yardstick(reader, m4=subject.m4)
    order = EvaluationOrder(
        num_windows=len(reader),
        batch_size=subject.batch_size,
        world_rank=rank,
        world_size=world_size,
    )
    batches = stream_batches(reader, order, batch_size=subject.batch_size)
    total = Scores.zeros(subject.spec.horizon, len(subject.channels))
    reported, last = 0, time.monotonic()
    for scores in yardstick.score(subject.forecaster(yardstick), batches):
        total += scores
        if time.monotonic() - last >= _TELL_S:
            yield total.errors.windows - reported, None
            reported, last = total.errors.windows, time.monotonic()
    yield total.errors.windows - reported, total
