"""Tests the best weights of a finished run, and exports them with the last checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from timellama_dist.console.events import Phase
from timellama_dist.model.card import ModelCard
from timellama_dist.model.exported import save_model
from timellama_dist.ranks import gathered
from timellama_dist.train.checkpoint.position import Position
from timellama_dist.train.checkpoint.saving import Saver
from timellama_dist.train.checkpoint.state import Weights, in_engine
from timellama_dist.train.worker.build import BuiltModel
from timellama_dist.train.worker.data import RunData
from timellama_dist.train.worker.engine import peak_rss_bytes
from timellama_dist.train.worker.results import Finished
from timellama_dist.train.worker.spec import EXPORTED, WorkerSpec, examples_file
from timellama_dist.train.worker.trainer import Trainer, overall


@dataclass(frozen=True, kw_only=True)
class Tested:
    """Scores and forecasts of the best weights."""

    errors: dict[str, Any]
    """Errors of the test part, as `RunData.evaluate` gives them."""
    examples: list[dict[str, np.ndarray]]
    """A few test windows of each data set with their forecasts."""
    quantiles: list[np.ndarray]
    """Quantiles of each data set's absolute errors on validation windows, for intervals."""


def test_and_export(
    spec: WorkerSpec,
    trainer: Trainer,
    best: Weights,
    *,
    model: BuiltModel,
    data: RunData,
    saver: Saver,
) -> Finished:
    """Test the best weights, and save them with the exported model; every rank must call.

    Raises:
        SavingFailedError: the storage takes no checkpoint.
    """
    trainer.reporter.tell(Phase(text=_weights_tested(trainer.position)))
    result = _test(trainer.engine, best, data)
    metrics = {
        **_scores(trainer, result.errors, data),
        "memory": {
            "frozen_bytes_per_rank": trainer.frozen_bytes_per_rank,
            "frozen_bytes_unsharded": model.frozen_bytes,
            "peak_rss_bytes_per_rank": gathered(peak_rss_bytes()),
        },
        "checkpoints": saver.costs,
        "parameters": model.parameters,
        "world_size": data.world_size,
    }
    card = ModelCard(config=spec.config, datasets=data.cards, backbone=model.backbone)

    def complete(folder: Path) -> None:
        # The run goes on from here if it is given more steps.
        trainer.average.write(folder)
        exported = folder / EXPORTED
        scalers = data.scaler_files
        save_model(trainer.engine.module, best, exported, card, scalers, result.quantiles)
        _write_examples(result.examples, folder)

    saver.save_at_last(trainer.engine, trainer.position, best, complete)
    trainer.reporter.report(metrics)
    return Finished(step=trainer.position.step, metrics=metrics, checkpoint=saver.name)


def _weights_tested(position: Position) -> str:
    share = _path_share(position)
    if position.best_step == 0:
        return "testing the linear map alone, on which no step improved"
    text = f"testing the weights of step {position.best_step}"
    return text if share == 1 else f"{text}, with {share:g} of what they add to the linear map"


def _test(engine: Any, best: Weights, data: RunData) -> Tested:
    with in_engine(engine, best):
        return Tested(
            errors=data.evaluate(engine, "test")[1.0],
            examples=data.examples(engine),
            quantiles=data.error_quantiles(engine),
        )


def _scores(trainer: Trainer, test: Mapping[str, Any], data: RunData) -> dict[str, Any]:
    position = trainer.position
    windows = position.step * trainer.config.train.batch_size
    return {
        "step": position.step,
        "test": overall(test),
        "validation": overall(position.best_metrics),
        "by_dataset": {
            name: {
                "validation": position.best_metrics["by_dataset"][name],
                "test": test["by_dataset"][name],
                "windows": trained,
                "detail": test["detail"][name],
            }
            for name, trained in data.windows_before(position.step).items()
        },
        "train": {
            "steps": position.step,
            "epochs": windows / data.num_windows,
            "windows": windows,
            "windows_per_s": windows / position.seconds if position.seconds else None,
            "seconds": position.seconds,
            "best_step": position.best_step,
            "path_share": _path_share(position),
            "skipped_steps": position.skipped_steps,
            "rollbacks": position.rollbacks,
        },
    }


def _path_share(position: Position) -> float:
    return position.best_metrics.get("path_share", 1.0)


def _write_examples(examples: Sequence[Mapping[str, np.ndarray]], folder: Path) -> None:
    for number, example in enumerate(examples):
        save_file(dict(example), folder / examples_file(number))
