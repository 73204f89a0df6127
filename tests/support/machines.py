"""Machines of a cluster, as far as Linux namespaces go: each with its own address and processes.

Nothing in them listens or advertises itself outside, and nothing outlives them.
"""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

INTERFACE = "cluster0"
NEEDED = ("unshare", "nsenter", "ip", "mount")

# The first process of a machine also reaps the orphans in it.
_INIT = """
set -e
mount --bind "$1/ray" /tmp/ray
mount --bind "$1/passwd" /etc/passwd
mount -t tmpfs tmpfs /run
mkdir /run/sshd
ip link set lo up
touch "$1/up"
set +e
while :; do sleep 0.2; done
"""


class Machine:
    """One of two; shares the disk with the rest of the world, but for /tmp/ray and root's home."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self.home = folder / "home"
        for path in (self.home, folder / "ray"):
            path.mkdir(parents=True)
        (self.home / ".bashrc").touch()
        if (compiled := Path.home() / ".cache").is_dir():
            # DeepSpeed's, which would take another minute.
            (self.home / ".cache").symlink_to(compiled)
        users = Path("/etc/passwd").read_text().splitlines(keepends=True)
        (folder / "passwd").write_text(
            "".join(
                f"root:x:0:0:root:{self.home}:/bin/bash\n" if one.startswith("root:") else one
                for one in users
            )
        )
        self._unshare = subprocess.Popen(
            [
                *("unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"),
                *("bash", "-c", _INIT, "machine", str(folder)),
            ]
        )
        wait_until((folder / "up").exists, 10)
        (self._init,) = psutil.Process(self._unshare.pid).children()
        # With a network, the other machine's end of the cable would be gone too, and its address.
        self._network = subprocess.Popen(self.on_its_network("sleep", "infinity"))

    def connect(self, end: str) -> None:
        """Give this machine its end of a cable."""
        subprocess.run(["ip", "link", "set", end, "netns", str(self._init.pid)], check=True)
        for words in (
            f"link set {end} name {INTERFACE}",
            f"addr add {self.address}/24 dev {INTERFACE}",
            f"link set {INTERFACE} up",
            # Without it Ray doesn't find the machine's own address.
            f"route add default dev {INTERFACE}",
        ):
            subprocess.run(self.inside("ip", *words.split()), check=True)

    def inside(self, *command: str) -> list[str]:
        """The command that runs a command on this machine."""
        return [*self._enter("--net", "--pid", "--mount"), *command]

    def on_its_network(self, *command: str) -> list[str]:
        """The command that runs a command of the outside world on this machine's network."""
        return [*self._enter("--net"), *command]

    def start(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process that ends with this machine."""
        return subprocess.Popen(self.inside(*command), **options)

    def kill(self) -> None:
        """Take away its power: from one moment to the next it answers nobody."""
        network = ["nsenter", "--target", str(self._network.pid), "--net", "--"]
        subprocess.run([*network, "ip", "link", "set", INTERFACE, "down"], capture_output=True)
        self._unshare.kill()
        self._unshare.wait()

    def remove(self) -> None:
        """Leave nothing of it."""
        self.kill()
        self._network.kill()
        self._network.wait()

    def _enter(self, *namespaces: str) -> list[str]:
        return ["nsenter", "--target", str(self._init.pid), *namespaces, "--"]


@contextlib.contextmanager
def two_machines(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two machines with a cable between them; skips the test where there can't be any."""
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")
    probe = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True, text=True
    )
    if os.geteuid() != 0 or probe.returncode != 0:
        pytest.skip(f"needs root and namespaces: {probe.stderr.strip()}")
    Path("/tmp/ray").mkdir(exist_ok=True)
    ends = [f"tl{os.getpid()}{end}" for end in "ab"]
    made: list[Machine] = []
    try:
        subprocess.run(
            ["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]], check=True
        )
        for number, end in enumerate(ends, start=1):
            made.append(Machine(folder / f"machine{number}", f"10.77.0.{number}"))
            made[-1].connect(end)
        yield made[0], made[1]
    finally:
        for machine in made:
            machine.remove()
        # The cable is gone with the machines, unless none came to be.
        subprocess.run(["ip", "link", "del", ends[0]], capture_output=True)


def wait_until(
    true: Callable[[], bool], seconds: float, tell: Callable[[], str] = lambda: ""
) -> None:
    """Return as soon as it holds; fails with what is told where it takes too long."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"waited too long\n{tell()}"
        time.sleep(0.2)
