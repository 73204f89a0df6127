"""The running mean of the weights, on real ranks at every stage of ZeRO."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.engine_ranks import (
    LAST,
    SAVED,
    make_engine,
    make_model,
    micro_batches,
    policy,
    run_config,
    run_ranks,
    windows,
    write,
)
from timellama_dist.config.schema import RunConfig
from timellama_dist.evaluation.windows import forecast_windows
from timellama_dist.train.checkpoint.state import trained_weights
from timellama_dist.train.worker.average import Average
from timellama_dist.train.worker.steps import StepSums, train_step

EVERY = 2


def average_rank(
    rank: int, world_size: int, folder: Path, config: RunConfig, stages: list[str]
) -> None:
    """At each stage: train, forecast with the mean in the middle, go on with it from a file."""
    batch = {key: values[:4] for key, values in windows(config).items()}
    batch["weight"] = torch.ones(4).numpy()
    for stage in stages:
        engine = make_engine(config, policy(stage), world_size)
        average = Average(engine, 10 * EVERY)
        batches = micro_batches(config, rank, world_size, 0, LAST)
        seen: list[dict[str, Any]] = []
        for step in range(LAST):
            train_step(engine, batches, config, step=step, sums=StepSums())
            seen.append(trained_weights(engine))
            average.follow(step + 1)
            if step + 1 == SAVED:
                with average.in_engine():
                    found = forecast_windows(engine, [batch])["forecast"]
                (folder / stage).mkdir(exist_ok=True)
                if rank == 0:
                    average.write(folder / stage)
                    write(folder / stage, "middle.safetensors", average.weights())
                    write(folder / stage, "found.safetensors", {"f": torch.from_numpy(found)})
                torch.distributed.barrier()
                average = Average(engine, 10 * EVERY, folder / stage)
        if rank == 0:
            write(folder / stage, "end.safetensors", average.weights())
            for step, weights in enumerate(seen):
                write(folder / stage, f"step-{step + 1}.safetensors", weights)


@pytest.fixture(scope="module")
def config(tiny_llama: Path) -> RunConfig:
    config = run_config(tiny_llama)
    return replace(config, model=replace(config.model, dropout=0.0))


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(["zero0", "zero3"], id="some"),
        pytest.param(["zero0", "zero1", "zero2", "zero3"], id="all", marks=pytest.mark.slow),
    ],
)
def test_the_mean_is_of_the_weights_and_leaves_training_alone(
    config: RunConfig, tmp_path: Path, stages: list[str]
) -> None:
    run_ranks(average_rank, 2, tmp_path, config, stages)
    model = make_model(config).eval()
    past = torch.as_tensor(windows(config)["past"][:4])
    plain = load_file(tmp_path / "zero0" / f"step-{LAST}.safetensors")
    for stage in stages:
        folder = tmp_path / stage
        looked_at = [
            load_file(folder / f"step-{step}.safetensors") for step in range(EVERY, LAST + 1, EVERY)
        ]
        expected = looked_at[0]
        for number, newest in enumerate(looked_at):
            expected = {n: 0.9 * mean + 0.1 * newest[n] for n, mean in expected.items()}
            if (number + 1) * EVERY == SAVED:
                torch.testing.assert_close(load_file(folder / "middle.safetensors"), expected)
                model.load_state_dict(expected, strict=False)
                with torch.no_grad():
                    forecast = model(past)
                found = load_file(folder / "found.safetensors")["f"]
                torch.testing.assert_close(found, forecast, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(load_file(folder / "end.safetensors"), expected)
        # Stage 0 trains the parameters themselves: had the mean stayed in them, it would show.
        last = load_file(folder / f"step-{LAST}.safetensors")
        torch.testing.assert_close(last, plain, rtol=1e-3, atol=1e-5)
