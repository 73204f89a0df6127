"""Parts of a batch of forecasts: Ray Data actors that load the model once and write a file a part.

Shapes: B forecasts, H horizon, C channels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from ray.data import ActorPoolStrategy, DataContext

from timellama_dist.cluster import Resources, user_error
from timellama_dist.data.prepared.history import SeriesReader
from timellama_dist.data.tables.long_form import future_times, long_form
from timellama_dist.data.tables.series import Series
from timellama_dist.data.windows.cutoffs import CutoffIndex
from timellama_dist.forecast.forecaster import TimeLlamaForecaster
from timellama_dist.storage import open_place


def part_file(part: int) -> str:
    """Name a part's file."""
    return f"part-{part:05d}.parquet"


@dataclass(frozen=True, kw_only=True, eq=False)
class PartTask:
    """What every actor needs to forecast its parts; plain values."""

    model: str
    fingerprint: str
    dataset: str
    data: str
    """Path or URI of the prepared data."""
    wide: bool
    """They are a wide table, whose series has no name of its own."""
    output: str
    index: CutoffIndex
    part_windows: int
    horizon: int
    truth: bool
    """The targets are there, and are written beside the forecasts."""
    batch_size: int
    unpack: bool | None


def forecast_parts(
    task: PartTask, parts: Sequence[int], resources: Resources, num_workers: int
) -> Iterator[int]:
    """Forecast and write parts; yields the number of forecasts of each, as they are done.

    A part that an actor died over is done again by another.

    Raises:
        UserError: what an actor refuses.
    """
    if not parts:
        return
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    with DataContext.current(context):
        done = ray.data.from_items(list(parts), override_num_blocks=len(parts)).map_batches(
            _PartForecaster,
            # Not by value: the index of many series is large.
            fn_constructor_args=(ray.put(task),),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(num_workers, len(parts))),
            num_cpus=resources.cpus_per_worker,
            num_gpus=1 if resources.use_gpu else None,
        )
        try:
            for batch in done.iter_batches(batch_size=1, prefetch_batches=0):
                yield int(batch["made"][0])
        except Exception as error:
            raise user_error(error) or error from None


class _PartForecaster:
    """An actor: holds the model and the data's reader."""

    def __init__(self, task: Any) -> None:
        self.task: PartTask = ray.get(task)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.forecaster = TimeLlamaForecaster.load(
            self.task.model, device=device, unpack=self.task.unpack
        )
        self.reader = SeriesReader(self.task.data)
        ids = self.reader.unique_ids
        if self.task.wide:
            ids = self.forecaster.dataset(self.task.dataset).names_of(ids)
        self.unique_ids = np.asarray(ids)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"made": np.array([self._write(int(part)) for part in batch["item"]])}

    def _write(self, part: int) -> int:
        task = self.task
        ids = np.arange(part * task.part_windows, (part + 1) * task.part_windows)
        ids = ids[ids < len(task.index)]
        table = self._forecast(ids)
        # One name on every row, which Parquet stores once.
        model = pa.array([task.fingerprint]).take(pa.array(np.zeros(len(table), np.int64)))
        with (open_place(task.output) / part_file(part)).open_output_stream() as stream:
            pq.write_table(table.append_column("model", model), stream)
        return len(ids)

    def _forecast(self, ids: np.ndarray) -> pa.Table:
        task, forecaster = self.task, self.forecaster
        after = task.horizon if task.truth else 0
        context_len = forecaster.dataset(task.dataset).card.context_len
        series, truth, cutoffs = [], [], []
        for number, seen in zip(*task.index.locate(ids), strict=True):
            begin = max(seen - context_len, 0)
            rows = self.reader.read(number, begin, seen + after)
            past = seen - begin
            name = str(self.unique_ids[number])
            series.append(Series(name, rows.timestamps[:past], rows.values[:past]))
            truth.append(rows.values[past:])
            cutoffs.append(rows.timestamps[past - 1])
        forecast_BHC = forecaster.forecast_series(
            series, dataset=task.dataset, batch_size=task.batch_size
        )
        yhat_BHC = forecast_BHC[:, : task.horizon]
        cutoff_B = np.array(cutoffs)
        return long_form(
            [past.unique_id for past in series],
            future_times(cutoff_B, self.reader.manifest.frequency, task.horizon),
            self.reader.manifest.channels,
            {"yhat": yhat_BHC} | ({"y": np.stack(truth)} if task.truth else {}),
            cutoff_B,
        )
