"""How the best weights are chosen and when training ends; on real engines in test_train_loop."""

import math
from typing import Any

import pytest

from timellama_dist.config.schema import ModelSection, RunConfig, TrainSection
from timellama_dist.train.checkpoint.position import Position
from timellama_dist.train.worker.selection import Selection


def selection(
    *, shortcut: Any = "none", loss: Any = "mse", patience: int = 0, steps: int = 9
) -> Selection:
    model = ModelSection(shortcut=shortcut)
    return Selection(
        RunConfig(model=model, train=TrainSection(loss=loss, patience=patience)), steps
    )


def errors(mse: float, mae: float) -> dict[str, Any]:
    return {"mse": mse, "mae": mae}


def best_steps(chosen: Selection, validations: list[tuple[float, float]]) -> list[int]:
    """The best step after each validation, one a step from step 1 on."""
    position, steps = Position(), []
    for step, (mse, mae) in enumerate(validations, start=1):
        position.step = step
        verdict = chosen.judge({1.0: errors(mse, mae)}, position)
        assert verdict.is_best == (position.best_step == step)
        steps.append(position.best_step)
    return steps


def test_the_least_mse_is_the_best_and_an_equal_one_is_no_better() -> None:
    assert best_steps(selection(), [(3, 1), (2, 9), (2, 0.1), (1, 9)]) == [1, 2, 2, 4]


def test_a_run_trained_on_mae_is_judged_by_mae() -> None:
    assert best_steps(selection(loss="mae"), [(1, 3), (2, 1), (0.5, 2)]) == [1, 2, 2]


def test_the_map_alone_is_judged_before_the_first_step_and_once() -> None:
    beside, position = selection(shortcut="frozen"), Position()
    assert beside.needs_first_validation(position)
    assert not selection().needs_first_validation(position)
    beside.judge({1.0: errors(1, 1)}, position)
    assert not beside.needs_first_validation(position)


def test_the_map_alone_is_beaten_by_half_a_percent_of_the_errors_product() -> None:
    beside, position = selection(shortcut="frozen"), Position()
    beside.judge({1.0: errors(2, 1)}, position)
    outcomes = []
    for step, mse in ((1, 1.991), (2, 1.989), (3, 1.9889)):
        position.step = step
        outcomes.append(beside.judge({1.0: errors(mse, 1)}, position).is_best)
    # Once it is beaten, any gain counts.
    assert outcomes == [False, True, True]


def test_the_share_with_the_least_product_of_errors_is_kept() -> None:
    beside, position = selection(shortcut="frozen"), Position()
    by_share = {1.0: errors(4, 1), 0.5: errors(1, 2), 0.25: errors(3, 1)}
    # Before the first step there is nothing to divide.
    assert beside.judge({k: dict(v) for k, v in by_share.items()}, position).path_share == 1.0
    position.step = 1
    verdict = beside.judge(by_share, position)
    assert verdict.path_share == 0.5
    assert verdict.metrics == {"mse": 1, "mae": 2, "path_share": 0.5}
    assert position.best_metrics == verdict.metrics


def test_patience_counts_validations_since_the_best() -> None:
    patient, position = selection(patience=2), Position()
    finished = []
    for step, mse in enumerate((5, 3, 3, 4), start=1):
        position.step = step
        patient.judge({1.0: errors(mse, 1)}, position)
        finished.append(position.finished)
    assert finished == [False, False, False, True]
    assert position.stale_validations == 2


def test_training_ends_at_the_last_step_whatever_the_patience() -> None:
    position = Position(step=9)
    selection(patience=5, steps=9).judge({1.0: errors(1, 1)}, position)
    assert position.finished


def test_a_first_validation_that_is_not_finite_ends_the_run() -> None:
    message = (
        r"^the validation loss at step 2 is nan: training diverged; lower train\.learning_rate"
    )
    with pytest.raises(FloatingPointError, match=message):
        selection().judge({1.0: errors(math.nan, 1)}, Position(step=2))
    later = Position(step=2, best_metrics=errors(1, 1), best_step=1)
    assert not selection().judge({1.0: errors(math.nan, 1)}, later).is_best


@pytest.mark.parametrize(
    ("stale", "steps", "goes_on"),
    [(0, 20, True), (0, 9, False), (2, 20, False)],
    ids=["more steps", "no more steps", "stopped improving"],
)
def test_a_finished_run_goes_on_only_if_more_steps_can_help(
    stale: int, steps: int, goes_on: bool
) -> None:
    position = Position(step=9, finished=True, stale_validations=stale)
    selection(patience=2, steps=steps).reopen(position)
    assert position.finished is not goes_on
