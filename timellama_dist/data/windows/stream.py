"""Streams windows of a prepared data set through Ray Data.

The only module of `data/` that imports Ray. Training and evaluation stream the rows of many windows
at once, each row once, and cut windows where they are used; `window_dataset` makes a data set of
whole windows. Nothing but integers crosses from the consumer to the tasks, which read with a reader
that their process keeps. Tasks, not actors, so that an idle pipeline holds no CPU.
"""

import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
import ray
import ray.data
from numpy.typing import ArrayLike, NDArray
from ray.data import DataContext, Dataset

from timellama_dist.cluster import quieten_ray_data
from timellama_dist.data.windows.orders import EvaluationOrder, ListedOrder, TrainOrder
from timellama_dist.data.windows.reader import WindowReader, open_reader
from timellama_dist.data.windows.spans import Batch, RowSpans, WindowPlan
from timellama_dist.storage import Location

__all__ = ["WindowReader", "stream_batches", "window_dataset"]

Order = TrainOrder | EvaluationOrder | ListedOrder

_TASK_BYTES = 4 << 20
# Ray Data makes an object of every block before the first task runs: a data set of more chunks has
# several to a block.
_MOST_BLOCKS = 1024
# A stream holds the rows of two segments in its process, one in use and one being read. A bucket
# of the training order fits: its rows are then read once.
SEGMENT_BYTES = 128 << 20
_SEGMENT_WINDOWS = 1 << 16
# The first segment is small, so that the first batch comes soon.
_FIRST_WINDOWS = 512


def window_dataset(
    path: Location,
    *,
    context_len: int,
    horizon: int,
    split: str = "train",
    train_fraction: float = 1.0,
    short_series: str = "skip",
    window_ids: ArrayLike | None = None,
    batch_size: int = 256,
) -> Dataset:
    """A lazy data set of windows, one a row, in the order of `window_ids`.

    Args:
        path: folder of a prepared data set, a local path or a URI.
        context_len: rows of past in a window (L).
        horizon: rows of target in a window (H).
        split: "train", "validation" or "test".
        train_fraction: few-shot, the first share of the training part to keep.
        short_series: "skip" or "pad", see `WindowIndex.build`.
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
        short_series=short_series,
    )
    listed = None if window_ids is None else np.asarray(window_ids, dtype=np.int64)
    order, spec = ListedOrder(len(reader), listed), reader.spec
    windows = max(1, min(batch_size, _TASK_BYTES // reader.window_bytes))

    def read(chunk: int) -> Batch:
        places = range(len(order))[chunk * windows : (chunk + 1) * windows]
        return open_reader(spec).read(order.window_ids(places))

    return _dataset(read, -(-len(order) // windows), cpus_per_task=1.0)


def stream_batches(
    reader: WindowReader,
    order: Order,
    *,
    batch_size: int,
    cpus_per_task: float = 0.5,
    segment_bytes: int = SEGMENT_BYTES,
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
        segment_bytes: most bytes of one segment's rows; the stream holds two. A batch is not cut.

    Yields:
        Arrays as `WindowReader.read` gives them, which the caller may write to.
    """
    quieten_ray_data()
    plans = _segments(reader, order, batch_size, segment_bytes)

    def read() -> tuple[WindowPlan, NDArray[np.float32]] | None:
        plan = next(plans, None)
        return None if plan is None else (plan, _read_rows(reader, plan.spans, cpus_per_task))

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="window-stream") as pool:
        ahead = pool.submit(read)
        while (segment := ahead.result()) is not None:
            ahead = pool.submit(read)
            plan, rows = segment
            for first in range(0, len(plan), batch_size):
                yield plan.cut(rows, first, first + batch_size)


def _segments(
    reader: WindowReader, order: Order, batch_size: int, segment_bytes: int
) -> Iterator[WindowPlan]:
    """The whole order, in consecutive pieces."""
    begin, most, most_rows = 0, _FIRST_WINDOWS, segment_bytes // reader.row_bytes
    while begin < len(order):
        plan = _fitting_plan(reader, order, begin, most, most_rows, batch_size)
        yield plan
        begin, most = begin + len(plan), _SEGMENT_WINDOWS


def _fitting_plan(
    reader: WindowReader, order: Order, begin: int, most: int, most_rows: int, batch_size: int
) -> WindowPlan:
    """At most `most` windows from place `begin` on and `most_rows` rows, but a batch at least."""
    while True:
        end = min(begin + max(most // batch_size, 1) * batch_size, len(order))
        plan = reader.plan(order.window_ids(np.arange(begin, end)))
        share = most_rows / len(plan.spans)
        if share >= 1 or len(plan) <= batch_size:
            return plan
        # Fewer windows overlap less, so there may be more than one round.
        most = int(len(plan) * min(share, 0.8))


def _read_rows(reader: WindowReader, spans: RowSpans, cpus_per_task: float) -> NDArray[np.float32]:
    """Rows of spans by a pipeline of their own, shape (rows, C)."""
    spec = reader.spec
    size = -(-_TASK_BYTES // reader.row_bytes)

    def read(chunk: int) -> Batch:
        part = spans.part(chunk * size, min((chunk + 1) * size, len(spans)))
        return {"rows": open_reader(spec).rows(part)}

    dataset = _dataset(read, -(-len(spans) // size), cpus_per_task=cpus_per_task)
    # Ray keeps metrics of every data set by its id for as long as it runs, here of one a segment:
    # its services grew by a MiB with each. No public call gives an id.
    dataset._set_uuid(f"{spec.split}_{spec.content_hash[:12]}_{os.getpid()}")
    blocks = dataset.iter_batches(batch_size=None, prefetch_batches=1, batch_format="numpy")
    rows = np.empty((len(spans), reader.manifest.num_channels), np.float32)
    filled = 0
    # Copied at once: a block is a view of the object store, which would stay pinned.
    for block in cast(Iterator[Batch], blocks):
        rows[filled : filled + len(block["rows"])] = block["rows"]
        filled += len(block["rows"])
    assert filled == len(rows)
    return rows


def _dataset(read: Callable[[int], Batch], num_chunks: int, *, cpus_per_task: float) -> Dataset:
    """What `read` makes of chunks 0, 1, ..., in order, a task a chunk."""
    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    # Not ray.data.range: its read would be one more Ray task a chunk.
    with DataContext.current(context):
        chunks = ray.data.from_items(
            list(range(num_chunks)), override_num_blocks=max(1, min(num_chunks, _MOST_BLOCKS))
        )
        return chunks.map_batches(
            lambda batch: read(int(batch["item"][0])), batch_size=1, num_cpus=cpus_per_task
        )
