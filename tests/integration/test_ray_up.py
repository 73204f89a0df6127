"""`ray up`, `ray job submit`, `ray down` with clusters/local.yaml, over SSH between two machines.

pytest -m slow tests/integration/test_ray_up.py
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.heads import BIN
from tests.support.machines import INTERFACE, Machine, two_machines, wait_until
from tests.support.runs import ROOT, arguments

# Most of a minute.
pytestmark = pytest.mark.slow

LOST_HEAD = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""After so long without its head a worker ends."""
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")


class Laptop:
    """Where the user sits: on the head's network, with a home of its own."""

    def __init__(self, folder: Path, head: Machine) -> None:
        self._head = head
        self.home = folder / "laptop"
        (self.home / ".ray").mkdir(parents=True)
        (self.home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
        self.key = self.home / "key"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True
        )
        self.environment = {
            "HOME": str(self.home),
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_ADDRESS": "http://127.0.0.1:8265",
            "RAY_AUTH_MODE": "token",
            "RAY_UP_enable_autoscaler_v2": "0",
            # Where `ray up` notes which machines it has.
            "RAY_TMPDIR": str(self.home),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._head.on_its_network(*command),
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )


def serve_ssh(machine: Machine, public_key: Path) -> None:
    """An SSH server of the test's own, which ends with its machine."""
    host_key = machine.folder / "host_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(host_key)], check=True)
    config = machine.folder / "sshd_config"
    config.write_text(
        f"HostKey {host_key}\nAuthorizedKeysFile {public_key}\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin prohibit-password\nPasswordAuthentication no\nMaxStartups 100\n"
    )
    machine.start(
        str(SSHD), "-D", "-f", str(config), stderr=(machine.folder / "sshd.txt").open("w")
    )


def filled_in(laptop: Laptop, head: Machine, worker: Machine) -> Path:
    """clusters/local.yaml with the addresses, and an environment that is there already."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "clusters" / "local.yaml").read_text())
    config["provider"] |= {"head_ip": head.address, "worker_ips": [worker.address]}
    config["auth"] = {"ssh_user": "root", "ssh_private_key": str(laptop.key)}
    _, on_path, _ = config["setup_commands"]
    config["setup_commands"] = [f"ln -sfn {sys.prefix} ~/timellama_env", on_path]
    # Instead of a minute.
    config["worker_start_ray_commands"].insert(1, f"echo 'export {LOST_HEAD}=5' >> ~/.bashrc")
    file = laptop.home / "local.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[Machine, Machine, Laptop]]:
    if not all((SSHD, shutil.which("ssh"), shutil.which("rsync"))):
        pytest.skip("needs openssh-server, openssh-client and rsync")
    # Short: a Unix socket's path may have 107 characters.
    folder = Path(f"/tmp/timellama-up-{os.getpid()}")
    try:
        with two_machines(folder) as (head, worker):
            laptop = Laptop(folder, head)
            for machine in (head, worker):
                serve_ssh(machine, laptop.key.with_suffix(".pub"))
            yield head, worker, laptop
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def up(machines: tuple[Machine, Machine, Laptop]) -> Laptop:
    """The laptop, when both machines are a cluster."""
    head, worker, laptop = machines
    done = laptop.run("ray", "up", "--yes", str(filled_in(laptop, head, worker)))
    assert done.returncode == 0, done.stdout + done.stderr
    # The head starts the worker.
    wait_until(
        lambda: nodes(laptop).count("ALIVE") == 2,
        180,
        tell=lambda: "\n".join([nodes(laptop), *logs(head, "monitor*")]),
    )
    return laptop


def nodes(laptop: Laptop) -> str:
    done = laptop.run("ray", "list", "nodes")
    return done.stdout + done.stderr


def logs(machine: Machine, pattern: str) -> Iterator[str]:
    """Contents of Ray's log files on a machine."""
    for file in (machine.folder / "ray").glob(f"session_2*/logs/{pattern}"):
        yield file.read_text(errors="replace")


def words(llama: Path, table: Path, run_dir: Path, **changes: Any) -> list[str]:
    """A run with a worker on each machine."""
    spread = {
        "scaling.cpus_per_worker": 1,
        "scaling.placement": "STRICT_SPREAD",
        "scaling.network_interface": INTERFACE,
    }
    return ["python", "ray_jobs/train.py", *arguments(llama, table, run_dir, **spread | changes)]


