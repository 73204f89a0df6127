"""The loop of one rank: steps, validations, checkpoints, the best weights; knows nothing of Ray."""

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

from timellama_dist.backbone.load import frozen_bytes
from timellama_dist.config.schema import RunConfig
from timellama_dist.console.events import Phase, Saved, TrainStep, Validation
from timellama_dist.data.windows.spans import Batch
from timellama_dist.data.windows.spec import SplitName
from timellama_dist.model.linear_plus_llm import path_shares, with_path_share
from timellama_dist.ranks import gathered
from timellama_dist.train.checkpoint.position import Position
from timellama_dist.train.checkpoint.state import Weights
from timellama_dist.train.worker.average import Average
from timellama_dist.train.worker.engine import peak_memory_bytes
from timellama_dist.train.worker.faults import back_off, check_faults, count_step
from timellama_dist.train.worker.reporter import Reporter
from timellama_dist.train.worker.rollback import Rollback
from timellama_dist.train.worker.selection import Selection
from timellama_dist.train.worker.signals import SignalPoll, StopFlags, StopSignals
from timellama_dist.train.worker.steps import StepSums, learning_rate, num_steps, train_step


class TrainData(Protocol):
    """The data as a trainer needs it; in a run it is `RunData`."""

    num_windows: int
    """Windows of the train part, which the run's epochs count."""

    def dataset_of(self, step: int) -> int:
        """Number of the data set that a step draws from, the same on every rank."""

    def train_batches(self, first_step: int, last_step: int) -> Generator[Batch, None, None]:
        """This rank's micro-batches of the steps [first_step, last_step)."""

    def evaluate(
        self, engine: Any, split: SplitName, shares: Sequence[float]
    ) -> dict[float, dict[str, Any]]:
        """Errors of a part by share of the LLM path, see `RunData.evaluate`; every rank calls."""


class CheckpointSaver(Protocol):
    """Takes a trainer's checkpoints; in a run it is `checkpoint.saving.Saver`."""

    name: str
    """Name of the last checkpoint saved."""

    def save(
        self,
        engine: Any,
        position: Position,
        best: Weights | None,
        complete: Callable[[Path], None],
    ) -> bool:
        """Save a checkpoint; every rank must call."""


