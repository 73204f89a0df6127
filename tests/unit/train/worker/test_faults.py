"""The bookkeeping of faults; that a step is skipped alike at every stage needs real ranks."""

from dataclasses import asdict

import pytest
import torch

from timellama_dist.config.schema import TrainSection
from timellama_dist.train.checkpoint.position import Position
from timellama_dist.train.worker.faults import back_off, check_faults, count_step, with_its_gradient
from timellama_dist.train.worker.rollback import leaps


def position_after(made: str) -> Position:
    """After steps written as `+` for one that was made and `-` for one that was skipped."""
    position = Position()
    for one in made:
        count_step(position, made=one == "+")
    return position


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_finite_loss_keeps_every_bit_of_value_and_gradient(dtype: torch.dtype) -> None:
    x = torch.tensor(0.3, dtype=dtype, requires_grad=True)
    loss = with_its_gradient(x / 3)
    assert (loss.dtype, loss.item()) == (dtype, (x / 3).item())
    loss.backward()
    assert x.grad is not None
    assert x.grad.item() == torch.autograd.grad(x / 3, x)[0].item()


def test_a_loss_that_overflows_has_a_gradient_that_is_not_finite() -> None:
    x = torch.tensor(1e30, requires_grad=True)
    assert torch.autograd.grad(x.square(), x)[0].isfinite()
    assert torch.autograd.grad(with_its_gradient(x.square()), x)[0].isnan()


def test_skipped_steps_are_counted_and_are_no_updates() -> None:
    position = position_after("++-+--")
    assert (position.step, position.updates) == (6, 3)
    assert (position.skipped_steps, position.skipped_in_row, position.last_fault) == (3, 2, 5)
    assert Position(**asdict(position)) == position


def test_the_rate_is_halved_for_the_steps_after_a_skipped_one() -> None:
    train = TrainSection(backoff_steps=3)
    rates = [back_off(position_after("+-+++++"[:count]), train) for count in range(8)]
    # Of the steps 0 to 7; step 1 is skipped.
    assert rates == [1, 1, 0.5, 0.5, 0.5, 1, 1, 1]
    assert back_off(position_after("-"), TrainSection(backoff_steps=0)) == 1


def test_too_many_skipped_steps_in_a_row_end_the_run() -> None:
    train = TrainSection(max_skipped_steps=3, learning_rate=0.002)
    for endured in ("", "--", "--+--", "---+"):
        check_faults(position_after(endured), train, 0.001)
    with pytest.raises(
        FloatingPointError,
        match=r"^loss or gradient were not finite in 3 steps in a row \(train\.max_skipped_steps\),"
        r" the last of them step 4, at a learning rate of 0\.001; "
        r"lower train\.learning_rate=0\.002$",
    ):
        check_faults(position_after("+---"), train, 0.001)


@pytest.mark.parametrize(
    ("before", "loss", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0, 90.0], 9.1, True),  # the median is 3
        ([1.0, 2.0, 3.0, 4.0, 90.0], 9.0, False),
        ([1.0, 2.0, 3.0, 4.0], 1e9, False),
        ([], 1e9, False),
    ],
)
def test_a_loss_leaps_beyond_the_median_of_five_or_more(
    before: list[float], loss: float, expected: bool
) -> None:
    assert leaps(loss, Position(recent_losses=before), 3.0) is expected


def test_a_run_goes_back_three_times_at_most() -> None:
    steady = [1.0] * 5
    found = [leaps(9.0, Position(recent_losses=steady, rollbacks=n), 3.0) for n in range(5)]
    assert found == [True, True, True, False, False]


def test_undone_steps_are_no_updates() -> None:
    assert Position(step=9, skipped_steps=2, undone_steps=3).updates == 4
