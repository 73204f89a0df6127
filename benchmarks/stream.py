"""The window stream alone: its speed, its memory as a table grows, and many short series.

    python -m benchmarks.stream [--memory] [--series 1000000]

Speed: windows/s of `stream_batches` in training order, beside a numpy loop over the same windows in
memory, and beside what the engine consumes with one block of the backbone, fed from memory. They
take turns. Memory: peaks while an epoch of a table of 1, 10 and 100 times as many rows is streamed
with an object store of 128 MiB. Series: preparing and streaming that many of 40 rows each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.measuring import PeakMemory, alternate, paired, plain_words, spread, write_results
from benchmarks.synthetic import write_long_parquet, write_prepared_walks
from benchmarks.trainer import EQUAL_TERMS, ROOT, run_child
from timellama_dist.data.windows.orders import TrainOrder
from timellama_dist.data.windows.reader import WindowReader
from timellama_dist.data.windows.spans import RowSpans
from timellama_dist.data.windows.spec import WindowSpec
from timellama_dist.data.windows.stream import stream_batches

STORE_BYTES = 128 << 20
SCALES = (1, 10, 100)
SHORT_ROWS, SHORT_CONTEXT, SHORT_HORIZON = 40, 16, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--context-len", type=int, default=512)
    parser.add_argument("--horizon", type=int, default=96)
    parser.add_argument("--channels", type=int, default=7)
    parser.add_argument("--rows", type=int, default=200_000, help="of the smallest table")
    parser.add_argument("--windows", type=int, default=400_000, help="a round of the stream")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=30, help="of the trainer, 10 not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="peaks as a table grows")
    parser.add_argument("--series", type=int, default=0, help="that many short series")
    parser.add_argument("--output", metavar="FILE.json")
    parser.add_argument("--inside", metavar="PREPARED", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        print(json.dumps(stream_epoch(Path(arguments.inside), arguments)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts: dict[str, Any] = {"windows_per_s": measure_speed(folder, arguments)}
        if arguments.memory:
            facts["memory"] = [measure_memory(folder, scale, arguments) for scale in SCALES]
        if arguments.series:
            facts["series"] = measure_series(folder, arguments)
    settings = {key: value for key, value in vars(arguments).items() if key != "inside"}
    write_results(arguments.output, "stream", {"settings": settings, **facts})


def measure_speed(folder: Path, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Windows/s of the three, in turn."""
    path = folder / "speed"
    write_prepared_walks(
        path, num_series=1, num_rows=arguments.rows, num_channels=arguments.channels
    )
    reader = open_reader(path, arguments)
    order = training_order(reader, arguments.windows, arguments.batch)
    words = [
        *plain_words(),
        *("--data.path", str(path), "--backbone.name", arguments.backbone),
        *("--data.context_len", str(arguments.context_len)),
        *("--data.horizon", str(arguments.horizon), "--backbone.num_blocks", "1"),
        *("--train.max_steps", str(arguments.steps), "--train.log_every", "10"),
        *("--scaling.num_workers", "1"),
    ]
    with local_ray():
        streamed(reader, order, arguments.batch)  # starts Ray's worker processes
        variants: dict[str, Callable[[], float]] = {
            "numpy loop": partial(numpy_loop, reader, order, arguments.batch),
            "stream": partial(streamed, reader, order, arguments.batch),
            "trainer": partial(run_child, words, "stage 0", 10),
        }
        speeds = alternate(variants, arguments.rounds)
    print(f"{'':<12}{'windows/s: median (range)':<44}the stream's ratio to it, pair by pair")
    for name, values in speeds.items():
        print(f"{name:<12}{spread(values):<44}{spread(paired(speeds['stream'], values))}")
    return speeds


def open_reader(path: Path, arguments: argparse.Namespace) -> WindowReader:
    """The training windows of a prepared set."""
    spec = WindowSpec(context_len=arguments.context_len, horizon=arguments.horizon)
    return WindowReader(path, spec)


