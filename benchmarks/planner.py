"""The planner's memory formulas against what two real ranks hold, for several sizes and stages.

    python -m benchmarks.planner

Random LLaMAs on disk, real gloo processes, the trainer's own step. Compared are bytes of tensors:
"held" is the sum of all live tensors' storages between two steps; "peak" is that plus the most that
the training thread's allocations exceed their starting point by during the step (what a GPU's
allocator would report as the peak). gloo's own temporaries and the framework's constant are in
neither; that constant is an assumption.
"""

import argparse
import gc
import itertools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _EventType

from benchmarks.gathered_bytes import count_gathered, variant
from benchmarks.loading import make_llama
from benchmarks.measuring import base_config, write_results
from timellama_dist.backbone.load import frozen_bytes
from timellama_dist.config.deepspeed import resolve_deepspeed
from timellama_dist.config.schema import RunConfig
from timellama_dist.model.build import build_model
from timellama_dist.planning.estimate import estimate
from timellama_dist.planning.hardware import find_hardware
from timellama_dist.planning.policy import POLICIES
from timellama_dist.planning.shape import LlamaShape
from timellama_dist.ranks import gathered
from timellama_dist.train.worker.engine import block_sharder, initialize_engine, prepare_process
from timellama_dist.train.worker.steps import StepSums, train_step

CHANNELS, WORLD_SIZE, PROMPT_TOKENS = 6, 2, 1
# As a model is sharded that is far larger than ZeRO-3's windows, at a size that fits here.
SMALL_WINDOWS = {
    "stage": 3,
    "reduce_bucket_size": 1 << 18,
    "stage3_prefetch_bucket_size": 1 << 16,
    "stage3_param_persistence_threshold": "auto",
    "stage3_max_reuse_distance": 1 << 20,
    "stage3_max_live_parameters": 1 << 20,
}
MEASURED = {**POLICIES, "small_windows": {"zero_optimization": SMALL_WINDOWS}}
LAST = "the step that is measured"
COLUMNS = ("frozen", "held", "peak", "gathered")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 8])
    parser.add_argument("--policies", nargs="+", default=list(POLICIES))
    parser.add_argument("--quantization", nargs="+", default=["nf4", "none"])
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    parser.add_argument("--micro-batch", type=int, nargs="+", default=[16])
    parser.add_argument("--recompute", action="store_true", help="gradient checkpointing")
    parser.add_argument("--turns", type=int, default=1, help="micro-batches of a step and rank")
    parser.add_argument("--output", metavar="FILE.json")
    arguments = parser.parse_args()
    formats = list(
        itertools.product(
            arguments.quantization, arguments.precision, arguments.micro_batch, arguments.policies
        )
    )
    with tempfile.TemporaryDirectory() as scratch:
        cases = []
        for hidden, blocks in itertools.product(arguments.hidden, arguments.blocks):
            folder = Path(scratch) / f"{hidden}x{blocks}"
            make_llama(folder, hidden, blocks)
            for quantization, precision, micro, policy in formats:
                words = [f"{hidden} x {blocks}", quantization, precision, f"{micro}", policy]
                config = run_config(folder, blocks, quantization, precision, micro, arguments.turns)
                checkpointing = replace(config.train, gradient_checkpointing=arguments.recompute)
                config = replace(config, train=checkpointing)
                cases.append(("  ".join(words), config, policy))
        torch.multiprocessing.spawn(measure_ranks, args=(cases, Path(scratch)), nprocs=WORLD_SIZE)
        found = json.loads((Path(scratch) / "found.json").read_text())
    print_worst(found)
    write_results(arguments.output, "planner", {"settings": vars(arguments), "cases": found})


def print_worst(cases: list[dict[str, Any]]) -> None:
    """Least and largest ratio of each column."""
    for name in COLUMNS:
        ratios = [case["ratios"][name] for case in cases if name in case["ratios"]]
        if ratios:
            print(f"{name}: {min(ratios):.3f} to {max(ratios):.3f} in {len(ratios)} runs")


def run_config(
    folder: Path, blocks: int, quantization: Any, precision: Any, micro: int, turns: int
) -> RunConfig:
    """The default run on that backbone."""
    config = variant(
        base_config(str(folder), blocks), quantization=quantization, precision=precision
    )
    sizes = {"micro_batch_size": micro, "batch_size": micro * turns * WORLD_SIZE}
    return replace(config, train=replace(config.train, **sizes))


def predict(config: RunConfig, policy: str) -> dict[str, int]:
    """What the planner says."""
    found = estimate(
        config,
        LlamaShape.from_file(Path(config.backbone.name) / "config.json"),
        policy=MEASURED[policy],
        world_size=WORLD_SIZE,
        hardware=find_hardware("cpu", WORLD_SIZE),
        num_channels=CHANNELS,
        prompt_tokens=PROMPT_TOKENS,
    )
    memory = found.memory
    return {
        "frozen": memory.held.frozen + memory.held.quantisation_state,
        "held": memory.held.total,
        "peak": memory.peak.total,
        "gathered": found.communication.gathered_bytes,
    }


