"""Peak memory of two ranks that load a backbone, phase by phase: sharded block by block, or whole.

    python -m benchmarks.loading

Makes a random LLaMA of a billion parameters on disk (2 GB, bf16, several files). Real gloo
processes, ZeRO-3; each samples its own memory fifty times a second: USS is what it has to itself,
RSS also what it maps of files.
"""

import argparse
import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import nn
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from benchmarks.measuring import base_config, write_results
from timellama_dist.backbone.load import frozen_bytes
from timellama_dist.config.deepspeed import load_policy, resolve_deepspeed
from timellama_dist.config.schema import RunConfig
from timellama_dist.model.build import build_model, parameter_counts
from timellama_dist.train.worker.engine import block_sharder, initialize_engine, prepare_process

CHANNELS, WORLD_SIZE, VOCABULARY = 3, 2, 512
BLOCKS_PER_FILE = 4
WAYS = ("sharded", "whole")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=2048, help="a multiple of 256")
    parser.add_argument("--quantization", choices=["nf4", "none"], default="nf4")
    parser.add_argument("--steps", type=int, default=2, help="phases of training after loading")
    parser.add_argument("--output", metavar="FILE.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "llama"
        num_parameters = make_llama(folder, arguments.hidden, arguments.blocks)
        config = run_config(folder, arguments.blocks, arguments.quantization)
        found = {way: measure(config, way, arguments.steps, Path(scratch) / way) for way in WAYS}
    print(f"{num_parameters / 1e6:.0f} million parameters in {arguments.blocks} blocks, 2 ranks")
    for way, ranks in found.items():
        print_ranks(way, ranks)
    peaks = {way: max(rank["above_import"] for rank in ranks) for way, ranks in found.items()}
    print(f"sharded / whole: {peaks['sharded'] / peaks['whole']:.2f}")
    facts = {"settings": vars(arguments), "parameters": num_parameters, "bytes": found}
    write_results(arguments.output, "loading", facts)


def print_ranks(way: str, ranks: list[dict[str, Any]]) -> None:
    """The worst rank's peak in each phase, and what its peak while loading is made of."""
    phases = list(ranks[0]["peaks"])
    print(f"\n{way}: peak MiB of a rank" + "".join(f"{phase:>12}" for phase in phases))
    for kind in ("uss", "rss"):
        worst = [max(rank["peaks"][phase][kind] for rank in ranks) for phase in phases]
        print(f"{kind:<{len(way) + 20}}" + "".join(f"{peak / 2**20:>12.0f}" for peak in worst))
    rank = max(ranks, key=lambda one: one["above_import"])
    words = ("above_import", "held", "unsharded", "two_blocks", "two_blocks_in_file")
    print("  ".join(f"{word} {rank[word] / 2**20:.0f}" for word in words))


def run_config(folder: Path, num_blocks: int, quantization: Any) -> RunConfig:
    """The default run on that backbone, with the smallest batch of two ranks."""
    base = base_config(str(folder), num_blocks)
    return replace(
        base,
        backbone=replace(base.backbone, quantization=quantization),
        train=replace(base.train, batch_size=2, micro_batch_size=1),
    )


def make_llama(folder: Path, hidden: int, num_blocks: int) -> int:
    """Write a random LLaMA, a few blocks at a time; the number of its parameters."""
    folder.mkdir()
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=num_blocks,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
        vocab_size=VOCABULARY,
    )
    config.save_pretrained(folder)
    # A token a character: with one token for all, attention to the prompt would have no gradient.
    characters = {chr(code): code for code in range(VOCABULARY)}
    tokenizer = Tokenizer(models.BPE(vocab=characters, merges=[], unk_token=chr(0)))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=chr(0)).save_pretrained(folder)
    sizes, places = {}, {}
    for number, tensors in enumerate(tensors_of_files(config)):
        file = f"model-{number:05}.safetensors"
        save_file(tensors, folder / file)
        sizes |= {name: tensor.numel() for name, tensor in tensors.items()}
        places |= dict.fromkeys(tensors, file)
    index_file = folder / "model.safetensors.index.json"
    index_file.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return sum(sizes.values())


def tensors_of_files(config: LlamaConfig) -> Iterator[dict[str, torch.Tensor]]:
    """Embedding table and final norm, then the blocks, a few a file."""
    table = torch.randn(VOCABULARY, config.hidden_size) * config.initializer_range
    norm = torch.ones(config.hidden_size)
    yield {"model.embed_tokens.weight": table.bfloat16(), "model.norm.weight": norm.bfloat16()}
    blocks = range(config.num_hidden_layers)
    for start in blocks[::BLOCKS_PER_FILE]:
        tensors: dict[str, torch.Tensor] = {}
        for index in blocks[start : start + BLOCKS_PER_FILE]:
            tensors |= block_tensors(config, index)
        yield tensors


