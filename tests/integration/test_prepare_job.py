"""The prepare job on real Ray: equal to the in-memory path, again only for what changed."""

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray

from timellama_dist.cli.prepare import main
from timellama_dist.data.prepared.manifest import Manifest
from timellama_dist.data.prepared.options import PrepareOptions
from timellama_dist.data.prepared.write import prepare
from timellama_dist.data.tables.options import TableOptions
from timellama_dist.errors import ConfigError, DataError


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=200 << 20)
    yield
    ray.shutdown()


def run(source: Path | list[Path], output: Path | None, **options):
    # Imports Ray.
    from timellama_dist.data.prepared.job import run_job
    from timellama_dist.data.prepared.plan import plan_job

    table = {key: options.pop(key) for key in list(options) if hasattr(TableOptions, key)}
    plan = plan_job(source, output, table=TableOptions(**table), prepare=PrepareOptions(**options))
    return run_job(plan)


def series(number: int, rows: int, *, channels: str = "ab") -> pd.DataFrame:
    rng = np.random.default_rng(number)
    stamps = pd.date_range("2024-01-01", periods=rows, freq="h")
    walks = {name: rng.normal(size=rows).cumsum() for name in channels}
    return pd.DataFrame({"unique_id": f"s{number:03d}", "ds": stamps} | walks)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """30 series in three files: two of whole series, one Parquet and one CSV; one by rows."""
    folder = tmp_path / "walks"
    folder.mkdir()
    frames = [series(number, 40 + number) for number in range(30)]
    pd.concat(frames[:10]).to_parquet(folder / "1.parquet", row_group_size=100)
    pd.concat(frames[10:20]).to_csv(folder / "2.csv", index=False)
    late = pd.concat(frames[20:]).sample(frac=1, random_state=0).sort_values("ds", kind="stable")
    late.to_parquet(folder / "3.parquet", row_group_size=150)
    return folder


def rows_of(data: Path) -> pd.DataFrame:
    manifest = Manifest.load(data)
    return pd.concat([pd.read_parquet(data / file.path) for file in manifest.files])


def test_the_job_prepares_what_the_in_memory_path_prepares(tmp_path: Path, source: Path) -> None:
    report = run(source, tmp_path / "job", rows_per_group=64)
    expected = prepare(source, tmp_path / "memory")

    assert report.manifest.content_hash == expected.content_hash
    assert (report.num_series, report.num_rows) == (30, expected.num_rows)
    given = pd.concat([series(number, 40 + number) for number in range(30)])
    found = rows_of(tmp_path / "job")
    assert found["unique_id"].astype(str).tolist() == given["unique_id"].tolist()
    np.testing.assert_array_equal(found[["a", "b"]].to_numpy(), given[["a", "b"]].to_numpy())
    ours, theirs = (
        pd.read_parquet(folder / Manifest.load(folder).series_file.path)
        for folder in (tmp_path / "job", tmp_path / "memory")
    )
    pd.testing.assert_frame_equal(ours, theirs)


def test_a_job_runs_again_only_for_what_changed(tmp_path: Path, source: Path) -> None:
    # Small blocks, so that the data set has several files.
    first = run(source, tmp_path / "out").manifest
    assert run(source, tmp_path / "out").files_read == 0

    changed = [series(number, 40 + number) for number in range(10, 20)]
    changed[3]["a"] += 1
    pd.concat(changed).to_csv(source / "2.csv", index=False)
    report = run(source, tmp_path / "out")

    expected = prepare(source, tmp_path / "memory")
    assert report.manifest.content_hash == expected.content_hash != first.content_hash
    # A file with rows of only other series was not read, and what was made of it has stayed.
    touched = [file for file in first.files if 1 in file.inputs]
    others = {number for file in touched for number in file.inputs}
    assert report.files_read == len(others | {1})
    stayed = {file.path for file in first.files} - {file.path for file in touched}
    assert stayed <= {file.path for file in report.manifest.files}
    on_disk = {f"data/{path.name}" for path in (tmp_path / "out/data").iterdir()}
    assert on_disk == {file.path for file in report.manifest.files}


@pytest.mark.slow
def test_a_table_that_changed_in_all_series_is_prepared_anew(tmp_path: Path) -> None:
    folder = tmp_path / "walks"
    folder.mkdir()
    days = pd.concat([series(number, 48) for number in range(3)])
    for day in (1, 2):
        # A file a day, with rows of all series in each.
        days[days["ds"].dt.day == day].to_csv(folder / f"{day}.csv", index=False)
        report = run(folder, tmp_path / "out")

    assert report.files_read == 2
    expected = prepare(folder, tmp_path / "memory")
    assert report.manifest.content_hash == expected.content_hash