def measure_ranks(rank: int, cases: list[tuple[str, RunConfig, str]], scratch: Path) -> None:
    """One rank: measure case after case; the first prints, and writes what all found."""
    prepare_process(use_gpu=False)
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{scratch}/rendezvous", rank=rank, world_size=WORLD_SIZE
    )
    if rank == 0:
        title = "hidden x blocks, weights, precision, micro-batch"
        print(f"predicted / measured: {title:<50}" + "".join(f"{name:>10}" for name in COLUMNS))
    counted, found = count_gathered(), []
    for name, config, policy in cases:
        ranks = gathered(measure(config, policy, counted))
        measured = {key: sum(one[key] for one in ranks) / WORLD_SIZE for key in COLUMNS}
        predicted = predict(config, policy)
        ratios = {key: predicted[key] / measured[key] for key in COLUMNS if measured[key]}
        if rank == 0:
            cells = [f"{ratios[key]:>10.3f}" if key in ratios else f"{'':>10}" for key in COLUMNS]
            print(f"{name:<72}" + "".join(cells), flush=True)
        found.append({"case": name, "predicted": predicted, "measured": measured, "ratios": ratios})
    if rank == 0:
        (scratch / "found.json").write_text(json.dumps(found))
    # One rank that leaves while the other still writes to it would abort that one.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def measure(config: RunConfig, policy: str, counted: dict[str, int]) -> dict[str, int]:
    """A few of the trainer's steps on this rank, the last of them watched."""
    # Kept, so that no new storage takes the place of one that was there before.
    before = live_tensors()
    backbone = Path(config.backbone.name)
    resolved = resolve_deepspeed(
        MEASURED[policy],
        config,
        world_size=WORLD_SIZE,
        hidden_size=LlamaShape.from_file(backbone / "config.json").hidden_size,
        use_gpu=False,
    )
    model = build_model(
        config,
        backbone,
        num_channels=CHANNELS,
        prompts=["a"],
        dtype=torch.bfloat16 if config.train.precision == "bf16" else torch.float32,
        on_block=block_sharder(resolved),
    )
    engine = initialize_engine(model, resolved)
    engine.train()
    batches = random_batches(config)
    for step in range(2):
        train_step(engine, batches, config, step=step, sums=StepSums())
    places = storages(live_tensors())
    held = sum(places[one] for one in places.keys() - storages(before).keys())
    # From a step before, so that what it leaves behind is known when the last one frees it.
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        train_step(engine, batches, config, step=2, sums=StepSums())
        counted.update(frozen=0, trained=0, all=0)
        with torch.profiler.record_function(LAST):
            train_step(engine, batches, config, step=3, sums=StepSums())
    return {
        "frozen": frozen_bytes(engine.module),
        "held": held,
        "peak": held + most_above_start(profile),
        # Counted for ZeRO-3 alone.
        "gathered": counted["frozen"] + counted["trained"],
    }


def random_batches(config: RunConfig) -> Iterator[dict[str, torch.Tensor]]:
    """Micro-batches of noise."""
    micro, data = config.train.micro_batch_size, config.data
    while True:
        yield {
            "past": torch.randn(micro, data.context_len, CHANNELS),
            "future": torch.randn(micro, data.horizon, CHANNELS),
        }


def live_tensors() -> list[torch.Tensor]:
    """All tensors of this process that Python knows of, and their gradients."""
    gc.collect()
    # Not isinstance: some module objects answer it by importing something.
    found = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    return found + [one.grad for one in found if one.is_leaf and one.grad is not None]


def storages(tensors: Iterable[torch.Tensor]) -> dict[int, int]:
    """Bytes of each storage, counted once."""
    found = (one.untyped_storage() for one in tensors if one.device.type == "cpu")
    return {storage.data_ptr(): storage.nbytes() for storage in found}


def most_above_start(profile: Any) -> int:
    """Largest excess of the training thread's allocations over those at the last step's start."""
    events, open_events = [], list(profile.kineto_results.experimental_event_tree())
    while open_events:
        event = open_events.pop()
        open_events += event.children
        events.append(event)
    (last,) = [event for event in events if event.name == LAST]
    allocations = [event for event in events if event.tag == _EventType.Allocation]
    foreign: set[int] = set()  # gloo's threads allocate too, but their frees aren't recorded
    excess = most = 0
    for event in sorted(allocations, key=lambda event: event.start_time_ns):
        size, place = event.extra_fields.alloc_size, event.extra_fields.ptr
        if size > 0 and event.start_tid != last.start_tid:
            foreign.add(place)
            continue
        if size < 0 and place in foreign:
            foreign.discard(place)
            continue
        foreign.discard(place)
        if event.start_time_ns >= last.start_time_ns:
            excess += size
            most = max(most, excess)
    return most


if __name__ == "__main__":
    main()
