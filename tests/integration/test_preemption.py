"""A node that Ray is told will be taken away: its run saves, and goes on elsewhere."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.heads import BIN, free_ports, stop
from tests.support.runs import JOB, arguments, history

# Whole jobs, most of a minute each.
pytestmark = pytest.mark.slow

NODES = "import json, ray; ray.init(log_to_driver=False); print(json.dumps(ray.nodes()))"
LOG_EVERY = 100
"""So rarely that other lines are those of checkpoints."""


@dataclass
class Cluster:
    """A head with one CPU, and nodes that a run fits on; on loopback."""

    environment: dict[str, str]

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [BIN / "ray", "start", "--block", "--node-ip-address=127.0.0.1", *words],
            env={k: v for k, v in self.environment.items() if k != "RAY_ADDRESS"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def node_ids(self) -> set[str]:
        """Of nodes beside the head."""
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", NODES],
            env=self.environment,
            capture_output=True,
            text=True,
        )
        nodes = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else []
        return {one["NodeID"] for one in nodes if one["Resources"].get("CPU", 0) > 1}

    def drain(self, node_id: str, seconds: int) -> None:
        subprocess.run(
            [
                *(BIN / "ray", "drain-node", "--node-id", node_id, "--reason-message", "spot"),
                *("--reason", "DRAIN_NODE_REASON_PREEMPTION"),
                *("--deadline-remaining-seconds", str(seconds)),
                *("--address", self.environment["RAY_ADDRESS"]),
            ],
            env=self.environment,
            check=True,
            capture_output=True,
        )


@pytest.fixture
def cluster() -> Iterator[tuple[Cluster, Callable[[], None]]]:
    """The head with one node, and what adds another."""
    gcs, dashboard, client, agent, agent_http = free_ports(5)
    address = f"127.0.0.1:{gcs}"
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ADDRESS": address,
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    }
    found = Cluster(environment)
    temp_dir = Path(f"/tmp/timellama-drain-{os.getpid()}")
    processes = [
        found.start(
            *("--head", "--num-cpus=1", f"--port={gcs}", f"--temp-dir={temp_dir}"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--ray-client-server-port={client}", f"--dashboard-agent-grpc-port={agent}"),
            *(f"--dashboard-agent-listen-port={agent_http}", "--disable-usage-stats"),
        )
    ]

    def add_node() -> None:
        known = found.node_ids()
        processes.append(found.start(f"--address={address}", "--num-cpus=3"))
        wait_until(lambda: len(found.node_ids()) > len(known), 60)

    try:
        time.sleep(5)
        add_node()
        yield found, add_node
    finally:
        for process in reversed(processes):
            with contextlib.suppress(Exception):
                stop(process.pid)
        shutil.rmtree(temp_dir, ignore_errors=True)


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def test_a_run_on_a_drained_node_saves_and_goes_on_elsewhere(
    cluster: tuple[Cluster, Callable[[], None]], tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    ray, add_node = cluster
    run_dir, said = tmp_path / "spot", tmp_path / "stderr.txt"
    changes = {"train.epochs": 10_000, "train.max_steps": 100_000, "train.log_every": LOG_EVERY}
    changes |= {"train.validate_every": 100_000}
    with said.open("w") as errors:
        job = subprocess.Popen(
            [*JOB, *arguments(tiny_llama, waves_csv, run_dir, **changes)],
            env=ray.environment,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )

    def attempts() -> int:
        return said.read_text().count("loading the backbone")

    def steps() -> list[int]:
        return [record["step"] for record in history(run_dir, "train")]

    try:
        wait_until(lambda: attempts() == 1, 90)
        (spot,) = ray.node_ids()
        add_node()
        ray.drain(spot, 25)
        wait_until(lambda: attempts() == 2, 120)
        before = steps()
        wait_until(lambda: len(steps()) > len(before), 120)
        job.terminate()
        job.wait(60)
    finally:
        if job.poll() is None:
            stop(job.pid)
    assert job.returncode == 130, said.read_text()
    saved = [step for step in before if step % LOG_EVERY]
    assert len(saved) >= 2, "at the notice, and again before the node goes"
    # It went on from the last one: the next line is that of the next logged step.
    again = steps()[len(before)]
    assert saved[-1] < again <= (saved[-1] // LOG_EVERY + 1) * LOG_EVERY
