import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from timellama_dist.data.windows.index import WindowIndex, fitted_context_len
from timellama_dist.data.windows.spec import WindowSpec
from timellama_dist.data.windows.splits import SplitRule
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
    borders = SplitRule((8640, 2880, 2880)).borders(17420, 512)

    assert borders == {
        "train": (0, 8640),
        "validation": (8640 - 512, 11520),
        "test": (11520 - 512, 14400),
    }


def test_weather_borders_are_the_published_ones():
    # Autoformer's int(n * 0.7), int(n * 0.2) for n = 52696.
    borders = SplitRule((0.7, 0.1, 0.2)).borders(52696, 96)

    assert borders == {
        "train": (0, 36887),
        "validation": (36887 - 96, 42157),
        "test": (42157 - 96, 52696),
    }


def test_fractions_below_one_leave_rows_unused_at_the_end():
    assert SplitRule((0.5, 0.1, 0.2)).borders(100, 10)["test"] == (50, 80)


def test_the_sum_of_fractions_is_not_lost_to_float_rounding():
    # 0.7 + 0.0 + 0.2 is 0.8999...
    borders = SplitRule((0.7, 0.0, 0.2)).borders(30, 2)
    assert borders == {"train": (0, 21), "validation": (19, 21), "test": (19, 27)}
    assert SplitRule((0.3, 0.3, 0.3)).borders(10, 0)["test"] == (6, 9)


@pytest.mark.parametrize("split", [(0.7, 0.0, 0.2), (0.35, 0.0, 0.1), (0.6, 0.0, 0.3)])
def test_without_a_validation_part_no_test_row_is_trained_on(split):
    for rows in range(1, 1000):
        borders = SplitRule(split).borders(rows, 0)
        assert borders["train"][1] <= borders["test"][0] <= borders["test"][1] <= rows


@given(rows=st.integers(1, 400), split=fractions, context_len=lengths, horizon=lengths)
def test_targets_of_each_split_lie_in_its_own_part(rows, split, context_len, horizon):
    borders = SplitRule(split).borders(rows, context_len)
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
    borders = SplitRule((8640, 2880, 2880)).borders(17420, 512, train_fraction=0.05)

    assert borders["train"] == (0, int((8640 - 512) * 0.05) + 512)
    assert borders["test"] == (11520 - 512, 14400)


def test_few_shot_share_is_not_lost_to_float_rounding():
    # 100 * 0.29 is 28.999999999999996 in floats.
    assert SplitRule((110, 0, 0)).borders(110, 10, train_fraction=0.29)["train"] == (0, 39)


def test_the_scaler_s_rows_do_not_shrink_with_few_shot():
    assert SplitRule((0.7, 0.1, 0.2)).train_rows([100, 50]).tolist() == [70, 35]


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
        SplitRule(split).borders(100, 10)


@pytest.mark.parametrize("fraction", [0, 1.5, -1])
def test_a_train_fraction_out_of_bounds_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"data.train_fraction must be above 0 and at most 1"):
        SplitRule((0.7, 0.1, 0.2)).borders(100, 10, train_fraction=fraction)


@given(
    rows=st.lists(st.integers(1, 80), min_size=1, max_size=6),
    name=st.sampled_from(["train", "validation", "test"]),
    context_len=st.integers(1, 10),
    horizon=st.integers(1, 10),
)
def test_the_index_lists_every_window_of_every_series_in_order(rows, name, context_len, horizon):
    split = (0.6, 0.2, 0.2)
    index = WindowIndex.build(
        rows, WindowSpec(split=name, context_len=context_len, horizon=horizon), SplitRule(split)
    )
    expected = [
        (number, start)
        for number, num_rows in enumerate(rows)
        for begin, end in [SplitRule(split).borders(num_rows, context_len)[name]]
        for start in range(begin, end - context_len - horizon + 1)
    ]
    series, starts = index.locate(np.arange(len(index)))

    assert list(zip(series.tolist(), starts.tolist(), strict=True)) == expected


def test_an_id_out_of_range_is_refused():
    index = WindowIndex.build(
        [50], WindowSpec(split="train", context_len=5, horizon=5), SplitRule((1, 0, 0))
    )

    with pytest.raises(IndexError, match=r"window ids must be in \[0, 41\), got 0..41"):
        index.locate(np.array([0, 41]))


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="split must be one of train, validation, test, got 'x'"):
        WindowIndex.build(
            [50], WindowSpec(split="x", context_len=5, horizon=5), SplitRule((1, 0, 0))
        )


def test_a_length_below_one_is_refused():
    with pytest.raises(ConfigError, match=r"data.horizon must be at least 1, got 0"):
        WindowIndex.build(
            [50], WindowSpec(split="train", context_len=5, horizon=0), SplitRule((1, 0, 0))
        )


def test_no_rows_of_training_mean_all_but_the_last():
    assert SplitRule((0, 6, 8)).borders(100, 10) == {
        "train": (0, 86),
        "validation": (76, 92),
        "test": (82, 100),
    }
    # Shorter than validation and test together, and than test alone.
    assert SplitRule((0, 6, 8)).borders(11, 10)["validation"] == (0, 3)
    assert SplitRule((0, 6, 8)).borders(5, 10)["test"] == (0, 5)
    assert SplitRule((0, 6, 8)).train_rows([100, 14, 5]).tolist() == [86, 0, 0]


@pytest.mark.parametrize("split", [(0, 0, 5), (0, 5, 0)])
def test_all_but_no_last_rows_is_refused(split):
    message = r"V and T must be above 0, got \[0, \d, \d\]"
    with pytest.raises(ConfigError, match=message):
        SplitRule(split).borders(100, 10)


