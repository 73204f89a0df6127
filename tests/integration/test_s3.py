"""Data, checkpoints and results in object storage: a real S3 server on loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow.fs import S3FileSystem

from tests.support.runs import JOB, arguments, history
from timellama_dist import TimeLlamaForecaster
from timellama_dist.cli.prepare import main as prepare_main
from timellama_dist.cli.train import main
from timellama_dist.data.prepared.manifest import Manifest
from timellama_dist.data.prepared.write import prepare
from timellama_dist.data.windows.reader import WindowReader
from timellama_dist.data.windows.spec import WindowSpec
from timellama_dist.errors import CheckpointError, DataError
from timellama_dist.storage import copy_tree, open_place
from timellama_dist.train.checkpoint.files import (
    newest_valid,
    publish,
    remove_old,
    seal,
    set_aside,
)

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def serve(port: int, **environment: str) -> Iterator[str]:
    """An S3 server for as long as the generator lives; yields its host and port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Where a server with the bucket `lake` listens; the environment points to it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_REGION", "us-east-1")
        for address in serve(free_port()):
            filesystem = S3FileSystem(
                endpoint_override=address, scheme="http", allow_bucket_creation=True
            )
            filesystem.create_dir("lake")
            patch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
            yield address


def test_an_object_is_a_file_and_a_prefix_a_folder(server: str) -> None:
    # Of a server that is named in the URI, and not by the environment.
    top = open_place(f"s3://lake/things?endpoint_override={server}&scheme=http")
    (top / "deep" / "50% off?.csv.gz").write_text("grün")
    (top / "empty").write_bytes(b"")
    assert open_place("s3://lake/things/deep/50%25 off%3F.csv.gz").read_text() == "grün"
    assert [place.name for place in top.children()] == ["deep", "empty"]
    assert [place.is_dir() for place in top.children()] == [True, False]
    assert top.sizes(["empty", "deep", "deep/50% off?.csv.gz"]) == [0, None, 5]
    first = (top / "empty").fingerprint()
    (top / "empty").write_bytes(b"")
    assert (top / "empty").fingerprint() == first
    (top / "empty").write_bytes(b"x")
    assert (top / "empty").fingerprint() != first
    top.make_dirs()
    top.delete()
    assert not top.exists()
    with pytest.raises(DataError, match=r"deep\S+: cannot be read: no such file or folder$"):
        (top / "deep").read_bytes()


def test_a_missing_bucket_is_named(server: str) -> None:
    place = open_place("s3://swamp/data")
    for deed in (place.exists, place.children, lambda: place.write_text("x"), place.make_dirs):
        with pytest.raises(DataError, match=r"^s3://swamp/data: .*: there is no such bucket$"):
            deed()


def test_wrong_credentials_are_named(server: str) -> None:
    for address in serve(free_port(), INITIAL_NO_AUTH_ACTION_COUNT="0"):
        place = open_place(f"s3://lake/data?endpoint_override={address}&scheme=http")
        with pytest.raises(DataError, match=r"cannot be read: access denied; no credentials were"):
            place.exists()
        with pytest.raises(DataError, match=r"cannot be written: the access key is unknown there"):
            place.write_text("x")


def test_windows_read_from_a_bucket_are_those_of_the_disk(
    server: str, waves_csv: Path, tmp_path: Path
) -> None:
    prepare(waves_csv, tmp_path / "waves")
    copy_tree(open_place(tmp_path / "waves"), open_place("s3://lake/waves"))
    lengths = {"context_len": 48, "horizon": 12}
    here = WindowReader(tmp_path / "waves", WindowSpec(**lengths))
    there = WindowReader("s3://lake/waves", WindowSpec(**lengths))
    assert there.handle.path == "s3://lake/waves"
    assert there.handle.content_hash == here.handle.content_hash
    ids = np.arange(len(here))
    np.testing.assert_array_equal(there.read(ids)["past"], here.read(ids)["past"])
    (open_place("s3://lake/waves") / there.manifest.series_file.path).delete()
    with pytest.raises(DataError, match=r"^s3://lake/waves/series-\S+: the data file is missing"):
        WindowReader("s3://lake/waves", WindowSpec(**lengths))
    with pytest.raises(DataError, match=r"^s3://lake/nothing: no manifest\.json, so this is not"):
        WindowReader("s3://lake/nothing", WindowSpec(**lengths))