def block_tensors(config: LlamaConfig, index: int) -> dict[str, torch.Tensor]:
    """A block's weights as LLaMA's initialiser draws them, bf16."""
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in LlamaDecoderLayer(config, index).named_parameters()}
    return {
        f"model.layers.{index}.{name}": (
            torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * config.initializer_range
        ).bfloat16()
        for name, shape in shapes.items()
    }


def measure(config: RunConfig, way: str, steps: int, folder: Path) -> list[dict[str, Any]]:
    """What each rank found."""
    folder.mkdir()
    torch.multiprocessing.spawn(load_rank, args=(config, way, steps, folder), nprocs=WORLD_SIZE)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(WORLD_SIZE)]


def load_rank(rank: int, config: RunConfig, way: str, steps: int, folder: Path) -> None:
    """One rank: load as the trainer does, or without sharding; train a few steps."""
    prepare_process(use_gpu=False)
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    memory = PhasePeaks()
    memory.begin("import")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE
    )
    backbone = Path(config.backbone.name)
    resolved = resolve_deepspeed(
        load_policy(None),
        config,
        world_size=WORLD_SIZE,
        hidden_size=LlamaConfig.from_pretrained(backbone).hidden_size,
        use_gpu=False,
    )
    # Asked for both ways, so that both have imported deepspeed.
    shard = block_sharder(resolved)
    memory.begin("load")
    model = build_model(
        config,
        backbone,
        num_channels=CHANNELS,
        prompts=["a"],
        on_block=after_blocks(
            shard if way == "sharded" else None,
            config.backbone.num_blocks,
            lambda: memory.begin("wrap"),
        ),
    )
    held, unsharded = frozen_bytes(model), frozen_bytes(model, unsharded=True)
    memory.begin("initialize")
    engine = initialize_engine(model, resolved)
    past = torch.randn(1, config.data.context_len, CHANNELS)
    for step in range(steps):
        memory.begin(f"step {step + 1}")
        engine.backward(engine(past).square().mean() + engine.module.balance_loss())
        engine.step()
    peaks = memory.end()
    num_blocks, frozen = config.backbone.num_blocks, parameter_counts(model)["frozen"]
    facts = {
        "peaks": peaks,
        "above_import": max(peaks["load"]["uss"], peaks["wrap"]["uss"]) - memory.started["load"],
        "held": held,
        "unsharded": unsharded,
        "two_blocks": 2 * unsharded // num_blocks,
        "two_blocks_in_file": 2 * frozen * torch.bfloat16.itemsize // num_blocks,
    }
    (folder / f"{rank}.json").write_text(json.dumps(facts))
    # One rank that leaves while the other still writes to it would abort that one.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def after_blocks(
    shard: Callable[[int, nn.Module], None] | None, num_blocks: int, then: Callable[[], None]
) -> Callable[[int, nn.Module], None]:
    """What a loader calls with each block: shard it if asked, and note the last."""

    def on_block(index: int, block: nn.Module) -> None:
        if shard is not None:
            shard(index, block)
        if index == num_blocks - 1:
            then()

    return on_block


class PhasePeaks:
    """Samples this process's memory in a thread; the largest values of each phase.

    Attributes:
        started: USS at the beginning of each phase.
    """

    def __init__(self, every_s: float = 0.02) -> None:
        self.started: dict[str, int] = {}
        self._peaks: dict[str, dict[str, int]] = {}
        self._phase = ""
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="phase-peaks", daemon=True)

    def begin(self, phase: str) -> None:
        """End the phase before, and begin another."""
        if self._phase:
            self._sample()
        self._peaks[phase] = {"uss": 0, "rss": 0}
        self._phase = phase
        self.started[phase] = self._sample()
        if not self._thread.is_alive():
            self._thread.start()

    def end(self) -> dict[str, dict[str, int]]:
        """Stop sampling; largest USS and RSS by phase, in bytes."""
        self._sample()
        self._done.set()
        self._thread.join()
        return self._peaks

    def _run(self) -> None:
        while not self._done.wait(self._every_s):
            self._sample()

    def _sample(self) -> int:
        peaks = self._peaks[self._phase]
        now = psutil.Process().memory_full_info()
        peaks["uss"] = max(peaks["uss"], now.uss)
        peaks["rss"] = max(peaks["rss"], now.rss)
        return int(now.uss)


if __name__ == "__main__":
    main()
