"""`python ray_jobs/tune.py` as a user runs it: real Ray Tune, and Ray Train in each trial."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.runs import ROOT, arguments
from timellama_dist.config.load import load_config

JOB = [sys.executable, str(ROOT / "ray_jobs" / "tune.py")]

SPACE = """
space:
  dlora.num_experts: {choice: [1, 2]}
  dlora.rank: {choice: [2, 4]}
  dlora.top_n: {choice: [2, 8]}
  train.learning_rate: {loguniform: [1e-5, 1e-2]}
searcher: random
"""

# Each trial fits its own.
MAPS = """
space:
  model.clip: {loguniform: [0.3, 2.0]}
  model.shortcut_per_channel: {choice: [true, false]}
searcher: random
"""


def write(folder: Path, more: str, space: str = SPACE) -> Path:
    file = folder / "search.yaml"
    file.write_text(space + more)
    return file


def words(search: Path, llama: Path, table: Path, run_dir: Path, **changes: Any) -> list[str]:
    """Trials of a few seconds, two at the same time."""
    small = {"scaling.num_workers": 1, "scaling.cpus_per_worker": 0.5}
    return ["--search", str(search), *arguments(llama, table, run_dir, **small | changes)]


def run(*said: str, timeout_s: float = 400) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*JOB, *said], capture_output=True, text=True, timeout=timeout_s, check=False
    )


def results(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "search.json").read_text())
    return found


def key_sets(run_dir: Path) -> set[str]:
    return {json.dumps(one["keys"], sort_keys=True) for one in results(run_dir)["trials"]}


def steps_logged(run_dir: Path) -> dict[str, list[int]]:
    """Steps in each trial's history, in the order of writing."""
    return {
        file.parent.name: [
            record["step"]
            for record in map(json.loads, file.read_text().splitlines())
            if record["kind"] == "train"
        ]
        for file in (run_dir / "trials").glob("*/history.jsonl")
    }


def wait_for(condition: Any, process: subprocess.Popen[str], timeout_s: float = 300) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def some_ended(run_dir: Path, count: int) -> bool:
    ended = ("finished", "stopped")
    return (run_dir / "search.json").exists() and count <= sum(
        one["status"] in ended for one in results(run_dir)["trials"]
    )


def test_a_search_leaves_its_trials_a_front_and_a_configuration_to_train(
    tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "search"
    search = write(tmp_path, "scheduler: asha\nnum_trials: 2\ngrace_steps: 10\n")
    done = run(*words(search, tiny_llama, waves_csv, run_dir))
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(run_dir)
    trials = found["trials"]
    assert len(trials) == 2
    assert trials[0]["is_base"]
    assert {one["status"] for one in trials} <= {"finished", "stopped"}
    for one in trials:
        assert one["step"] == 30 or one["status"] == "stopped"
        assert 0 < one["active_parameters"] <= one["trainable_parameters"]
        assert one["step_s"] > 0
        assert one["peak_bytes"] > 1 << 26
        # Neither scored nor looked at.
        assert "test" not in json.dumps(one)
        folder = run_dir / "trials" / one["id"]
        assert not (folder / "model").exists()
        assert not list(folder.glob("checkpoints/*/model"))
        assert not (folder / "data").exists(), "prepared anew"
    for name in ("summary.md", "pareto.png", "search.yaml", "config.yaml"):
        assert (run_dir / name).exists(), name
    # Raylets of machines with few cores warn of many processes, which can't be switched off.
    lines = [line for line in done.stderr.splitlines() if "PYTHON worker processes" not in line]
    assert len(lines) == 2, done.stderr
    assert all(line.startswith("trial ") for line in lines), done.stderr
    best = min(
        (one for one in trials if one["status"] == "finished"), key=lambda one: one["validation"]
    )
    config = load_config(["--config", str(run_dir / "best.yaml")], prog="", description="")
    assert config.dlora.rank == best["keys"]["dlora.rank"]
    assert config.data.path == str(waves_csv)
    assert config.run.dir is None
    refused = run("--search", str(search), "--run.dir", str(run_dir))
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: run.dir: {run_dir} is not empty")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "num_trials: 2\nmemory_gib: 0.01\n",
            "space: none of 50 draws fits the memory: a trial needs",
        ),
        ("num_trials: 2\nmax_concurrent: 400\n", "max_concurrent must be at most "),
    ],
)
def test_what_the_cluster_can_never_hold_is_refused(
    tiny_llama: Path, waves_csv: Path, tmp_path: Path, more: str, message: str
) -> None:
    run_dir = tmp_path / "search"
    done = run(*words(write(tmp_path, more), tiny_llama, waves_csv, run_dir))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not run_dir.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("space", "keys"), [(SPACE, {}), (MAPS, {"model.shortcut": "frozen"})])
