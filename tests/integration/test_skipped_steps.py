"""A step that one rank can't compute is skipped on all, at every stage, as if it had not been."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.engine_ranks import (
    CHANNELS,
    make_engine,
    make_model,
    micro_batches,
    policy,
    run_config,
    run_ranks,
)
from timellama_dist.config.deepspeed import resolve_deepspeed
from timellama_dist.config.schema import RunConfig
from timellama_dist.train.checkpoint.contents import (
    load_optimizer,
    load_weights,
    write_checkpoint,
)
from timellama_dist.train.checkpoint.position import Position, read_position
from timellama_dist.train.checkpoint.state import set_trained_state, trained_state
from timellama_dist.train.worker.engine import initialize_engine
from timellama_dist.train.worker.faults import count_step
from timellama_dist.train.worker.steps import StepSums, train_step

OTHER_STAGES = ("zero0", "zero1", "zero2", "zero3_offload")
STAGES = ("zero3", *(pytest.param(stage, marks=pytest.mark.slow) for stage in OTHER_STAGES))
LAST, MIDDLE = 7, 5
SKIPPED = {0: "loss", 3: "past", 4: "target"}
"""The first step too: ZeRO has no moments before it."""


def poisoned(batch: dict[str, np.ndarray], kind: str | None) -> dict[str, np.ndarray]:
    past, future = batch["past"].copy(), batch["future"].copy()
    if kind == "past":
        past[0, 0, 0] = np.inf
    elif kind == "target":
        future[:] = 1e30
    elif kind == "loss":
        # One target alone, so that the loss overflows while the gradient doesn't.
        future[0, 0, 0] = 3e19
    return {"past": past, "future": future}


def batches(
    config: RunConfig, rank: int, world_size: int, first: int
) -> Iterator[dict[str, np.ndarray]]:
    """Only the last rank's are poisoned."""
    turns = config.train.batch_size // config.train.micro_batch_size // world_size
    for number, batch in enumerate(micro_batches(config, rank, world_size, first, LAST)):
        here = rank == world_size - 1 and number % turns == 0
        yield poisoned(batch, SKIPPED.get(first + number // turns) if here else None)


def train(
    engine: Any, config: RunConfig, rank: int, world_size: int, position: Position, last: int
) -> list[bool]:
    made = []
    for _ in range(position.step, last):
        source = batches(config, rank, world_size, position.step)
        for group in engine.optimizer.param_groups:
            group["lr"] = config.train.learning_rate
        made.append(train_step(engine, source, config, step=position.step, sums=StepSums()))
        count_step(position, made=made[-1])
    return made


def by_hand(engine: Any, config: RunConfig, rank: int, world_size: int, step: int) -> None:
    """The step as it would be without the poisoned ones."""
    for group in engine.optimizer.param_groups:
        group["lr"] = config.train.learning_rate
    source = micro_batches(config, rank, world_size, step, LAST)
    assert train_step(engine, source, config, step=step, sums=StepSums())


def save(engine: Any, folder: Path, position: Position) -> None:
    state = trained_state(engine)
    if torch.distributed.get_rank() == 0:
        write_checkpoint(folder, state, position, None)


def stage_rank(rank: int, world_size: int, folder: Path, config: RunConfig, stage: str) -> None:
    skip(rank, world_size, folder, config, stage)
    go_back(rank, world_size, folder, config, stage)


def skip(rank: int, world_size: int, folder: Path, config: RunConfig, stage: str) -> None:
    """All steps, all but the skipped ones, and those after the middle one once more."""
    engine, position = make_engine(config, policy(stage), world_size), Position()
    made = train(engine, config, rank, world_size, position, MIDDLE)
    save(engine, folder / "middle", position)
    made += train(engine, config, rank, world_size, position, LAST)
    save(engine, folder / "end", position)

    engine = make_engine(config, policy(stage), world_size)
    for step in set(range(LAST)) - SKIPPED.keys():
        by_hand(engine, config, rank, world_size, step)
    save(engine, folder / "by hand", Position(step=LAST))

    torch.distributed.barrier()  # the first rank has written what is read here
    model = make_model(config)
    load_weights(model, folder / "middle")
    resolved = resolve_deepspeed(
        policy(stage), config, world_size=world_size, hidden_size=64, use_gpu=False
    )
    engine = initialize_engine(model, resolved)
    shape = (config.train.micro_batch_size, config.data.context_len, CHANNELS)
    load_optimizer(engine, folder / "middle", past_shape=shape)
    position = read_position(folder / "middle")
    train(engine, config, rank, world_size, position, LAST)
    save(engine, folder / "resumed", position)
    (folder / f"rank-{rank}.json").write_text(json.dumps(made))


def go_back(rank: int, world_size: int, folder: Path, config: RunConfig, stage: str) -> None:
    """Steps 0 to 2, two that are taken back, step 5; and the same without the two."""
    engine = make_engine(config, policy(stage), world_size)
    for step in range(3):
        by_hand(engine, config, rank, world_size, step)
    kept = trained_state(engine)
    save(engine, folder / "kept", Position(step=3))
    for step in (3, 4):
        by_hand(engine, config, rank, world_size, step)
    set_trained_state(engine, kept, updates=3)
    save(engine, folder / "back", Position(step=3))
    by_hand(engine, config, rank, world_size, 5)
    save(engine, folder / "after back", Position())

    engine = make_engine(config, policy(stage), world_size)
    for step in (0, 1, 2, 5):
        by_hand(engine, config, rank, world_size, step)
    save(engine, folder / "never gone", Position())


@pytest.fixture(scope="module", params=STAGES)
def folder(
    request: pytest.FixtureRequest, tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    run_ranks(stage_rank, 2, folder, run_config(tiny_llama), request.param)
    return folder


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
@pytest.mark.parametrize(("found", "expected"), [("back", "kept"), ("after back", "never gone")])
def test_steps_that_are_taken_back_leave_no_trace(
    found: str, expected: str, name: str, folder: Path
) -> None:
    one, other = (load_file(folder / run / name) for run in (found, expected))
    assert [key for key in other if not torch.equal(one[key], other[key])] == []


def test_both_ranks_skip_the_steps_that_one_of_them_cannot_compute(folder: Path) -> None:
    expected = [step not in SKIPPED for step in range(LAST)]
    for rank in range(2):
        assert json.loads((folder / f"rank-{rank}.json").read_text()) == expected


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors"])
def test_a_skipped_step_leaves_no_trace_in_weights_and_moments(name: str, folder: Path) -> None:
    found, expected = (load_file(folder / run / name) for run in ("end", "by hand"))
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    assert all(tensor.isfinite().all() for tensor in expected.values())


@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_run_resumed_after_skipped_steps_ends_as_the_uninterrupted_one(
    name: str, folder: Path
) -> None:
    found, expected = ((folder / run / name).read_bytes() for run in ("resumed", "end"))
    assert found == expected
