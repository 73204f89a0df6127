"""Writes an evaluation's scores as a Markdown table, a JSON file and pictures."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timellama_dist.report.plots import plot_by_step

_FIGURES = {"mse": "MSE", "mae": "MAE", "smape": "sMAPE %", "mase": "MASE", "owa": "OWA"}


def scores_table(results: Mapping[str, Any], split: str) -> str:
    """Make a Markdown table: a line for each data set, and one for all where there are several."""
    by_dataset = results["by_dataset"]
    lines = [
        _row("data", "context", "horizon", f"{split} windows", *_FIGURES.values()),
        _row("---", *["---:"] * (3 + len(_FIGURES))),
    ]
    for name, scores in by_dataset.items():
        counts = [str(scores[key]) for key in ("context_len", "horizon", "windows")]
        lines.append(_row(name, *counts, *_cells(scores[split])))
    if len(by_dataset) > 1:
        windows = sum(scores["windows"] for scores in by_dataset.values())
        lines.append(_row("all", "", "", str(windows), *_cells(results[split])))
    return "\n".join(lines)


def write_scores(
    results: Mapping[str, Any], split: str, *, output: str | None, plots: str | None
) -> list[Path]:
    """Write the scores as JSON, the table beside them, and pictures; return the paths.

    The folders are there already. A figure that isn't defined, such as the MASE of constant series,
    is null.
    """
    written = []
    if output is not None:
        path = Path(output)
        path.write_text(json.dumps(_defined(results), indent=2, allow_nan=False), encoding="utf-8")
        table = path.with_suffix(".md")
        table.write_text(scores_table(results, split) + "\n", encoding="utf-8")
        written += [path, table]
    if plots is not None:
        for name, scores in results["by_dataset"].items():
            written.append(Path(plots) / f"{name}-by-step.png")
            plot_by_step(scores["by_step"], written[-1], title=f"{results['model']} on {name}")
    return written


def _cells(figures: Mapping[str, float]) -> list[str]:
    return [f"{figures[key]:.4f}" if math.isfinite(figures[key]) else "-" for key in _FIGURES]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _defined(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _defined(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_defined(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
