"""The order of training windows: each once, well mixed, read with locality, and no memory."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timellama_dist.data.windows.orders import TrainOrder, sample_order
from timellama_dist.data.windows.shuffle import CHUNK_WINDOWS, fitting_chunks


def epoch_order(num_windows: int, open_chunks: int, *, seed: int = 0, epoch: int = 0) -> np.ndarray:
    positions = epoch * num_windows + np.arange(num_windows)
    return sample_order(num_windows, seed, positions, open_chunks=open_chunks)


def correlation(values: np.ndarray) -> float:
    """Of each value with the next."""
    return float(np.corrcoef(values[:-1], values[1:])[0, 1])


@settings(max_examples=60, deadline=None)
@given(
    num_windows=st.one_of(
        st.integers(1, 100_000), st.integers(1, 90).map(lambda chunks: chunks * CHUNK_WINDOWS)
    ),
    open_chunks=st.integers(1, 70),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 50),
)
def test_each_epoch_reads_each_window_once(num_windows, open_chunks, seed, epoch):
    ids = epoch_order(num_windows, open_chunks, seed=seed, epoch=epoch)

    assert np.array_equal(np.sort(ids), np.arange(num_windows))


@settings(max_examples=60, deadline=None)
@given(
    num_windows=st.integers(1, 50_000),
    open_chunks=st.integers(1, 40),
    data=st.data(),
)
def test_any_position_can_be_asked_for_alone(num_windows, open_chunks, data):
    positions = np.array(data.draw(st.lists(st.integers(0, 3 * num_windows - 1), max_size=8)), int)
    whole = np.concatenate([epoch_order(num_windows, open_chunks, epoch=n) for n in range(3)])

    asked = sample_order(num_windows, 0, positions, open_chunks=open_chunks)
    assert asked.tolist() == whole[positions].tolist()


def test_neighbours_in_the_order_are_unrelated():
    ids = epoch_order(3000 * CHUNK_WINDOWS + 77, 64)

    assert abs(correlation(ids)) < 0.05
    assert abs(correlation(ids // CHUNK_WINDOWS)) < 0.05


def test_consecutive_buckets_are_unrelated():
    # One chunk a bucket, and one window of it: the order of chunks alone.
    positions = np.arange(6000) * CHUNK_WINDOWS
    ids = sample_order(6000 * CHUNK_WINDOWS, 0, positions, open_chunks=1)

    assert abs(correlation(ids)) < 0.05


@pytest.mark.parametrize("window", [0, 3000, 5419])
def test_a_window_may_come_at_any_time_of_an_epoch(window):
    num_windows, epochs, cells = 5 * CHUNK_WINDOWS + 300, 1500, 20
    places = [
        int(np.flatnonzero(epoch_order(num_windows, 2, seed=1, epoch=epoch) == window)[0])
        for epoch in range(epochs)
    ]

    counts = np.bincount(np.array(places) * cells // num_windows, minlength=cells)
    expected = epochs / cells
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # 99.9 % quantile of chi-square with 19 degrees of freedom.
    assert chi_square < 43.8


def test_a_batch_of_64_comes_from_some_40_places_of_the_data():
    ids = epoch_order(640 * CHUNK_WINDOWS, 64)
    # The chunks of this epoch begin at its rotation: one that all chunks' borders share.
    begin = np.sort(ids[: 64 * CHUNK_WINDOWS])
    rotation = begin[1:][np.diff(begin) > 1][0] % CHUNK_WINDOWS
    chunks = (ids - rotation) // CHUNK_WINDOWS
    distinct = [len(set(batch)) for batch in chunks.reshape(-1, 64).tolist()]

    # Of 64 equally likely chunks, 64 draws meet 64 * (1 - (63 / 64) ** 64) = 40.6.
    assert np.mean(distinct) == pytest.approx(64 * (1 - (63 / 64) ** 64), abs=0.3)


def test_a_bucket_is_all_that_is_open_at_once():
    bucket = epoch_order(1000 * CHUNK_WINDOWS, 4)[: 4 * CHUNK_WINDOWS]

    gaps = np.diff(np.sort(bucket))
    assert (gaps > 1).sum() <= 4


def test_no_bucket_at_the_end_is_shuffled_less():
    # 65 full chunks and a short one: two buckets of 33, not one of 64 and one of 2.
    num_windows = 65 * CHUNK_WINDOWS + 5
    tail = epoch_order(num_windows, 64)[-2 * CHUNK_WINDOWS :]

    assert (np.diff(np.sort(tail)) > 1).sum() > CHUNK_WINDOWS


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        epoch_order(200_000, 8, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (0, 1)
    ]

    for number, one in enumerate(orders):
        for other in orders[:number]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.2
            assert (one == other).mean() < 0.001


def test_two_to_the_forty_windows_take_no_memory():
    num_windows = 2**40 + 12_345
    order = TrainOrder(
        num_windows=num_windows,
        seed=7,
        batch_size=64,
        micro_batch_size=8,
        world_rank=1,
        world_size=2,
        first_step=num_windows // 64 - 500,
        last_step=num_windows // 64 + 500,
    )
    tracemalloc.start()
    ids = order.window_ids(np.arange(len(order)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    # The last windows of one epoch and the first of the next.
    assert peak < 16 << 20
    assert ids.min() >= 0
    assert ids.max() < num_windows
    assert ids.max() - ids.min() > 2**39
    assert len(np.unique(ids)) > len(ids) - 3


@pytest.mark.parametrize(
    ("num_channels", "chunks"),
    # 128 MiB // (4 * C * 1632) rows of a chunk.
    [(7, 64), (321, 64), (862, 23), (4000, 5), (100_000, 4)],
)
def test_wide_data_open_fewer_chunks(num_channels, chunks):
    assert fitting_chunks(num_channels, 512, 96) == chunks
