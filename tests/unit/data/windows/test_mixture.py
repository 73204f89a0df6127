from collections.abc import Generator

import numpy as np
import pytest

from timellama_dist.data.windows.mixture import MixtureSchedule, interleaved
from timellama_dist.data.windows.orders import TrainOrder
from timellama_dist.data.windows.reader import Batch

WEIGHTS = (5.0, 2.0, 0.4)


@pytest.mark.parametrize("seed", range(5))
def test_every_block_holds_each_set_within_1_of_its_share(seed: int) -> None:
    schedule = MixtureSchedule(WEIGHTS, seed)
    shares = np.array(WEIGHTS) / sum(WEIGHTS)
    for first in range(0, 4 * 1024, 1024):
        counts = np.bincount(schedule.datasets(first, first + 1024), minlength=3)
        assert (np.abs(counts - 1024 * shares) < 1).all()


@pytest.mark.parametrize("seed", range(5))
def test_every_beginning_of_a_run_holds_each_set_within_3_of_its_share(seed: int) -> None:
    drawn = MixtureSchedule(WEIGHTS, seed).datasets(0, 1024)
    counts = np.cumsum(drawn[:, None] == np.arange(3), axis=0)
    shares = np.arange(1, 1025)[:, None] * np.array(WEIGHTS) / sum(WEIGHTS)
    assert np.abs(counts - shares).max() < 3


def test_a_rare_set_is_drawn_as_often_as_its_weight_says() -> None:
    weight = 1 / 2000  # half a step in a block
    counts = [
        MixtureSchedule((1 - weight, weight), seed).steps_before(64_000)[1] for seed in (0, 1)
    ]
    assert np.mean(counts) == pytest.approx(32, abs=12)


def test_a_shorter_run_is_the_beginning_of_a_longer_one() -> None:
    schedule = MixtureSchedule(WEIGHTS, 3)
    whole = schedule.datasets(0, 3000)
    for first, last in [
        (0, 0),
        (0, 1),
        (0, 1100),
        (1023, 1025),
        (1024, 2048),
        (1500, 2900),
        (5, 5),
    ]:
        np.testing.assert_array_equal(schedule.datasets(first, last), whole[first:last])


def test_steps_before_counts_the_draws() -> None:
    schedule = MixtureSchedule(WEIGHTS, 3)
    whole = schedule.datasets(0, 1100)
    for step in (0, 1, 1024, 1099):
        assert schedule.steps_before(step) == [int((whole[:step] == one).sum()) for one in range(3)]


def test_the_seed_decides_and_weights_count_by_their_ratios_only() -> None:
    drawn = MixtureSchedule((1.0, 3.0), 0).datasets(0, 500)
    np.testing.assert_array_equal(MixtureSchedule((2.0, 6.0), 0).datasets(0, 500), drawn)
    assert (MixtureSchedule((1.0, 3.0), 1).datasets(0, 500) != drawn).any()
    assert (np.diff(drawn[:64]) != 0).any(), "not shuffled"


def test_one_set_is_drawn_by_every_step() -> None:
    assert not MixtureSchedule((7.0,), 0).datasets(0, 1000).any()


def consumed(
    schedule: MixtureSchedule,
    sizes: list[int],
    first: int,
    last: int,
    *,
    world_rank: int = 0,
    world_size: int = 1,
) -> list[tuple[int, int]]:
    """(set, window) in the order in which one rank trains on them in steps [first, last)."""
    before, after = schedule.steps_before(first), schedule.steps_before(last)

    def stream(dataset: int) -> Generator[Batch, None, None]:
        order = TrainOrder(
            num_windows=sizes[dataset],
            seed=0,
            batch_size=4,
            micro_batch_size=2,
            world_rank=world_rank,
            world_size=world_size,
            first_step=before[dataset],
            last_step=after[dataset],
        )
        for ids in order.window_ids(np.arange(len(order))).reshape(-1, 2):
            yield {"dataset": np.full(2, dataset), "id": ids}

    streams = [stream(dataset) for dataset in range(len(sizes))]
    batches = interleaved(streams, schedule.datasets(first, last), turns=2 // world_size)
    return [
        (int(dataset), int(window))
        for batch in batches
        for dataset, window in zip(batch["dataset"], batch["id"], strict=True)
    ]


def test_two_ranks_share_the_steps_of_one() -> None:
    schedule, sizes = MixtureSchedule(WEIGHTS, 0), [50, 20, 7]
    alone = np.array(consumed(schedule, sizes, 30, 60)).reshape(30, 4, 2)
    halves = [
        np.array(consumed(schedule, sizes, 30, 60, world_rank=rank, world_size=2))
        for rank in range(2)
    ]
    together = np.stack([half.reshape(30, 2, 2) for half in halves], axis=1)
    np.testing.assert_array_equal(together.reshape(30, 4, 2), alone)


def test_each_set_s_windows_are_covered_once_in_each_epoch_of_its_own() -> None:
    schedule, sizes = MixtureSchedule((200.0, 60.0), 1), [200, 60]
    seen = consumed(schedule, sizes, 0, 130)
    for dataset, size in enumerate(sizes):
        windows = [window for one, window in seen if one == dataset]
        assert len(windows) >= size
        for begin in range(0, len(windows) - size + 1, size):
            assert sorted(windows[begin : begin + size]) == list(range(size))


@pytest.mark.parametrize("stop", [1, 77, 1024, 1050])
def test_a_run_resumed_at_any_step_trains_on_what_the_uninterrupted_one_does(stop: int) -> None:
    schedule, sizes = MixtureSchedule(WEIGHTS, 0), [500, 200, 40]
    parts = consumed(schedule, sizes, 0, stop) + consumed(schedule, sizes, stop, 1060)
    assert parts == consumed(schedule, sizes, 0, 1060)


def test_closing_ends_every_stream() -> None:
    ended = []

    def stream(number: int) -> Generator[Batch, None, None]:
        try:
            while True:
                yield {"set": np.array([number])}
        finally:
            ended.append(number)

    batches = interleaved([stream(0), stream(1)], [0, 1, 1, 0], turns=2)
    numbers = [int(next(batches)["set"][0]) for _ in range(5)]
    batches.close()
    assert numbers == [0, 0, 1, 1, 1]
    assert ended == [0, 1]
