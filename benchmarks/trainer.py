"""Training windows/s of the whole trainer with one worker beside a bare PyTorch loop.

    python -m benchmarks.trainer

The trainer is `ray_jobs/train.py` as it is: Ray Train, Ray Data stream, DeepSpeed. The bare loop
trains the same model on the same windows in the same order from memory, in a process of its own.
They take turns; start-up and the first steps count for neither. With --profile the engine takes a
turn as well, fed from memory and without Ray: what DeepSpeed costs, and what Ray costs, apart.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.measuring import alternate, paired, plain_words, spread, write_results
from timellama_dist.backbone.folder import resolve_backbone
from timellama_dist.config.deepspeed import resolve_deepspeed
from timellama_dist.config.load import load_config
from timellama_dist.config.schema import RunConfig
from timellama_dist.console.events import Event
from timellama_dist.data.windows.orders import TrainOrder
from timellama_dist.data.windows.reader import WindowReader
from timellama_dist.evaluation.windows import Batch
from timellama_dist.model.build import build_model
from timellama_dist.model.timellama import TimeLlama
from timellama_dist.train.checkpoint.position import Position
from timellama_dist.train.plan import plan_run
from timellama_dist.train.worker.engine import initialize_engine, prepare_process
from timellama_dist.train.worker.steps import LOSSES, learning_rate, seed_dropout
from timellama_dist.train.worker.trainer import Trainer

ROOT = Path(__file__).parents[1]
POLICIES: dict[str, Path | dict[str, Any]] = {
    "ZeRO-3": ROOT / "ds_configs" / "zero3.json",
    "stage 0": {"zero_optimization": {"stage": 0}},
}
# Ray gives its workers a low priority by default, by which whatever else runs on the machine would
# slow the trainer and not the bare loop.
EQUAL_TERMS = {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="epf")
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", metavar="FILE.json")
    parser.add_argument("--profile", action="store_true", help="DeepSpeed's and Ray's share apart")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        kind, *pairs = arguments.inside
        print(CHILDREN[kind](pairs, arguments.warmup))
        return
    if not 0 < arguments.warmup < arguments.steps:
        parser.error("--warmup must be at least 1 and below --steps")
    words = [
        *plain_words(),
        *("--data.path", arguments.data, "--data.split", "[0.9, 0.05, 0.05]"),
        *("--backbone.name", arguments.backbone, "--backbone.num_blocks", str(arguments.blocks)),
        *("--train.max_steps", str(arguments.steps), "--train.log_every", str(arguments.warmup)),
        *("--scaling.num_workers", "1"),
    ]
    warmup = arguments.warmup
    variants: dict[str, Callable[[], float]] = {
        "bare loop": partial(run_child, words, "bare loop", warmup)
    }
    for policy in POLICIES:
        if arguments.profile:
            variants[f"engine, {policy}"] = partial(run_child, words, policy, warmup)
        variants[f"trainer, {policy}"] = partial(run_trainer, words, policy, warmup)
    speeds = alternate(variants, arguments.rounds)
    print(f"{'':<18}{'windows/s: median (range)':<36}ratio to the bare loop, pair by pair")
    for name, values in speeds.items():
        print(f"{name:<18}{spread(values):<36}{spread(paired(values, speeds['bare loop']))}")
    settings = {key: value for key, value in vars(arguments).items() if key != "inside"}
    facts = {"settings": settings, "config": parse(pairs_of(words)).to_dict()}
    write_results(arguments.output, "trainer", {**facts, "windows_per_s": speeds})


def pairs_of(words: Sequence[str]) -> list[str]:
    """Joined by "=", so that the words of the run aren't taken for this program's own."""
    return [f"{key[2:]}={value}" for key, value in zip(words[::2], words[1::2], strict=True)]


def parse(pairs: Sequence[str]) -> RunConfig:
    """The run's configuration."""
    return load_config([f"--{pair}" for pair in pairs], prog="trainer", description="")


def run_trainer(words: Sequence[str], policy: str, warmup: int) -> float:
    """The main job in a process of its own; windows/s over the steps after the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        extra = ["--run.dir", str(run_dir)]
        file = Path(folder) / "policy.json"
        file.write_text(json.dumps(read_policy(policy)))
        extra += ["--deepspeed", str(file)]
        command = [sys.executable, str(ROOT / "ray_jobs" / "train.py"), *words, *extra]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | EQUAL_TERMS)
        lines = (run_dir / "history.jsonl").read_text().splitlines()
        batch_size = json.loads((run_dir / "deepspeed.json").read_text())["train_batch_size"]
    return windows_per_s(map(json.loads, lines), warmup, batch_size)


def windows_per_s(records: Iterator[dict[str, Any]], warmup: int, batch_size: int) -> float:
    """Of the steps after the warm-up, by the loop's own clock, which leaves validations out."""
    steps = [record for record in records if record["kind"] == "train"]
    first = next(record for record in steps if record["step"] == warmup)
    last = steps[-1]
    seconds = last["seconds"] - first["seconds"]
    return float((last["step"] - first["step"]) * batch_size / seconds)


def read_policy(policy: str) -> dict[str, Any]:
    """One of `POLICIES`, as DeepSpeed's JSON says it."""
    source = POLICIES[policy]
    return json.loads(source.read_text()) if isinstance(source, Path) else source


