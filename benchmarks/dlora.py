"""Optimizer-step time with D-LoRA beside PEFT's LoRA of the same total rank, and no adapter.

    python -m benchmarks.dlora

One process, one thread; the variants take turns step by step. Everything but the adapter is equal.
"LoRA again" is a second copy of the reference: its ratio says what the machine's noise alone does.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.measuring import alternate, base_config, paired, spread, write_results
from timellama_dist.backbone.folder import resolve_backbone
from timellama_dist.config.schema import RunConfig
from timellama_dist.dlora.settings import LLAMA_LINEARS
from timellama_dist.model.build import build_model
from timellama_dist.model.timellama import TimeLlama

CHANNELS = 6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--output", metavar="FILE.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = base_config(arguments.backbone, arguments.blocks)
    folder = resolve_backbone(config.backbone.name)
    total_rank = config.dlora.num_experts * config.dlora.rank
    models = {
        "no adapter": build(config, folder, enabled=False),
        f"LoRA r={total_rank}": with_lora(build(config, folder, enabled=False), total_rank),
        "LoRA again": with_lora(build(config, folder, enabled=False), total_rank),
        "D-LoRA": build(config, folder),
        "D-LoRA straight_through": build(config, folder, gate="straight_through"),
        "D-LoRA binary": build(config, folder, gate="binary"),
        "D-LoRA scope=module": build(config, folder, scope="module", top_n=2),
    }
    steps = {name: stepper(model, arguments.batch, config) for name, model in models.items()}
    for step in steps.values():
        step()
        step()
    seconds = alternate(steps, arguments.rounds)
    lora = seconds[f"LoRA r={total_rank}"]
    print(f"{arguments.blocks} blocks, batch {arguments.batch} x {CHANNELS} channels, nf4, fp32")
    print(f"{'':<26}{'ms a step: median (range)':<34}ratio to LoRA, pair by pair")
    for name, values in seconds.items():
        milliseconds = spread([1000 * value for value in values])
        print(f"{name:<26}{milliseconds:<34}{spread(paired(values, lora))}")
    facts = {"settings": vars(arguments), "config": config.to_dict(), "seconds": seconds}
    write_results(arguments.output, "dlora", facts)


def build(config: RunConfig, folder: Path, **dlora: object) -> TimeLlama:
    """The whole model, with another D-LoRA section."""
    changed = replace(config, dlora=replace(config.dlora, **dlora))
    return build_model(
        changed, folder, num_channels=CHANNELS, prompts=["hourly prices and loads " * 30]
    )


def with_lora(model: TimeLlama, rank: int) -> TimeLlama:
    """PEFT's LoRA on the same modules in the same place."""
    lora = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(LLAMA_LINEARS))
    model.backbone = get_peft_model(model.backbone, lora)
    return model


def stepper(model: nn.Module, batch: int, config: RunConfig) -> Callable[[], float]:
    """A function that makes one optimizer step and returns its seconds."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    past = torch.randn(batch, config.data.context_len, CHANNELS)
    future = torch.randn(batch, config.data.horizon, CHANNELS)
    model.train()

    def step() -> float:
        started = time.perf_counter()
        loss = (model(past) - future).square().mean()
        balance = model.balance_loss() if getattr(model, "dlora", None) is not None else 0.0
        (loss + 0.01 * balance).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - started

    return step


if __name__ == "__main__":
    main()
