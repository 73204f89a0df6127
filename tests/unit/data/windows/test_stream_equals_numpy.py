"""What the ranks read is numpy's sliding windows of the user's own table, each once an epoch."""

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from timellama_dist.data.prepared.write import write_prepared
from timellama_dist.data.tables.table import read_table
from timellama_dist.data.windows.orders import EvaluationOrder, TrainOrder
from timellama_dist.data.windows.reader import WindowReader
from timellama_dist.data.windows.spec import SPLIT_NAMES, WindowSpec

SPLIT = (0.6, 0.2, 0.2)
# A multiple of the micro-batches of 1, 2 and 3 workers.
BATCH, MICRO = 12, 2

Window = tuple[int, int]


@dataclass(frozen=True)
class Case:
    """A table as a user has it, and how it is cut into files at each stage."""

    series: list[np.ndarray]
    long: bool
    suffix: str
    cuts: list[int]
    rows_per_file: int
    rows_per_group: int
    context_len: int
    horizon: int

    def write(self, folder: Path) -> list[Path]:
        """The table, in one or several files."""
        parts = []
        for number, values in enumerate(self.series):
            dates = pd.date_range("2024-01-01", periods=len(values), freq="h")
            columns = {f"c{n}": values[:, n] for n in range(values.shape[1])}
            ids = {"unique_id": f"s{number}"} if self.long else {}
            parts.append(pd.DataFrame({"date": dates} | columns | ids))
        table = pd.concat(parts, ignore_index=True)
        borders = [0, *sorted({cut for cut in self.cuts if cut < len(table)}), len(table)]
        paths = []
        for number, (begin, end) in enumerate(itertools.pairwise(borders)):
            paths.append(folder / f"part{number}{self.suffix}")
            if self.suffix == ".csv":
                table[begin:end].to_csv(paths[-1], index=False)
            else:
                table[begin:end].to_parquet(paths[-1], row_group_size=7)
        return paths

    def windows(self, split: str) -> dict[Window, np.ndarray]:
        """By series and start row, in order, by numpy alone; each of shape (L + H, C)."""
        found = {}
        for number, values in enumerate(self.series):
            train, test = int(len(values) * 0.6), len(values) - int(len(values) * 0.2)
            scaled = (values - values[:train].mean(axis=0)) / values[:train].std(axis=0)
            begin, end = {
                "train": (0, train),
                "validation": (max(train - self.context_len, 0), test),
                "test": (max(test - self.context_len, 0), len(values)),
            }[split]
            length = self.context_len + self.horizon
            if end - begin >= length:
                view = sliding_window_view(scaled[begin:end], length, axis=0).transpose(0, 2, 1)
                found |= {(number, begin + start): window for start, window in enumerate(view)}
        return found


@st.composite
def cases(draw: st.DrawFn) -> Case:
    long = draw(st.booleans())
    rows = draw(st.lists(st.integers(10, 90), min_size=1, max_size=5 if long else 1))
    channels = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return Case(
        series=[rng.normal(size=(count, channels)).cumsum(axis=0) for count in rows],
        long=long,
        suffix=draw(st.sampled_from([".csv", ".parquet"])),
        cuts=draw(st.lists(st.integers(1, 200), max_size=3)),
        rows_per_file=draw(st.integers(20, 300)),
        rows_per_group=draw(st.integers(3, 60)),
        context_len=draw(st.integers(1, 12)),
        horizon=draw(st.integers(1, 6)),
    )


def assert_equal(reader: WindowReader, ids: np.ndarray, expected: dict[Window, np.ndarray]) -> None:
    """Windows of ids that follow the order of `expected`."""
    keys = list(expected)
    batch = reader.read(ids)
    found = list(zip(batch["series"].tolist(), batch["start"].tolist(), strict=True))
    assert found == [keys[number] for number in ids]
    whole = np.stack([expected[key] for key in found])
    both = np.concatenate([batch["past"], batch["future"]], axis=1)
    np.testing.assert_allclose(both, whole, rtol=1e-5, atol=1e-5)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=cases(), epoch=st.integers(0, 3))
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_read_numpy_s_windows_each_once(world_size: int, case: Case, epoch: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prepared(
            read_table(case.write(folder)),
            folder / "prepared",
            split=SPLIT,
            rows_per_file=case.rows_per_file,
            rows_per_group=case.rows_per_group,
        )
        expected = {split: case.windows(split) for split in SPLIT_NAMES}
        assume(all(expected.values()))
        readers = {
            split: WindowReader(
                folder / "prepared",
                WindowSpec(context_len=case.context_len, horizon=case.horizon, split=split),
            )
            for split in SPLIT_NAMES
        }
        assert_training_covers(readers["train"], expected["train"], world_size, epoch)
        for split in SPLIT_NAMES[1:]:
            assert_evaluation_covers(readers[split], expected[split], world_size)


def assert_training_covers(
    reader: WindowReader, expected: dict[Window, np.ndarray], world_size: int, epoch: int
) -> None:
    """An epoch's positions, dealt to the ranks, are each window once."""
    count = len(expected)
    assert len(reader) == count
    seen = []
    for rank in range(world_size):
        order = TrainOrder(
            num_windows=count,
            seed=5,
            batch_size=BATCH,
            micro_batch_size=MICRO,
            world_rank=rank,
            world_size=world_size,
            first_step=epoch * count // BATCH,
            last_step=(epoch + 1) * count // BATCH + 1,
        )
        places = np.arange(len(order))
        ids = order.window_ids(places)
        assert_equal(reader, ids, expected)
        seen.append(ids[order.positions(places) // count == epoch])
    assert np.sort(np.concatenate(seen)).tolist() == list(range(count))


def assert_evaluation_covers(
    reader: WindowReader, expected: dict[Window, np.ndarray], world_size: int
) -> None:
    """Each window counts once over the ranks."""
    seen = []
    for rank in range(world_size):
        order = EvaluationOrder(
            num_windows=len(expected), batch_size=MICRO, world_rank=rank, world_size=world_size
        )
        ids = order.window_ids(np.arange(len(order)))
        counted = reader.read(ids)["weight"] == 1
        if counted.any():
            assert_equal(reader, ids[counted], expected)
        seen.append(ids[counted])
    assert np.sort(np.concatenate(seen)).tolist() == list(range(len(expected)))
