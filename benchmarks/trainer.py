"""Training windows/s of the whole trainer with one worker beside a bare PyTorch loop.

    python -m benchmarks.trainer

The trainer is `ray_jobs/train.py` as it is: Ray Train, Ray Data stream, DeepSpeed. The bare loop
trains the same model on the same windows in the same order from memory, in a process of its own.
They take turns; start-up and the first steps count for neither.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.measuring import alternate, paired, spread, write_results
from timellama_dist.config.load import load_config
from timellama_dist.data.manifest import Manifest
from timellama_dist.data.reader import WindowReader
from timellama_dist.data.windows import TrainOrder
from timellama_dist.engine.loop import LOSSES, learning_rate, seed_dropout
from timellama_dist.launch.plan import plan_run
from timellama_dist.modeling.backbone import resolve_backbone
from timellama_dist.modeling.timellama import build_model

ROOT = Path(__file__).parents[1]
POLICIES = {"zero3": None, "zero0": {"zero_optimization": {"stage": 0}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="epf")
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", metavar="FILE.json")
    parser.add_argument("--bare-loop", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare_loop:
        print(bare_loop(arguments.bare_loop, arguments.warmup))
        return
    words = [
        *("--data.path", arguments.data, "--data.split", "[0.9, 0.05, 0.05]"),
        *("--backbone.name", arguments.backbone, "--backbone.num_blocks", str(arguments.blocks)),
        *("--train.max_steps", str(arguments.steps), "--train.log_every", str(arguments.warmup)),
        *("--scaling.num_workers", "1"),
    ]
    speeds = alternate(
        {
            "bare loop": lambda: run_bare(words, arguments.warmup),
            "trainer, ZeRO-3": lambda: run_trainer(words, "zero3", arguments.warmup),
            "trainer, stage 0": lambda: run_trainer(words, "zero0", arguments.warmup),
        },
        arguments.rounds,
    )
    print(f"{'':<18}{'windows/s: median (range)':<36}ratio to the bare loop, pair by pair")
    for name, values in speeds.items():
        print(f"{name:<18}{spread(values):<36}{spread(paired(values, speeds['bare loop']))}")
    write_results(
        arguments.output, "trainer", {"settings": vars(arguments), "windows_per_s": speeds}
    )


def run_trainer(words: Sequence[str], policy: str, warmup: int) -> float:
    """The main job in a process of its own; windows/s over the steps after the warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        extra = ["--run.dir", str(run_dir)]
        if POLICIES[policy] is not None:
            file = Path(folder) / "policy.json"
            file.write_text(json.dumps(POLICIES[policy]))
            extra += ["--deepspeed", str(file)]
        command = [sys.executable, str(ROOT / "ray_jobs" / "train.py"), *words, *extra]
        subprocess.run(command, check=True, capture_output=True)
        lines = (run_dir / "history.jsonl").read_text().splitlines()
        batch_size = json.loads((run_dir / "deepspeed.json").read_text())["train_batch_size"]
    steps = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    first = next(record for record in steps if record["step"] == warmup)
    last = steps[-1]
    seconds = last["seconds"] - first["seconds"]
    return float((last["step"] - first["step"]) * batch_size / seconds)


def run_bare(words: Sequence[str], warmup: int) -> float:
    """The bare loop in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.trainer"]
    # Joined by "=", so that the words of the run aren't taken for this program's own.
    pairs = [f"{key[2:]}={value}" for key, value in zip(words[::2], words[1::2], strict=True)]
    done = subprocess.run(
        [*command, "--warmup", str(warmup), "--bare-loop", *pairs],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return float(done.stdout.splitlines()[-1])


def bare_loop(pairs: Sequence[str], warmup: int) -> float:
    """Train on windows from memory with plain PyTorch; windows/s after the warm-up."""
    torch.set_num_threads(1)
    config = load_config([f"--{pair}" for pair in pairs], prog="bare", description="")
    train = config.train
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_run(config)
        data = plan.prepared_data(Path(folder))
        manifest = Manifest.load(data)
        reader = WindowReader(
            data, context_len=config.data.context_len, horizon=config.data.horizon, split="train"
        )
        total = train.max_steps or 1
        order = TrainOrder(
            num_windows=len(reader),
            seed=train.seed,
            batch_size=train.batch_size,
            micro_batch_size=train.micro_batch_size,
            world_rank=0,
            world_size=1,
            first_step=0,
            last_step=total,
        )
        windows = reader.read(order.window_ids(np.arange(len(order))))
        prompt = plan.prompt(manifest)
    model = build_model(
        replace(config, data=plan.config.data),
        resolve_backbone(config.backbone.name),
        num_channels=len(manifest.channels),
        prompt=prompt,
    ).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=train.weight_decay)
    past, future = torch.from_numpy(windows["past"]), torch.from_numpy(windows["future"])
    turns, micro, place = train.batch_size // train.micro_batch_size, train.micro_batch_size, 0
    for step in range(total):
        if step == warmup:
            started = time.perf_counter()
        for turn in range(turns):
            seed_dropout(train.seed, step, turn)
            here = slice(place, place + micro)
            loss = LOSSES[train.loss](model(past[here]), future[here])
            loss = loss + config.dlora.balance_weight * model.balance_loss()
            (loss / turns).backward()
            place += micro
        nn.utils.clip_grad_norm_(trained, train.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, train)
        optimizer.step()
        optimizer.zero_grad()
    return (total - warmup) * train.batch_size / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