def submit(laptop: Laptop, *options: str, working_dir: Path = ROOT) -> tuple[int, str]:
    """Exit code of `ray job submit`, and all it printed."""
    done = laptop.run("ray", "job", "submit", "--working-dir", str(working_dir), *options)
    return done.returncode, done.stdout + done.stderr


def test_a_submitted_job_trains_on_both_machines(
    up: Laptop, tiny_llama: Path, waves_csv: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "submitted"
    code, said = submit(up, "--", *words(tiny_llama, waves_csv, run_dir, **{"train.max_steps": 10}))
    assert code == 0, said
    assert "Time-LlaMA (this run)" in said
    metrics = json.loads((run_dir / "metrics.json").read_text())
    assert metrics["train"]["steps"] == 10
    assert metrics["world_size"] == 2


def test_a_job_shows_its_numbers_and_saves_a_checkpoint_when_it_is_stopped(
    up: Laptop,
    machines: tuple[Machine, Machine, Laptop],
    tiny_llama: Path,
    waves_csv: Path,
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "stopped"
    long = {"train.epochs": 10_000, "train.max_steps": 100_000, "train.validate_every": 100_000}
    submit(
        up,
        *("--no-wait", "--submission-id", "stop-me", "--"),
        *words(tiny_llama, waves_csv, run_dir, **long),
    )
    wait_until((run_dir / "history.jsonl").exists, 120)
    head, worker, _ = machines
    wait_until(lambda: "ray_timellama_train_loss{" in metrics_of(up, head), 60)
    logged = [line for machine in (head, worker) for line in printed_by_workers(machine)]
    assert {"loss", "windows_per_s"} <= json.loads(logged[0]).keys()
    assert up.run("ray", "job", "stop", "stop-me").returncode == 0
    assert "STOPPED" in up.run("ray", "job", "status", "stop-me").stdout.upper()
    assert list((run_dir / "checkpoints").glob("checkpoint_*/state.json"))
    assert "--run.resume" in up.run("ray", "job", "logs", "stop-me").stdout


def metrics_of(laptop: Laptop, head: Machine) -> str:
    """What Prometheus would find on all nodes, where Ray tells it to look."""
    (told,) = (head.folder / "ray").glob("session_2*/prom_metrics_service_discovery.json")
    found = json.loads(told.read_text())
    program = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1]).read().decode())"
    urls = [f"http://{target}/metrics" for group in found for target in group["targets"]]
    return "".join(laptop.run(sys.executable, "-c", program, url).stdout for url in urls)


def printed_by_workers(machine: Machine) -> list[str]:
    """Lines about steps in the workers' logs."""
    lines = [line for text in logs(machine, "worker-*.out") for line in text.splitlines()]
    return [line for line in lines if line.startswith('{"kind": "train"')]


def test_a_wrong_token_and_a_missing_folder_are_told(up: Laptop, tmp_path: Path) -> None:
    code, said = submit(up, "--", "true", working_dir=tmp_path / "nowhere")
    assert code != 0
    assert f"{tmp_path}/nowhere" in said.strip().splitlines()[-1]
    (up.home / ".ray" / "auth_token").rename(up.home / "right_token")
    try:
        (up.home / ".ray" / "auth_token").write_text(secrets.token_hex(32))
        code, said = submit(up, "--", "true")
    finally:
        (up.home / "right_token").rename(up.home / ".ray" / "auth_token")
    assert code != 0
    assert "Invalid authentication token" in said


def test_the_cluster_goes_down(up: Laptop, machines: tuple[Machine, Machine, Laptop]) -> None:
    head, worker, laptop = machines
    down = laptop.run("ray", "down", "--yes", str(laptop.home / "local.yaml"))
    assert down.returncode == 0, down.stdout + down.stderr
    for machine in (head, worker):
        wait_until(lambda machine=machine: not ray_processes(machine), 60)


def ray_processes(machine: Machine) -> list[str]:
    names = subprocess.run(machine.inside("ps", "-eo", "comm"), capture_output=True, text=True)
    return [name for name in names.stdout.split() if name in ("raylet", "gcs_server")]
