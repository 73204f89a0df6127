"""The trainer's decisions on real engines: when it validates, what it keeps, when it ends."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.engine_ranks import (
    NUM_WINDOWS,
    make_engine,
    make_model,
    micro_batches,
    run_config,
    run_ranks,
    windows,
)
from timellama_dist.config.schema import RunConfig
from timellama_dist.console.events import Event
from timellama_dist.data.windows.orders import TrainOrder
from timellama_dist.train.checkpoint.position import Position
from timellama_dist.train.checkpoint.state import Weights, trained_weights
from timellama_dist.train.worker import signals
from timellama_dist.train.worker.trainer import Trainer


@dataclass
class Case:
    """A run whose validations' errors are set beforehand."""

    errors: list[float]
    total_steps: int
    validate_every: int
    train: dict[str, Any] = field(default_factory=dict)
    mae: list[float] | None = None
    half: list[float] | None = None
    """Errors of half the LLM path, where it stands beside a map."""
    beside_map: bool = False
    stop_at_question: int | None = None
    start: dict[str, Any] = field(default_factory=dict)
    datasets: tuple[int, ...] = (0,)
    """Drawn from in turn."""
    poisoned: range = range(0)
    """Steps in which one rank's windows aren't finite."""
    leaping: range = range(0)
    """Steps in which one rank's targets are large."""
    notices: range = range(0)
    """Steps after which a node is known to leave; looked for after each."""


CASES = {
    "to the end": Case([3, 2, 1], 7, 3, {"log_every": 2}),
    "best in the middle": Case([3, 1, 2], 3, 1, {"patience": 0}),
    "two data sets": Case([1, 2], 5, 3, {"log_every": 9}, datasets=(1, 0, 0)),
    "out of patience": Case([5, 3, 3, 4, 1], 9, 1, {"patience": 2}),
    "endless patience": Case([1, 2, 2, 2, 2], 5, 1, {"patience": 0}),
    "judged by mae": Case([1, 2, 3], 3, 1, {"loss": "mae"}, mae=[3, 1, 2]),
    "an error pays too much for the other's gain": Case(
        [3, 10, 4, 5], 3, 1, {"loss": "mae"}, mae=[3, 1, 2, 2], beside_map=True
    ),
    "hardly better than the map": Case([3, 2.995, 2.99, 2.989], 3, 1, beside_map=True),
    "half the path is better": Case([3, 2, 4], 2, 1, half=[3, 2.5, 1], beside_map=True),
    "asked to stop": Case([], 9, 9, {"log_every": 2}, stop_at_question=3),
    "asked to stop at a validation": Case([1, 2], 9, 2, {"log_every": 9}, stop_at_question=4),
    "saved now and then": Case([1, 2], 7, 4, {"log_every": 9, "save_every": 2}),
    "a node leaves": Case([1], 5, 5, {"log_every": 9}, notices=range(2, 4)),
    "some steps are skipped": Case(
        [1],
        7,
        7,
        {"log_every": 2, "backoff_steps": 2, "max_skipped_steps": 3},
        poisoned=range(2, 4),
    ),
    "too many are skipped": Case(
        [1, 1],
        9,
        2,
        {"log_every": 9, "max_skipped_steps": 3, "save_every": 1},
        poisoned=range(3, 9),
    ),
    "a loss leaps": Case(
        [3, 2, 1],
        9,
        4,
        {"log_every": 1, "rollback_on_spike": 10.0, "backoff_steps": 1},
        leaping=range(6, 7),
    ),
    "resumed": Case(
        [9, 8],
        9,
        1,
        {"patience": 2},
        start={"step": 6, "best_metrics": {"mse": 1.0, "mae": 1.0}, "best_step": 5},
    ),
    "not finite later": Case([1, math.nan, math.nan], 9, 1, {"patience": 2}),
    "not finite at first": Case([math.nan], 9, 2),
}


@dataclass
class Data:
    """Windows in memory; a validation's errors are the case's."""

    case: Case
    config: RunConfig
    rank: int
    world_size: int
    position: Position
    num_windows: int = NUM_WINDOWS
    validated: list[int] = field(default_factory=list)
    """Steps."""
    weights: list[Weights] = field(default_factory=list)
    """Of each validation."""

    def __post_init__(self) -> None:
        case = self.case
        self.errors = iter(case.errors)
        self.mae, self.half = iter(case.mae or case.errors), iter(case.half or [])

    def dataset_of(self, step: int) -> int:
        return self.case.datasets[step % len(self.case.datasets)]

    def train_batches(self, first_step: int, last_step: int) -> Iterator[dict[str, np.ndarray]]:
        batches = micro_batches(self.config, self.rank, self.world_size, first_step, last_step)
        return changed(batches, self.case, self.config, self.rank, self.world_size)

    def evaluate(self, engine: Any, split: str, shares: Sequence[float]) -> dict[float, Any]:
        assert split == "validation"
        self.validated.append(self.position.step)
        self.weights.append(trained_weights(engine))
        errors = {1.0: {"mse": next(self.errors), "mae": next(self.mae)}}
        if self.case.half:
            errors[0.5] = dict.fromkeys(("mse", "mae"), next(self.half))
        return errors


