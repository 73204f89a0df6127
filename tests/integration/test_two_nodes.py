"""A run with a worker on each of two machines; one of them loses its power.

pytest -m slow tests/integration/test_two_nodes.py
"""

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.heads import BIN
from tests.support.machines import INTERFACE, Machine, two_machines, wait_until
from tests.support.runs import JOB, ROOT, arguments, history

pytestmark = pytest.mark.slow

STEPS = 300
NODES = "import ray; ray.init(log_to_driver=False); print('nodes', len(ray.nodes()))"
# Ray takes half a minute by default until it counts a node that answers no more as dead.
QUICK = json.dumps({"health_check_period_ms": 500, "health_check_failure_threshold": 4})


Cluster = tuple[Machine, Machine, dict[str, str]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head, another node with another PEFT, and the environment of a driver on the head."""
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    # Short: a Unix socket's path may have 107 characters.
    folder = Path(f"/tmp/timellama-two-{os.getpid()}")
    try:
        with two_machines(folder) as machines:
            head, other = machines
            reach = environment | {"RAY_ADDRESS": f"{head.address}:6379"}
            old_peft = folder / "old" / "peft-0.20.0.dist-info"
            old_peft.mkdir(parents=True)
            (old_peft / "METADATA").write_text("Name: peft\nVersion: 0.20.0\n")
            path = f"{old_peft.parent}:{os.environ.get('PYTHONPATH', '')}"
            for machine, more, words in (
                (head, {}, ["--head", f"--system-config={QUICK}", "--include-dashboard=false"]),
                (other, {"PYTHONPATH": path}, [f"--address={head.address}:6379"]),
            ):
                machine.start(
                    *(str(BIN / "ray"), "start", "--block", "--num-cpus=3", *words),
                    *("--disable-usage-stats", f"--node-ip-address={machine.address}"),
                    env=environment | more,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            wait_until(lambda: "nodes 2" in ask(head, reach), 60)
            yield head, other, reach
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def ask(machine: Machine, environment: dict[str, str]) -> str:
    command = machine.inside("python", "-W", "ignore", "-c", NODES)
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def refused(cluster: Cluster, words: list[str]) -> str:
    """The line that a run ends with before it has begun."""
    head, _, environment = cluster
    command = head.inside(*JOB, *words)
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    return done.stderr.strip().splitlines()[-1]


def test_storage_that_a_node_does_not_share_is_refused(
    cluster: Cluster, tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    _, other, _ = cluster
    own = tmp_path / "own"
    own.mkdir()
    subprocess.run(other.inside("mount", "-t", "tmpfs", "tmpfs", str(own)), check=True)
    said = refused(cluster, arguments(tiny_llama, waves_csv, own / "run"))
    assert said.startswith(f"error: run.dir={own}/run: node {other.address} does not see it")
    assert not list(own.iterdir())


def test_storage_that_a_node_cannot_write_to_is_refused(
    cluster: Cluster, tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    _, other, _ = cluster
    (tmp_path / "fixed").mkdir()
    fixed = str(tmp_path / "fixed")
    subprocess.run(other.inside("mount", "--bind", fixed, fixed), check=True)
    subprocess.run(other.inside("mount", "-o", "remount,bind,ro", fixed), check=True)
    changes = {"run.storage_path": fixed}
    said = refused(cluster, arguments(tiny_llama, waves_csv, tmp_path / "run", **changes))
    assert f"run.storage_path={fixed}" in said
    assert f"node {other.address} cannot write there" in said


def test_an_interface_that_a_node_lacks_is_refused(
    cluster: Cluster, tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    changes = {"scaling.network_interface": "eth9"}
    said = refused(cluster, arguments(tiny_llama, waves_csv, tmp_path / "run", **changes))
    assert said.startswith("error: scaling.network_interface must be one of each node's; node 10.")
    assert said.endswith(f"has lo, {INTERFACE}, got 'eth9'")


def test_a_wrong_token_is_told(
    cluster: Cluster, tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    head, other, environment = cluster
    wrong = environment | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    words = arguments(tiny_llama, waves_csv, tmp_path / "run")
    said = refused((head, other, wrong), words)
    assert said.startswith("error: the cluster refuses this token")


def test_a_run_over_two_machines_outlives_one_of_them(
    cluster: Cluster,
    tiny_llama: Path,
    waves_csv: Path,
    tmp_path: Path,
) -> None:
    head, other, environment = cluster
    run_dir, said, told = (tmp_path / name for name in ("run", "stderr.txt", "stdout.txt"))
    changes = {
        "backbone.quantization": "none",
        "train.epochs": 100,
        "train.max_steps": STEPS,
        "train.validate_every": 100,
        "train.patience": 0,
        "train.save_every": 10,
        "scaling.num_workers": [1, 2],
        # One worker a node, beside a CPU for the windows.
        "scaling.cpus_per_worker": 2,
        "scaling.network_interface": INTERFACE,
    }
    with said.open("w") as errors, told.open("w") as output:
        job = head.start(
            *JOB,
            *arguments(tiny_llama, waves_csv, run_dir, **changes),
            env=environment,
            cwd=ROOT,
            stdout=output,
            stderr=errors,
        )

    def steps() -> list[int]:
        found = history(run_dir, "train") if (run_dir / "history.jsonl").exists() else []
        return [record["step"] for record in found]

    wait_until(lambda: bool(steps()) or job.poll() is not None, 180, tell=said.read_text)
    assert job.poll() is None, said.read_text()
    wait_until(lambda: steps()[-1] >= 30, 120)
    workers = subprocess.run(other.inside("ps", "-eo", "args"), capture_output=True, text=True)
    assert workers.stdout.count("RayTrainWorker") == 1
    other.kill()
    assert job.wait(300) == 0, said.read_text()
    assert said.read_text().count("loading the backbone") == 2
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["train"]["steps"] == STEPS
    assert metrics["world_size"] == 1
    assert f"note: node {other.address} has peft 0.20.0 (the driver" in told.read_text()
