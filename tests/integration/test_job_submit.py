"""`ray start --head` and `ray job submit`, for real, on loopback with a token of the test's own."""

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.heads import BIN, free_ports, stop
from tests.support.runs import ROOT, arguments

# With nothing to spill to: the disk counts as full at a hundredth of it.
SMALL_STORE = {"--object-store-memory": "80000000", "RAY_local_fs_capacity_threshold": "0.01"}


@pytest.fixture
def head(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """A Ray head on loopback, with options or variables of its own; yields what reaches it."""
    said: dict[str, str] = getattr(request, "param", {})
    options = [f"{key}={value}" for key, value in said.items() if key.startswith("--")]
    gcs, dashboard, client, agent, agent_http = free_ports(5)
    environment = os.environ | {
        # The job's `python` is looked up on the head's PATH.
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        **{key: value for key, value in said.items() if not key.startswith("--")},
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
            *(f"--dashboard-agent-listen-port={agent_http}", "--disable-usage-stats", *options),
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


def submit(
    head: dict[str, str], *words: str, program: Sequence[str] = ("python",)
) -> subprocess.CompletedProcess[str]:
    """`ray job submit -- PROGRAM WORDS`."""
    return subprocess.run(
        [BIN / "ray", "job", "submit", "--working-dir", ROOT, "--", *program, *words],
        env=head,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )


def submitted(head: dict[str, str], *words: str, **options: Any) -> str:
    """What a job that succeeds prints."""
    done = submit(head, *words, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
    said = submitted(head, "ray_jobs/train.py", *words)
    assert "Time-LlaMA" in said
    assert "succeeded" in said
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
def test_a_submitted_search_ends_with_a_configuration_to_train(
    head: dict[str, str], tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    search, run_dir = tmp_path / "search.yaml", tmp_path / "search"
    search.write_text(
        "space:\n  dlora.rank: {choice: [2, 4]}\nsearcher: grid\ninclude_base: false\n"
    )
    small = {"scaling.num_workers": 1, "scaling.cpus_per_worker": 0.5}
    said = submitted(
        head,
        *("ray_jobs/tune.py", "--search", str(search)),
        *arguments(tiny_llama, waves_csv, run_dir, **small),
    )
    assert f"train it with: python ray_jobs/train.py --config {run_dir / 'best.yaml'}" in said
    assert "succeeded" in said
    trials = json.loads((run_dir / "search.json").read_text())["trials"]
    assert sorted(one["keys"]["dlora.rank"] for one in trials) == [2, 4]


@pytest.mark.slow
def test_the_tables_run_as_a_job_whose_trainings_join_its_cluster(
    head: dict[str, str], tiny_llama: Path, tmp_path: Path
) -> None:
    weeks = pd.date_range("2002-01-01", periods=240, freq="W")
    waves = np.sin(np.arange(240)[:, None] / 8 + np.arange(7))
    table = pd.DataFrame(waves, columns=list("abcdefg"))
    table.insert(0, "date", weeks)
    table.to_csv(tmp_path / "national_illness.csv", index=False)
    said = submitted(
        head,
        *("-m", "benchmarks.tables", "--data", str(tmp_path), "--seeds", "1"),
        *("--results", str(tmp_path / "results"), "--only", "illness-24-full-seed0", "--"),
        *("--backbone.name", str(tiny_llama), "--data.context_len", "24"),
        *("--train.max_steps", "4", "--scaling.cpus_per_worker", "0.5"),
        program=("env", "TIMELLAMA_COMMIT=0123abcd", "python"),
    )
    assert "illness-24-full-seed0: test" in said
    kept = json.loads((tmp_path / "results" / "illness-24-full-seed0.json").read_text())
    assert kept["metrics"]["train"]["steps"] == 4
    # The job's copy of the project has no repository to ask.
    assert kept["versions"]["commit"] == kept["metrics"]["versions"]["commit"] == "0123abcd"
    # The program itself doesn't connect, so a driver there is the training's.
    jobs = subprocess.run(
        [BIN / "ray", "job", "list"], env=head, capture_output=True, text=True, check=True
    )
    assert "driver_info=DriverInfo" in jobs.stdout


@pytest.mark.slow
@pytest.mark.parametrize("head", [SMALL_STORE], indirect=True)
def test_an_object_store_that_is_full_is_told_in_the_last_line(
    head: dict[str, str], tmp_path: Path
) -> None:
    # Five times what the store holds; sorting by series needs all of it at once.
    rows = 4_000_000
    table = {
        "unique_id": np.arange(rows) % 400,
        "ds": pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(rows) // 400, "h"),
        **{name: np.random.default_rng(0).normal(size=rows) for name in "abcdefgh"},
    }
    pd.DataFrame(table).to_parquet(tmp_path / "large.parquet", row_group_size=100_000)
    words = ("--input", str(tmp_path / "large.parquet"), "--output", str(tmp_path / "prepared"))
    done = submit(head, "ray_jobs/prepare.py", *words)
    assert done.returncode == 1, done.stdout + done.stderr
    told = [line for line in done.stdout.splitlines() if line.startswith("a node's ")]
    assert told, done.stdout[-3000:]
    assert not (tmp_path / "prepared" / "manifest.json").exists()
