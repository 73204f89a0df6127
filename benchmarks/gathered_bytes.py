"""Bytes that ZeRO-3 gathers in an optimizer step on two ranks: 4-bit backbone beside bf16 and fp32.

    python -m benchmarks.gathered_bytes

Real gloo processes. Counted where every all-gather of DeepSpeed leaves it for torch.distributed, as
bytes that one rank holds after it, so the figures are independent of the machine's speed.
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
from timellama_dist.backbone.folder import read_config, resolve_backbone
from timellama_dist.backbone.load import frozen_bytes
from timellama_dist.config.deepspeed import load_policy, resolve_deepspeed
from timellama_dist.config.schema import RunConfig
from timellama_dist.model.build import build_model
from timellama_dist.train.worker.engine import block_sharder, initialize_engine, prepare_process

CHANNELS, WORLD_SIZE = 6, 2
COLUMNS = ("frozen", "trained", "all", "held", "alone")


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
    print(f"{'':<10}{'gathered':^36}{'frozen bytes held':^24}")
    print("".join([f"{'backbone':<10}", *(f"{key:>12}" for key in COLUMNS)]))
    for name, one in found.items():
        print("".join([f"{name:<10}", *(f"{one[key] / 2**20:>12.2f}" for key in COLUMNS)]))
    # The trained parts travel too, in the run's precision: like is compared with like.
    for above, below in (("nf4+bf16", "bf16"), ("nf4", "fp32")):
        ratios = {key: found[above][key] / found[below][key] for key in ("frozen", "all")}
        print(f"{above} / {below}: frozen {ratios['frozen']:.3f}, all {ratios['all']:.3f}")
    facts = {"settings": vars(arguments), "config": base.to_dict(), "bytes": found}
    write_results(arguments.output, "gathered_bytes", facts)


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
    resolved = resolve_deepspeed(
        load_policy(None),
        config,
        world_size=WORLD_SIZE,
        hidden_size=read_config(backbone, config.backbone.num_blocks).hidden_size,
        use_gpu=False,
    )
    model = build_model(
        config,
        backbone,
        num_channels=CHANNELS,
        prompts=["hourly prices and loads " * 30],
        dtype=torch.bfloat16 if in_bf16 else torch.float32,
        on_block=block_sharder(resolved),
    )
    alone = frozen_bytes(model, unsharded=True)
    engine = initialize_engine(model, resolved)
    counted = count_gathered()
    past = torch.randn(4, config.data.context_len, CHANNELS)
    for _ in range(steps):
        counted.update(frozen=0, trained=0, all=0)
        engine.backward(engine(past).square().mean() + engine.module.balance_loss())
        engine.step()
    held = frozen_bytes(engine.module)
    (folder / f"{rank}.json").write_text(json.dumps({**counted, "held": held, "alone": alone}))
    # One rank that leaves while the other still writes to it would abort that one.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def count_gathered() -> dict[str, int]:
    """Count from now on what ZeRO-3 gathers: "all" at the collective, the others by parameter.

    "all" is a little more than its parts: a flattened group is padded to equal shards, and small
    parameters, which stay whole between steps, are gathered once after the optimizer changed them.
    """
    from deepspeed.comm.torch import TorchBackend
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.runtime.zero.partitioned_param_coordinator import (
        PartitionedParameterCoordinator as Coordinator,
    )

    counted = {"frozen": 0, "trained": 0, "all": 0}
    into_tensor, into_list = TorchBackend.all_gather_into_tensor, TorchBackend.all_gather
    # Private names, mangled by Python: nothing public says which parameters travel.
    launch = Coordinator._PartitionedParameterCoordinator__all_gather_params_

    def counted_into_tensor(self: Any, output_tensor: Any, *args: Any, **kwargs: Any) -> Any:
        counted["all"] += output_tensor.nbytes
        return into_tensor(self, output_tensor, *args, **kwargs)

    def counted_into_list(self: Any, tensor_list: Any, *args: Any, **kwargs: Any) -> Any:
        counted["all"] += sum(tensor.nbytes for tensor in tensor_list)
        return into_list(self, tensor_list, *args, **kwargs)

    def counted_launch(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        for p in params:
            # Those at hand already don't travel.
            if p.ds_status == ZeroParamStatus.NOT_AVAILABLE:
                part = "trained" if p.requires_grad else "frozen"
                counted[part] += p.ds_numel * p.element_size()
        return launch(self, params, *args, **kwargs)

    TorchBackend.all_gather_into_tensor = counted_into_tensor
    TorchBackend.all_gather = counted_into_list
    Coordinator._PartitionedParameterCoordinator__all_gather_params_ = counted_launch
    return counted


if __name__ == "__main__":
    main()
