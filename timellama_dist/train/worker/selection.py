"""Chooses the best weights of a run, and says when training has come to its end."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from timellama_dist.config.schema import RunConfig
from timellama_dist.train.checkpoint.position import Position

_LEAST_GAIN = 0.005
"""Of the errors' product, against a linear map alone: less may be chance, and it is simpler."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The outcome of a validation."""

    is_best: bool
    """These weights are the best so far."""
    path_share: float
    """Share of the LLM path with which their errors are lowest."""
    metrics: dict[str, Any]
    """Their errors with that share."""


class Selection:
    """Chooses the best weights of a run by its validations.

    A validation is judged by its MSE, or by its MAE if the run trains on MAE. The lowest is the
    best; an equal one is no better.

    Where the LLM path stands beside a linear map, the product of both errors is judged, so that a
    gain in one can't be bought with a larger loss in the other. The map alone is judged first,
    before any step. Trained weights must beat it by at least 0.5 %, or the map alone stays the
    best: less may be chance. After that any gain counts. The path's correction may be right in kind
    and too large, so a validation gives the errors with several shares of it, and the share with
    the lowest ones is kept.

    Training is finished at the last step, or after `train.patience` validations in a row without a
    better one (0: never before the last step).

    Args:
        config: the run.
        total_steps: optimizer steps of the whole run.
    """

    def __init__(self, config: RunConfig, total_steps: int) -> None:
        self._train = config.train
        self._total_steps = total_steps
        self._beside_map = config.model.shortcut != "none"

    def needs_first_validation(self, position: Position) -> bool:
        """Whether the linear map alone has still to be judged, before the next step."""
        return self._beside_map and not position.best_metrics

    def judge(self, errors: Mapping[float, dict[str, Any]], position: Position) -> Verdict:
        """Judge a validation, and keep its errors in the position if they are the best.

        Args:
            errors: "mse", "mae" and more by share of the LLM path, 1 among them.
            position: where the run stands; its best validation, patience and end are changed.

        Raises:
            FloatingPointError: the first validation gave no finite error: nothing is worth saving.
        """
        # Before the first step there is nothing to divide.
        share = min(errors, key=lambda share: self._score(errors[share])) if position.step else 1.0
        metrics = errors[share]
        if self._beside_map:
            metrics["path_share"] = share
        score = self._score(metrics)
        if not position.best_metrics and not math.isfinite(score):
            raise FloatingPointError(
                f"the validation loss at step {position.step} is {score}: training "
                f"diverged; lower train.learning_rate={self._train.learning_rate:g}"
            )
        is_best = not position.best_metrics or score < self._score_to_beat(position)
        if is_best:
            position.best_metrics, position.best_step = metrics, position.step
            position.stale_validations = 0
        else:
            position.stale_validations += 1
        position.finished = self._at_end(position)
        return Verdict(is_best=is_best, path_share=share, metrics=metrics)

    def reopen(self, position: Position) -> None:
        """Let a finished run go on if it is given more steps, unless it had stopped improving."""
        position.finished &= self._at_end(position)

    def _at_end(self, position: Position) -> bool:
        patience = self._train.patience
        out_of_patience = 0 < patience <= position.stale_validations
        return position.step >= self._total_steps or out_of_patience

    def _score(self, metrics: Mapping[str, Any]) -> float:
        """The number of which the best validation has the least."""
        if self._beside_map:
            return float(metrics["mse"] * metrics["mae"])
        return float(metrics["mae" if self._train.loss == "mae" else "mse"])

    def _score_to_beat(self, position: Position) -> float:
        best = self._score(position.best_metrics)
        map_alone = self._beside_map and not position.best_step
        return best * (1 - _LEAST_GAIN) if map_alone else best