@pytest.mark.slow
def test_a_run_stopped_by_sigterm_goes_on_from_the_bucket_and_leaves_its_results_there(
    server: str,
    tiny_llama: Path,
    waves_csv: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy_tree(open_place(waves_csv), open_place("s3://lake/raw/waves.csv"))
    prepared = prepare_main(["--input", "s3://lake/raw", "--output", "s3://lake/train"])
    assert (prepared, capsys.readouterr().out.splitlines()[0]) == (
        0,
        "raw: 1 series, 400 rows, 3 channels, one step is h",
    )
    assert Manifest.load("s3://lake/train").inputs[0].path == "s3://lake/raw/waves.csv"
    run_dir = tmp_path / "first run"
    words = arguments(
        tiny_llama,
        Path("unused"),
        run_dir,
        **{
            "data.path": f"s3://lake/train?endpoint_override={server}&scheme=http",
            "run.storage_path": "s3://lake/runs",
            "scaling.num_workers": 1,
            "train.max_steps": 20,
            "train.validate_every": 20,
            "train.log_every": 1,
        },
    )
    process = subprocess.Popen(
        [*JOB, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if (run_dir / "history.jsonl").exists() and history(run_dir, "train"):
            break
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    before = history(run_dir, "train")[-1]["step"]
    # After the step that was under way, not at the next validation.
    assert before < 20
    assert f"stopped at step {before}; go on with: " in errors
    kept = open_place("s3://lake/runs/first run")
    assert [place.name for place in kept.children()] == ["checkpoints", "config.yaml"]
    # The driver's own disk is lost with it.
    shutil.rmtree(run_dir)

    # A run of the same name, on another machine.
    elsewhere = ["--run.dir", str(tmp_path / "elsewhere" / run_dir.name)]
    assert main([*words, *elsewhere]) == 2
    message = "error: run.storage_path: s3://lake/runs/first run holds the checkpoints of another"
    assert capsys.readouterr().err.startswith(message)

    done = subprocess.run(
        [*JOB, "--run.dir", str(run_dir), "--run.storage_path", "s3://lake/runs", "--run.resume"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "copied to       s3://lake/runs/first run" in done.stdout
    assert not (run_dir / "checkpoints").exists()
    steps = [record["step"] for record in history(run_dir, "train")]
    assert steps == list(range(before + 1, 21))

    checkpoints = [p for p in (kept / "checkpoints").children() if "checkpoint_2" in p.name]
    assert 1 <= len(checkpoints) <= 2
    state = json.loads((checkpoints[-1] / "state.json").read_text())
    assert (state["progress"]["step"], state["progress"]["finished"]) == (20, True)
    for name in ("metrics.json", "config.yaml", "model/config.json"):
        assert (kept / name).read_bytes() == (run_dir / name).read_bytes(), name
    past = pd.read_csv(waves_csv)
    local, remote = (
        TimeLlamaForecaster.load(model).predict(past)
        for model in (run_dir / "model", (kept / "model").uri)
    )
    pd.testing.assert_frame_equal(local, remote)

    weights = kept / "model" / "timellama.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    message = r"^s3://lake/runs/first run/model/timellama\.safetensors is damaged: sha256"
    with pytest.raises(CheckpointError, match=message):
        TimeLlamaForecaster.load((kept / "model").uri)
    with pytest.raises(CheckpointError, match=r"^s3://lake/runs holds no exported model"):
        TimeLlamaForecaster.load("s3://lake/runs")


def test_a_damaged_checkpoint_in_a_bucket_is_passed_over_and_left(
    server: str, tmp_path: Path
) -> None:
    checkpoints = open_place("s3://lake/damage/checkpoints")
    assert newest_valid(checkpoints) == (None, [])
    places = []
    for step in (20, 40, 60):
        folder = tmp_path / str(step)
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "weights").write_bytes(b"weights")
        seal(folder, {"step": step})
        places.append(publish(folder, checkpoints, f"checkpoint_{step}"))
    (places[1] / "model/weights").write_bytes(b"weighty")
    (places[2] / "state.json").delete()
    assert newest_valid(checkpoints) == (
        places[0],
        [
            (places[2], "state.json is missing: half written, or half removed"),
            (places[1], "model/weights: sha256 differs"),
        ],
    )
    assert [set_aside(place) for place in (places[2], places[1])] == ["removed", "left as it is"]
    remove_old(checkpoints, keep=1, ignored=["checkpoint_40"])
    assert [place.name for place in checkpoints.children()] == ["checkpoint_20", "checkpoint_40"]
    remove_old(checkpoints, keep=1)
    assert checkpoints.children() == [places[1]]
    message = (
        r"^s3://swamp/c/checkpoint_1/model/weights: cannot be written: there is no such bucket$"
    )
    with pytest.raises(DataError, match=message):
        publish(tmp_path / "20", open_place("s3://swamp/c"), "checkpoint_1")
    # What says nothing of a checkpoint isn't taken for damage.
    with pytest.raises(DataError, match=r"there is no such bucket$"):
        newest_valid(open_place("s3://swamp/c"))


def test_storage_that_takes_no_file_is_refused_before_anything_starts(
    server: str,
    tiny_llama: Path,
    waves_csv: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"run.storage_path": "s3://swamp/runs"}
    words = arguments(tiny_llama, waves_csv, tmp_path / "run", **changes)
    message = "error: run.storage_path: s3://swamp/runs: cannot be written: there is no such bucket"
    assert main(words) == 2
    assert capsys.readouterr() == ("", message + "\n")
    assert not (tmp_path / "run").exists()
