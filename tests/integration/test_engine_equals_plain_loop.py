"""Every ZeRO stage computes what a plain single-process PyTorch loop computes: weights compared.

A falling loss would hide wrong weights; so would samples that all choose the same experts.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.engine_ranks import (
    largest_relative_difference,
    make_engine,
    make_model,
    micro_batches,
    policy,
    run_config,
    run_ranks,
    write,
)
from timellama_dist.config.schema import (
    RunConfig,
)
from timellama_dist.train.checkpoint.state import trained_weights
from timellama_dist.train.worker.steps import StepSums, learning_rate, seed_dropout, train_step

STEPS = 10
STAGES = ("zero0", "zero1", "zero2", "zero3", "zero3_offload")


def dataset_of(step: int) -> int:
    """The model knows two data sets, from which the steps draw in turn."""
    return step % 2


def plain_loop(config: RunConfig) -> dict[str, Tensor]:
    """The reference: no DeepSpeed, no engine code but the schedule and the dropout's seeds."""
    model = make_model(config).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1.0, weight_decay=0.0)
    batches = micro_batches(config, 0, 1, 0, STEPS)
    turns = config.train.batch_size // config.train.micro_batch_size
    for step in range(STEPS):
        for turn in range(turns):
            batch = next(batches)
            seed_dropout(config.train.seed, step, turn)
            forecast = model(torch.from_numpy(batch["past"]), dataset_of(step))
            loss = (forecast - torch.from_numpy(batch["future"])).square().mean()
            loss = loss + config.dlora.balance_weight * model.balance_loss()
            (loss / turns).backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), config.train.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, config.train)
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in trained.items()}


def train_rank(
    rank: int, world_size: int, folder: Path, config: RunConfig, stages: Sequence[str] = STAGES
) -> None:
    for name in stages:
        engine = make_engine(config, policy(name), world_size)
        batches = micro_batches(config, rank, world_size, 0, STEPS)
        chosen = []
        for step in range(STEPS):
            for group in engine.optimizer.param_groups:
                group["lr"] = learning_rate(step, STEPS, config.train)
            sums, dataset = StepSums(), dataset_of(step)
            train_step(engine, batches, config, step=step, sums=sums, dataset=dataset)
            chosen.append(engine.module.dlora.router_statistics().chosen.float())
        weights = trained_weights(engine)
        if rank == 0:
            write(folder, f"{name}.safetensors", weights)
        write(folder, f"{name}-chosen-{rank}.safetensors", {"counts": torch.stack(chosen)})


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> dict[str, Tensor]:
    return plain_loop(run_config(tiny_llama))


# A step has two micro-batches: of three ranks one has nothing but padding.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(1, id="1 rank"),
        pytest.param(2, id="2 ranks"),
        pytest.param(3, id="3 ranks", marks=pytest.mark.slow),
    ],
)
def trained(
    request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    run_ranks(train_rank, request.param, folder, run_config(tiny_llama))
    return folder


@pytest.mark.parametrize("name", STAGES)
def test_ten_steps_give_the_weights_of_a_plain_loop(
    name: str, trained: Path, reference: dict[str, Tensor]
) -> None:
    difference = largest_relative_difference(load_file(trained / f"{name}.safetensors"), reference)
    assert difference <= 1e-5, f"{trained.name}, {name}: relative difference {difference:.1e}"
    counts = [
        load_file(path)["counts"] for path in sorted(trained.glob(f"{name}-chosen-*.safetensors"))
    ]
    assert len(counts) == 1 or not torch.equal(*counts[:2]), "both ranks chose the same experts"


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(["zero3"], id="zero3"),
        pytest.param([*STAGES], id="all", marks=pytest.mark.slow),
    ],
)
def test_maps_of_which_a_step_uses_one_get_the_weights_of_a_plain_loop(
    tiny_llama: Path, tmp_path: Path, stages: list[str]
) -> None:
    config = run_config(tiny_llama)
    config = replace(config, model=replace(config.model, shortcut="trainable"))
    wanted = plain_loop(config)
    assert all(wanted[f"shortcuts.{dataset}.map_LH"].any() for dataset in (0, 1))
    run_ranks(train_rank, 2, tmp_path, config, stages)
    for name in stages:
        found = load_file(tmp_path / f"{name}.safetensors")
        difference = largest_relative_difference(found, wanted)
        assert difference <= 1e-5, f"{name}: relative difference {difference:.1e}"