def enumerated(rows, split, name, context_len, horizon):
    """Every padded or full window by the rule: each target of H rows with a row of past."""
    windows = []
    for series, num_rows in enumerate(rows):
        train = num_rows - split[1] - split[2] if split[0] == 0 else int(num_rows * split[0])
        test = num_rows - split[2] if split[0] == 0 else num_rows - int(num_rows * split[2])
        begin, end = {
            "train": (0, max(train, 0)),
            "validation": (max(train, 0), max(test, 0)),
            "test": (max(test, 0), num_rows),
        }[name]
        targets = range(max(begin, 1), end - horizon + 1)
        full = [target for target in targets if target >= context_len]
        if name == "train" and full:
            targets = full
        windows += [(series, target - context_len) for target in targets]
    return windows


@given(
    rows=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    split=st.sampled_from([(0.6, 0.2, 0.2), (0, 4, 6), (0, 1, 1)]),
    name=st.sampled_from(["train", "validation", "test"]),
    context_len=st.integers(1, 12),
    horizon=st.integers(1, 8),
)
def test_padding_gives_each_target_row_of_a_short_series_a_window(
    rows, split, name, context_len, horizon
):
    index = WindowIndex.build(
        rows,
        WindowSpec(split=name, context_len=context_len, horizon=horizon, short_series="pad"),
        SplitRule(split),
    )
    series, starts = index.locate(np.arange(len(index)))
    found = list(zip(series.tolist(), starts.tolist(), strict=True))

    assert found == enumerated(rows, split, name, context_len, horizon)
    assert index.num_skipped == len(rows) - len(set(series.tolist()))


def test_series_too_short_for_a_window_are_counted():
    index = WindowIndex.build(
        [20, 9, 100, 10], WindowSpec(split="train", context_len=6, horizon=4), SplitRule((1, 0, 0))
    )

    assert (index.num_series, index.num_skipped) == (4, 1)


@given(num_series=st.integers(1, 300), split=fractions)
def test_a_split_by_series_gives_each_series_to_one_split(num_series, split):
    members = {
        name: SplitRule(split).members(num_series, name) for name in ("train", "validation", "test")
    }
    counts = {name: int(member.sum()) for name, member in members.items()}

    # The same borders as of a series of as many rows.
    train, test = int(num_series * split[0]), int(num_series * split[2])
    used = num_series if sum(split) > 0.99 else int(num_series * sum(split))
    assert counts == {"train": train, "validation": used - test - train, "test": test}
    assert np.sum(list(members.values()), axis=0).max() <= 1


def test_a_split_by_series_mixes_them_and_never_changes():
    train = np.flatnonzero(SplitRule((0.5, 0.25, 0.25)).members(1000, "train"))

    assert train.tolist() == sorted(np.random.default_rng(0).permutation(1000)[:500].tolist())


def test_a_series_of_a_split_by_series_has_windows_anywhere_in_it():
    rows = [30, 7, 30, 30]
    found = {}
    for name in ("train", "validation", "test"):
        index = WindowIndex.build(
            rows,
            WindowSpec(split=name, context_len=5, horizon=3),
            SplitRule((0.5, 0.25, 0.25), "series"),
        )
        series, starts = index.locate(np.arange(len(index)))
        for number in set(series.tolist()):
            found[number] = starts[series == number].tolist()
        assert index.num_series == {"train": 2, "validation": 1, "test": 1}[name]

    assert found == {number: list(range(23)) for number in (0, 2, 3)}


def test_a_short_series_of_a_split_by_series_is_padded_in_any_split():
    index = WindowIndex.build(
        [7, 30],
        WindowSpec(split="test", context_len=5, horizon=3, short_series="pad"),
        SplitRule((0.0, 0.0, 1.0), "series"),
    )
    series, starts = index.locate(np.arange(len(index)))

    # 7 rows: targets begin at rows 1 to 4, five rows after the start.
    assert starts[series == 0].tolist() == [-4, -3, -2, -1]
    assert starts[series == 1].tolist() == list(range(23))


@pytest.mark.parametrize(
    ("lengths", "rule", "message"),
    [
        ({}, {"by": "space"}, "data.split_by must be one of time, series, got 'space'"),
        ({"short_series": "cut"}, {}, r"data.short_series must be one of skip, pad, got 'cut'"),
        (
            {},
            {"by": "series", "split": (50, 20, 20)},
            r"data.split must be three fractions of the number of series where data are split by "
            r"series, got \[50, 20, 20\]",
        ),
    ],
)
def test_an_unknown_way_to_split_is_refused(lengths, rule, message):
    lengths = {"context_len": 5, "horizon": 5} | lengths
    with pytest.raises(ConfigError, match=message):
        WindowIndex.build([100] * 9, WindowSpec(**lengths), SplitRule(**rule))


@pytest.mark.parametrize(
    ("rows", "horizon", "season_len", "expected"),
    [
        (34560, 96, 96, 512),  # long: as asked for
        (676, 24, 52, 163),  # a quarter of the room
        (144, 12, 12, 33),
        (120, 12, 24, 48),  # two seasons
        (60, 20, 1, 20),  # two horizons would be more than half of the room
        (12, 11, 1, 1),
        (3, 5, 7, 1),
    ],
)
def test_a_fitted_context_suits_the_length_of_the_series(rows, horizon, season_len, expected):
    found = fitted_context_len(
        np.array([rows, 10**6, 1]), most=512, horizon=horizon, season_len=season_len
    )
    assert found == expected
