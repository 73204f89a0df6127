import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from timellama_dist.data.windows import (
    EvaluationOrder,
    ListedOrder,
    TrainOrder,
    WindowIndex,
    evaluation_windows,
    rank_positions,
    sample_order,
    split_borders,
    train_rows,
)
from timellama_dist.errors import ConfigError

fractions = st.sampled_from([(0.7, 0.1, 0.2), (0.6, 0.2, 0.2), (0.5, 0.0, 0.25), (1, 0, 0)])
lengths = st.integers(1, 40)


def targets(borders: tuple[int, int], context_len: int, horizon: int) -> set[int]:
    """Every row that some window of [begin, end) forecasts, by enumeration."""
    begin, end = borders
    return {
        row
        for start in range(begin, end)
        if start + context_len + horizon <= end
        for row in range(start + context_len, start + context_len + horizon)
    }


def test_ett_borders_are_the_published_ones():
    borders = split_borders(17420, (8640, 2880, 2880), 512)

    assert borders == {
        "train": (0, 8640),
        "validation": (8640 - 512, 11520),
        "test": (11520 - 512, 14400),
    }


def test_weather_borders_are_the_published_ones():
    # Autoformer's int(n * 0.7), int(n * 0.2) for n = 52696.
    borders = split_borders(52696, (0.7, 0.1, 0.2), 96)

    assert borders == {
        "train": (0, 36887),
        "validation": (36887 - 96, 42157),
        "test": (42157 - 96, 52696),
    }


def test_fractions_below_one_leave_rows_unused_at_the_end():
    assert split_borders(100, (0.5, 0.1, 0.2), 10)["test"] == (50, 80)


@given(rows=st.integers(1, 400), split=fractions, context_len=lengths, horizon=lengths)
def test_targets_of_each_split_lie_in_its_own_part(rows, split, context_len, horizon):
    borders = split_borders(rows, split, context_len)
    train = int(rows * split[0])
    used = rows if sum(split) > 0.99 else int(rows * sum(split))
    test_begin = used - int(rows * split[2])

    def parts(name):
        return targets(borders[name], context_len, horizon)

    assert parts("train") <= set(range(train))
    assert parts("validation") <= set(range(train, test_begin))
    assert parts("test") <= set(range(test_begin, used))
    # Where the history is long enough, every row of the part is forecast.
    if train >= context_len and test_begin - train >= horizon:
        assert parts("validation") == set(range(train, test_begin))


def test_few_shot_keeps_the_first_share_of_the_training_rows():
    borders = split_borders(17420, (8640, 2880, 2880), 512, train_fraction=0.05)

    assert borders["train"] == (0, int((8640 - 512) * 0.05) + 512)
    assert borders["test"] == (11520 - 512, 14400)


def test_few_shot_share_is_not_lost_to_float_rounding():
    # 100 * 0.29 is 28.999999999999996 in floats.
    assert split_borders(110, (110, 0, 0), 10, train_fraction=0.29)["train"] == (0, 39)


def test_the_scaler_s_rows_do_not_shrink_with_few_shot():
    assert train_rows([100, 50], (0.7, 0.1, 0.2)).tolist() == [70, 35]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ((0.7, 0.3), r"data.split must be three numbers, got \[0.7, 0.3\]"),
        ((0.7, -0.1, 0.2), r"data.split must not be negative, got \[0.7, -0.1, 0.2\]"),
        ((0.7, 0.2, 0.2), "three fractions whose sum is at most 1, or three whole numbers"),
        ((80, 20, 20), r"data.split \[80, 20, 20\] asks for 120 rows, but a series has only 100"),
    ],
)
def test_an_impossible_split_is_refused(split, message):
    with pytest.raises(ConfigError, match=message):
        split_borders(100, split, 10)


@pytest.mark.parametrize("fraction", [0, 1.5, -1])
def test_a_train_fraction_out_of_bounds_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"data.train_fraction must be above 0 and at most 1"):
        split_borders(100, (0.7, 0.1, 0.2), 10, train_fraction=fraction)


@given(
    rows=st.lists(st.integers(1, 80), min_size=1, max_size=6),
    name=st.sampled_from(["train", "validation", "test"]),
    context_len=st.integers(1, 10),
    horizon=st.integers(1, 10),
)
def test_the_index_lists_every_window_of_every_series_in_order(rows, name, context_len, horizon):
    split = (0.6, 0.2, 0.2)
    index = WindowIndex.build(
        rows, split=split, name=name, context_len=context_len, horizon=horizon
    )
    expected = [
        (number, start)
        for number, num_rows in enumerate(rows)
        for begin, end in [split_borders(num_rows, split, context_len)[name]]
        for start in range(begin, end - context_len - horizon + 1)
    ]
    series, starts = index.locate(np.arange(len(index)))

    assert list(zip(series.tolist(), starts.tolist(), strict=True)) == expected


def test_an_id_out_of_range_is_refused():
    index = WindowIndex.build([50], split=(1, 0, 0), name="train", context_len=5, horizon=5)

    with pytest.raises(IndexError, match=r"window ids must be in \[0, 41\), got 0..41"):
        index.locate(np.array([0, 41]))


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="split must be one of train, validation, test, got 'x'"):
        WindowIndex.build([50], split=(1, 0, 0), name="x", context_len=5, horizon=5)


