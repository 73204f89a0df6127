"""Ray Data pipelines of windows against numpy: each window, once, in order, on any ranks."""

import threading
import time
from itertools import islice

import numpy as np
import pytest
import ray
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import nn

from tests.support.runs import plain, plain_run
from timellama_dist.compat.ray_data import set_dataset_id
from timellama_dist.config.schema import DataSection, TrainSection
from timellama_dist.console.events import Evaluating
from timellama_dist.data.check import check_datasets
from timellama_dist.data.prepared.write import write_prepared
from timellama_dist.data.tables.series import Series, Table
from timellama_dist.data.windows.orders import EvaluationOrder, TrainOrder
from timellama_dist.data.windows.reader import WindowReader
from timellama_dist.data.windows.spec import WindowSpec
from timellama_dist.data.windows.stream import _segments, stream_batches, window_dataset
from timellama_dist.train.worker.data import RunData

LENGTHS = {"context_len": 16, "horizon": 8}
ROWS, TRAIN = 900, 630


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, 3)).cumsum(axis=0)


@pytest.fixture(scope="module")
def path(values, tmp_path_factory):
    stamps = np.datetime64("2024-01-01", "us") + np.arange(ROWS) * np.timedelta64(1, "h")
    table = Table.of("walk", [Series("walk", stamps, values)], ("a", "b", "c"), "h")
    output = tmp_path_factory.mktemp("data") / "walk"
    write_prepared(table, output, rows_per_file=400, rows_per_group=64)
    return output


@pytest.fixture(scope="module")
def windows(values) -> dict[str, np.ndarray]:
    """All windows of two splits by numpy alone, shape (N, L + H, C)."""
    scaled = (values - values[:TRAIN].mean(axis=0)) / values[:TRAIN].std(axis=0)
    rows = {"train": scaled[:TRAIN], "validation": scaled[TRAIN - 16 : 720]}
    return {
        name: sliding_window_view(part.astype(np.float32), 24, axis=0).transpose(0, 2, 1)
        for name, part in rows.items()
    }


@pytest.fixture
def small_tasks(monkeypatch):
    """Many tasks of few rows each, and a short first segment."""
    monkeypatch.setattr("timellama_dist.data.windows.stream._FIRST_WINDOWS", 40)
    monkeypatch.setattr("timellama_dist.data.windows.stream._TASK_BYTES", 1_000)


def train_order(reader, rank, world_size, first_step=0, last_step=26):
    return TrainOrder(
        num_windows=len(reader),
        seed=3,
        batch_size=24,
        micro_batch_size=4,
        world_rank=rank,
        world_size=world_size,
        first_step=first_step,
        last_step=last_step,
    )


