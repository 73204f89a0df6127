"""Real processes that run the engine without Ray: gloo ranks on loopback, and a plain loop."""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.support.runs import plain, plain_run
from timellama_dist.config.deepspeed import resolve_deepspeed
from timellama_dist.config.schema import (
    BackboneSection,
    DataSection,
    DLoraSection,
    ModelSection,
    RunConfig,
    TrainSection,
)
from timellama_dist.data.windows.orders import TrainOrder
from timellama_dist.model.build import build_model
from timellama_dist.model.timellama import TimeLlama
from timellama_dist.train.worker.engine import block_sharder, initialize_engine, prepare_process

NUM_WINDOWS, CHANNELS = 40, 3
# Ranks are forked from a process that has imported this: seconds of each rank's time otherwise.
_IMPORTED_ONCE = [
    "deepspeed",
    "timellama_dist.train.checkpoint.state",
    "timellama_dist.train.worker.trainer",
]
multiprocessing.set_forkserver_preload([*_IMPORTED_ONCE, "timellama_dist.model.build"])


def windows(config: RunConfig) -> dict[str, np.ndarray]:
    """Windows of a few noisy sines, alike in every process."""
    rng = np.random.default_rng(7)
    length = config.data.context_len + config.data.horizon
    phase = rng.uniform(0, 6.28, (NUM_WINDOWS, 1, CHANNELS))
    waves = np.sin(np.arange(length)[None, :, None] * 0.3 + phase)
    values = (waves + 0.3 * rng.standard_normal(waves.shape)).astype(np.float32)
    context_len = config.data.context_len
    return {"past": values[:, :context_len], "future": values[:, context_len:]}


def micro_batches(
    config: RunConfig, rank: int, world_size: int, first_step: int, last_step: int
) -> Iterator[dict[str, np.ndarray]]:
    """One rank's micro-batches of the training order."""
    train, data = config.train, windows(config)
    order = TrainOrder(
        num_windows=NUM_WINDOWS,
        seed=train.seed,
        batch_size=train.batch_size,
        micro_batch_size=train.micro_batch_size,
        world_rank=rank,
        world_size=world_size,
        first_step=first_step,
        last_step=last_step,
    )
    ids = order.window_ids(np.arange(len(order)))
    for chunk in ids.reshape(-1, train.micro_batch_size):
        yield {key: values[chunk] for key, values in data.items()}


def make_model(
    config: RunConfig, on_block: Callable[[int, nn.Module], None] | None = None
) -> TimeLlama:
    """The model of a run, alike in every process."""
    in_bf16 = config.train.precision == "bf16"
    return build_model(
        config,
        Path(config.backbone.name),
        num_channels=CHANNELS,
        prompts=["the price of a b c", "d e f"],
        dtype=torch.bfloat16 if in_bf16 else torch.float32,
        on_block=on_block,
    )


def make_engine(
    config: RunConfig, policy: dict[str, Any], world_size: int, *, by_block: bool = True
) -> Any:
    """A DeepSpeed engine of that model, sharded while it is loaded or, if not `by_block`, after."""
    resolved = resolve_deepspeed(
        policy, config, world_size=world_size, hidden_size=64, use_gpu=False
    )
    model = make_model(config, block_sharder(resolved) if by_block else None)
    return initialize_engine(model, resolved)


def run_ranks(body: Callable[..., None], world_size: int, folder: Path, *args: Any) -> None:
    """Run `body(rank, world_size, folder, *args)` in fresh processes of one gloo group."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.start_processes(
        _rank, (body, world_size, folder, *args), world_size, start_method="forkserver"
    )


def _rank(rank: int, body: Callable[..., None], world_size: int, folder: Path, *args: Any) -> None:
    prepare_process(use_gpu=False)
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed wants to know it; Ray Train sets it
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    try:
        body(rank, world_size, folder, *args)
        # One rank that leaves while the other still writes to it would abort that one.
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


def write(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Save tensors where the test will look for them."""
    save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)


SAVED, LAST = 4, 7
"""Steps before and after a checkpoint."""
POLICIES = Path(__file__).parents[2] / "ds_configs"


def run_config(backbone: Path, **dlora: Any) -> RunConfig:
    return plain_run(
        data=plain(DataSection, context_len=24, horizon=8),
        backbone=plain(BackboneSection, name=str(backbone), num_blocks=2, quantization="none"),
        dlora=DLoraSection(num_experts=2, rank=2, top_n=5, balance_weight=0.05, **dlora),
        model=plain(ModelSection, dropout=0.1, alignment_heads=4),
        train=plain(
            TrainSection, batch_size=8, micro_batch_size=4, learning_rate=3e-3, clip_norm=0.5
        ),
    )


def policy(name: str) -> dict[str, Any]:
    if name == "zero0":
        return {}
    return json.loads((POLICIES / f"{name}.json").read_text())


def largest_relative_difference(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of the parameters' norms. Single elements may differ by more: Adam divides a gradient that is
    rounding noise by its own size."""
    assert weights.keys() == expected.keys()
    return max(
        float((weights[name] - expected[name]).norm() / expected[name].norm().clamp_min(1e-3))
        for name in expected
    )
