"""Streams windows of a prepared data set through Ray Data, a few hundred to a task.

The only module of `data/` that imports Ray. Nothing but integers crosses from the consumer to the
tasks: task t works out its own window ids from a small order object, and reads them with a reader
that its process keeps. Tasks, not actors, so that an idle pipeline holds no CPU.
"""

import logging
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import ray
import ray.data
from numpy.typing import ArrayLike
from ray.data import DataContext, Dataset
from ray.util.debug import log_once

from timellama_dist.data.reader import Batch, ReaderSpec, WindowReader, open_reader
from timellama_dist.data.windows import EvaluationOrder, ListedOrder, TrainOrder

__all__ = ["WindowReader", "stream_batches", "window_dataset"]

Order = TrainOrder | EvaluationOrder | ListedOrder

_MOST_TASK_BYTES = 8 << 20
_MOST_TASK_WINDOWS = 512
# Ray Data makes an object of every block before the first task runs: a data set of more chunks has
# several to a block.
_MOST_BLOCKS = 1024
# A stream holds two segments in its process, one in use and one being read.
_SEGMENT_BYTES = 48 << 20


def window_dataset(
    path: str | Path,
    *,
    context_len: int,
    horizon: int,
    split: str = "train",
    train_fraction: float = 1.0,
    window_ids: ArrayLike | None = None,
    batch_size: int = 256,
) -> Dataset:
    """A lazy data set of windows, one a row, in the order of `window_ids`.

    Args:
        path: folder of a prepared data set.
        context_len: rows of past in a window (L).
        horizon: rows of target in a window (H).
        split: "train", "validation" or "test".
        train_fraction: few-shot, the first share of the training part to keep.
        window_ids: ids to read, -1 for padding, shape (N,); default all windows in order.
        batch_size: windows that one task reads, fewer if they are large.

    Returns:
        Columns `past` (L, C), `future` (H, C), `series`, `start`, `weight` as
        `WindowReader.read` gives them.

    Raises:
        ConfigError: see `WindowReader`.
        DataError: see `WindowReader`.
    """
    reader = WindowReader(
        path,
        context_len=context_len,
        horizon=horizon,
        split=split,
        train_fraction=train_fraction,
    )
    listed = None if window_ids is None else np.asarray(window_ids, dtype=np.int64)
    order = ListedOrder(len(reader), listed)
    return _dataset(reader.spec, order, range(len(order)), _task_windows(reader, 1, batch_size))


def stream_batches(
    reader: WindowReader, order: Order, *, batch_size: int, cpus_per_task: float = 0.5
) -> Generator[Batch, None, None]:
    """Micro-batches of one rank, in its order, from Ray Data pipelines of its own.

    Runs in the process that calls it, a training worker for example, and needs only that CPUs
    are free for its tasks now and then. The order is read in segments of bounded size, one ahead of
    the consumer, each by a pipeline that runs to its end: one that had to wait for a slow consumer
    would spin in this process and take the interpreter from it (measured: half of the training's
    speed). Closing the generator ends the pipeline.

    Args:
        reader: reader of the split.
        order: which windows, a function of the place in the stream.
        batch_size: windows of a micro-batch; only the last may be smaller, and only where the
            order's length is not a multiple.
        cpus_per_task: a fraction leaves room for more than one consumer on a small machine.

    Yields:
        Arrays as `WindowReader.read` gives them, which the caller may write to.
    """
    quieten_ray_data()
    windows = _task_windows(reader, batch_size, _MOST_TASK_WINDOWS)

    def read(places: range) -> list[Batch]:
        if not places:
            return []
        dataset = _dataset(reader.spec, order, places, windows, cpus_per_task=cpus_per_task)
        blocks = dataset.iter_batches(batch_size=windows, prefetch_batches=1, batch_format="numpy")
        # Copies: a block is a read-only view of the object store, which would stay pinned.
        return [
            {name: np.array(values) for name, values in block.items()}
            for block in cast(Iterator[Batch], blocks)
        ]

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="window-stream") as pool:
        segments = _segments(len(order), windows, reader.window_bytes)
        ahead = pool.submit(read, next(segments, range(0)))
        while blocks := ahead.result():
            ahead = pool.submit(read, next(segments, range(0)))
            for block in blocks:
                for first in range(0, len(block["start"]), batch_size):
                    yield {
                        name: values[first : first + batch_size] for name, values in block.items()
                    }


def _segments(length: int, windows: int, window_bytes: int) -> Iterator[range]:
    """Consecutive places; the first segment is one task, so that the first batch comes soon."""
    tasks = max(1, _SEGMENT_BYTES // (windows * window_bytes))
    begin, size = 0, windows
    while begin < length:
        yield range(begin, min(begin + size, length))
        begin, size = begin + size, windows * tasks


def _task_windows(reader: WindowReader, multiple_of: int, most: int) -> int:
    """Windows of one task: bounded in number and bytes, and whole micro-batches."""
    windows = min(most, _MOST_TASK_BYTES // reader.window_bytes)
    return max(windows // multiple_of, 1) * multiple_of


def _dataset(
    spec: ReaderSpec,
    order: Order,
    places: range,
    windows: int,
    *,
    cpus_per_task: float = 1.0,
) -> Dataset:
    """Windows at consecutive places of the order, `windows` of them to a row of the source."""

    def read(chunks: Any) -> Any:
        wanted = [places[chunk * windows : (chunk + 1) * windows] for chunk in chunks["item"]]
        return open_reader(spec).read(order.window_ids(np.concatenate(wanted)))

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    num_chunks = -(-len(places) // windows)
    # Not ray.data.range: its read would be one more Ray task a chunk.
    with DataContext.current(context):
        chunks = ray.data.from_items(
            list(range(num_chunks)), override_num_blocks=max(1, min(num_chunks, _MOST_BLOCKS))
        )
        return chunks.map_batches(read, batch_size=1, num_cpus=cpus_per_task)


def quieten_ray_data() -> None:
    """Leave Ray Data's plans and advice to its log files, in this process."""
    # Every validation starts a pipeline: its plan and progress belong in Ray's log files.
    log_once("ray_data_progress_manager_disabled")  # marks Ray's advice to enable bars as given
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)
