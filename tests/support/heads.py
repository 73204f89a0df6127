"""Ray heads of a test's own: programs, ports, and how they are stopped."""

import contextlib
import socket
import sys
from pathlib import Path

import psutil

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
