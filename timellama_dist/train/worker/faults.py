"""Steps whose loss or gradient isn't finite: skipped alike on every rank, counted, bounded.

DeepSpeed itself skips a step whose gradient has no finite norm, at every ZeRO stage: weights and
moments stay, and the norm is one number for all ranks, so they agree without another message. Here
is what it lets through: a loss that overflows before its gradient does, and stage 0 in fp32.
"""

import math
from typing import Any

import torch
from torch import Tensor

from timellama_dist.config.schema import TrainSection
from timellama_dist.train.checkpoint.state import Progress

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
    optimizer = engine.optimizer
    if (
        isinstance(optimizer, torch.optim.Optimizer)  # DeepSpeed's own, which check, are none
        and engine.is_gradient_accumulation_boundary()
        and not _norm(engine).isfinite()
    ):
        # Without gradients torch's step changes neither weights, moments nor the count of steps.
        hook = optimizer.register_step_pre_hook(lambda self, *_: self.zero_grad(set_to_none=True))
        engine.step()
        hook.remove()
        return False
    engine.step()
    return bool(engine.was_step_applied())


def _norm(engine: Any) -> Tensor:
    gradients = (parameter.grad for parameter in engine.module.parameters())
    return torch.nn.utils.get_total_norm([one for one in gradients if one is not None])


def count_step(progress: Progress, *, made: bool) -> None:
    """Count the step that `progress` stands at, made or skipped."""
    if made:
        progress.skipped_in_row = 0
    else:
        progress.skipped_steps += 1
        progress.skipped_in_row += 1
        progress.last_fault = progress.step
    progress.step += 1


def back_off(progress: Progress, train: TrainSection) -> float:
    """What the schedule's rate is multiplied by: a half for `train.backoff_steps` after a fault."""
    if progress.last_fault is None or progress.step > progress.last_fault + train.backoff_steps:
        return 1.0
    return _BACKED_OFF


def check_faults(progress: Progress, train: TrainSection, rate: float) -> None:
    """Stop a run that no longer learns.

    Args:
        progress: after the last step.
        train: its bounds.
        rate: that step's learning rate.

    Raises:
        FloatingPointError: `train.max_skipped_steps` in a row were skipped.
    """
    if progress.skipped_in_row >= train.max_skipped_steps:
        raise FloatingPointError(
            f"loss or gradient were not finite in {progress.skipped_in_row} steps in a row "
            f"(train.max_skipped_steps), the last of them step {progress.step}, at a learning rate "
            f"of {rate:g}; lower train.learning_rate={train.learning_rate:g}"
        )
