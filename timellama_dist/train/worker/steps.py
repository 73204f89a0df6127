"""One optimizer step on a DeepSpeed engine, and what it depends on: loss, rate, dropout's seed.

Plain functions, for a loop of one's own too. Shapes: B micro-batch, L context, H horizon,
C channels.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from timellama_dist.config.schema import RunConfig, TrainSection
from timellama_dist.evaluation.windows import Batch
from timellama_dist.train.worker.faults import step_if_finite, with_its_gradient

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
}
"""Means over all elements, 0 where forecast and target are equal; see `observed_loss`."""

_MOST_BETWEEN_VALIDATIONS = 250


def num_steps(config: RunConfig, num_windows: int) -> tuple[int, int]:
    """Optimizer steps of the whole run, and between two validations.

    The last batch of the run is filled up from the next epoch's order.
    """
    train = config.train
    total = math.ceil(train.epochs * num_windows / train.batch_size)
    if train.max_steps is not None:
        total = min(total, train.max_steps)
    every = train.validate_every or min(
        math.ceil(num_windows / train.batch_size), _MOST_BETWEEN_VALIDATIONS
    )
    return total, min(every, total)


def observed_loss(loss: Loss, forecast_BHC: Tensor, future_BHC: Tensor) -> Tensor:
    """The mean of a loss over the observed targets of a micro-batch.

    Args:
        loss: one of `LOSSES`.
        forecast_BHC: the forecast, shape (B, H, C).
        future_BHC: the target, NaN where it is missing, same shape.

    Returns:
        Scalar; 0 with zero gradient if no target is observed.
    """
    observed_BHC = ~future_BHC.isnan()
    # Before the difference: a NaN that is multiplied by 0 afterwards stays one in the gradient.
    target_BHC = torch.where(observed_BHC, future_BHC, forecast_BHC.detach())
    count = observed_BHC.sum().clamp_min(1)
    # Divided as tensors: exactly 1 where nothing is missing, and no wait for a GPU.
    return loss(forecast_BHC, target_BHC) * (torch.full_like(count, future_BHC.numel()) / count)


def learning_rate(step: int, total_steps: int, train: TrainSection) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then the schedule.

    A function of the position alone, so that a resumed run follows the uninterrupted one.
    """
    warmup_steps = math.ceil(train.warmup_fraction * total_steps)
    if step < warmup_steps:
        return train.learning_rate * (step + 1) / warmup_steps
    if train.schedule == "constant":
        return train.learning_rate
    share = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def seed_dropout(seed: int, step: int, micro_batch: int) -> None:
    """Make dropout a function of the micro-batch's place in the run, not of the worker's past.

    So a resumed or resized run draws what the uninterrupted one draws, and no random state is
    saved.
    """
    mixed = hash((seed, step, micro_batch)) & 0x7FFF_FFFF_FFFF_FFFF  # integers hash alike anywhere
    torch.manual_seed(mixed)


@dataclass
class StepSums:
    """Sums since the last log line; kept as tensors, so that a GPU isn't waited for each step."""

    loss: Tensor | float = 0.0
    """Of steps that were made, as is the balance loss."""
    balance: Tensor | float = 0.0
    micro_batches: int = 0
    """Of all ranks."""
    windows: int = 0
    started: float = 0.0

    def means(self, device: torch.device | str) -> tuple[float | None, float | None]:
        """Mean loss and balance loss over all ranks; every rank must call.

        None where all of the steps were skipped.
        """
        shared = torch.stack(
            [
                torch.as_tensor(value, dtype=torch.float32, device=device)
                for value in (self.loss, self.balance)
            ]
        )
        torch.distributed.all_reduce(shared)
        count = self.micro_batches
        return tuple((shared / count).tolist()) if count else (None, None)


def train_step(
    engine: Any,
    batches: Iterator[Batch],
    config: RunConfig,
    *,
    step: int,
    sums: StepSums,
    dataset: int = 0,
) -> bool:
    """One optimizer step of this rank: its micro-batches of the global batch.

    The loss is that of `train.loss` over observed targets plus `dlora.balance_weight` times the
    balance loss, each the mean over micro-batches: the same number whatever the number of workers.

    Args:
        engine: the DeepSpeed engine.
        batches: this rank's micro-batches in order.
        config: the run.
        step: the step's number, from 0.
        sums: added to.
        dataset: number of the data set that the step's windows are of.

    Returns:
        False if a loss or gradient of any rank wasn't finite: then nothing has changed.
    """
    error = LOSSES[config.train.loss]
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    turns = engine.gradient_accumulation_steps()
    micro_batches = config.train.batch_size // config.train.micro_batch_size
    made, losses, balances = False, [], []
    for turn in range(turns):
        batch = next(batches)
        counted = turn * world_size + rank < micro_batches
        seed_dropout(config.train.seed, step, turn * world_size + rank)
        past_BLC = torch.as_tensor(batch["past"]).to(engine.device, non_blocking=True)
        future_BHC = torch.as_tensor(batch["future"]).to(engine.device, non_blocking=True)
        loss = observed_loss(error, engine(past_BLC, dataset), future_BHC)
        balance = engine.module.balance_loss()
        # DeepSpeed takes the mean over all places. One of padding runs the same graph and counts
        # nothing; where there is none, this multiplies by exactly 1.
        share = counted * turns * world_size / micro_batches
        engine.backward(with_its_gradient(share * (loss + config.dlora.balance_weight * balance)))
        made = step_if_finite(engine)
        losses.append(counted * loss.detach())
        balances.append(counted * balance.detach())
        # Else the graph would live on beside the next micro-batch's.
        del loss, balance
        engine.module.forget_graph()
    if made:
        sums.loss += torch.stack(losses).sum()
        sums.balance += torch.stack(balances).sum()
        sums.micro_batches += micro_batches
    sums.windows += config.train.batch_size
    return made