def test_a_length_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"data.horizon must be at least 1, got 0"):
        WindowIndex.build([50], split=(1, 0, 0), name="train", context_len=5, horizon=0)


@given(num_windows=st.integers(1, 200), seed=st.integers(0, 2**32), epoch=st.integers(0, 50))
def test_each_epoch_is_a_permutation_of_all_windows(num_windows, seed, epoch):
    ids = sample_order(num_windows, seed, epoch * num_windows + np.arange(num_windows))

    assert sorted(ids.tolist()) == list(range(num_windows))


def test_epochs_and_seeds_differ():
    first, second = sample_order(100, 0, np.arange(200)).reshape(2, 100)

    assert (first != second).any()
    assert (first != sample_order(100, 1, np.arange(100))).any()


def test_any_position_can_be_asked_for_alone():
    whole = sample_order(30, 7, np.arange(300))
    places = np.array([299, 0, 31, 31, 150])

    assert sample_order(30, 7, places).tolist() == whole[places].tolist()


def test_the_order_is_numpy_s_permutation_of_seed_and_epoch():
    expected = np.random.Generator(np.random.PCG64(np.random.SeedSequence([5, 2]))).permutation(40)

    assert sample_order(40, 5, 80 + np.arange(40)).tolist() == expected.tolist()


@settings(max_examples=50)
@given(
    micro=st.integers(1, 5),
    turns=st.integers(1, 3),
    world_size=st.sampled_from([1, 2, 3, 6]),
    first=st.integers(0, 5),
    steps=st.integers(1, 4),
)
def test_a_global_batch_is_the_same_set_at_every_world_size(micro, turns, world_size, first, steps):
    batch_size = micro * turns * 6
    shares = [
        rank_positions(
            first,
            first + steps,
            batch_size=batch_size,
            micro_batch_size=micro,
            world_rank=rank,
            world_size=world_size,
        )
        for rank in range(world_size)
    ]
    by_step = np.concatenate([share.reshape(steps, -1) for share in shares], axis=1)

    expected = first * batch_size + np.arange(steps * batch_size).reshape(steps, batch_size)
    assert np.sort(by_step, axis=1).tolist() == expected.tolist()


def test_micro_batches_are_dealt_to_ranks_in_turn():
    shares = [
        rank_positions(1, 2, batch_size=12, micro_batch_size=2, world_rank=rank, world_size=3)
        for rank in range(3)
    ]

    assert [share.tolist() for share in shares] == [
        [12, 13, 18, 19],
        [14, 15, 20, 21],
        [16, 17, 22, 23],
    ]


def test_a_resumed_rank_goes_on_where_it_would_have_been():
    def order(first_step):
        return TrainOrder(
            num_windows=50,
            seed=3,
            batch_size=8,
            micro_batch_size=2,
            world_rank=1,
            world_size=2,
            first_step=first_step,
            last_step=20,
        )

    whole, resumed = order(0), order(13)

    expected = whole.window_ids(np.arange(len(whole)))[13 * 4 :]
    assert resumed.window_ids(np.arange(len(resumed))).tolist() == expected.tolist()


def test_a_batch_that_ranks_cannot_share_is_refused():
    message = (
        r"train.batch_size=32 must be a multiple of train.micro_batch_size=8 x "
        r"scaling.num_workers=3"
    )
    with pytest.raises(ConfigError, match=message):
        rank_positions(0, 1, batch_size=32, micro_batch_size=8, world_rank=0, world_size=3)


@given(
    num_windows=st.integers(1, 300),
    batch_size=st.integers(1, 20),
    world_size=st.integers(1, 3),
)
def test_evaluation_reads_each_window_once_in_full_equal_batches(
    num_windows, batch_size, world_size
):
    shares = [
        evaluation_windows(
            num_windows, batch_size=batch_size, world_rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]

    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) % batch_size == 0
    ids = np.concatenate(shares)
    assert sorted(ids[ids >= 0].tolist()) == list(range(num_windows))
    assert (ids >= -1).all()
    # No rank has a batch more than the windows need.
    assert len(ids) - num_windows < batch_size * world_size


@given(num_windows=st.integers(1, 60), data=st.data())
def test_orders_answer_for_any_places(num_windows, data):
    order = EvaluationOrder(num_windows=num_windows, batch_size=4, world_rank=1, world_size=2)
    assume(len(order))
    places = np.array(data.draw(st.lists(st.integers(0, len(order) - 1), max_size=10)), dtype=int)

    whole = order.window_ids(np.arange(len(order)))
    assert order.window_ids(places).tolist() == whole[places].tolist()


def test_a_listed_order_is_its_list():
    assert ListedOrder(9).window_ids(np.array([3, 8])).tolist() == [3, 8]
    assert len(ListedOrder(9, np.array([5, 2]))) == 2
    assert ListedOrder(9, np.array([5, 2])).window_ids(np.array([1, 0])).tolist() == [2, 5]