def assert_windows_equal(batch, expected):
    np.testing.assert_allclose(batch["past"], expected[:, :16], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(batch["future"], expected[:, 16:], rtol=1e-5, atol=1e-5)


def test_a_window_dataset_keeps_the_order_asked_for(path, windows):
    ids = np.random.default_rng(1).permutation(len(windows["train"]))
    dataset = window_dataset(path, WindowSpec(**LENGTHS), window_ids=ids, batch_size=50)

    batches = list(dataset.iter_batches(batch_size=64, batch_format="numpy"))

    whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    assert whole["start"].tolist() == ids.tolist()
    assert whole["weight"].tolist() == [1] * len(ids)
    assert_windows_equal(whole, windows["train"][ids])


def test_a_window_dataset_holds_all_windows_by_default_even_several_chunks_to_a_block(
    path, windows, monkeypatch
):
    monkeypatch.setattr("timellama_dist.data.windows.stream._MOST_BLOCKS", 3)
    dataset = window_dataset(path, WindowSpec(split="validation", **LENGTHS), batch_size=7)

    rows = dataset.take_all()

    assert [row["start"] for row in rows] == [TRAIN - 16 + n for n in range(len(rows))]
    past = {name: np.stack([row[name] for row in rows]) for name in ("past", "future")}
    assert_windows_equal(past, windows["validation"])


def test_a_window_dataset_of_no_ids_is_empty(path):
    assert window_dataset(path, WindowSpec(**LENGTHS), window_ids=[]).take_all() == []


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_train_on_each_window_once_per_epoch(path, windows, world_size, small_tasks):
    reader = WindowReader(path, WindowSpec(**LENGTHS))
    starts = []
    for rank in range(world_size):
        order = train_order(reader, rank, world_size)
        ids = order.window_ids(np.arange(len(order)))
        batches = list(stream_batches(reader, order, batch_size=4, segment_bytes=5_000))
        assert [len(batch["start"]) for batch in batches] == [4] * (len(ids) // 4)
        whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        # One series that begins at row 0: a window's id is its start.
        assert whole["start"].tolist() == ids.tolist()
        assert_windows_equal(whole, windows["train"][ids])
        starts.append(whole["start"].reshape(26, -1))
    seen = np.concatenate(starts, axis=1)

    reference = train_order(reader, 0, 1)
    expected = reference.window_ids(np.arange(len(reference))).reshape(26, 24)
    # The same global batches whatever the world size.
    assert np.sort(seen, axis=1).tolist() == np.sort(expected, axis=1).tolist()
    epoch = expected.reshape(-1)[: len(reader)]
    assert sorted(epoch.tolist()) == list(range(len(reader)))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_together_evaluate_each_window_once(path, windows, world_size):
    reader = WindowReader(path, WindowSpec(split="validation", **LENGTHS))
    starts, lengths = [], []
    for rank in range(world_size):
        order = EvaluationOrder(
            num_windows=len(reader), batch_size=8, world_rank=rank, world_size=world_size
        )
        batches = list(stream_batches(reader, order, batch_size=8))
        lengths.append([len(batch["start"]) for batch in batches])
        starts.extend(batch["start"][batch["weight"] == 1] for batch in batches)

    assert lengths == [[8] * len(lengths[0])] * world_size
    expected = [TRAIN - 16 + n for n in range(len(windows["validation"]))]
    assert sorted(np.concatenate(starts).tolist()) == expected


@pytest.mark.parametrize("rows", [(300, 25, 10, 180), tuple(range(12, 60)), (700,)])
@pytest.mark.parametrize("rows_per_group", [7, 1000])
def test_a_stream_of_many_series_equals_numpy_s_windows(rows, rows_per_group, tmp_path):
    rng = np.random.default_rng(len(rows))
    series = [rng.normal(size=(count, 2)).cumsum(axis=0) for count in rows]
    stamps = np.datetime64("2024-01-01", "us") + np.arange(700) * np.timedelta64(1, "h")
    named = [Series(f"s{n}", stamps[: len(one)], one) for n, one in enumerate(series)]
    table = Table.of("walks", named, ("a", "b"), "h")
    write_prepared(table, tmp_path / "p", rows_per_file=130, rows_per_group=rows_per_group)
    reader = WindowReader(tmp_path / "p", WindowSpec(**LENGTHS))

    seen = []
    for rank in range(3):
        last_step = len(reader) // 24 + 1
        order = train_order(reader, rank, 3, last_step=last_step)
        inside = order.positions(np.arange(len(order))) < len(reader)
        batches = list(stream_batches(reader, order, batch_size=4))
        whole = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        for number, start, past, future in zip(
            *(whole[name] for name in ("series", "start", "past", "future")), strict=True
        ):
            train = series[number][: int(len(series[number]) * 0.7)]
            window = (train[start : start + 24] - train.mean(axis=0)) / train.std(axis=0)
            both = np.concatenate([past, future])
            np.testing.assert_allclose(both, window, rtol=1e-5, atol=1e-5)
        pairs = zip(whole["series"].tolist(), whole["start"].tolist(), strict=True)
        seen += [pair for pair, counts in zip(pairs, inside, strict=True) if counts]

    # Every start from which 24 rows lie in the 70 % that train.
    expected = [
        (number, start)
        for number, count in enumerate(rows)
        for start in range(int(count * 0.7) - 24 + 1)
    ]
    assert sorted(seen) == expected


def test_a_padded_window_comes_through_the_stream(tmp_path):
    values = np.arange(20.0)[:, None]
    stamps = np.datetime64("2024-01-01", "us") + np.arange(20) * np.timedelta64(1, "D")
    table = Table.of("short", [Series("s", stamps, values)], ("a",), "D")
    write_prepared(table, tmp_path / "p", split=(0, 8, 8))
    reader = WindowReader(tmp_path / "p", WindowSpec(split="test", short_series="pad", **LENGTHS))
    order = EvaluationOrder(num_windows=len(reader), batch_size=2, world_rank=0, world_size=1)

    (batch,) = stream_batches(reader, order, batch_size=2)

    # 4 rows train: mean 1.5, variance 1.25. The test part's target is rows 12 to 19.
    scaled = (np.arange(20.0) - 1.5) / np.sqrt(1.25)
    assert batch["weight"].tolist() == [1, 0]
    expected = np.concatenate([np.full(4, np.nan), scaled[:12]])
    np.testing.assert_allclose(batch["past"][0, :, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(batch["future"][0, :, 0], scaled[12:], rtol=1e-6)


def test_a_segment_is_as_large_as_its_rows_may_be(path):
    reader = WindowReader(path, WindowSpec(**LENGTHS))
    order = train_order(reader, 0, 1)
    plans = list(_segments(reader, order, 4, 2000))

    # 12 bytes a row.
    assert max(len(plan.spans) * 12 for plan in plans) <= 2000
    assert len(plans[1]) > 4
    starts = np.concatenate([plan.start for plan in plans])
    assert starts.tolist() == order.window_ids(np.arange(len(order))).tolist()
    assert {len(plan) for plan in _segments(reader, order, 4, 1)} == {4}


def test_a_resumed_stream_goes_on_where_it_would_have_been(path):
    reader = WindowReader(path, WindowSpec(**LENGTHS))
    whole = list(stream_batches(reader, train_order(reader, 1, 2), batch_size=4))
    resumed = stream_batches(reader, train_order(reader, 1, 2, first_step=20), batch_size=4)

    for batch, expected in zip(resumed, whole[60:], strict=True):
        np.testing.assert_array_equal(batch["past"], expected["past"])


def test_batches_belong_to_the_caller(path):
    reader = WindowReader(path, WindowSpec(**LENGTHS))
    for batch in stream_batches(reader, train_order(reader, 0, 1, last_step=1), batch_size=4):
        batch["past"] *= 0


def test_data_sets_of_one_name_share_the_id_that_ray_keeps_metrics_by():
    first, second = ray.data.range(1), ray.data.range(2)
    assert first.get_dataset_id() != second.get_dataset_id()

    for dataset in (first, second):
        set_dataset_id(dataset, "train_1234")

    # The data set's name, the id, and Ray's count of its executions.
    (shared,) = {dataset.get_dataset_id() for dataset in (first, second)}
    assert shared.startswith("dataset_train_1234_")


def test_closing_a_stream_early_leaves_nothing_running(path, small_tasks):
    reader = WindowReader(path, WindowSpec(**LENGTHS))
    order = train_order(reader, 0, 1, last_step=4000)
    stream = stream_batches(reader, order, batch_size=4, segment_bytes=5_000)
    assert len(list(islice(stream, 3))) == 3
    stream.close()

    deadline = time.monotonic() + 20
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources().get("CPU") == 2
    assert not [thread for thread in threading.enumerate() if "StreamingExecutor" in thread.name]
    # Another pipeline finds all of the machine free, at once.
    assert len(list(stream_batches(reader, train_order(reader, 0, 1), batch_size=4))) == 26 * 6


def test_two_workers_of_half_a_core_each_make_progress_on_two_cores(path):
    @ray.remote(num_cpus=0.5)
    class Worker:
        def consume(self, reader: WindowReader, order: TrainOrder) -> list[int]:
            stream = stream_batches(reader, order, batch_size=4)
            return [int(start) for batch in stream for start in batch["start"]]

    reader = WindowReader(path, WindowSpec(**LENGTHS))
    orders = [train_order(reader, rank, 2) for rank in range(2)]
    workers = [Worker.remote() for _ in orders]
    pairs = zip(workers, orders, strict=True)
    jobs = [worker.consume.remote(reader, order) for worker, order in pairs]

    for order, starts in zip(orders, ray.get(jobs, timeout=60), strict=True):
        assert starts == order.window_ids(np.arange(len(order))).tolist()


class LastValue(nn.Module):
    """Repeats the last value of each window 8 times."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, past_BLC, dataset):
        return past_BLC[:, -1:].repeat(1, 8, 1)


def test_a_validation_takes_so_many_windows_and_says_how_far_it_is(path, windows, monkeypatch):
    keys = {"context_len": 16, "horizon": 8, "path": str(path)}
    train = {"validate_windows": 5, "micro_batch_size": 1}
    config = plain_run(data=plain(DataSection, **keys), train=plain(TrainSection, **train))
    monkeypatch.setattr("timellama_dist.train.worker.data._QUIET_S", 0.0)
    told = []
    datasets = check_datasets(config.data)
    data = RunData(datasets, config, rank=0, world_size=1, tell=told.append)

    found = data.evaluate(LastValue(), "validation")[1.0]

    # Every 16th or 17th of 83 windows.
    some = windows["validation"][[0, 16, 33, 49, 66]]
    assert found["mse"] == pytest.approx(np.square(some[:, 16:] - some[:, 15:16]).mean(), rel=1e-5)
    assert told == [Evaluating(split="validation", done=done, total=5) for done in (4, 5)]
    del told[:]
    data.evaluate(LastValue(), "test")
    assert told[-1] == Evaluating(split="test", done=173, total=173)
