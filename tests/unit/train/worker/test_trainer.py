"""A trainer with a plain engine, windows in memory and no Ray; real engines: test_train_loop."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.runs import plain, plain_run
from timellama_dist.config.schema import ScalingSection, TrainSection
from timellama_dist.console.events import Event, Saved, TrainStep, Validation
from timellama_dist.train.checkpoint.position import Position
from timellama_dist.train.checkpoint.state import Weights
from timellama_dist.train.worker import signals
from timellama_dist.train.worker.trainer import Trainer

pytestmark = pytest.mark.usefixtures("alone")


class OneWeight(nn.Module):
    """Forecasts a multiple of the last value."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, past_BLC: Tensor, dataset: int = 0) -> Tensor:
        return self.head(past_BLC[:, -1:])

    def balance_loss(self) -> Tensor:
        return torch.zeros(())

    def forget_graph(self) -> None:
        """It keeps none."""


class PlainEngine(nn.Module):
    """What a trainer needs of an engine, by torch alone."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.device = OneWeight(), torch.device("cpu")
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1.0)
        self.norm = 0.0

    def forward(self, past_BLC: Tensor, dataset: int) -> Tensor:
        return self.module(past_BLC, dataset)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), 1e9))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradient_accumulation_steps(self) -> int:
        return 1

    def is_gradient_accumulation_boundary(self) -> bool:
        return True

    def was_step_applied(self) -> bool:
        return True

    def get_global_grad_norm(self) -> float:
        return self.norm


@dataclass
class Run:
    """All that a trainer talks to: its data, checkpoints, events and signals."""

    errors: Sequence[float]
    """Of the validations, in turn."""
    stop_after: int | None = None
    node_leaves_after: int | None = None
    poisoned: range = range(0)
    """Steps whose windows aren't finite."""
    position: Position = field(default_factory=Position)
    num_windows: int = 100
    name: str = ""
    events: list[Event] = field(default_factory=list)
    reported: list[Mapping[str, Any]] = field(default_factory=list)
    saved: list[tuple[int, bool]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    """At each validation."""
    asked_for: list[tuple[int, int]] = field(default_factory=list)
    closed: bool = False

    def dataset_of(self, step: int) -> int:
        return 0

    def train_batches(self, first_step: int, last_step: int) -> Iterator[dict[str, np.ndarray]]:
        self.asked_for.append((first_step, last_step))
        try:
            for step in range(first_step, last_step):
                value = np.inf if step in self.poisoned else 1.0
                window = np.full((2, 1, 1), value, np.float32)
                yield {"past": window, "future": np.ones_like(window)}
        finally:
            self.closed = True

    def evaluate(self, engine: Any, split: str, shares: Sequence[float]) -> dict[float, Any]:
        self.weights.append(engine.module.head.weight.item())
        error = self.errors[len(self.weights) - 1]
        return {1.0: {"mse": error, "mae": error, "detail": {"by_step": [error]}}}

    def save(self, engine: Any, position: Position, best: Weights | None, complete: Any) -> bool:
        self.saved.append((position.step, best is not None))
        self.name = f"checkpoint_{position.step}"
        return True

    def tell(self, event: Event) -> None:
        self.events.append(event)

    def report(self, metrics: Mapping[str, Any]) -> None:
        self.reported.append(metrics)

    def asked_to_stop(self) -> bool:
        return self.position.step == self.stop_after

    def node_leaves(self) -> bool:
        return self.position.step == self.node_leaves_after

    def steps_of(self, kind: type[Any]) -> list[int]:
        return [event.step for event in self.events if isinstance(event, kind)]


def trainer(run: Run, *, total_steps: int, validate_every: int, **train: Any) -> Trainer:
    section = plain(
        TrainSection,
        batch_size=2,
        micro_batch_size=2,
        max_steps=total_steps,
        validate_every=validate_every,
        learning_rate=0.1,
        schedule="constant",
        warmup_fraction=0.0,
        **train,
    )
    return Trainer(
        PlainEngine(),
        plain_run(train=section, scaling=ScalingSection(num_workers=1)),
        run,
        saver=run,
        reporter=run,
        signals=run,
        position=run.position,
    )


def test_it_validates_on_time_and_saves_and_reports_each_validation() -> None:
    run = Run(errors=[3, 2, 1])
    trainer(run, total_steps=5, validate_every=2, log_every=3).train()
    assert run.steps_of(Validation) == [2, 4, 5]
    assert run.steps_of(TrainStep) == [2, 3, 4, 5]
    assert run.saved == [(2, True), (4, True), (5, True)]
    assert run.steps_of(Saved) == [2, 4, 5]
    assert run.reported == [
        {"step": step, "mse": error, "mae": error} for step, error in ((2, 3), (4, 2), (5, 1))
    ]
    assert run.position.finished
    assert run.closed


def test_each_step_is_gradient_descent_on_the_mean_squared_error() -> None:
    run = Run(errors=[3, 2])
    trainer(run, total_steps=4, validate_every=2).train()
    # w <- w - 0.1 x 2 (w - 1) from 0: 1 - 0.8^steps.
    assert run.weights == pytest.approx([1 - 0.8**2, 1 - 0.8**4])
    loss = [event.loss for event in run.events if isinstance(event, TrainStep)]
    # The mean over two steps of (w - 1)^2 before each.
    assert loss == pytest.approx([(1 + 0.8**2) / 2, (0.8**4 + 0.8**6) / 2])


def test_the_best_weights_are_those_of_the_best_validation() -> None:
    run = Run(errors=[3, 1, 2])
    trained = trainer(run, total_steps=3, validate_every=1, patience=0)
    trained.train()
    assert trained.best is not None
    assert trained.best["head.weight"].item() == pytest.approx(run.weights[1])
    assert (run.position.best_step, run.position.best_metrics["mse"]) == (2, 1)


def test_a_run_that_the_user_stops_saves_once_and_is_not_finished() -> None:
    run = Run(errors=[], stop_after=3)
    trainer(run, total_steps=9, validate_every=9).train()
    assert run.saved == [(3, False)]
    assert run.steps_of(TrainStep) == [3]
    assert (run.position.step, run.position.finished) == (3, False)
    assert run.closed


def test_a_node_that_leaves_costs_a_checkpoint_and_no_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "_LOOK_AT_NODES_EVERY_S", 0.0)
    run = Run(errors=[1], node_leaves_after=2)
    trainer(run, total_steps=4, validate_every=4).train()
    assert run.saved == [(2, False), (4, True)]
    assert run.position.finished