@dataclass
class Saver:
    """Keeps how the run stood at each checkpoint."""

    name: str = ""
    saved: list[list[Any]] = field(default_factory=list)
    best_steps: list[int] = field(default_factory=list)

    def save(self, engine: Any, position: Position, best: Weights | None, complete: Any) -> bool:
        self.saved.append([position.step, position.finished, best is not None])
        self.best_steps.append(position.best_step)
        return True


@dataclass
class Reporter:
    """Keeps the records of all events but those of checkpoints, and how often it reported."""

    records: list[dict[str, Any]] = field(default_factory=list)
    reported: list[int] = field(default_factory=list)

    def tell(self, event: Event) -> None:
        if event.kind != "saved":
            self.records.append(event.to_record())

    def report(self, metrics: Mapping[str, Any]) -> None:
        self.reported.append(metrics["step"])


@dataclass
class Signals:
    """As in a run: only the first rank hears the driver."""

    case: Case
    rank: int
    position: Position
    questions: int = 0

    def asked_to_stop(self) -> bool:
        self.questions += 1
        return self.rank == 0 and self.questions == self.case.stop_at_question

    def node_leaves(self) -> bool:
        return self.position.step in self.case.notices


def follow(case: Case, config: RunConfig, rank: int, world_size: int) -> dict[str, Any]:
    """Run one case; says what happened, in plain values."""
    steps = {"max_steps": case.total_steps, "validate_every": case.validate_every}
    config = replace(config, train=replace(config.train, **steps, **case.train))
    engine = make_engine(config, {}, world_size)
    if case.beside_map:
        # The engine's model has no map: what follows from one is all the trainer's.
        config = replace(config, model=replace(config.model, shortcut="frozen"))
    signals._LOOK_AT_NODES_EVERY_S = 0.0 if case.notices else math.inf
    position = Position(**case.start)
    given = {"head.bias": torch.zeros(1)} if case.start else None
    drawn: list[int] = []
    engine.module.register_forward_pre_hook(lambda _, inputs: drawn.append(inputs[1]))
    data = Data(case, config, rank, world_size, position)
    saver, reporter = Saver(), Reporter()
    trainer = Trainer(
        engine,
        config,
        data,
        saver=saver,
        reporter=reporter,
        signals=Signals(case, rank, position),
        position=position,
        best=given,
    )
    error = None
    try:
        trainer.train()
    except FloatingPointError as raised:
        error = str(raised)
    seen = {
        "logged": reporter.records,
        "saved": saver.saved,
        "reported": reporter.reported,
        "best_steps": saver.best_steps,
        "validated": data.validated,
        "error": error,
    }
    if error is not None:
        return seen
    best, weights = trainer.best, data.weights
    same = [
        index
        for index, kept in enumerate(weights)
        if best is not None and best is not given
        if all(torch.equal(best[name], kept[name]) for name in kept)
    ]
    return seen | {
        "drawn": drawn,
        "skipped_steps": position.skipped_steps,
        "rollbacks": [position.rollbacks, position.updates],
        "best_is_given": given is not None and best is given,
        "best_is_validation": same,
        "best_head": best["head.weight"].tolist() if best and not case.start else None,
        "last_head": weights[-1]["head.weight"].tolist() if weights else None,
        "step": position.step,
        "finished": position.finished,
        "best_step": position.best_step,
    }


def changed(
    batches: Iterator[dict[str, np.ndarray]],
    case: Case,
    config: RunConfig,
    rank: int,
    world_size: int,
) -> Iterator[dict[str, np.ndarray]]:
    """What the case does to the windows of the last rank."""
    turns = config.train.batch_size // config.train.micro_batch_size // world_size
    for number, batch in enumerate(batches):
        if rank == world_size - 1 and number // turns in case.poisoned:
            batch = batch | {"past": np.full_like(batch["past"], np.inf)}
        if rank == world_size - 1 and number // turns in case.leaping:
            batch = batch | {"future": batch["future"] + 1000}
        yield batch


def loop_rank(rank: int, world_size: int, folder: Path, config: RunConfig) -> None:
    found = {name: follow(case, config, rank, world_size) for name, case in CASES.items()}
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def config(tiny_llama: Path) -> RunConfig:
    config = run_config(tiny_llama)
    return replace(config, model=replace(config.model, dropout=0.0))