def test_the_best_configuration_is_trained_as_it_is_and_gives_what_the_trial_gave(
    tiny_llama: Path, waves_csv: Path, tmp_path: Path, space: str, keys: dict[str, str]
) -> None:
    search = write(tmp_path, "scheduler: none\nnum_trials: 4\n", space)
    done = run(*words(search, tiny_llama, waves_csv, tmp_path / "search", **keys))
    assert done.returncode == 0, done.stderr
    assert len({one["validation"] for one in results(tmp_path / "search")["trials"]}) == 4
    trained = subprocess.run(
        [
            *(
                sys.executable,
                str(ROOT / "ray_jobs" / "train.py"),
                "--run.dir",
                str(tmp_path / "run"),
            ),
            *("--config", str(tmp_path / "search" / "best.yaml")),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert trained.returncode == 0, trained.stderr
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    best = min(one["validation"] for one in results(tmp_path / "search")["trials"])
    assert metrics["validation"]["mse"] == pytest.approx(best, rel=1e-6)


@pytest.mark.slow
def test_a_search_whose_driver_is_killed_goes_on_and_runs_nothing_twice(
    tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    search = write(tmp_path, "scheduler: none\nnum_trials: 5\n")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run(*words(search, tiny_llama, waves_csv, whole))
    assert done.returncode == 0, done.stderr
    process = subprocess.Popen(
        [*JOB, *words(search, tiny_llama, waves_csv, killed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: some_ended(killed, 2), process)
    # So that Ray Tune has written down that they have.
    time.sleep(3)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    known = {one["id"]: one["number"] for one in results(killed)["trials"]}
    before = {one["id"] for one in results(killed)["trials"] if one["status"] == "finished"}
    logged = steps_logged(killed)
    for one in family:
        one.kill()
    process.wait(timeout=60)
    done = run("--run.dir", str(killed), "--run.resume")
    assert done.returncode == 0, done.stderr
    trials = results(killed)["trials"]
    assert len(trials) == 5
    assert {one["status"] for one in trials} == {"finished"}
    assert [one["number"] for one in trials] == [1, 2, 3, 4, 5]
    assert known.items() <= {one["id"]: one["number"] for one in trials}.items()
    assert key_sets(killed) == key_sets(whole)
    after = steps_logged(killed)
    for trial in before:
        assert after[trial] == logged[trial], "a finished trial was run again"


@pytest.mark.slow
def test_ctrl_c_stops_a_search_which_goes_on_when_it_is_resumed(
    tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "search"
    search = write(tmp_path, "scheduler: asha\nnum_trials: 4\ngrace_steps: 10\n")
    process = subprocess.Popen(
        [*JOB, *words(search, tiny_llama, waves_csv, run_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: some_ended(run_dir, 1), process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert f"go on with: python ray_jobs/tune.py --run.dir {run_dir} --run.resume" in errors
    assert "Traceback" not in errors
    other = run("--run.dir", str(run_dir), "--run.resume", "--train.seed", "3")
    assert other.returncode == 2
    assert "goes on with the configuration it was begun with" in other.stderr
    done = run("--run.dir", str(run_dir), "--run.resume")
    assert done.returncode == 0, done.stderr
    assert {one["status"] for one in results(run_dir)["trials"]} <= {"finished", "stopped"}
    assert len(results(run_dir)["trials"]) == 4


@pytest.mark.slow
def test_a_trial_that_crashes_is_tried_again_and_marked_and_the_search_goes_on(
    tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    good, bad = ROOT / "ds_configs" / "zero1.json", tmp_path / "bad.json"
    offload = {"device": "nvme", "nvme_path": "/proc/nowhere", "pin_memory": False}
    bad.write_text(json.dumps({"zero_optimization": {"stage": 3, "offload_param": offload}}))
    space = f"space:\n  deepspeed: {{choice: [{bad}, {good}]}}\nsearcher: grid\n"
    search = write(tmp_path, "scheduler: none\ninclude_base: false\n", space)
    done = run(
        *words(search, tiny_llama, waves_csv, tmp_path / "search", **{"scaling.max_failures": 0})
    )
    assert done.returncode == 0, done.stderr
    statuses = {
        Path(one["keys"]["deepspeed"]).name: one["status"]
        for one in results(tmp_path / "search")["trials"]
    }
    assert statuses == {"bad.json": "failed", "zero1.json": "finished"}
    (told,) = [line for line in done.stderr.splitlines() if "failed and is tried again" in line]
    assert "FileNotFoundError: " in told


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["pbt", "pb2"])
def test_a_population_goes_on_from_its_best_checkpoints_with_other_rates(
    tiny_llama: Path, waves_csv: Path, tmp_path: Path, scheduler: str
) -> None:
    if scheduler == "pb2":
        pytest.importorskip("sklearn")
    space = "space:\n  train.learning_rate: {loguniform: [1e-6, 1e-2]}\n"
    space += "  dlora.rank: {choice: [2, 4]}\nsearcher: random\n"
    search = write(tmp_path, f"scheduler: {scheduler}\nnum_trials: 3\nperturb_steps: 10\n", space)
    run_dir = tmp_path / "search"
    done = run(*words(search, tiny_llama, waves_csv, run_dir), timeout_s=900)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = results(run_dir)["trials"]
    assert [one["step"] for one in trials] == [30, 30, 30]
    assert {one["status"] for one in trials} == {"finished"}
    # Some trial began from another's checkpoint.
    folders = [one.name for one in (run_dir / "trials").iterdir()]
    assert len(folders) > 3
    # What is drawn and what is changed stays inside of the space.
    assert all(1e-6 <= one["keys"]["train.learning_rate"] <= 1e-2 for one in trials)


@pytest.mark.slow
def test_several_objectives_give_a_front(tiny_llama: Path, waves_csv: Path, tmp_path: Path) -> None:
    space = SPACE.replace("random", "tpe")
    more = "scheduler: none\nnum_trials: 4\nobjectives: [validation, active_parameters]\n"
    run_dir = tmp_path / "search"
    done = run(*words(write(tmp_path, more, space), tiny_llama, waves_csv, run_dir))
    assert done.returncode == 0, done.stderr
    assert {one["status"] for one in results(run_dir)["trials"]} == {"finished"}
    assert "## Pareto front: validation, active parameters" in (run_dir / "summary.md").read_text()
