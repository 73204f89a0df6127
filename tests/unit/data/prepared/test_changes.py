"""What a prepared data set keeps when files of its table change, without Ray."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from timellama_dist.data.prepared.manifest import Manifest
from timellama_dist.data.prepared.options import PrepareOptions
from timellama_dist.data.prepared.plan import JobPlan, plan_job
from timellama_dist.data.prepared.write import prepare
from timellama_dist.data.tables.options import TableOptions


def plan(folder: Path) -> JobPlan:
    return plan_job(folder / "in", folder / "out", table=TableOptions(), prepare=PrepareOptions())


def write(folder: Path, name: str, ids: str, start: str = "2024-01-01", freq: str = "h") -> None:
    """A CSV file of 24 rows for each letter of `ids`."""
    stamps = pd.date_range(start, periods=24, freq=freq)
    frames = [pd.DataFrame({"unique_id": one, "ds": stamps, "y": np.arange(24.0)}) for one in ids]
    (folder / "in").mkdir(exist_ok=True)
    pd.concat(frames).to_csv(folder / "in" / name, index=False)


def as_a_job_would(folder: Path) -> None:
    """Prepare all files in one block, and say in the manifest what a job would."""
    manifest = prepare(folder / "in", folder / "out")
    draft = plan(folder).draft
    numbers = tuple(range(len(draft.inputs)))
    files = tuple(replace(file, inputs=numbers) for file in manifest.files)
    replace(manifest, inputs=draft.inputs, options=draft.facts(), files=files).save(folder / "out")
    assert plan(folder).unchanged


def one_file(folder: Path) -> None:
    write(folder, "a.csv", "xy")
    as_a_job_would(folder)
    write(folder, "a.csv", "xy", freq="D")


def a_file_a_day(folder: Path) -> None:
    for day in (1, 2):
        write(folder, f"day{day}.csv", "xyz", f"2024-01-0{day}")
    as_a_job_would(folder)
    write(folder, "day3.csv", "xyz", "2024-01-03")


@pytest.mark.parametrize("change", [one_file, a_file_a_day])
def test_where_no_series_stays_all_is_made_anew(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    change(tmp_path)

    planned = plan(tmp_path)

    assert planned.files_read == len(list((tmp_path / "in").iterdir()))
    kept = planned.kept
    assert (kept.files, len(kept.firsts), kept.series) == ((), 0, None)
    # Of the old data set: a table that has become daily is not to be held against it.
    assert (kept.frequency, kept.notes) == (None, ())
    assert Manifest.load(tmp_path / "out").frequency == "h"


def test_notes_stay_as_they_are_or_say_that_they_are_of_before(tmp_path: Path) -> None:
    for one in "ab":
        write(tmp_path, f"{one}.csv", one)
    manifest = prepare(tmp_path / "in", tmp_path / "out", rows_per_file=24)
    draft = plan(tmp_path).draft
    files = tuple(replace(file, inputs=(n,)) for n, file in enumerate(manifest.files))
    manifest = replace(manifest, inputs=draft.inputs, options=draft.facts(), files=files)
    replace(manifest, notes=("2 rows dropped",)).save(tmp_path / "out")

    # All files of the data set stay.
    write(tmp_path, "c.csv", "c")
    assert plan(tmp_path).kept.notes == ("2 rows dropped",)

    write(tmp_path, "b.csv", "b", freq="D")
    kept = plan(tmp_path).kept
    assert [file.first_id for file in kept.files] == ["a"]
    earlier = "of an earlier preparation, some of whose files have changed since: 2 rows dropped"
    assert kept.notes == (earlier,)
    # Nor is it said twice.
    replace(manifest, notes=(*kept.notes, "2 rows dropped")).save(tmp_path / "out")
    assert plan(tmp_path).kept.notes == (earlier,)


def test_a_series_that_was_dropped_is_not_taken_up_without_its_first_rows(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "a")
    with (tmp_path / "in" / "a.csv").open("a") as file:
        file.write("z,2024-01-01,0.0\n")
    write(tmp_path, "b.csv", "b")
    manifest = prepare(tmp_path / "in", tmp_path / "out", rows_per_file=24)
    assert [file.first_id for file in manifest.files] == ["a", "b"]
    draft = plan(tmp_path).draft
    files = tuple(replace(file, inputs=(n,)) for n, file in enumerate(manifest.files))
    manifest = replace(manifest, inputs=draft.inputs, options=draft.facts(), files=files)
    manifest.save(tmp_path / "out")

    write(tmp_path, "c.csv", "a", "2024-02-01")
    assert [file.first_id for file in plan(tmp_path).kept.files] == ["b"]
    write(tmp_path, "c.csv", "z", "2024-02-01")
    assert plan(tmp_path).files_read == 3
    replace(manifest, notes=()).save(tmp_path / "out")
    assert plan(tmp_path).files_read == 1
