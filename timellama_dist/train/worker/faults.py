"""Skips steps whose loss or gradient isn't finite, alike on every rank; counts and bounds them.

DeepSpeed itself skips a step whose gradient has no finite norm, at every ZeRO stage: weights and
moments stay, and the norm is one number for all ranks, so they agree without another message. This
module sees to the two cases that it lets through: a loss that overflows before its gradient does,
and stage 0 in fp32.
"""

import math
from typing import Any

import torch
from torch import Tensor

from timellama_dist.compat.deepspeed import skips_overflow
from timellama_dist.config.schema import TrainSection
from timellama_dist.train.checkpoint.position import Position

_BACKED_OFF = 0.5


def with_its_gradient(loss: Tensor) -> Tensor:
    """The loss, whose gradient isn't finite where the loss isn't, as with the square of 1e30."""
    return loss * torch.where(loss.detach().isfinite(), torch.ones_like(loss), math.nan)


def step_if_finite(engine: Any) -> bool:
    """`engine.step()`, which makes no optimizer step if the gradient has no finite norm.

    Returns:
        Whether an optimizer step was made, the same on every rank; False between two boundaries of
        gradient accumulation.
    """
    if (
        not skips_overflow(engine)
        and engine.is_gradient_accumulation_boundary()
        and not _norm(engine).isfinite()
    ):
        # Without gradients torch's step changes neither weights, moments nor the count of steps.
        optimizer = engine.optimizer
        hook = optimizer.register_step_pre_hook(lambda self, *_: self.zero_grad(set_to_none=True))
        engine.step()
        hook.remove()
        return False
    engine.step()
    return bool(engine.was_step_applied())


def _norm(engine: Any) -> Tensor:
    parameters = engine.module.parameters()
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def count_step(position: Position, *, made: bool) -> None:
    """Count the step that `position` stands at, made or skipped."""
    if made:
        position.skipped_in_row = 0
    else:
        position.skipped_steps += 1
        position.skipped_in_row += 1
        position.last_fault = position.step
    position.step += 1


def back_off(position: Position, train: TrainSection) -> float:
    """The factor on the schedule's rate: a half for `train.backoff_steps` after a fault."""
    if position.last_fault is None or position.step > position.last_fault + train.backoff_steps:
        return 1.0
    return _BACKED_OFF


def check_faults(position: Position, train: TrainSection, rate: float) -> None:
    """Stop a run that no longer learns.

    Args:
        position: after the last step.
        train: its bounds.
        rate: that step's learning rate.

    Raises:
        FloatingPointError: `train.max_skipped_steps` in a row were skipped.
    """
    if position.skipped_in_row >= train.max_skipped_steps:
        raise FloatingPointError(
            f"loss or gradient were not finite in {position.skipped_in_row} steps in a row "
            f"(train.max_skipped_steps), the last of them step {position.step}, at a learning rate "
            f"of {rate:g}; lower train.learning_rate={train.learning_rate:g}"
        )
