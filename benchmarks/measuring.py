"""What the benchmarks share: facts about the machine, paired ratios, results as JSON."""

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import psutil
import ray

from timellama_dist.config import former
from timellama_dist.config.load import config_from_flat
from timellama_dist.config.schema import RunConfig
from timellama_dist.versions import versions

PLAIN = {
    f"{section}.{key}": value
    for section, values in former.SECTIONS.items()
    for key, value in values.items()
}
"""Keys of a run without a linear map and an average of weights, as all benchmarks have it."""


def base_config(backbone: str, num_blocks: int) -> RunConfig:
    """A plain run, with another backbone or number of blocks."""
    return config_from_flat(PLAIN | {"backbone.name": backbone, "backbone.num_blocks": num_blocks})


def plain_words() -> list[str]:
    """`PLAIN` as words of a command line."""
    pairs = ((f"--{key}", "null" if value is None else str(value)) for key, value in PLAIN.items())
    return [word for pair in pairs for word in pair]


def spread(values: Sequence[float]) -> str:
    """Median, and least and largest."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def alternate(variants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every variant once a round, in turn, so that a drifting machine is fair to all."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, measure in variants.items():
            found[name].append(measure())
    return found


def paired(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratios round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


class PeakMemory:
    """Samples this process, Ray's workers and Ray's object store while its block runs.

    Attributes:
        peaks: most bytes seen: "driver", "workers" (sum) and "worker" (the largest of them) are
            what each process has of its own, without the shared object store (USS); "object_store"
            is what is used of that, and "spilled" what was ever written to disk for want of it;
            "processes" is how many workers there were at most.
    """

    def __init__(self, every_s: float = 0.25) -> None:
        kinds = ("driver", "workers", "worker", "processes", "object_store", "spilled")
        self.peaks = dict.fromkeys(kinds, 0)
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        from ray._private.internal_api import get_state_from_address

        self._state = get_state_from_address(ray.get_runtime_context().gcs_address)
        self._sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        # Private, but no public call tells the bytes in use.
        from ray._private.internal_api import get_memory_info_reply

        process = psutil.Process()
        store = get_memory_info_reply(self._state).store_stats
        workers = list(filter(None, map(_own_bytes, process.children(recursive=True))))
        found = {
            "driver": process.memory_full_info().uss,
            "workers": sum(workers),
            "worker": max(workers, default=0),
            "processes": len(workers),
            "object_store": store.object_store_bytes_used,
            "spilled": store.spilled_bytes_total,
        }
        self.peaks = {key: max(self.peaks[key], value) for key, value in found.items()}


def _own_bytes(process: psutil.Process) -> int:
    """USS of a Ray worker; 0 for Ray's own services, and for what has just ended."""
    try:
        is_worker = process.cmdline()[:1] and process.cmdline()[0].startswith("ray::")
        return process.memory_full_info().uss if is_worker else 0
    except psutil.Error:
        return 0


def run_program(words: Sequence[str], folder: Path | None = None) -> None:
    """Run a Python program in a process of its own, in a folder.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, cwd=folder
    )
    if done.returncode:
        raise RuntimeError(f"{Path(words[0]).name}: {done.stderr}")


def write_results(path: str | None, benchmark: str, facts: dict[str, Any]) -> None:
    """Write every measurement of a benchmark to a JSON file, with what it was taken on."""
    if path is not None:
        Path(path).write_text(json.dumps(_with_machine(benchmark, facts), indent=2), "utf-8")


def append_line(path: Path, benchmark: str, facts: dict[str, Any]) -> None:
    """Add a result to a file of JSON Lines, with what it was taken on.

    One write a line: several trainings may add to the same file.
    """
    line = json.dumps(_with_machine(benchmark, facts), ensure_ascii=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON Lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _with_machine(benchmark: str, facts: dict[str, Any]) -> dict[str, Any]:
    machine = {"cpu": _cpu_model(), "cores": os.cpu_count(), "system": platform.platform()}
    return {"benchmark": benchmark, "machine": machine, "versions": versions(), **facts}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
