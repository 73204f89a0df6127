import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.support.runs import plain, plain_run
from timellama_dist.config.schema import TrainSection
from timellama_dist.train.worker.steps import learning_rate, num_steps, seed_dropout


def test_the_rate_rises_linearly_then_falls_by_a_cosine_to_zero() -> None:
    train = plain(TrainSection, learning_rate=1.0, warmup_fraction=0.2)
    rates = [learning_rate(step, 10, train) for step in range(10)]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])
    expected = [0.5 * (1 + math.cos(math.pi * share / 8)) for share in range(8)]
    assert rates[2:] == pytest.approx(expected)


def test_a_constant_schedule_stays_after_the_warm_up() -> None:
    train = plain(TrainSection, learning_rate=2.0, warmup_fraction=0.1, schedule="constant")
    assert [learning_rate(step, 10, train) for step in range(10)] == [2.0] * 10


def drawn(seed: int, step: int, micro_batch: int) -> float:
    seed_dropout(seed, step, micro_batch)
    return float(torch.rand(()))


def test_dropout_depends_on_seed_step_and_micro_batch_alone() -> None:
    assert drawn(0, 5, 1) == drawn(0, 5, 1)
    assert len({drawn(0, 5, 1), drawn(1, 5, 1), drawn(0, 6, 1), drawn(0, 5, 2)}) == 4


@pytest.mark.slow
def test_dropout_is_alike_in_another_process() -> None:
    program = (
        "import torch; from timellama_dist.train.worker.steps import seed_dropout;"
        "seed_dropout(0, 5, 1); print(float(torch.rand(())))"
    )
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": hash_seed},
            check=True,
        )
        assert float(done.stdout) == drawn(0, 5, 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"epochs": 2}, (21, 11)),  # 2 x 165 windows / 16, and an epoch rounded up
        ({"epochs": 2, "max_steps": 7}, (7, 7)),
        ({"epochs": 2, "validate_every": 5}, (21, 5)),
    ],
)
def test_an_epoch_is_every_window_once(changes: dict[str, int], expected: tuple[int, int]) -> None:
    config = plain_run(train=plain(TrainSection, batch_size=16, micro_batch_size=8, **changes))
    assert num_steps(config, 165) == expected


def test_long_epochs_are_not_validated_at_their_ends_alone() -> None:
    section = plain(TrainSection, batch_size=16, micro_batch_size=8, epochs=1)
    assert num_steps(plain_run(train=section), 16_000) == (1000, 250)
    section = replace(section, validate_every=600)
    assert num_steps(plain_run(train=section), 16_000) == (1000, 600)
