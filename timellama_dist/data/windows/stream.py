"""Streams windows of a prepared data set through Ray Data.

Beside `prepared/job.py` the only module of `data/` that imports Ray. Training and evaluation stream
the rows of many windows at once, each row once, and cut windows where they are used;
`window_dataset` makes a data set of whole windows. Nothing but integers crosses from the consumer
to the tasks, which read with a reader that their process keeps. Tasks, not actors, so that an idle
pipeline holds no CPU.
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
from timellama_dist.compat.ray_data import set_dataset_id
from timellama_dist.data.windows.orders import EvaluationOrder, ListedOrder, TrainOrder
from timellama_dist.data.windows.reader import WindowReader, open_reader
from timellama_dist.data.windows.spans import Batch, LocatedWindows, RowSpans
from timellama_dist.data.windows.spec import WindowSpec
from timellama_dist.storage import Location

__all__ = ["WindowReader", "stream_batches", "window_dataset"]

Order = TrainOrder | EvaluationOrder | ListedOrder
Block = dict[str, NDArray]
"""A block of Ray Data: arrays by column, of as many rows each."""

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
    spec: WindowSpec,
    *,
    window_ids: ArrayLike | None = None,
    batch_size: int = 256,
) -> Dataset:
    """Make a lazy data set of windows, one a row, in the order of `window_ids`.

    Args:
        path: folder of a prepared data set, a local path or a URI.
        spec: which windows are meant.
        window_ids: ids to read, -1 for padding, shape (N,); default all windows in order.
        batch_size: windows that one task reads, fewer if they are large.

    Returns:
        Columns `past` (L, C), `future` (H, C), `series`, `start`, `weight` as
        `WindowReader.read` gives them.

    Raises:
        ConfigError: see `WindowReader`.
        DataError: see `WindowReader`.
    """
    reader = WindowReader(path, spec)
    listed = None if window_ids is None else np.asarray(window_ids, dtype=np.int64)
    order, handle = ListedOrder(len(reader), listed), reader.handle
    windows = max(1, min(batch_size, _TASK_BYTES // reader.window_bytes))

    def read(chunk: int) -> Batch:
        places = range(len(order))[chunk * windows : (chunk + 1) * windows]
        return open_reader(handle).read(order.window_ids(places))

    return _dataset(read, -(-len(order) // windows), cpus_per_task=1.0)


def stream_batches(
    reader: WindowReader,
    order: Order,
    *,
    batch_size: int,
    cpus_per_task: float = 0.5,
    segment_bytes: int = SEGMENT_BYTES,
) -> Generator[Batch, None, None]:
    """Stream one rank's micro-batches, in its order, from Ray Data pipelines of its own.

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
    segments = _segments(reader, order, batch_size, segment_bytes)

    def read() -> tuple[LocatedWindows, NDArray[np.float32]] | None:
        windows = next(segments, None)
        if windows is None:
            return None
        return windows, _read_rows(reader, windows.spans, cpus_per_task)

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="window-stream") as pool:
        ahead = pool.submit(read)
        while (segment := ahead.result()) is not None:
            ahead = pool.submit(read)
            windows, rows = segment
            for first in range(0, len(windows), batch_size):
                yield windows.cut(rows, first, first + batch_size)


def _segments(
    reader: WindowReader, order: Order, batch_size: int, segment_bytes: int
) -> Iterator[LocatedWindows]:
    """Cut the whole order into consecutive pieces."""
    begin, most, most_rows = 0, _FIRST_WINDOWS, segment_bytes // reader.row_bytes
    while begin < len(order):
        windows = _fitting_segment(reader, order, begin, most, most_rows, batch_size)
        yield windows
        begin, most = begin + len(windows), _SEGMENT_WINDOWS


def _fitting_segment(
    reader: WindowReader, order: Order, begin: int, most: int, most_rows: int, batch_size: int
) -> LocatedWindows:
    """Take at most `most` windows from place `begin` on and `most_rows` rows; at least a batch."""
    while True:
        end = min(begin + max(most // batch_size, 1) * batch_size, len(order))
        windows = reader.locate(order.window_ids(np.arange(begin, end)))
        share = most_rows / len(windows.spans)
        if share >= 1 or len(windows) <= batch_size:
            return windows
        # Fewer windows overlap less, so there may be more than one round.
        most = int(len(windows) * min(share, 0.8))


def _read_rows(reader: WindowReader, spans: RowSpans, cpus_per_task: float) -> NDArray[np.float32]:
    """Read the rows of spans by a pipeline of their own, shape (rows, C)."""
    handle = reader.handle
    size = -(-_TASK_BYTES // reader.row_bytes)

    def read(chunk: int) -> Block:
        part = spans.part(chunk * size, min((chunk + 1) * size, len(spans)))
        return {"rows": open_reader(handle).rows(part)}

    dataset = _dataset(read, -(-len(spans) // size), cpus_per_task=cpus_per_task)
    # Ray keeps metrics of every data set by its id for as long as it runs, here of one a segment:
    # its services grew by a MiB with each.
    set_dataset_id(dataset, f"{reader.spec.split}_{handle.content_hash[:12]}_{os.getpid()}")
    blocks = dataset.iter_batches(batch_size=None, prefetch_batches=1, batch_format="numpy")
    rows = np.empty((len(spans), reader.manifest.num_channels), np.float32)
    filled = 0
    # Copied at once: a block is a view of the object store, which would stay pinned.
    for block in cast(Iterator[Block], blocks):
        rows[filled : filled + len(block["rows"])] = block["rows"]
        filled += len(block["rows"])
    assert filled == len(rows)
    return rows


def _dataset(read: Callable[[int], Block], num_chunks: int, *, cpus_per_task: float) -> Dataset:
    """Make a data set of what `read` makes of chunks 0, 1, ..., in order, a task a chunk."""
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
