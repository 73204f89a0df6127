"""Where a run's checkpoints and results go, on a local disk; object storage is in test_s3."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.runs import plain_run
from timellama_dist.config.schema import RunConfig, RunSection
from timellama_dist.errors import CheckpointError, ConfigError, DataError
from timellama_dist.train.checkpoint.files import seal
from timellama_dist.train.driver import train
from timellama_dist.train.run_directory import (
    begun_config,
    check_storage,
    copy_config,
    copy_results,
    holds_checkpoint,
    run_place,
)


def config(folder: Path, **run: Any) -> RunConfig:
    return plain_run(run=RunSection(dir=str(folder / "here" / "first"), **run))


RESULTS = {
    *("metrics.json", "report.html", "forecasts.png"),
    *("model/config.json", "model/adapter/a.json"),
}


def finished(folder: Path) -> Path:
    run_dir = folder / "here" / "first"
    (run_dir / "model" / "adapter").mkdir(parents=True)
    for name in (*RESULTS, "config.yaml"):
        (run_dir / name).write_text(name)
    (run_dir / "history.jsonl").write_text("")
    return run_dir


def test_a_run_has_a_folder_of_its_name_in_the_storage(tmp_path: Path) -> None:
    assert run_place(config(tmp_path)).path == str(tmp_path / "here/first")
    shared = config(tmp_path, storage_path=str(tmp_path / "shared"))
    assert run_place(shared).path == str(tmp_path / "shared/first")
    options = "?endpoint_override=127.0.0.1:9000&scheme=http"
    bucket = config(tmp_path, storage_path=f"s3://bucket/runs/{options}")
    assert run_place(bucket).uri == f"s3://bucket/runs/first{options}"


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    check_storage(config(tmp_path, storage_path=str(tmp_path / "shared")))
    assert list((tmp_path / "shared").iterdir()) == []


def test_storage_that_takes_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    message = rf"^run\.storage_path: {tmp_path}/file: cannot be written: Not a directory$"
    with pytest.raises(DataError, match=message):
        check_storage(config(tmp_path, storage_path=str(tmp_path / "file")))


def test_another_run_s_checkpoints_are_not_taken_for_one_s_own(tmp_path: Path) -> None:
    storage = str(tmp_path / "shared")
    (tmp_path / "shared/first/checkpoints").mkdir(parents=True)
    message = rf"^run\.storage_path: {storage}/first holds the checkpoints of another run; choose"
    with pytest.raises(ConfigError, match=message):
        check_storage(config(tmp_path, storage_path=storage))
    check_storage(config(tmp_path, storage_path=storage, resume=True))


def test_a_checkpoint_is_found_where_the_run_keeps_it(tmp_path: Path) -> None:
    here, shared = config(tmp_path), config(tmp_path, storage_path=str(tmp_path / "shared"))
    assert not holds_checkpoint(shared)
    checkpoint = tmp_path / "shared/first/checkpoints/checkpoint_2026"
    checkpoint.mkdir(parents=True)
    assert not holds_checkpoint(shared)
    seal(checkpoint, {"step": 20})
    assert holds_checkpoint(shared)
    assert not holds_checkpoint(here)


def test_a_run_is_resumed_from_a_valid_checkpoint_or_not_at_all(tmp_path: Path) -> None:
    resumed = config(tmp_path, resume=True)
    check_storage(resumed)
    damaged = tmp_path / "here/first/checkpoints/checkpoint_2"
    damaged.mkdir(parents=True)
    (damaged / "state.json").write_text("{")
    message = r"/here/first/checkpoints holds no valid checkpoint: checkpoint_2: state\.json cannot"
    with pytest.raises(CheckpointError, match=message):
        check_storage(resumed)
    assert damaged.exists()
    before = damaged.with_name("checkpoint_1")
    before.mkdir()
    seal(before, {"step": 20})
    check_storage(resumed)


def test_results_are_copied_and_nothing_else(tmp_path: Path) -> None:
    finished(tmp_path)
    place = copy_results(config(tmp_path, storage_path=str(tmp_path / "shared")))
    assert str(place) == str(tmp_path / "shared/first")
    files = {path for path in (tmp_path / "shared/first").rglob("*") if path.is_file()}
    found = {str(path.relative_to(tmp_path / "shared/first")) for path in files}
    assert found == RESULTS


def test_a_run_whose_storage_is_its_own_folder_copies_nothing(tmp_path: Path) -> None:
    finished(tmp_path)
    copy_config(config(tmp_path))
    assert copy_results(config(tmp_path)) is None
    assert copy_results(config(tmp_path, storage_path=str(tmp_path / "here"))) is None


def test_a_failed_copy_says_where_the_results_lie(tmp_path: Path) -> None:
    run_dir = finished(tmp_path)
    (tmp_path / "file").write_text("")
    message = rf"^the run has ended and lies in {run_dir}, but could not be copied: {tmp_path}/file"
    with pytest.raises(RuntimeError, match=message):
        copy_results(config(tmp_path, storage_path=str(tmp_path / "file")))


def test_a_run_whose_directory_is_lost_resumes_by_its_storage_s_configuration(
    tmp_path: Path,
) -> None:
    run_dir = finished(tmp_path)
    shared = config(tmp_path, storage_path=str(tmp_path / "shared"))
    copy_config(shared)
    assert begun_config(shared).path == str(run_dir / "config.yaml")
    shutil.rmtree(run_dir)
    assert begun_config(shared).path == str(tmp_path / "shared/first/config.yaml")
    assert begun_config(shared).read_text() == "config.yaml"
    message = rf"^run\.resume: {run_dir}/config\.yaml does not exist, so there is no run to resume$"
    with pytest.raises(ConfigError, match=message):
        begun_config(config(tmp_path))
    message = rf"{run_dir}/config\.yaml nor {tmp_path}/other/first/config\.yaml does not exist"
    with pytest.raises(ConfigError, match=message):
        begun_config(config(tmp_path, storage_path=str(tmp_path / "other")))


def test_the_run_directory_is_no_uri() -> None:
    message = r"^run\.dir must be a local folder, got 's3://bucket/run'; a URI is for run\.sto"
    with pytest.raises(ConfigError, match=message):
        train(plain_run(run=RunSection(dir="s3://bucket/run")))