@pytest.mark.slow
def test_files_may_come_and_go(tmp_path: Path, source: Path) -> None:
    run(source, tmp_path / "out")
    (source / "1.parquet").unlink()
    series(99, 50).to_csv(source / "4.csv", index=False)
    series(5, 60).to_csv(source / "0.csv", index=False)

    report = run(source, tmp_path / "out")

    assert report.manifest.content_hash == prepare(source, tmp_path / "memory").content_hash
    assert report.num_series == 22


@pytest.mark.slow
def test_a_file_that_went_takes_its_series_along_and_nothing_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "walks", tmp_path / "out"
    source.mkdir()
    # Blocks are of 16 MiB at least: by separate runs, each file's series get files of their own.
    for number in (1, 2):
        series(number, 40).to_parquet(source / f"{number}.parquet")
        run(source, out)
    (source / "1.parquet").unlink()

    assert main(["--input", str(source), "--output", str(out)]) == 0

    printed = capsys.readouterr().out
    assert "1 file," in printed
    assert "from 0 of 1 input" in printed
    assert Manifest.load(out).content_hash == prepare(source, tmp_path / "memory").content_hash
    assert main(["--input", str(source), "--output", str(out)]) == 0
    assert "nothing has changed" in capsys.readouterr().out


@pytest.mark.slow
def test_other_options_prepare_everything_anew(tmp_path: Path, source: Path) -> None:
    run(source, tmp_path / "out")
    report = run(source, tmp_path / "out", split=(0.5, 0.2, 0.3))

    assert report.files_read == 3
    assert report.manifest.split == (0.5, 0.2, 0.3)