def training_order(reader: WindowReader, num_windows: int, batch: int) -> TrainOrder:
    """What a single worker trains on."""
    return TrainOrder(
        num_windows=len(reader),
        seed=0,
        batch_size=batch,
        micro_batch_size=batch,
        world_rank=0,
        world_size=1,
        first_step=0,
        last_step=max(1, num_windows // batch),
        open_chunks=reader.open_chunks,
    )


def numpy_loop(reader: WindowReader, order: TrainOrder, batch: int) -> float:
    """Windows/s of cutting from one array in memory; a single series, so an id is a row."""
    num_rows = len(reader) + reader.spec.context_len + reader.spec.horizon - 1
    rows = reader.rows(RowSpans.of_windows(np.array([0]), num_rows))
    length = reader.spec.context_len + reader.spec.horizon
    windows = sliding_window_view(rows, length, axis=0).transpose(0, 2, 1)
    ids = order.window_ids(np.arange(len(order)))
    started = time.perf_counter()
    for first in range(0, len(ids), batch):
        found = windows[ids[first : first + batch]]
        np.ascontiguousarray(found[:, : reader.spec.context_len])
        np.ascontiguousarray(found[:, reader.spec.context_len :])
    return len(ids) / (time.perf_counter() - started)


def streamed(reader: WindowReader, order: TrainOrder, batch: int) -> float:
    """Windows/s of the stream from its start to its end."""
    started = time.perf_counter()
    count = sum(len(found["start"]) for found in stream_batches(reader, order, batch_size=batch))
    assert count == len(order)
    return count / (time.perf_counter() - started)


def measure_memory(folder: Path, scale: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Peaks of one epoch of a table of `scale` times the rows, in a process of its own."""
    path = folder / f"times{scale}"
    rows = arguments.rows * scale
    write_prepared_walks(path, num_series=10, num_rows=rows, num_channels=arguments.channels)
    found = {"scale": scale, "rows": rows, **run_inside(path, arguments)}
    print(
        f"{scale:>4}x {found['table_bytes'] >> 20} MiB of rows: peak MiB: driver "
        f"{found['driver'] >> 20}, workers {found['workers'] >> 20} (at most {found['processes']}, "
        f"the largest {found['worker'] >> 20}), object store {found['object_store'] >> 20}; "
        f"{found['windows_per_s']:.0f} windows/s",
        flush=True,
    )
    return found


def run_inside(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """`stream_epoch` in a fresh process, whose peaks are its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.stream", "--inside", str(path)]
    for key in ("batch", "context_len", "horizon"):
        command += [f"--{key.replace('_', '-')}", str(getattr(arguments, key))]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | EQUAL_TERMS,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def stream_epoch(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Stream each training window once; speed, and peak bytes of each kind of memory."""
    with local_ray(), PeakMemory() as memory:
        reader = open_reader(path, arguments)
        order = training_order(reader, len(reader), arguments.batch)
        streamed(reader, training_order(reader, 1, arguments.batch), arguments.batch)
        speed = streamed(reader, order, arguments.batch)
    table_bytes = reader.manifest.num_rows * reader.row_bytes
    return {"table_bytes": table_bytes, "windows_per_s": speed, **memory.peaks}


def measure_series(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds to prepare many short series with the command, and an epoch's speed."""
    source, path = folder / "short.parquet", folder / "short"
    write_long_parquet(source, num_series=arguments.series, rows=SHORT_ROWS)
    started = time.perf_counter()
    command = [sys.executable, str(ROOT / "ray_jobs" / "prepare.py")]
    command += ["--input", str(source), "--output", str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | EQUAL_TERMS)
    seconds = time.perf_counter() - started
    changed = {"context_len": SHORT_CONTEXT, "horizon": SHORT_HORIZON}
    short = argparse.Namespace(**(vars(arguments) | changed))
    found = {"prepare_seconds": seconds, **run_inside(path, short)}
    print(
        f"{arguments.series} series of {SHORT_ROWS} rows: prepared in {seconds:.1f} s, streamed at "
        f"{found['windows_per_s']:.0f} windows/s"
    )
    return found


@contextmanager
def local_ray() -> Iterator[None]:
    """Ray on two logical CPUs, with a small object store."""
    os.environ.update(EQUAL_TERMS)
    ray.init(
        num_cpus=2,
        object_store_memory=STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
    )
    try:
        yield
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