def run_child(words: Sequence[str], kind: str, warmup: int) -> float:
    """The bare loop or the engine alone, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.trainer"]
    done = subprocess.run(
        [*command, "--warmup", str(warmup), "--inside", kind, *pairs_of(words)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | EQUAL_TERMS,
    )
    return float(done.stdout.splitlines()[-1])


@dataclass(frozen=True)
class Prepared:
    """A run with all its windows in memory, in the order in which they are trained on."""

    config: RunConfig
    model: TimeLlama
    hidden_size: int
    windows: dict[str, np.ndarray]

    @property
    def total_steps(self) -> int:
        return self.config.train.max_steps or 1

    @property
    def num_windows(self) -> int:
        """Enough for all steps to be of one epoch."""
        return self.total_steps * self.config.train.batch_size

    def dataset_of(self, step: int) -> int:
        """The only one."""
        return 0

    def train_batches(self, first_step: int, last_step: int) -> Iterator[Batch]:
        """All of the windows: the run begins at step 0."""
        return self.micro_batches()

    def evaluate(self, engine: Any, split: str, shares: Sequence[float]) -> dict[float, Any]:
        """No validation costs time here."""
        return {1.0: {"mse": 1.0, "mae": 1.0}}

    def micro_batches(self) -> Iterator[Batch]:
        """Past and future of one micro-batch after the other."""
        micro = self.config.train.micro_batch_size
        for first in range(0, len(self.windows["past"]), micro):
            yield {key: values[first : first + micro] for key, values in self.windows.items()}


def prepare(pairs: Sequence[str]) -> Prepared:
    """What the trainer's driver and worker prepare, without Ray."""
    torch.set_num_threads(1)
    config = parse(pairs)
    train = config.train
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_run(config)
        (data,) = plan.prepared_data(Path(folder))
        reader = WindowReader(data.path, data.spec)
        order = TrainOrder(
            num_windows=len(reader),
            seed=train.seed,
            batch_size=train.batch_size,
            micro_batch_size=train.micro_batch_size,
            world_rank=0,
            world_size=1,
            first_step=0,
            last_step=train.max_steps or 1,
            open_chunks=reader.open_chunks,
        )
        windows = reader.read(order.window_ids(np.arange(len(order))))
    model = build_model(
        replace(config, data=plan.config.data),
        resolve_backbone(config.backbone.name),
        num_channels=reader.manifest.num_channels,
        prompts=[data.prompt],
    )
    kept = {key: windows[key] for key in ("past", "future")}
    return Prepared(config, model, plan.hidden_size, kept)


def bare_loop(pairs: Sequence[str], warmup: int) -> float:
    """Train with plain PyTorch; windows/s after the warm-up."""
    run = prepare(pairs)
    train, model, total = run.config.train, run.model.train(), run.total_steps
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=train.weight_decay)
    turns, batches = train.batch_size // train.micro_batch_size, run.micro_batches()
    for step in range(total):
        if step == warmup:
            started = time.perf_counter()
        for turn in range(turns):
            batch = {key: torch.from_numpy(values) for key, values in next(batches).items()}
            seed_dropout(train.seed, step, turn)
            loss = LOSSES[train.loss](model(batch["past"]), batch["future"])
            loss = loss + run.config.dlora.balance_weight * model.balance_loss()
            (loss / turns).backward()
        nn.utils.clip_grad_norm_(trained, train.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, train)
        optimizer.step()
        optimizer.zero_grad()
    return (total - warmup) * train.batch_size / (time.perf_counter() - started)


class Recorder:
    """Keeps the records of a run."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def tell(self, event: Event) -> None:
        self.records.append(event.to_record())

    def report(self, metrics: Mapping[str, Any]) -> None:
        """Nobody listens."""


class Unsaved:
    """Saves nothing."""

    name = ""

    def save(self, *arguments: Any) -> bool:
        return True


class NoSignals:
    """Nobody stops the run."""

    def asked_to_stop(self) -> bool:
        return False

    def node_leaves(self) -> bool:
        return False


def engine_loop(policy: str, pairs: Sequence[str], warmup: int) -> float:
    """The trainer's own loop on a DeepSpeed engine, without Ray and its stream."""
    prepare_process(use_gpu=False)
    os.environ["LOCAL_RANK"] = "0"
    run = prepare(pairs)
    events = Recorder()
    train = replace(run.config.train, validate_every=run.total_steps)
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
        )
        resolved = resolve_deepspeed(
            read_policy(policy),
            run.config,
            world_size=1,
            hidden_size=run.hidden_size,
            use_gpu=False,
        )
        trainer = Trainer(
            initialize_engine(run.model, resolved),
            replace(run.config, train=train),
            run,
            saver=Unsaved(),
            reporter=events,
            signals=NoSignals(),
            position=Position(),
        )
        trainer.train()
        torch.distributed.destroy_process_group()
    return windows_per_s(iter(events.records), warmup, run.config.train.batch_size)


CHILDREN: dict[str, Callable[[Sequence[str], int], float]] = {
    "bare loop": bare_loop,
    **{policy: partial(engine_loop, policy) for policy in POLICIES},
}


if __name__ == "__main__":
    main()