def test_a_resumed_run_asks_for_the_windows_after_its_position() -> None:
    run = Run(errors=[9], position=Position(step=4, best_metrics={"mse": 1.0}, best_step=3))
    resumed = trainer(run, total_steps=6, validate_every=6)
    resumed.train()
    assert run.asked_for == [(4, 6)]
    assert (run.position.step, run.position.best_step) == (6, 3)


def test_a_run_that_diverges_at_once_fails_and_saves_nothing() -> None:
    run = Run(errors=[float("nan")])
    with pytest.raises(FloatingPointError, match=r"^the validation loss at step 2 is nan"):
        trainer(run, total_steps=4, validate_every=2).train()
    assert run.saved == []
    assert run.closed


def test_steps_without_a_finite_loss_change_nothing_and_end_the_run_in_the_end() -> None:
    run = Run(errors=[1, 1], poisoned=range(1, 9))
    with pytest.raises(FloatingPointError, match="not finite in 3 steps in a row"):
        trainer(run, total_steps=9, validate_every=2, max_skipped_steps=3).train()
    assert run.position.skipped_steps == 3
    assert run.weights == pytest.approx([0.2])


def test_frozen_bytes_are_measured_after_the_first_step() -> None:
    run = Run(errors=[1])
    trained = trainer(run, total_steps=1, validate_every=1)
    assert trained.frozen_bytes_per_rank == []
    trained.train()
    assert trained.frozen_bytes_per_rank == [0]