def test_a_fault_is_told_in_one_line_and_the_data_set_stays(tmp_path: Path, source: Path) -> None:
    before = run(source, tmp_path / "out").manifest
    frame = series(31, 50)
    frame.loc[7, "b"] = np.nan
    frame.to_csv(source / "4.csv", index=False)

    message = f"{source / '4.csv'}: row 8: column 'b' is empty or NaN "
    with pytest.raises(DataError, match="^" + re.escape(message)):
        run(source, tmp_path / "out")

    assert Manifest.load(tmp_path / "out") == before
    on_disk = {f"data/{path.name}" for path in (tmp_path / "out/data").iterdir()}
    assert on_disk == {file.path for file in before.files}
    with pytest.raises(DataError, match="^" + re.escape(message)):
        run(source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_checking_finds_every_fault_with_its_count(tmp_path: Path, source: Path) -> None:
    frame = series(31, 90)
    frame.loc[[7, 9], "b"] = np.nan
    frame.loc[50, "a"] = -9999
    frame = frame.astype({"b": object})
    frame.loc[20, "b"] = "broken"
    frame.drop(index=[60, 61]).to_csv(source / "4.csv", index=False)
    pd.concat([series(5, 45)[3:4], series(6, 46)[2:4]]).to_csv(source / "5.csv", index=False)

    report = run(source, None)

    found = {(one.kind, one.channel): (one.count, one.fatal) for one in report.findings}
    assert found[("number", "b")] == (1, True)
    assert found[("empty", "b")] == (2, True)
    assert found[("gap", None)] == (1, True)
    assert found[("duplicate", None)] == (3, True)
    assert found[("outlier", "a")] == (1, False)


@pytest.mark.slow
def test_series_of_different_steps_in_different_files_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    frames = [series(number, 50) for number in range(20)]
    stamps = pd.date_range("2024-01-01", periods=50, freq="15min")
    frames += [series(number, 50).assign(ds=stamps) for number in range(20, 40)]
    for number, frame in enumerate(frames):
        frame.to_parquet(folder / f"{number:02d}.parquet")

    with pytest.raises(DataError, match=r"series of different steps: .*; prepare them apart$"):
        run(folder, tmp_path / "out")


@pytest.mark.slow
def test_series_without_a_training_row_are_dropped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "short.csv"
    pd.concat([series(0, 40), series(1, 1), series(2, 1)]).to_csv(path, index=False)

    report = run(path, tmp_path / "out", split=(0.5, 0.25, 0.25))

    assert report.num_series == 1
    assert report.manifest.notes == (
        "2 series dropped that data.split [0.5, 0.25, 0.25] leaves no training row, so that they "
        "cannot be scaled; the first is 's001' of 1 rows",
    )
    with pytest.raises(ConfigError, match="nothing is left to train on: 3 series dropped"):
        run(path, tmp_path / "none", split=(0, 200, 200))
    # To check it says the same.
    (fault,) = (one.text() for one in run(path, None, split=(0, 200, 200)).findings if one.fatal)
    assert fault.startswith("nothing is left to train on: 3 series dropped")
    short = {"split": (0.2, 0.4, 0.4), "split_by": "series"}
    with pytest.raises(ConfigError, match=r"of 3 series \(data.split_by=series\) leaves none to"):
        run(path, tmp_path / "none", **short)
    (fault,) = (one.text() for one in run(path, None, **short).findings if one.fatal)
    assert fault.startswith("data.split [0.2, 0.4, 0.4] of 3 series (data.split_by=series) leaves")


@pytest.mark.slow
def test_all_is_read_at_the_end(tmp_path: Path, source: Path) -> None:
    from timellama_dist.data.prepared.job import Counts, run_job
    from timellama_dist.data.prepared.plan import plan_job

    told: list[Counts] = []
    plan = plan_job(source, tmp_path / "out", table=TableOptions(), prepare=PrepareOptions())
    run_job(plan, progress=told.append)
    rows = sum(40 + number for number in range(30))
    assert (told[-1].rows_read, told[-1].rows_arranged) == (rows, rows)
    assert told[-1].bytes_read == told[-1].bytes_total > 0


@pytest.mark.slow
def test_splitting_by_series_scales_by_the_training_series_together(tmp_path: Path) -> None:
    path = tmp_path / "walks.parquet"
    frames = [series(number, 50) for number in range(20)]
    pd.concat(frames).to_parquet(path)

    manifest = run(path, tmp_path / "out", split_by="series").manifest

    training = manifest.split_rule.members(20, "train")
    rows = np.concatenate(
        [frame[["a", "b"]].to_numpy() for frame, kept in zip(frames, training, strict=True) if kept]
    )
    stored = pd.read_parquet(tmp_path / "out" / manifest.series_file.path)
    assert len(stored) == 20
    for mean, std in zip(stored["mean"], stored["std"], strict=True):
        np.testing.assert_allclose(mean, rows.mean(axis=0))
        np.testing.assert_allclose(std, rows.std(axis=0))


def test_what_a_task_enters_late_is_not_missed(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timellama_dist.data.prepared import job as prepare_job

    ledger = prepare_job._Ledger.__ray_metadata__.modified_class

    class LateLedger(ledger):
        async def add(self, *entry, **facts) -> None:
            await asyncio.sleep(0.5)
            super().add(*entry, **facts)

        async def state(self):
            return super().state()

    monkeypatch.setattr(prepare_job, "_Ledger", ray.remote(LateLedger))
    report = run(source, tmp_path / "out")
    assert report.manifest is not None
    kept = {file.path for file in report.manifest.files}
    assert kept == {
        str(one.relative_to(tmp_path / "out")) for one in (tmp_path / "out/data").glob("*.parquet")
    }
    assert len(rows_of(tmp_path / "out")) == sum(40 + number for number in range(30))


def test_a_wide_table_of_several_files_is_one_series(tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    folder.mkdir()
    frame = series(0, 300).drop(columns="unique_id").rename(columns={"ds": "date"})
    frame[:120].to_csv(folder / "1.csv", index=False)
    frame[120:].to_parquet(folder / "2.parquet", row_group_size=50)

    report = run(folder, tmp_path / "out")

    assert (report.num_series, report.num_rows) == (1, 300)
    np.testing.assert_array_equal(
        rows_of(tmp_path / "out")[["a", "b"]].to_numpy(), frame[["a", "b"]].to_numpy()
    )


def test_the_command_prints_what_it_did_and_the_second_time_that_nothing_changed(
    tmp_path: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: str) -> tuple[int, str, str]:
        code = main(["--input", str(source), *words])
        return code, *capsys.readouterr()

    code, out, _ = command("--output", str(tmp_path / "out"), "--prompt", "walks")
    assert code == 0
    assert "walks: 30 series, 1635 rows, 2 channels, one step is h" in out
    assert re.search(r"prepared in \S+/out: \d+ files, \S+ MiB, from 3 of 3 input", out)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["prompt"] == "walks"
    code, out, _ = command("--output", str(tmp_path / "out"), "--prompt", "walks")
    assert code == 0
    assert "nothing has changed" in out

    (source / "4.csv").write_text("unique_id,ds,a,b\nx,2024-01-01,1,2\nx,soon,1,2\n")
    code, out, errors = command("--validate-only")
    assert code == 2
    assert "row 2: time column 'ds' holds 'soon', which is not a time (1 such rows)" in out
    assert "1 kind of fault, listed above, to be dealt with first" in errors