@pytest.fixture(scope="module")
def ranks(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("loop")
    run_ranks(loop_rank, 2, folder, config)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def logged(found: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    return (record for record in found["logged"] if record["kind"] == kind)


def test_every_checkpoint_is_reported(ranks: list[dict[str, Any]]) -> None:
    for name in CASES:
        steps = [step for step, *_ in ranks[0][name]["saved"]]
        assert ranks[0][name]["reported"] == steps, name


def test_every_rank_takes_the_same_decisions(ranks: list[dict[str, Any]]) -> None:
    for name in CASES:
        first, second = ({k: v for k, v in r[name].items() if k != "logged"} for r in ranks)
        assert first == second, name


def test_every_micro_batch_of_a_step_is_forecast_as_its_data_set_s(
    ranks: list[dict[str, Any]], config: RunConfig
) -> None:
    turns = config.train.batch_size // config.train.micro_batch_size // 2
    expected = np.repeat([1, 0, 0, 1, 0], turns).tolist()
    assert [found["two data sets"]["drawn"] for found in ranks] == [expected] * 2


def test_it_validates_on_time_and_always_at_the_last_step(ranks: list[dict[str, Any]]) -> None:
    found = ranks[0]["to the end"]
    assert found["validated"] == [3, 6, 7]
    assert found["saved"] == [[3, False, True], [6, False, True], [7, True, True]]
    assert [record["step"] for record in logged(found, "validation")] == [3, 6, 7]
    assert [record["step"] for record in logged(found, "train")] == [2, 3, 4, 6, 7]
    assert (found["step"], found["finished"]) == (7, True)


def test_the_best_weights_are_those_of_the_best_validation(ranks: list[dict[str, Any]]) -> None:
    found = ranks[0]["best in the middle"]
    assert (found["best_is_validation"], found["best_step"]) == ([1], 2)


def test_an_equal_validation_is_no_improvement_and_patience_ends_the_run(
    ranks: list[dict[str, Any]],
) -> None:
    found = ranks[0]["out of patience"]
    assert found["validated"] == [1, 2, 3, 4]
    assert (found["best_is_validation"], found["best_step"]) == ([1], 2)
    assert found["saved"][-1] == [4, True, True]


def test_patience_0_never_stops_early(ranks: list[dict[str, Any]]) -> None:
    found = ranks[0]["endless patience"]
    assert (found["step"], found["best_is_validation"]) == (5, [0])


def test_weights_that_lose_more_in_one_error_than_they_gain_in_the_other_are_not_kept(
    ranks: list[dict[str, Any]],
) -> None:
    # The first has the least MAE, for more than three times the MSE of no training.
    assert ranks[0]["an error pays too much for the other's gain"]["best_step"] == 2


def test_the_map_alone_is_kept_until_it_is_clearly_beaten(ranks: list[dict[str, Any]]) -> None:
    # By 0.3 % of the product first, which isn't enough; by 0.7 % then; after that any gain is one.
    found = ranks[0]["hardly better than the map"]
    assert found["best_steps"] == [0, 0, 2, 3]


def test_that_share_of_the_path_is_kept_with_which_its_errors_are_lowest(
    ranks: list[dict[str, Any]],
) -> None:
    found = ranks[0]["half the path is better"]
    assert found["best_step"] == 2
    np.testing.assert_array_equal(found["best_head"], np.array(found["last_head"]) / 2)
    told = [(one["mse"], one["path_share"]) for one in logged(found, "validation")]
    assert told == [(3, 1.0), (2, 1.0), (1, 0.5)]


def test_a_run_trained_on_mae_is_judged_by_mae(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["judged by mae"]["best_step"] == 2


def test_a_stop_that_one_rank_hears_saves_once_and_leaves_on_all(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        found = rank["asked to stop"]
        # Not a step that is logged otherwise.
        assert found["saved"] == [[3, False, False]]
        assert (found["step"], found["finished"], found["validated"]) == (3, False, [])


def test_a_stop_at_a_validation_saves_what_it_found_and_leaves(ranks: list[dict[str, Any]]) -> None:
    found = ranks[0]["asked to stop at a validation"]
    assert found["saved"] == [[2, False, True], [4, False, True]]
    assert (found["step"], found["finished"]) == (4, False)


def test_a_resumed_run_keeps_its_best_until_it_is_beaten(ranks: list[dict[str, Any]]) -> None:
    found = ranks[0]["resumed"]
    assert found["validated"] == [7, 8]
    assert (found["best_is_given"], found["best_step"]) == (True, 5)


def test_a_run_that_diverges_later_keeps_what_was_good(ranks: list[dict[str, Any]]) -> None:
    found = ranks[0]["not finite later"]
    assert (found["best_is_validation"], found["step"]) == ([0], 3)


def test_a_run_that_diverges_at_once_fails_and_saves_nothing(ranks: list[dict[str, Any]]) -> None:
    found = ranks[0]["not finite at first"]
    assert found["error"] == (
        "the validation loss at step 2 is nan: training diverged; lower train.learning_rate=0.003"
    )
    assert found["saved"] == []


def test_checkpoints_between_validations_are_saved_once_each(ranks: list[dict[str, Any]]) -> None:
    found = ranks[0]["saved now and then"]
    assert found["saved"] == [
        [2, False, False],
        [4, False, True],
        [6, False, True],
        [7, True, True],
    ]


def test_from_the_notice_that_a_node_leaves_on_it_saves_and_goes_on(
    ranks: list[dict[str, Any]],
) -> None:
    found = ranks[0]["a node leaves"]
    assert found["saved"] == [[2, False, False], [3, False, False], [5, True, True]]
    assert found["finished"]


def test_steps_that_one_rank_cannot_compute_are_skipped_counted_and_left_out(
    ranks: list[dict[str, Any]],
) -> None:
    found = ranks[0]["some steps are skipped"]
    assert (found["step"], found["finished"], found["skipped_steps"]) == (7, True, 2)
    lines = {record["step"]: record for record in logged(found, "train")}
    assert [lines[step]["skipped_steps"] for step in (2, 4, 6, 7)] == [0, 2, 2, 2]
    assert (lines[4]["loss"], lines[4]["gradient_norm"]) == (None, None)
    assert math.isfinite(lines[6]["loss"])
    # Half the schedule's rate in the two steps after step 3 (from 0), the last one skipped.
    schedule = {step: 0.0015 * (1 + math.cos(math.pi * (step - 2) / 6)) for step in (2, 6, 7)}
    rates = {step: lines[step]["learning_rate"] for step in (2, 6, 7)}
    assert rates == pytest.approx(schedule | {6: schedule[6] / 2})


def test_too_many_skipped_steps_end_the_run_with_its_last_checkpoint_kept(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        found = rank["too many are skipped"]
        assert found["error"].startswith(
            "loss or gradient were not finite in 3 steps in a row (train.max_skipped_steps), the "
            "last of them step 6, at a learning rate of "
        )
        # Not after step 4: another one would cost one from before the fault.
        assert found["saved"] == [
            [1, False, False],
            [2, False, True],
            [3, False, True],
            [4, False, True],
        ]


def test_a_loss_that_leaps_takes_the_run_back_to_the_last_validation(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        found = rank["a loss leaps"]
        # Of the steps 5 to 7 nothing is left but their place in the data.
        assert (found["step"], found["rollbacks"]) == (9, [1, 6])
    (told,) = logged(ranks[0]["a loss leaps"], "phase")
    assert told["text"].startswith("step 7: loss ")
    assert told["text"].endswith(" leaps; back to the weights of step 4")
    rates = {r["step"]: r["learning_rate"] for r in logged(ranks[0]["a loss leaps"], "train")}
    schedule = {step: 0.0015 * (1 + math.cos(math.pi * (step - 2) / 8)) for step in (7, 8, 9)}
    assert {step: rates[step] for step in schedule} == pytest.approx(
        schedule | {8: schedule[8] / 2}
    )


def test_the_logged_rate_is_that_of_the_step_made(ranks: list[dict[str, Any]]) -> None:
    rates = {r["step"]: r["learning_rate"] for r in logged(ranks[0]["to the end"], "train")}
    # 7 steps, warm-up of ceil(0.05 x 7) = 1: then half a cosine over the other 6.
    expected = {step: 0.0015 * (1 + math.cos(math.pi * (step - 2) / 6)) for step in (2, 3, 4, 6, 7)}
    assert rates == pytest.approx(expected)


def test_the_logged_loss_is_the_mean_over_all_ranks_windows(
    ranks: list[dict[str, Any]], config: RunConfig
) -> None:
    """The first step's, from the model before it, on the first 8 windows of the order."""
    order = TrainOrder(
        num_windows=40,
        seed=0,
        batch_size=8,
        micro_batch_size=8,
        world_rank=0,
        world_size=1,
        first_step=0,
        last_step=1,
    )
    ids, data = order.window_ids(np.arange(8)), windows(config)
    with torch.no_grad():
        forecast = make_model(config).eval()(torch.from_numpy(data["past"][ids])).numpy()
    expected = float(np.mean((forecast - data["future"][ids]) ** 2))
    first = next(logged(ranks[0]["best in the middle"], "train"))
    assert (first["step"], first["loss"]) == (1, pytest.approx(expected, rel=1e-5))
