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
from timellama_dist.evaluation.windows import Batch
from timellama_dist.model.linear_plus_llm import with_path_share
from timellama_dist.train.checkpoint.state import Progress, Weights
from timellama_dist.train.worker.average import Average
from timellama_dist.train.worker.faults import (
    back_off,
    check_faults,
    count_step,
    step_if_finite,
    with_its_gradient,
)
from timellama_dist.train.worker.rollback import Rollback

Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, Loss] = {
    "mse": functional.mse_loss,
    "mae": functional.l1_loss,
    "huber": functional.huber_loss,
}
"""Means over all elements, 0 where forecast and target are equal; see `observed_loss`."""

_LOOK_AT_NODES_EVERY_S = 5.0
"""As often as Ray Train looks; a spot node is announced 30 to 120 s before it goes."""
_LEAST_GAIN = 0.005
"""Of the errors' product, against a linear map alone: less may be chance, and it is simpler."""


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


class TrainLoop:
    """Steps, validates, keeps the best weights, stops early.

    Args:
        engine: the DeepSpeed engine.
        config: the run.
        batches: this rank's micro-batches from `progress.step` on.
        total_steps: optimizer steps of the whole run.
        validate_every: steps between validations.
        validate: returns the validation's "mse" and "mae" by share of the LLM path, 1 first; every
            rank calls.
        log: takes a record (a plain dict) per logged step and validation.
        save: writes a checkpoint of the given progress and best weights; every rank calls.
        asked_to_stop: says whether the user wants the run to end; asked of the first rank at every
            step, so it must not wait.
        node_leaves: says whether a node of the run will be taken away soon, the same on every rank;
            all call it together, now and then.
        dataset_of: number of the data set that a step draws from, the same on every rank.
        beside_map: the LLM path stands beside a linear map. The map alone is judged too, before the
            first step, and the product of both errors decides: what trained is kept only if it is
            lower by `_LEAST_GAIN`, and that share of the path with which it is lowest.
        average: of the weights, as far as the run has come.
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
        validate: Callable[[], dict[float, dict[str, Any]]],
        log: Callable[[dict[str, Any]], None],
        save: Callable[[Progress, Weights | None, dict[str, Any]], None],
        asked_to_stop: Callable[[], bool],
        node_leaves: Callable[[], bool] = lambda: False,
        dataset_of: Callable[[int], int] = lambda step: 0,
        beside_map: bool = False,
        average: Average | None = None,
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
        self.node_leaves = node_leaves
        self.dataset_of = dataset_of
        self.beside_map = beside_map
        self.average = average or Average(engine, config.train.average_steps)
        self.after_first_step = after_first_step
        self.sums = StepSums(started=time.perf_counter())
        self.looked_at_nodes = time.monotonic()
        self.rollback = Rollback(engine, config.train.rollback_on_spike)

    def run(self, progress: Progress, best: Weights | None) -> Weights | None:
        """Train from `progress` (changed in place) to the end; every rank must call.

        Returns:
            The best weights by validation loss; `progress.finished` is False if the user stopped
            the run before its end.

        Raises:
            FloatingPointError: the first validation gave no finite loss: nothing is worth saving;
                or too many steps were skipped, see `check_faults`.
        """
        self.engine.train()
        self.rollback.keep(progress)
        first = progress.step
        if self.beside_map and not progress.best_metrics:
            best = self._validate(progress, best)
        while not progress.finished:
            rate = self._set_learning_rate(progress)
            made = train_step(
                self.engine,
                self.batches,
                self.config,
                step=progress.step,
                sums=self.sums,
                dataset=self.dataset_of(progress.step),
            )
            count_step(progress, made=made)
            self.average.follow(progress.step)
            if progress.step == first + 1:
                self.after_first_step()
            stop, leaves = self._heard()
            validate = progress.step in (self.total_steps, self._next_validation(progress.step))
            # Of steps that are skipped in a row there is nothing new to save, and those before the
            # fault are the ones to keep.
            due = self._due(progress, self.config.train.save_every) and made
            save = stop or leaves or due
            if validate or save or self._due(progress, self.config.train.log_every):
                self._log_step(progress, rate)
            check_faults(progress, self.config.train, rate)
            if validate:
                best = self._validate(progress, best)
            elif save:
                self.save(progress, best, {})
            if stop:
                break
        return best

    def _judged(self, metrics: dict[str, Any]) -> float:
        """What the best validation has the least of."""
        if self.beside_map:
            return float(metrics["mse"] * metrics["mae"])
        return float(metrics["mae" if self.config.train.loss == "mae" else "mse"])

    def _to_beat(self, progress: Progress) -> float:
        best = self._judged(progress.best_metrics)
        return best * (1 - _LEAST_GAIN) if self.beside_map and not progress.best_step else best

    def _next_validation(self, step: int) -> int:
        return math.ceil(step / self.validate_every) * self.validate_every

    def _due(self, progress: Progress, every: int | None) -> bool:
        return every is not None and progress.step % every == 0

    def _set_learning_rate(self, progress: Progress) -> float:
        train = self.config.train
        rate = learning_rate(progress.step, self.total_steps, train) * back_off(progress, train)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _heard(self) -> tuple[bool, bool]:
        """Does the user want the run to end; will a node leave? Alike on every rank."""
        late = time.monotonic() >= self.looked_at_nodes + _LOOK_AT_NODES_EVERY_S
        # Clocks differ: the first rank's is everybody's.
        look = late and torch.distributed.get_rank() == 0
        flags = torch.tensor([float(self.asked_to_stop()), float(look)], device=self.engine.device)
        torch.distributed.all_reduce(flags)
        stop, look = (flags > 0).tolist()
        if look:
            self.looked_at_nodes = time.monotonic()
        return stop, look and self.node_leaves()

    def _log_step(self, progress: Progress, rate: float) -> None:
        """Log means over ranks since the last line, and go back if the loss leaps."""
        sums, now = self.sums, time.perf_counter()
        seconds = now - sums.started
        progress.seconds += seconds
        shared = torch.stack(
            [
                torch.as_tensor(value, dtype=torch.float32, device=self.engine.device)
                for value in (sums.loss, sums.balance)
            ]
        )
        torch.distributed.all_reduce(shared)
        count = sums.micro_batches
        # All of the steps may have been skipped.
        loss, balance = (shared / count).tolist() if count else (None, None)
        norm = self.engine.get_global_grad_norm()
        self.log(
            {
                "kind": "train",
                "step": progress.step,
                "loss": loss,
                "balance_loss": balance,
                "learning_rate": rate,
                "gradient_norm": None if norm is None or progress.skipped_in_row else float(norm),
                "skipped_steps": progress.skipped_steps,
                "windows_per_s": sums.windows / seconds,
                "seconds": progress.seconds,
            }
        )
        self.sums = StepSums(started=now)
        kept = self.rollback.after_loss(progress, loss)
        if kept is not None:
            self.average.restart()
            text = (
                f"step {progress.step}: loss {loss:.4g} leaps; back to the weights of step {kept}"
            )
            self.log({"kind": "phase", "text": text})

    def _validate(self, progress: Progress, best: Weights | None) -> Weights | None:
        with self.average.in_engine():
            found = self.validate()
        # Before the first step there is nothing to divide.
        share = min(found, key=lambda one: self._judged(found[one])) if progress.step else 1.0
        metrics = found[share]
        if self.beside_map:
            metrics["path_share"] = share
        judged = self._judged(metrics)
        if best is None and not math.isfinite(judged):
            raise FloatingPointError(
                f"the validation loss at step {progress.step} is {judged}: training "
                f"diverged; lower train.learning_rate={self.config.train.learning_rate:g}"
            )
        if not progress.best_metrics or judged < self._to_beat(progress):
            best = with_path_share(self.average.weights(), share)
            progress.best_metrics, progress.best_step = metrics, progress.step
            progress.stale_validations = 0
        else:
            progress.stale_validations += 1
        patience = self.config.train.patience
        progress.finished = progress.step >= self.total_steps or (
            patience > 0 and progress.stale_validations >= patience
        )
        self.log({"kind": "validation", "step": progress.step, **metrics})
        self.rollback.keep(progress)
        self.save(progress, best, metrics)
        # The time of the validation isn't the time of the steps.
        self.sums = StepSums(started=time.perf_counter())
        return best
