import pickle
from collections import OrderedDict

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from timellama_dist.data.prepared.manifest import Manifest
from timellama_dist.data.prepared.write import write_prepared
from timellama_dist.data.tables.table import read_table
from timellama_dist.data.windows import reader as reader_module
from timellama_dist.data.windows.reader import WindowReader, open_reader
from timellama_dist.data.windows.spec import SPLIT_NAMES, WindowSpec
from timellama_dist.data.windows.splits import SplitRule
from timellama_dist.errors import ConfigError, DataError

SPLIT = (0.6, 0.2, 0.2)
LENGTHS = {"context_len": 12, "horizon": 5}


def all_windows(frames, split_name: str) -> np.ndarray:
    """Every window of a split by numpy alone, shape (N, L + H, C)."""
    windows = []
    for frame in frames:
        values = frame.to_numpy()
        train = values[: int(len(values) * SPLIT[0])]
        scaled = ((values - train.mean(axis=0)) / train.std(axis=0)).astype(np.float32)
        begin, end = SplitRule(SPLIT).borders(len(values), 12)[split_name]
        if end - begin >= 17:
            windows.append(sliding_window_view(scaled[begin:end], 17, axis=0))
    return np.concatenate(windows).transpose(0, 2, 1)


@pytest.fixture
def wide(tmp_path, make_frame):
    """One series of 300 rows in three files of several row groups."""
    frame = make_frame(300)
    frame.to_csv(tmp_path / "w.csv", index=False)
    write_prepared(
        read_table(tmp_path / "w.csv"),
        tmp_path / "wide",
        split=SPLIT,
        rows_per_file=110,
        rows_per_group=8,
    )
    return tmp_path / "wide", [frame[["a", "b"]]]


@pytest.fixture
def long(tmp_path, make_frame):
    """Five series, one shorter than a window, whose borders fall inside row groups."""
    frames = [make_frame(rows, seed=rows) for rows in (120, 9, 90, 200, 61)]
    parts = [frame.assign(unique_id=f"s{n}") for n, frame in enumerate(frames)]
    pd.concat(parts).to_parquet(tmp_path / "l.parquet")
    write_prepared(
        read_table(tmp_path / "l.parquet"),
        tmp_path / "long",
        split=SPLIT,
        rows_per_file=170,
        rows_per_group=50,
    )
    return tmp_path / "long", [frame[["a", "b"]] for frame in frames]


