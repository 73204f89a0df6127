"""The data sets of a run as one rank sees them: their batches in training, their errors."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from timellama_dist.config.schema import RunConfig
from timellama_dist.console.events import Evaluating, Event
from timellama_dist.data.dataset import Dataset
from timellama_dist.data.windows.mixture import MixtureSchedule, interleaved
from timellama_dist.data.windows.orders import EvaluationOrder, TrainOrder, spread_ids
from timellama_dist.data.windows.reader import CACHE_BYTES, WindowReader
from timellama_dist.data.windows.spans import Batch
from timellama_dist.data.windows.spec import SPLIT_NAMES, SplitName
from timellama_dist.data.windows.stream import SEGMENT_BYTES, Order, stream_batches
from timellama_dist.evaluation.metrics import ErrorSums, mean_errors
from timellama_dist.evaluation.windows import absolute_errors, evaluate, forecast_windows
from timellama_dist.model.card import DatasetCard
from timellama_dist.model.intervals import error_quantiles
from timellama_dist.storage import Place, open_place

_NUM_EXAMPLES = 3
_NUM_CALIBRATION = 1024
_ERROR_BYTES = 128 << 20
_QUIET_S = 10.0


class RunData:
    """The data sets of a run, as one rank reads them.

    A step draws from one data set, the same on every rank; each set has an order of its own, of
    which its k-th step is batch k. So where a run stands in every set follows from its step.

    Args:
        sets: the run's data sets, prepared.
        config: the run.
        rank: this worker's number.
        world_size: how many workers there are.
        tell: takes an event that says how far a long evaluation is.

    Raises:
        ConfigError: see `WindowReader`.
        DataError: see `WindowReader`.
    """

    def __init__(
        self,
        sets: Sequence[Dataset],
        config: RunConfig,
        *,
        rank: int,
        world_size: int,
        tell: Callable[[Event], None] = lambda event: None,
    ) -> None:
        self.sets = sets
        self.tell = tell
        self.config = config
        self.rank, self.world_size = rank, world_size
        self.readers = {split: self._open(split) for split in SPLIT_NAMES}
        self.manifests = [reader.manifest for reader in self.readers["train"]]
        sizes = self._sizes("train")
        self.num_windows = sum(sizes)
        weights = (dataset.part.weight for dataset in sets)
        self.schedule = MixtureSchedule(
            tuple(weight or size for weight, size in zip(weights, sizes, strict=True)),
            config.train.seed,
        )

    @property
    def cards(self) -> list[DatasetCard]:
        """The cards of the data sets in an exported model."""
        return [
            DatasetCard(
                context_len=dataset.spec.context_len,
                horizon=dataset.spec.horizon,
                name=dataset.name,
                channels=list(dataset.channels),
                frequency=dataset.frequency,
                prompt=dataset.prompt,
                season_len=dataset.season_len,
                options=manifest.options,
            )
            for dataset, manifest in zip(self.sets, self.manifests, strict=True)
        ]

    @property
    def scaler_files(self) -> list[Place]:
        """Where each set's scalers are."""
        return [
            open_place(dataset.path) / manifest.series_file.path
            for dataset, manifest in zip(self.sets, self.manifests, strict=True)
        ]

    def dataset_of(self, step: int) -> int:
        """Number the set that a step draws from."""
        return int(self.schedule.datasets(step, step + 1)[0])

    def windows_before(self, step: int) -> dict[str, int]:
        """Count the windows of each set, by name, that the steps [0, step) train on."""
        steps = self.schedule.steps_before(step)
        size = self.config.train.batch_size
        return {dataset.name: count * size for dataset, count in zip(self.sets, steps, strict=True)}

    def train_batches(self, first_step: int, last_step: int) -> Generator[Batch, None, None]:
        """Stream this rank's micro-batches of the steps [first_step, last_step)."""
        train = self.config.train
        positions = zip(
            self.readers["train"],
            self.schedule.steps_before(first_step),
            self.schedule.steps_before(last_step),
            strict=True,
        )
        streams = [self._stream(reader, first, last) for reader, first, last in positions]
        turns = -(-train.batch_size // (train.micro_batch_size * self.world_size))
        return interleaved(streams, self.schedule.datasets(first_step, last_step), turns)

    def evaluate(
        self, engine: Any, split: SplitName, shares: Sequence[float] = (1.0,)
    ) -> dict[float, dict[str, Any]]:
        """Measure errors over every window of a split; every rank must call.

        A validation takes at most `train.validate_windows` of them.

        Args:
            engine: the DeepSpeed engine.
            split: the part.
            shares: as `evaluate` takes them.

        Returns:
            By share: "mse" and "mae", the unweighted means over data sets; "by_dataset", the same
            of each by name; "detail", of each its errors "by_step" and "by_channel", and what its
            windows' "routers" chose.
        """
        results = [
            self._evaluate(engine, split, number, shares) for number, _ in enumerate(self.sets)
        ]
        names = [dataset.name for dataset in self.sets]
        metrics = {}
        for share in shares:
            errors = [sums[share].summary() for sums, _ in results]
            details = [{**sums[share].detail(), "routers": routers} for sums, routers in results]
            metrics[share] = {
                **mean_errors(errors),
                "by_dataset": dict(zip(names, errors, strict=True)),
                "detail": dict(zip(names, details, strict=True)),
            }
        return metrics

    def examples(self, engine: Any) -> list[dict[str, np.ndarray]]:
        """Forecast a few test windows of each set; every rank must call."""
        batches = [
            self._fitted(reader.read(spread_ids(len(reader), _NUM_EXAMPLES)))
            for reader in self.readers["test"]
        ]
        return [
            forecast_windows(engine, [batch], dataset=number)
            for number, batch in enumerate(batches)
        ]

    def error_quantiles(self, engine: Any) -> list[np.ndarray]:
        """Measure quantiles of each set's absolute errors on validation windows, for intervals.

        Of windows spread evenly over the part: neighbours err alike. Every rank must call.
        """
        return [
            error_quantiles(absolute_errors(engine, self._calibration(reader), dataset=number))
            for number, reader in enumerate(self.readers["validation"])
        ]

    def _calibration(self, reader: WindowReader) -> Iterator[Batch]:
        window_bytes = 4 * self.config.data.horizon * reader.manifest.num_channels
        ids = spread_ids(len(reader), min(_NUM_CALIBRATION, max(32, _ERROR_BYTES // window_bytes)))
        size = 4 * self.config.train.micro_batch_size
        for first in range(0, len(ids), size):
            yield self._fitted(reader.read(ids[first : first + size]))

    def _open(self, split: SplitName) -> list[WindowReader]:
        cache_bytes = CACHE_BYTES // len(self.sets)
        return [
            WindowReader(dataset.path, dataset.spec.of(split), cache_bytes=cache_bytes)
            for dataset in self.sets
        ]

    def _fitted(self, batch: Batch) -> Batch:
        """Bring shorter windows to the run's lengths: what they lack is missing."""
        data = self.config.data
        before = data.context_len - batch["past"].shape[1]
        after = data.horizon - batch["future"].shape[1]
        if not before and not after:
            return batch
        return {
            **batch,
            "past": _with_missing(batch["past"], before, 0),
            "future": _with_missing(batch["future"], 0, after),
        }

    def _sizes(self, split: SplitName) -> list[int]:
        return [len(reader) for reader in self.readers[split]]

    def _stream(
        self, reader: WindowReader, first_step: int, last_step: int
    ) -> Generator[Batch, None, None]:
        train = self.config.train
        order = TrainOrder(
            num_windows=len(reader),
            seed=train.seed,
            batch_size=train.batch_size,
            micro_batch_size=train.micro_batch_size,
            world_rank=self.rank,
            world_size=self.world_size,
            first_step=first_step,
            last_step=last_step,
            open_chunks=reader.open_chunks,
        )
        return self._batches(
            reader,
            order,
            batch_size=train.micro_batch_size,
            segment_bytes=SEGMENT_BYTES // len(self.sets),
        )

    def _batches(
        self, reader: WindowReader, order: Order, **options: int
    ) -> Generator[Batch, None, None]:
        with closing(stream_batches(reader, order, **options)) as batches:
            for batch in batches:
                yield self._fitted(batch)

    def _reported(self, batches: Iterable[Batch], split: SplitName, total: int) -> Iterator[Batch]:
        """Pass the batches on; say now and then how far a long evaluation is."""
        done, reported = 0, time.monotonic()
        for batch in batches:
            yield batch
            done += int(np.count_nonzero(batch["weight"])) * self.world_size
            if (now := time.monotonic()) - reported >= _QUIET_S:
                reported = now
                self.tell(Evaluating(split=split, done=done, total=total))

    def _evaluate(
        self, engine: Any, split: SplitName, number: int, shares: Sequence[float]
    ) -> tuple[dict[float, ErrorSums], dict[str, Any] | None]:
        reader = self.readers[split][number]
        # No gradients are kept, so more windows fit.
        batch_size = 4 * self.config.train.micro_batch_size
        order = EvaluationOrder(
            num_windows=len(reader),
            batch_size=batch_size,
            world_rank=self.rank,
            world_size=self.world_size,
            most=self.config.train.validate_windows if split == "validation" else None,
        )
        batches = self._batches(reader, order, batch_size=batch_size)
        return evaluate(
            engine,
            self._reported(batches, split, order.num_taken),
            horizon=self.config.data.horizon,
            num_channels=reader.manifest.num_channels,
            dataset=number,
            shares=shares,
        )


def _with_missing(values: np.ndarray, before: int, after: int) -> np.ndarray:
    widths = [(0, 0), (before, after), (0, 0)]
    return np.pad(values, widths, constant_values=np.nan)
