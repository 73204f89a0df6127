"""Kills a run again and again, and compares it with one that nobody touched.

    python -m benchmarks.faults

On a Ray cluster of two raylets on loopback, a run of two DeepSpeed workers (ZeRO-3, fp32) loses, at
random steps and in random order: one worker, all workers, the node they are on (another is added
then), and the driver (started again with --run.resume); all by SIGKILL. Then another run is killed
twice and resumed with one worker, and with two again.

Weights, Adam's moments and the loss of every step are compared with the uninterrupted run's. The
exit code is 1 if they differ at all, or after a change of workers by more than 1e-5.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from ray.cluster_utils import Cluster
from safetensors.numpy import load_file

from benchmarks.loading import make_llama
from benchmarks.measuring import PLAIN, write_results

ROOT = Path(__file__).parents[1]
KINDS = ("worker", "all workers", "node", "driver")
HIDDEN, NUM_BLOCKS = 256, 2
LARGEST_RESIZED = 1e-5
_LONGEST_WAIT_S = 180.0
# Ray takes half a minute by default until it counts a node that answers no more as dead.
_HEALTH = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}

History = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Kill:
    """What one kill cost."""

    kind: str
    step: int
    """The last that is known to have been made."""
    steps_lost: int
    seconds: float
    """Until the first step after it was seen."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--save-every", type=int, default=10, metavar="N")
    parser.add_argument("--resized-steps", type=int, default=60, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", metavar="FILE.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, two_raylets() as nodes:
        scratch = Path(folder)
        words = run_words(scratch, arguments)
        print("an uninterrupted run", flush=True)
        whole = Run(scratch / "whole", words, nodes)
        whole.finish()
        killed = Run(scratch / "killed", words, nodes)
        kills = list(kill_often(killed, arguments))
        killed.finish()
        print("an uninterrupted run, and one on 2, 1 and 2 workers", flush=True)
        words |= {"train.max_steps": arguments.resized_steps}
        short = Run(scratch / "short", words, nodes)
        short.finish()
        resized = Run(scratch / "resized", words, nodes)
        resize(resized, arguments.resized_steps)
        facts = {
            "settings": vars(arguments),
            "kills": [asdict(kill) for kill in kills],
            "same_world_size": difference(whole, killed),
            "resized": difference(short, resized),
            "checkpoints": killed.metrics["checkpoints"],
            "step_seconds": whole.metrics["train"]["seconds"] / arguments.steps,
        }
    report(facts)
    write_results(arguments.output, "faults", facts)
    for key, bound in (("same_world_size", 0.0), ("resized", LARGEST_RESIZED)):
        if max(facts[key]["weights_and_moments"], facts[key]["losses"]) > bound:
            sys.exit(f"{key}: differs by more than {bound:g}")


def run_words(scratch: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The configuration of every run, and the backbone and table it names."""
    make_llama(scratch / "llama", HIDDEN, NUM_BLOCKS)
    hours = np.arange(2000)[:, None]
    waves = np.sin(2 * np.pi * (hours + 3 * np.arange(3)) / 24)
    waves += 0.2 * np.random.default_rng(3).standard_normal(waves.shape)
    frame = pd.DataFrame(waves, columns=list("abc"))
    frame.insert(0, "date", pd.date_range("2024-01-01", periods=len(frame), freq="h"))
    frame.to_csv(scratch / "waves.csv", index=False)
    return PLAIN | {
        "data.path": scratch / "waves.csv",
        "data.context_len": 96,
        "data.horizon": 24,
        "backbone.name": scratch / "llama",
        "backbone.num_blocks": NUM_BLOCKS,
        "backbone.quantization": "none",
        "train.batch_size": 16,
        "train.micro_batch_size": 4,
        "train.epochs": 100,
        "train.max_steps": arguments.steps,
        "train.validate_every": 100,
        "train.patience": 0,
        "train.save_every": arguments.save_every,
        "train.log_every": 1,
        "scaling.num_workers": 2,
        "scaling.cpus_per_worker": 1,
        "scaling.max_failures": arguments.kills,
    }


class Nodes:
    """A head that has no room for two workers, and a node that has."""

    def __init__(self, cluster: Cluster) -> None:
        self.address = cluster.address
        self._cluster = cluster
        self._node = cluster.add_node(num_cpus=3)

    def replace(self) -> None:
        """Kill the node's raylet, and start another node."""
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._node = self._cluster.add_node(num_cpus=3)


@contextmanager
def two_raylets() -> Iterator[Nodes]:
    """A cluster that is this process's own."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": _HEALTH}
    )
    try:
        yield Nodes(cluster)
    finally:
        cluster.shutdown()


class Run:
    """`ray_jobs/train.py` in a process of its own, which may be killed and started again."""

    def __init__(self, folder: Path, words: dict[str, Any], nodes: Nodes) -> None:
        self.folder = folder
        self.nodes = nodes
        self._words = words
        self._said = folder.with_suffix(".txt")
        self._process = self._start(**words)

    def _start(self, *switches: str, **words: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(ROOT / "ray_jobs" / "train.py"), *switches]
        for key, value in ({"run.dir": self.folder} | words).items():
            command += [f"--{key}", str(value)]
        with self._said.open("ab") as said:
            return subprocess.Popen(
                command,
                env=environment(self.nodes.address),
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    def resume(self, num_workers: int = 2) -> None:
        """Kill the driver and start it again."""
        self._process.kill()
        self._process.wait()
        self._process = self._start("--run.resume", **{"scaling.num_workers": num_workers})

    @property
    def history(self) -> History:
        """A record a step, in the order in which they were made."""
        path = self.folder / "history.jsonl"
        text = path.read_text() if path.exists() else ""
        # The last line may be half written.
        records = [json.loads(line) for line in text.split("\n")[:-1]]
        return [record for record in records if record["kind"] == "train"]

    @property
    def starts(self) -> int:
        """How many times workers have begun."""
        return self._said.read_text().count("loading the backbone")

    @property
    def metrics(self) -> dict[str, Any]:
        """Of the finished run."""
        found: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text())
        return found

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Return as soon as the condition holds.

        Raises:
            RuntimeError: the run ended, or it took too long.
        """
        deadline = time.monotonic() + _LONGEST_WAIT_S
        while not condition():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.folder.name}: {what} in vain:\n{self._said.read_text()}")
            time.sleep(0.05)

    def wait_for_step(self, step: int) -> None:
        """Return as soon as a record of this step, or of a later one, is there."""
        self.wait_for(lambda: (self.history or [{"step": 0}])[-1]["step"] >= step, f"step {step}")

    def finish(self) -> None:
        """Wait for the run's end.

        Raises:
            RuntimeError: it failed.
        """
        if self._process.wait():
            raise RuntimeError(f"{self.folder.name} failed:\n{self._said.read_text()}")

    def kill(self, kind: str, rng: random.Random) -> None:
        """Kill one of `KINDS`; what doesn't come again by itself is started again."""
        if kind == "driver":
            self.resume()
        elif kind == "node":
            self.nodes.replace()
        else:
            workers = train_workers()
            for process in [rng.choice(workers)] if kind == "worker" else workers:
                process.kill()


def environment(address: str) -> dict[str, str]:
    """Of a driver on this cluster."""
    return os.environ | {"RAY_ADDRESS": address, "OMP_NUM_THREADS": "1"}


def train_workers() -> list[psutil.Process]:
    """Of this process's cluster."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_often(run: Run, arguments: argparse.Namespace) -> Iterator[Kill]:
    """Kill as many times as asked, each kind about as often."""
    rng = random.Random(arguments.seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(arguments.kills)]
    rng.shuffle(kinds)
    steps = sorted(rng.sample(range(5, arguments.steps - 20), arguments.kills))
    for kind, step in zip(kinds, steps, strict=True):
        run.wait_for_step(step)
        starts, killed_at = run.starts, time.monotonic()
        run.kill(kind, rng)
        run.wait_for(lambda starts=starts: run.starts > starts, f"a start after {kind}")
        # Records travel with the line that says of the start, and are written before it.
        before = run.history
        run.wait_for(lambda before=before: len(run.history) > len(before), f"a step after {kind}")
        kill = Kill(
            kind=kind,
            step=before[-1]["step"],
            steps_lost=before[-1]["step"] + 1 - run.history[len(before)]["step"],
            seconds=time.monotonic() - killed_at,
        )
        print(
            f"{kill.kind} killed after step {kill.step}: {kill.steps_lost} steps lost, "
            f"going on after {kill.seconds:.1f} s",
            flush=True,
        )
        assert kill.steps_lost <= arguments.save_every, "more lost than since the last checkpoint"
        yield kill


def resize(run: Run, steps: int) -> None:
    """Two workers, one, and two again."""
    for number, num_workers in enumerate((1, 2), start=1):
        run.wait_for_step(number * steps // 3)
        run.resume(num_workers)
        starts = run.starts
        run.wait_for(lambda starts=starts: run.starts > starts, f"a start on {num_workers}")
    run.finish()


def difference(expected: Run, found: Run) -> dict[str, Any]:
    """The largest relative differences of two finished runs' last checkpoints and histories.

    A step may lack its record: those that a killed driver hadn't written yet are lost.
    """
    distances = []
    for file in ("weights.safetensors", "optimizer.safetensors"):
        theirs, ours = (load_file(last_checkpoint(run.folder) / file) for run in (expected, found))
        assert theirs.keys() == ours.keys()
        distances += [relative(theirs[name], ours[name]) for name in theirs]
    losses = {record["step"]: record["loss"] for record in expected.history}
    # What was made again after a kill counts; what went before is not part of the result.
    again = {record["step"]: record["loss"] for record in found.history}
    return {
        "weights_and_moments": max(distances),
        "losses": max(abs(loss / losses[step] - 1) for step, loss in again.items()),
        "steps": len(losses),
        "steps_recorded": len(again),
        "windows": [run.metrics["train"]["windows"] for run in (expected, found)],
    }


def last_checkpoint(folder: Path) -> Path:
    states = (folder / "checkpoints").glob("checkpoint_*/state.json")
    return max(path.parent for path in states)


def relative(expected: np.ndarray, found: np.ndarray) -> float:
    """Of norms; 0 only if every bit is the same."""
    if np.array_equal(expected, found):
        return 0.0
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-12))


def report(facts: dict[str, Any]) -> None:
    """The table."""
    kills, saved = facts["kills"], facts["checkpoints"]
    print(f"\n{'killed':<12}{'times':>6}  {'steps lost':<20}seconds until the next step")
    for kind in KINDS:
        ours = [kill for kill in kills if kill["kind"] == kind]
        lost, seconds = ([kill[key] for kill in ours] for key in ("steps_lost", "seconds"))
        print(f"{kind:<12}{len(ours):>6}  {median(lost, 0):<20}{median(seconds, 1)}")
    for title, key in (
        (f"after {len(kills)} kills", "same_world_size"),
        ("on 2, 1 and 2 workers", "resized"),
    ):
        found = facts[key]
        print(
            f"{title}: of a weight's or moment's norm, at most {found['weights_and_moments']:.1e} "
            f"differs, and {found['losses']:.1e} of the loss of a step; {found['steps_recorded']} "
            f"of {found['steps']} steps recorded; {found['windows'][1]} windows of "
            f"{found['windows'][0]}"
        )
    print(
        f"a checkpoint: {saved['bytes'] / 2**20:.1f} MiB, {saved['seconds']:.2f} s; "
        f"a step {facts['step_seconds']:.2f} s"
    )


def median(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


if __name__ == "__main__":
    main()