@pytest.mark.parametrize("data", ["wide", "long"])
@pytest.mark.parametrize("split", SPLIT_NAMES)
@pytest.mark.parametrize("cache_bytes", [1, 1 << 20])
def test_every_window_equals_numpy_s(data, split, cache_bytes, request):
    path, frames = request.getfixturevalue(data)
    reader = WindowReader(path, WindowSpec(split=split, **LENGTHS), cache_bytes=cache_bytes)
    expected = all_windows(frames, split)

    assert len(reader) == len(expected)
    ids = np.random.default_rng(0).permutation(len(reader))
    batch = reader.read(ids)
    np.testing.assert_allclose(batch["past"], expected[ids, :12], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(batch["future"], expected[ids, 12:], rtol=1e-6, atol=1e-6)
    assert {name: values.dtype.name for name, values in batch.items()} == {
        "past": "float32",
        "future": "float32",
        "series": "int32",
        "start": "int64",
        "weight": "float32",
    }


def test_series_and_start_say_where_a_window_comes_from(long):
    path, frames = long
    reader = WindowReader(path, WindowSpec(split="test", **LENGTHS))
    batch = reader.read(np.arange(len(reader)))

    for series, start, past in zip(batch["series"], batch["start"], batch["past"], strict=True):
        values = frames[series].to_numpy()[start : start + 12]
        scaler = reader.scaler
        restored = past * scaler.std[series] + scaler.mean[series]
        np.testing.assert_allclose(restored, values, rtol=1e-4, atol=1e-4)
    # s1 has 9 rows, fewer than a window.
    assert set(reader.unique_ids[batch["series"]]) == {"s0", "s2", "s3", "s4"}


def test_padding_has_weight_zero(wide):
    reader = WindowReader(wide[0], WindowSpec(**LENGTHS))
    batch = reader.read([5, -1, 7, -1])

    assert batch["weight"].tolist() == [1, 0, 1, 0]
    np.testing.assert_array_equal(batch["past"][1], reader.read([0])["past"][0])


def test_the_cache_stays_below_its_bound(wide):
    # A row group is 8 rows x 2 channels x 4 bytes.
    reader = WindowReader(wide[0], WindowSpec(**LENGTHS), cache_bytes=300)
    reader.read(np.arange(len(reader)))

    assert reader.cached_bytes <= 300
    assert reader.cached_bytes >= 64


def test_few_shot_scales_by_the_whole_training_part(wide):
    whole = WindowReader(wide[0], WindowSpec(**LENGTHS))
    few = WindowReader(wide[0], WindowSpec(train_fraction=0.1, **LENGTHS))

    # int((180 - 12) * 0.1) + 12 = 28 rows.
    assert len(few) == 28 - 17 + 1
    ids = np.arange(len(few))
    np.testing.assert_array_equal(few.read(ids)["past"], whole.read(ids)["past"])


def test_a_pickled_reader_reads_the_same_and_carries_no_data(wide):
    reader = WindowReader(wide[0], WindowSpec(**LENGTHS))
    expected = reader.read([3, 4])
    text = pickle.dumps(reader)
    copies = pickle.loads(text), pickle.loads(text)

    assert len(text) < 1000
    assert copies[0] is copies[1]
    np.testing.assert_array_equal(copies[0].read([3, 4])["past"], expected["past"])


def test_a_process_keeps_readers_while_their_caches_are_small(wide, monkeypatch):
    monkeypatch.setattr(reader_module, "_readers", OrderedDict())
    monkeypatch.setattr(reader_module, "_MOST_CACHE_BYTES", 3000)
    handles = [
        WindowReader(wide[0], WindowSpec(split=split, **LENGTHS), cache_bytes=size).handle
        for split, size in (("train", 1000), ("validation", 1000), ("test", 2000))
    ]
    train, validation = open_reader(handles[0]), open_reader(handles[1])
    assert open_reader(handles[0]) is train
    open_reader(handles[2])  # now too much is kept: the reader used longest ago goes
    assert open_reader(handles[0]) is train
    assert open_reader(handles[1]) is not validation


def test_channels_whose_names_have_dots_are_not_mixed_up(tmp_path, make_frame):
    frame = make_frame(60).rename(columns={"b": "a.b"})
    frame.to_csv(tmp_path / "t.csv", index=False)
    write_prepared(read_table(tmp_path / "t.csv"), tmp_path / "out", split=SPLIT)
    reader = WindowReader(tmp_path / "out", WindowSpec(**LENGTHS))

    expected = all_windows([frame[["a", "a.b"]]], "train")
    past = reader.read(np.arange(len(reader)))["past"]
    np.testing.assert_allclose(past, expected[:, :12], rtol=1e-6, atol=1e-6)


def test_a_data_set_prepared_anew_is_not_mixed_with_the_old(wide, make_frame, tmp_path):
    text = pickle.dumps(WindowReader(wide[0], WindowSpec(**LENGTHS)))
    make_frame(300, seed=9).to_csv(tmp_path / "w.csv", index=False)
    write_prepared(read_table(tmp_path / "w.csv"), wide[0], split=SPLIT)

    with pytest.raises(DataError, match="wide: the data set was prepared anew while it was in use"):
        pickle.loads(text)


def test_windows_longer_than_a_split_are_refused(wide):
    message = (
        r"data.context_len=200 \+ data.horizon=150 rows do not fit into the test part of 'w': its "
        r"longest series has 300 rows, cut by data.split=\[0.6, 0.2, 0.2\] and "
        r"data.train_fraction=1.0"
    )
    with pytest.raises(ConfigError, match=message):
        WindowReader(wide[0], WindowSpec(context_len=200, horizon=150, split="test"))


def test_a_row_group_that_is_damaged_is_named(wide):
    path = sorted((wide[0] / "data").iterdir())[1]
    text = bytearray(path.read_bytes())
    # Leaves size and footer as they are.
    text[4:400] = bytes(396)
    path.write_bytes(text)
    reader = WindowReader(wide[0], WindowSpec(**LENGTHS))

    with pytest.raises(DataError, match=r"-00001.parquet: row group \d+ cannot be read"):
        reader.read(np.arange(len(reader)))


@pytest.mark.parametrize("split", SPLIT_NAMES)
def test_rows_before_a_padded_series_are_missing(long, split):
    path, frames = long
    # 120, 9, 90, 200 and 61 rows, of which 60 % train: most are shorter than 80 + 5 rows.
    reader = WindowReader(
        path, WindowSpec(context_len=80, horizon=5, split=split, short_series="pad")
    )
    batch = reader.read(np.arange(len(reader)))

    assert batch["start"].min() < 0
    for series, start, past, future in zip(
        batch["series"], batch["start"], batch["past"], batch["future"], strict=True
    ):
        values = frames[series].to_numpy()
        train = values[: int(len(values) * SPLIT[0])]
        scaled = (values - train.mean(axis=0)) / train.std(axis=0)
        whole = np.vstack([np.full((80, 2), np.nan), scaled])[80 + start : 80 + start + 85]
        np.testing.assert_allclose(past, whole[:80], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(future, whole[80:], rtol=1e-5, atol=1e-5)
        assert np.isfinite(past[-1]).all()


def test_missing_values_stay_missing_and_spoil_no_neighbours(wide, monkeypatch):
    path, frames = wide
    for file in sorted((path / "data").iterdir()):
        table = pq.read_table(file)
        holes = pa.array([None if row % 7 == 0 else 1.0 for row in range(len(table))])
        column = pa.compute.multiply(table["a"], holes)
        pq.write_table(table.set_column(2, "a", column), file, row_group_size=8)
    monkeypatch.setattr(Manifest, "_check_files", lambda *_: None)
    reader = WindowReader(path, WindowSpec(**LENGTHS))
    past = reader.read(np.arange(len(reader)))["past"]

    expected = all_windows(frames, "train")[:, :12].copy()
    # Three files of 110, 110 and 80 rows.
    rows = np.arange(len(reader))[:, None] + np.arange(12)
    expected[rows % 110 % 7 == 0, 0] = np.nan
    np.testing.assert_allclose(past, expected, rtol=1e-6, atol=1e-6)


def test_a_split_by_series_reads_whole_series(long):
    path, frames = long
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"split_by": "time"', '"split_by": "series"'))
    reader = WindowReader(path, WindowSpec(split="train", **LENGTHS))
    batch = reader.read(np.arange(len(reader)))

    # Three of five train; numpy's generator of seed 0 says which.
    members = np.random.default_rng(0).permutation(5)[:3]
    expected = [
        (series, start)
        for series in sorted(members.tolist())
        for start in range(len(frames[series]) - 17 + 1)
    ]
    assert list(zip(batch["series"].tolist(), batch["start"].tolist(), strict=True)) == expected
