"""Writes what a finished run leaves in its directory: metrics, model, report, pictures."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import load

from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import UserError
from timellama_dist.model.card import DatasetCard, read_card, read_quantiles
from timellama_dist.model.intervals import radius
from timellama_dist.report.page import ShownSet, write_report
from timellama_dist.report.plots import plot_forecasts
from timellama_dist.storage import copy_tree, open_place
from timellama_dist.train.run_directory import checkpoints_place, resume_command
from timellama_dist.train.worker.spec import EXPORTED, examples_file


def write_results(config: RunConfig, checkpoint: str, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json, the exported model, report.html and the pictures of forecasts.

    Args:
        config: the run.
        checkpoint: name of its last checkpoint, which holds the model and example forecasts.
        metrics: as metrics.json has them.

    Raises:
        RuntimeError: the run directory or the storage refuses; nothing of the run is lost.
    """
    run_dir, last = Path(str(config.run.dir)), checkpoints_place(config) / checkpoint
    try:
        (open_place(run_dir) / "metrics.json").write_text(json.dumps(metrics, indent=2))
        copy_tree(last / EXPORTED, open_place(run_dir / "model"))
        datasets = read_card(run_dir / "model").datasets
        examples = [load((last / examples_file(n)).read_bytes()) for n in range(len(datasets))]
    except UserError as error:
        # No mistake of the user's.
        raise RuntimeError(f"the run has ended, but {error}; {resume_command(config)}") from error
    _write_report(config, run_dir, datasets, examples)
    for number, dataset in enumerate(datasets):
        mse = metrics["by_dataset"][dataset.name]["test"]["mse"]
        plot_forecasts(
            examples[number],
            dataset.channels,
            run_dir / (f"forecasts-{dataset.name}.png" if number else "forecasts.png"),
            title=f"{dataset.name}: z-scored, test MSE {mse:.4f}",
        )


def _write_report(
    config: RunConfig,
    run_dir: Path,
    datasets: Sequence[DatasetCard],
    examples: Sequence[Mapping[str, Any]],
) -> None:
    quantiles = read_quantiles(run_dir / "model")
    sets = [
        ShownSet(
            name=dataset.name,
            channels=dataset.channels,
            examples=examples[number],
            radii={level: radius(quantiles[number], level) for level in (80, 95)},
        )
        for number, dataset in enumerate(datasets)
    ]
    write_report(run_dir, sets, config.dlora.linears)
