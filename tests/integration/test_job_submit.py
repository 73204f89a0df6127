"""`ray start --head` and `ray job submit`, for real, on loopback with a token of the test's own."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from test_train_job import ROOT, arguments

BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def stop(pid: int) -> None:
    """End a process and all it started, by their ids: never a bare `ray stop`."""
    parent = psutil.Process(pid)
    family = [*parent.children(recursive=True), parent]
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=10)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A Ray head on loopback; yields the environment that reaches it."""
    gcs, dashboard, client, agent, agent_http = free_ports(5)
    environment = os.environ | {
        # The job's `python` is looked up on the head's PATH.
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    environment.pop("RAY_ADDRESS", None)
    # Short: a Unix socket's path may have 107 characters.
    temp_dir = Path(f"/tmp/timellama-test-{os.getpid()}")
    process = subprocess.Popen(
        [
            *(str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2"),
            *("--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={temp_dir}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-grpc-port={agent}"),
            *(f"--dashboard-agent-listen-port={agent_http}", "--disable-usage-stats"),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    reach = environment | {"RAY_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            ready = subprocess.run([BIN / "ray", "job", "list"], env=reach, capture_output=True)
            if ready.returncode == 0:
                break
            time.sleep(1)
        yield reach
    finally:
        stop(process.pid)
        shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture
def other_test_part(waves_csv: Path, tmp_path: Path) -> Path:
    """The table of the run `finished`, with noise where it is tested."""
    table = pd.read_csv(waves_csv)
    table.iloc[320:, 1:] = 1e3 * np.random.default_rng(0).normal(size=(80, 3))
    table.to_csv(tmp_path / "waves.csv", index=False)
    return tmp_path / "waves.csv"


def test_a_submitted_job_trains_on_the_cluster_and_its_test_part_decides_nothing(
    head: dict[str, str],
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    tiny_llama: Path,
    other_test_part: Path,
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "submitted"
    words = arguments(tiny_llama, other_test_part, run_dir)
    done = subprocess.run(
        [
            *(str(BIN / "ray"), "job", "submit", "--working-dir", str(ROOT), "--"),
            *("python", "ray_jobs/train.py", *words),
        ],
        env=head,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Time-LlaMA" in done.stdout
    assert "succeeded" in done.stdout
    ours, theirs = (
        json.loads((path / "metrics.json").read_text()) for path in (finished[0], run_dir)
    )
    assert theirs["train"]["steps"] == 30
    assert ours["test"]["mse"] < theirs["test"]["mse"]
    assert ours["validation"]["mse"] == theirs["validation"]["mse"]
    for file in ("timellama.safetensors", "adapter/adapter_model.safetensors"):
        first, second = (path / "model" / file for path in (finished[0], run_dir))
        assert first.read_bytes() == second.read_bytes(), file


@pytest.mark.slow
def test_the_tables_run_as_a_job_whose_trainings_join_its_cluster(
    head: dict[str, str], tiny_llama: Path, tmp_path: Path
) -> None:
    weeks = pd.date_range("2002-01-01", periods=240, freq="W")
    waves = np.sin(np.arange(240)[:, None] / 8 + np.arange(7))
    table = pd.DataFrame(waves, columns=list("abcdefg"))
    table.insert(0, "date", weeks)
    table.to_csv(tmp_path / "national_illness.csv", index=False)
    done = subprocess.run(
        [
            *(str(BIN / "ray"), "job", "submit", "--working-dir", str(ROOT), "--"),
            *("python", "-m", "benchmarks.tables", "--data", str(tmp_path), "--seeds", "1"),
            *("--results", str(tmp_path / "results"), "--only", "illness-24-full", "--"),
            *("--backbone.name", str(tiny_llama), "--data.context_len", "24"),
            *("--train.max_steps", "4", "--scaling.cpus_per_worker", "0.5"),
        ],
        env=head,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "illness-24-full-seed0: test" in done.stdout
    kept = json.loads((tmp_path / "results" / "illness-24-full-seed0.json").read_text())
    assert kept["metrics"]["train"]["steps"] == 4
    # The program itself doesn't connect, so a driver there is the training's.
    jobs = subprocess.run(
        [BIN / "ray", "job", "list"], env=head, capture_output=True, text=True, check=True
    )
    assert "driver_info=DriverInfo" in jobs.stdout
