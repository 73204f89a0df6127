"""The training loop of one worker on a DeepSpeed engine; knows nothing of Ray.

Shapes: B micro-batch, L context, H horizon, C channels.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from timellama_dist.config.schema import RunConfig, TrainSection
from timellama_dist.engine.checkpoint import Progress, Weights, trained_weights
from timellama_dist.engine.evaluate import Batch

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
}


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
    balance: Tensor | float = 0.0
    micro_batches: int = 0
    windows: int = 0
    started: float = 0.0


def train_step(
    engine: Any, batches: Iterator[Batch], config: RunConfig, *, step: int, sums: StepSums
) -> None:
    """One optimizer step of this rank: its micro-batches of the global batch.

    The loss is that of `train.loss` plus `dlora.balance_weight` times the balance loss, each the
    mean over micro-batches: the same number whatever the number of workers.

    Args:
        engine: the DeepSpeed engine.
        batches: this rank's micro-batches in order.
        config: the run.
        step: the step's number, from 0.
        sums: added to.
    """
    error = LOSSES[config.train.loss]
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for turn in range(engine.gradient_accumulation_steps()):
        batch = next(batches)
        seed_dropout(config.train.seed, step, turn * world_size + rank)
        past_BLC = torch.as_tensor(batch["past"]).to(engine.device, non_blocking=True)
        future_BHC = torch.as_tensor(batch["future"]).to(engine.device, non_blocking=True)
        loss = error(engine(past_BLC), future_BHC)
        balance = engine.module.balance_loss()
        engine.backward(loss + config.dlora.balance_weight * balance)
        engine.step()
        sums.loss += loss.detach()
        sums.balance += balance.detach()
        sums.micro_batches += 1
    sums.windows += config.train.batch_size


class TrainLoop:
    """Steps, validates, keeps the best weights, stops early.

    Args:
        engine: the DeepSpeed engine.
        config: the run.
        batches: this rank's micro-batches from `progress.step` on.
        total_steps: optimizer steps of the whole run.
        validate_every: steps between validations.
        validate: returns the validation's "mse" and "mae"; every rank calls.
        log: takes a record (a plain dict) per logged step and validation.
        save: writes a checkpoint of the given progress and best weights; every rank calls.
        asked_to_stop: says whether the user wants the run to end; asked of the first rank.
        after_first_step: called once between two steps, when shards lie as they do in training.
    """

    def __init__(
        self,
        engine: Any,
        config: RunConfig,
        batches: Iterator[Batch],
        *,
        total_steps: int,
        validate_every: int,
        validate: Callable[[], dict[str, float]],
        log: Callable[[dict[str, Any]], None],
        save: Callable[[Progress, Weights | None, dict[str, float]], None],
        asked_to_stop: Callable[[], bool],
        after_first_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self.config = config
        self.batches = batches
        self.total_steps = total_steps
        self.validate_every = validate_every
        self.validate = validate
        self.log = log
        self.save = save
        self.asked_to_stop = asked_to_stop
        self.after_first_step = after_first_step
        self.sums = StepSums(started=time.perf_counter())

    def run(self, progress: Progress, best: Weights | None) -> Weights | None:
        """Train from `progress` (changed in place) to the end; every rank must call.

        Returns:
            The best weights by validation loss; `progress.finished` is False if the user stopped
            the run before its end.
        """
        self.engine.train()
        first = progress.step
        while not progress.finished:
            self._set_learning_rate(progress.step)
            train_step(self.engine, self.batches, self.config, step=progress.step, sums=self.sums)
            progress.step += 1
            if progress.step == first + 1:
                self.after_first_step()
            validate = progress.step in (self.total_steps, self._next_validation(progress.step))
            stop = False
            if validate or progress.step % self.config.train.log_every == 0:
                stop = self._log_step(progress)
            if validate:
                best = self._validate(progress, best)
            elif stop:
                self.save(progress, best, {})
            if stop:
                break
        return best

    def _next_validation(self, step: int) -> int:
        return math.ceil(step / self.validate_every) * self.validate_every

    def _set_learning_rate(self, step: int) -> None:
        rate = learning_rate(step, self.total_steps, self.config.train)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate

    def _log_step(self, progress: Progress) -> bool:
        """Log means over ranks since the last line; says whether to stop, alike on every rank."""
        sums, now = self.sums, time.perf_counter()
        seconds = now - sums.started
        progress.seconds += seconds
        shared = torch.stack(
            [
                torch.as_tensor(value, dtype=torch.float32, device=self.engine.device)
                for value in (sums.loss, sums.balance, float(self.asked_to_stop()))
            ]
        )
        torch.distributed.all_reduce(shared)
        count = sums.micro_batches * torch.distributed.get_world_size()
        loss, balance, stop = shared.tolist()
        norm = self.engine.get_global_grad_norm()
        self.log(
            {
                "kind": "train",
                "step": progress.step,
                "loss": loss / count,
                "balance_loss": balance / count,
                "learning_rate": learning_rate(
                    progress.step - 1, self.total_steps, self.config.train
                ),
                "gradient_norm": None if norm is None else float(norm),
                "windows_per_s": sums.windows / seconds,
                "seconds": progress.seconds,
            }
        )
        self.sums = StepSums(started=now)
        return stop > 0

    def _validate(self, progress: Progress, best: Weights | None) -> Weights | None:
        metrics = self.validate()
        judged = "mae" if self.config.train.loss == "mae" else "mse"
        if metrics[judged] < progress.best_metrics.get(judged, math.inf):
            best = trained_weights(self.engine)
            progress.best_metrics, progress.best_step = metrics, progress.step
            progress.stale_validations = 0
        else:
            progress.stale_validations += 1
        patience = self.config.train.patience
        progress.finished = progress.step >= self.total_steps or (
            patience > 0 and progress.stale_validations >= patience
        )
        self.log({"kind": "validation", "step": progress.step, **metrics})
        self.save(progress, best, metrics)
        # The time of the validation isn't the time of the steps.
        self.sums = StepSums(started=time.perf_counter())
        return best