class Trainer:
    """Trains one rank's share of a run; every rank holds one and makes the same calls.

    Args:
        engine: the DeepSpeed engine.
        config: the run.
        data: batches and errors.
        saver: takes checkpoints.
        reporter: takes events and numbers.
        signals: say whether to stop, or to save early.
        position: where the run stands; changed in place.
        best: the best weights so far, if the run has seen a validation.
        average: of the weights, as far as the run has come.
        parameters: the model's counts, which are told with each checkpoint.
    """

    def __init__(
        self,
        engine: Any,
        config: RunConfig,
        data: TrainData,
        *,
        saver: CheckpointSaver,
        reporter: Reporter,
        signals: StopSignals,
        position: Position,
        best: Weights | None = None,
        average: Average | None = None,
        parameters: dict[str, int] | None = None,
    ) -> None:
        self.engine, self.config, self.data = engine, config, data
        self.saver, self.reporter = saver, reporter
        self.position, self.best = position, best
        self.average = average or Average(engine, config.train.average_steps)
        self.parameters = parameters or {}
        self.total_steps, self.validate_every = num_steps(config, data.num_windows)
        self.selection = Selection(config, self.total_steps)
        self.selection.reopen(position)
        self.frozen_bytes_per_rank: list[int] = []
        self._poll = SignalPoll(signals, engine.device)
        self._rollback = Rollback(engine, config.train.rollback_on_spike)
        self._sums = StepSums(started=time.perf_counter())
        self._rate = 0.0

    def train(self) -> None:
        """Train to the end of the run, or to where the user stops it.

        Raises:
            FloatingPointError: the first validation gave no finite loss, see `Selection.judge`; or
                too many steps were skipped, see `check_faults`.
        """
        self.engine.train()
        self._rollback.keep(self.position)
        first_step = self.position.step
        if self.selection.needs_first_validation(self.position):
            self.validate()
        with closing(self.data.train_batches(first_step, self.total_steps)) as batches:
            while not self.position.finished:
                made = self.train_step(batches)
                if self.position.step == first_step + 1:
                    self.measure_frozen()
                flags = self._poll.poll()
                self._after_step(made, flags)
                if flags.stop:
                    break

    def train_step(self, batches: Iterator[Batch]) -> bool:
        """Make the step that the run stands at; False if it had to be skipped."""
        position = self.position
        self._rate = self._set_learning_rate()
        made = train_step(
            self.engine,
            batches,
            self.config,
            step=position.step,
            sums=self._sums,
            dataset=self.data.dataset_of(position.step),
        )
        count_step(position, made=made)
        self.average.follow(position.step)
        return made

    def validate(self) -> None:
        """Validate, keep the weights if they are the best so far, and save."""
        with self.average.in_engine():
            errors = self.data.evaluate(self.engine, "validation", path_shares(self.config))
        verdict = self.selection.judge(errors, self.position)
        if verdict.is_best:
            self.best = with_path_share(self.average.weights(), verdict.path_share)
        self.reporter.tell(Validation(step=self.position.step, metrics=verdict.metrics))
        self._rollback.keep(self.position)
        self.save(verdict.metrics)
        # The time of the validation isn't the time of the steps.
        self._sums = StepSums(started=time.perf_counter())

    def save(self, metrics: Mapping[str, Any] | None = None) -> None:
        """Save a checkpoint and report it, with the metrics of a validation if there was one."""
        self.saver.save(self.engine, self.position, self.best, self.average.write)
        self.tell_saved(self.saver.name)
        numbers = {key: value for key, value in (metrics or {}).items() if key != "detail"}
        self.reporter.report({"step": self.position.step, **numbers})

    def tell_saved(self, checkpoint: str | None) -> None:
        """Say how the run stands at a checkpoint and what it costs."""
        position = self.position
        self.reporter.tell(
            Saved(
                step=position.step,
                checkpoint=checkpoint,
                validation=overall(position.best_metrics),
                best_step=position.best_step,
                finished=position.finished,
                seconds=position.seconds,
                peak_bytes=max(gathered(peak_memory_bytes(self.engine.device))),
                parameters=self.parameters,
            )
        )

    def measure_frozen(self) -> None:
        """Measure what each rank holds of the frozen part, between two steps.

        Not after a forward without backward: ZeRO-3 would still hold what it gathered.
        """
        self.frozen_bytes_per_rank = gathered(frozen_bytes(self.engine.module))

    def _after_step(self, made: bool, flags: StopFlags) -> None:
        """Log, validate and save what is due."""
        train, step = self.config.train, self.position.step
        next_validation = math.ceil(step / self.validate_every) * self.validate_every
        validate = step in (self.total_steps, next_validation)
        # Of steps that are skipped in a row there is nothing new to save, and those before the
        # fault are the ones to keep.
        save = flags.stop or flags.node_leaves or (made and _is_due(step, train.save_every))
        if validate or save or _is_due(step, train.log_every):
            self._log_steps()
        check_faults(self.position, train, self._rate)
        if validate:
            self.validate()
        elif save:
            self.save()

    def _set_learning_rate(self) -> float:
        train, position = self.config.train, self.position
        rate = learning_rate(position.step, self.total_steps, train) * back_off(position, train)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _log_steps(self) -> None:
        """Log means over ranks since the last line, and go back if the loss leaps."""
        position, sums, now = self.position, self._sums, time.perf_counter()
        seconds = now - sums.started
        position.seconds += seconds
        loss, balance = sums.means(self.engine.device)
        norm = self.engine.get_global_grad_norm()
        self.reporter.tell(
            TrainStep(
                step=position.step,
                loss=loss,
                balance_loss=balance,
                learning_rate=self._rate,
                gradient_norm=None if norm is None or position.skipped_in_row else float(norm),
                skipped_steps=position.skipped_steps,
                windows_per_s=sums.windows / seconds,
                seconds=position.seconds,
            )
        )
        self._sums = StepSums(started=now)
        kept_step = self._rollback.after_loss(position, loss)
        if kept_step is not None:
            self.average.restart()
            text = (
                f"step {position.step}: loss {loss:.4g} leaps; "
                f"back to the weights of step {kept_step}"
            )
            self.reporter.tell(Phase(text=text))


def overall(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The overall errors of a validation or test; empty before the first validation."""
    return {key: metrics[key] for key in ("mse", "mae") if key in metrics}


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
