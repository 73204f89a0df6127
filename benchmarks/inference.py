"""Forward passes of a model as it is loaded, beside Time-LLM, PatchTST and iTransformer.

    pip install -e '.[baselines]'
    python -m benchmarks.inference

One process, one thread, float32 unless named otherwise; the models take turns round by round. All
forecast the same random windows. The LLMs have the same blocks; PatchTST, iTransformer and Time-LLM
are neuralforecast's modules with its default sizes. Time-LLM's prototypes, which its own code
computes anew in each pass, are computed before the clock starts. It sees channels apart, and is
given 43 at most, for 862 would need several GiB and a minute: its time is scaled up to all of them.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from benchmarks.measuring import alternate, base_config, paired, spread, write_results
from benchmarks.published import PublishedConfig, forecast_filled, library
from benchmarks.published import build as build_published
from timellama_dist.assets.catalog import DATASETS
from timellama_dist.backbone.folder import read_config, resolve_backbone
from timellama_dist.backbone.load import frozen_bytes
from timellama_dist.config.schema import RunConfig
from timellama_dist.console.exit_codes import run_command
from timellama_dist.data.prompts import task_prompt
from timellama_dist.model.build import build_model
from timellama_dist.model.inference import freeze_for_inference
from timellama_dist.model.timellama import TimeLlama

OURS = "Time-LlaMA"
DESCRIPTION = DATASETS["epf"].prompt
LEAST_S = 0.3  # A measurement is as many passes as take that long.
MOST_CHANNELS = {"Time-LLM": 43}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument(
        "--cases", nargs="+", default=["7x1", "7x8", "21x2", "862x1"], metavar="CHANNELSxWINDOWS"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", metavar="FILE.json")
    arguments = parser.parse_args(argv)
    return run_command(lambda: command(arguments))


def command(arguments: argparse.Namespace) -> None:
    library()
    torch.set_num_threads(1)
    config = base_config(arguments.backbone, arguments.blocks)
    seconds: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="timellama-llm-") as scratch:
        llm = first_blocks(resolve_backbone(arguments.backbone), arguments.blocks, Path(scratch))
        for case in arguments.cases:
            num_channels, batch = (int(number) for number in case.split("x"))
            models = ours(config, num_channels) | published(config, num_channels, str(llm))
            seconds[case] = measure(models, config, batch, num_channels, arguments.rounds)
            report(f"{num_channels} channels, {batch} windows", seconds[case], models)
    facts = {"settings": vars(arguments), "config": config.to_dict(), "seconds": seconds}
    write_results(arguments.output, "inference", facts)


def ours(config: RunConfig, num_channels: int) -> dict[str, nn.Module]:
    """This project's model by the way it was loaded."""
    alone = replace(config, backbone=replace(config.backbone, attention="independent"))
    return {
        OURS: loaded(config, num_channels),
        "  each channel alone": loaded(alone, num_channels),
        "  4-bit": loaded(config, num_channels, unpack=False),
        "  bfloat16": loaded(config, num_channels, dtype=torch.bfloat16),
        "  as trained": untrained(config, num_channels, torch.float32),
    }


def loaded(
    config: RunConfig, num_channels: int, *, unpack: bool = True, dtype: torch.dtype = torch.float32
) -> TimeLlama:
    """As `load_model` leaves a model, with the weights that training begins with."""
    model = untrained(config, num_channels, dtype).to(dtype)
    freeze_for_inference(model, unpack=unpack)
    return model


def untrained(config: RunConfig, num_channels: int, dtype: torch.dtype) -> TimeLlama:
    data = config.data
    prompt = task_prompt(
        DESCRIPTION, context_len=data.context_len, horizon=data.horizon, frequency="h"
    )
    model = build_model(
        config,
        resolve_backbone(config.backbone.name),
        num_channels=num_channels,
        prompts=[prompt],
        dtype=dtype,
    )
    return model.requires_grad_(False).eval()


def first_blocks(folder: Path, num_blocks: int, target: Path) -> Path:
    """A folder of the LLM's first blocks, for neuralforecast takes all that a folder has."""
    llm = AutoModel.from_pretrained(folder, num_hidden_layers=num_blocks, dtype=torch.float32)
    llm.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return target


def published(config: RunConfig, num_channels: int, llm: str) -> dict[str, nn.Module]:
    """The library's models."""
    # Of an LLM's output it takes this many, the library's default if there are so many.
    arguments = {"prompt_prefix": DESCRIPTION, "d_ff": min(128, read_config(llm).hidden_size)}
    wanted = {
        "PatchTST": PublishedConfig(model="PatchTST", data=config.data),
        "iTransformer": PublishedConfig(model="iTransformer", data=config.data),
        "Time-LLM": PublishedConfig(
            model="TimeLLM", data=config.data, llm=llm, arguments=arguments
        ),
    }
    models = {name: build_published(library(), one, num_channels) for name, one in wanted.items()}
    time_llm: Any = models["Time-LLM"]
    with torch.no_grad():
        prototypes = time_llm.mapping_layer(time_llm.word_embeddings.permute(1, 0))
    time_llm.mapping_layer = Known(prototypes)
    return {name: model.requires_grad_(False).eval() for name, model in models.items()}


class Known(nn.Module):
    """Gives what was computed before."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, _: Tensor) -> Tensor:
        value: Tensor = self.value
        return value


def measure(
    models: dict[str, nn.Module], config: RunConfig, batch: int, num_channels: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds a pass of every model, once a round."""
    shape = (batch, config.data.context_len, num_channels)
    past = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    timers = {}
    for name, model in models.items():
        most = MOST_CHANNELS.get(name, num_channels)
        seen = past[:, :, :most]
        timers[name] = timer(model, seen)
        assert run(model, seen).shape == (batch, config.data.horizon, seen.shape[2]), name
    shares = {name: num_channels / min(most, num_channels) for name, most in MOST_CHANNELS.items()}
    found = alternate(timers, rounds)
    return {name: [one * shares.get(name, 1) for one in took] for name, took in found.items()}


def timer(model: nn.Module, past: Tensor) -> Callable[[], float]:
    """A function that gives the mean seconds of a pass over these windows."""

    def seconds() -> float:
        passes, started = 0, time.perf_counter()
        while (taken := time.perf_counter() - started) < LEAST_S:
            run(model, past)
            passes += 1
        return taken / passes

    return seconds


def run(model: nn.Module, past: Tensor) -> Tensor:
    with torch.inference_mode():
        if isinstance(model, TimeLlama):
            forecast: Tensor = model(past)
            return forecast
        return forecast_filled(model, past)


def report(title: str, seconds: dict[str, list[float]], models: dict[str, nn.Module]) -> None:
    print(f"{title:<26}{'ms a pass: median (range)':<34}{'speed of Time-LlaMA':<28}weights, MiB")
    for name, values in seconds.items():
        milliseconds = spread([1000 * value for value in values])
        faster = spread(paired(values, seconds[OURS]))
        mebibytes = frozen_bytes(models[name]) / 2**20
        print(f"{name:<26}{milliseconds:<34}{faster:<28}{mebibytes:.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
