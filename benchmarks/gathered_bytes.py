"""Bytes that ZeRO-3 gathers in an optimizer step on two ranks: 4-bit backbone beside bf16 and fp32.

    python -m benchmarks.gathered_bytes

Real gloo processes. Counted at the collectives that DeepSpeed calls, as bytes that one rank holds
after them, so it is independent of the machine's speed.
"""

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.measuring import base_config, write_results
from timellama_dist.config.deepspeed import load_policy, resolve_deepspeed
from timellama_dist.config.schema import RunConfig
from timellama_dist.engine.setup import initialize_engine, prepare_process
from timellama_dist.modeling.backbone import frozen_bytes, read_config, resolve_backbone
from timellama_dist.modeling.timellama import build_model

CHANNELS, WORLD_SIZE = 6, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2, help="the last one is counted")
    parser.add_argument("--output", metavar="FILE.json")
    arguments = parser.parse_args()
    base = base_config(arguments.backbone, arguments.blocks)
    base = replace(base, train=replace(base.train, batch_size=8, micro_batch_size=4))
    configs = {
        "nf4": base,
        "nf4+bf16": variant(base, quantization="nf4", precision="bf16"),
        "bf16": variant(base, quantization="none", precision="bf16"),
        "fp32": variant(base, quantization="none", precision="fp32"),
    }
    found = {}
    for name, config in configs.items():
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.spawn(
                count_rank, args=(config, arguments.steps, Path(folder)), nprocs=WORLD_SIZE
            )
            found[name] = json.loads((Path(folder) / "0.json").read_text())
    print(f"{arguments.blocks} blocks, 2 ranks, ZeRO-3; MiB a step and rank")
    print(f"{'backbone':<10}{'frozen gathered':>17}{'all gathered':>14}{'held between steps':>20}")
    for name, one in found.items():
        sizes = [one["frozen"] / 2**20, one["all"] / 2**20, one["held"] / 2**20]
        print(f"{name:<10}{sizes[0]:>17.2f}{sizes[1]:>14.2f}{sizes[2]:>20.2f}")
    # The trained parts travel too, in the run's precision: like is compared with like.
    for above, below in (("nf4+bf16", "bf16"), ("nf4", "fp32")):
        ratios = {key: found[above][key] / found[below][key] for key in ("frozen", "all")}
        print(f"{above} / {below}: frozen {ratios['frozen']:.3f}, all {ratios['all']:.3f}")
    write_results(arguments.output, "gathered_bytes", {"settings": vars(arguments), "bytes": found})


def variant(config: RunConfig, *, quantization: Any, precision: Any) -> RunConfig:
    """The same run with the backbone in another number format."""
    return replace(
        config,
        backbone=replace(config.backbone, quantization=quantization),
        train=replace(config.train, precision=precision),
    )


def count_rank(rank: int, config: RunConfig, steps: int, folder: Path) -> None:
    """One rank: train a few steps, count the last one's gathered bytes."""
    prepare_process(use_gpu=False)
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE
    )
    backbone = resolve_backbone(config.backbone.name)
    in_bf16 = config.train.precision == "bf16"
    model = build_model(
        config,
        backbone,
        num_channels=CHANNELS,
        prompt="hourly prices and loads " * 30,
        dtype=torch.bfloat16 if in_bf16 else torch.float32,
    )
    resolved = resolve_deepspeed(
        load_policy(None),
        config,
        world_size=WORLD_SIZE,
        hidden_size=read_config(backbone, config.backbone.num_blocks).hidden_size,
        use_gpu=False,
    )
    engine = initialize_engine(model, resolved)
    counted = count_gathered()
    past = torch.randn(4, config.data.context_len, CHANNELS)
    for _ in range(steps):
        counted.update(frozen=0, all=0)
        engine.backward(engine(past).square().mean() + engine.module.balance_loss())
        engine.step()
    held = frozen_bytes(engine.module)
    (folder / f"{rank}.json").write_text(json.dumps({**counted, "held": held}))
    # One rank that leaves while the other still writes to it would abort that one.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def count_gathered() -> dict[str, int]:
    """Count from now on what ZeRO-3 gathers: "all" at its collective, "frozen" by parameter."""
    from deepspeed.runtime.zero import partition_parameters
    from deepspeed.runtime.zero.partitioned_param_coordinator import (
        PartitionedParameterCoordinator as Coordinator,
    )

    counted = {"frozen": 0, "all": 0}
    collective = partition_parameters._dist_allgather_fn
    # Private names, mangled by Python: nothing public says which parameters travel.
    launch = Coordinator._PartitionedParameterCoordinator__all_gather_params_

    def counted_collective(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        counted["all"] += target.numel() * target.element_size()
        return collective(source, target, *args, **kwargs)

    def counted_launch(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        frozen = [p for p in params if not p.requires_grad]
        counted["frozen"] += sum(p.ds_numel * p.element_size() for p in frozen)
        return launch(self, params, *args, **kwargs)

    partition_parameters._dist_allgather_fn = counted_collective
    Coordinator._PartitionedParameterCoordinator__all_gather_params_ = counted_launch
    return counted


if __name__ == "__main__":
    main()
