import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from timellama_dist.data.windows.orders import EvaluationOrder, ListedOrder, TrainOrder, spread_ids


def rank_positions(first_step: int, last_step: int, **sizes: int) -> np.ndarray:
    """Positions that one rank consumes in steps [first_step, last_step)."""
    order = TrainOrder(num_windows=1, seed=0, first_step=first_step, last_step=last_step, **sizes)
    return order.positions(np.arange(len(order)))


def evaluation_windows(num_windows: int, **sizes: int) -> np.ndarray:
    """Window ids of one rank's evaluation."""
    order = EvaluationOrder(num_windows=num_windows, **sizes)
    return order.window_ids(np.arange(len(order)))


@settings(max_examples=50)
@given(
    micro=st.integers(1, 5),
    micro_batches=st.integers(1, 12),
    world_size=st.integers(1, 7),
    first=st.integers(0, 5),
    steps=st.integers(1, 4),
)
def test_a_global_batch_is_the_same_set_at_every_world_size(
    micro, micro_batches, world_size, first, steps
):
    batch_size = micro * micro_batches
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
    for found, wanted in zip(by_step, expected, strict=True):
        assert np.sort(found[found >= 0]).tolist() == wanted.tolist()
    # Every rank takes equally many turns, and padding is of whole micro-batches at the end.
    for share in shares:
        turns = share.reshape(steps, -1, micro)
        assert (turns >= 0).all(axis=2).tolist() == (turns >= 0).any(axis=2).tolist()
        assert (turns[:, :-1] >= 0).all()


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


def test_ranks_without_a_micro_batch_left_get_padding():
    def ids(rank: int, world_size: int) -> list[int]:
        sizes = {"batch_size": 8, "micro_batch_size": 2, "first_step": 0, "last_step": 1}
        order = TrainOrder(num_windows=100, seed=0, world_rank=rank, world_size=world_size, **sizes)
        return order.window_ids(np.arange(len(order))).tolist()

    whole = ids(0, 1)
    assert ids(0, 3) == whole[:2] + whole[6:]
    assert ids(1, 3) == [*whole[2:4], -1, -1]
    assert ids(2, 3) == [*whole[4:6], -1, -1]


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


@given(
    num_windows=st.integers(1, 300),
    most=st.integers(1, 300),
    world_size=st.integers(1, 3),
)
def test_some_windows_are_spread_evenly_over_all(num_windows, most, world_size):
    shares = [
        evaluation_windows(
            num_windows, most=most, batch_size=4, world_rank=rank, world_size=world_size
        )
        for rank in range(world_size)
    ]
    ids = np.concatenate(shares)
    taken = np.sort(ids[ids >= 0])

    assert len(taken) == min(most, num_windows)
    assert len({len(share) for share in shares}) == 1
    steps = np.diff([*taken, num_windows])
    assert taken[0] == 0
    assert steps.min() >= 1
    assert np.ptp(steps) <= 1


@given(num_windows=st.integers(1, 300), most=st.integers(1, 300))
def test_spread_windows_reach_from_the_first_to_the_last(num_windows, most):
    ids = spread_ids(num_windows, most)
    steps = np.diff(ids)

    assert len(ids) == min(most, num_windows)
    assert ids[0] == 0
    if len(ids) > 1:
        assert ids[-1] == num_windows - 1
        assert steps.min() >= 1
        assert np.ptp(steps) <= 1


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
