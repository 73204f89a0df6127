"""The kept results, JSON Lines with a line a cell, and the tables that are made of them."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import m4
from benchmarks.cells import (
    ABLATED,
    ABLATIONS,
    FEW_SHOT,
    FULL_BATCHES,
    M4,
    PUBLISHED,
    SETTINGS,
    TASKS,
    Cell,
    Task,
)
from benchmarks.measuring import append_line, read_lines

RESULTS = Path(__file__).parent / "results"
PAPER = "Time-LlaMA (its paper)"
TITLES = {"etth1": "ETTh1", "ettm1": "ETTm1", "weather": "Weather", "illness": "ILI"}
TITLES |= {"m4_hourly": "M4 hourly", "m4_weekly": "M4 weekly"}
Result = dict[str, Any]
Cells = Mapping[str, Result]


def read_cells(folder: Path) -> dict[str, Result]:
    """Read every finished cell, by name."""
    lines = (line for file in sorted(folder.glob("*.jsonl")) for line in read_lines(file))
    cells = {line["cell"]: line for line in lines}
    return dict(sorted(cells.items()))


def keep(folder: Path, cell: Cell, facts: Result) -> None:
    """Add a finished cell to the file of its data set."""
    append_line(folder / f"{cell.task.name}.jsonl", "tables", {"cell": cell.name, **facts})


def markdown(cells: Cells) -> str:
    """Write every table, one below the other."""
    tables = [long_term(task, cells) for task in TASKS if _has_results(task, cells)]
    if scores := m4_scores(cells):
        tables.append(m4.table(scores))
    tables.append(settings_table(cells))
    return "\n\n".join(tables)


def summary(cells: Cells) -> str:
    """Write a line a data set: test MSE, the mean over the horizons, or M4's OWA."""
    lines = [
        "| test part | this project | linear map | seasonal naive | best trained here | paper |",
        "|---" + "|---:" * 5 + "|",
    ]
    for task in TASKS:
        if not _has_results(task, cells):
            continue
        rows = measured_rows(task, cells)
        own, linear, naive = (
            mean_of(rows[f"{name}, here"]) for name in ("Time-LlaMA", "linear", "seasonal naive")
        )
        others = {name: mean_of(rows.get(f"{name}, trained here", [])) for name in _others()}
        paper = task.published.get(PAPER)
        printed = f"{statistics.mean(paper):.3f}" if paper else ""
        name = f"{TITLES[task.name]}, MSE"
        lines.append(f"| {name} | {own} | {linear} | {naive} | {_best(others)} | {printed} |")
    for collection, scores in m4_scores(cells).items():
        owa = {
            row: f"{statistics.mean(cell[row]['owa'] for cell in scores if row in cell):.3f}"
            for row in dict.fromkeys(row for cell in scores for row in cell)
        }
        others = {name: owa.get(name, "") for name in _others()}
        columns = [owa[name] for name in ("Time-LlaMA", "linear", "seasonal naive")]
        columns += [_best(others), ""]
        lines.append(f"| {TITLES[collection]}, OWA | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def long_term(task: Task, cells: Cells) -> str:
    """Write a data set's test MSE by horizon, ours beside others'."""
    heads = [*map(str, task.horizons), "mean"]
    lines = [f"| {task.name}, test MSE | " + " | ".join(heads) + " |", "|---" * 6 + "|"]
    for name, values in measured_rows(task, cells).items():
        lines.append(f"| {name} | " + " | ".join([*map(spread, values), mean_of(values)]) + " |")
    for name, printed in task.published.items():
        texts = [f"{mse:.3f}" for mse in (*printed, statistics.mean(printed))]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def measured_rows(task: Task, cells: Cells) -> dict[str, list[list[float]]]:
    """Collect what was measured on a data set: by row, a list of seeds a horizon."""

    def at_each_horizon(setting: str, figure: Callable[[Result], float]) -> list[list[float]]:
        return [
            [figure(metrics) for metrics in of_setting(cells, task.name, horizon, setting)]
            for horizon in task.horizons
        ]

    def without_seeds(setting: str, baseline: str) -> list[list[float]]:
        values = at_each_horizon(setting, lambda metrics: metrics["baselines"][baseline]["mse"])
        return [seeds[:1] for seeds in values]

    def mse(metrics: Result) -> float:
        return float(metrics["test"]["mse"])

    rows = {
        "Time-LlaMA, here": at_each_horizon("full", mse),
        "Time-LlaMA's MAE, here": at_each_horizon("full", lambda metrics: metrics["test"]["mae"]),
        "linear, here": without_seeds("full", "linear"),
        "seasonal naive, here": without_seeds("full", "seasonal_naive"),
        "Time-LlaMA, full batches, here": at_each_horizon(FULL_BATCHES, mse),
        "seasonal naive, full batches, here": without_seeds(FULL_BATCHES, "seasonal_naive"),
    }
    rows |= {f"{name}, trained here": at_each_horizon(key, mse) for key, name in PUBLISHED.items()}
    return {name: values for name, values in rows.items() if any(values)}


def m4_scores(cells: Cells) -> dict[str, list[dict[str, m4.Scores]]]:
    """Collect M4's scores: by collection, those of each cell by forecaster; empty if none."""
    scores = {
        task.name: [
            cell["m4"]
            for setting in ("full", *PUBLISHED)
            for cell in seeds_of(cells, task.name, task.horizons[0], setting)
        ]
        for task in M4
    }
    return scores if any(scores.values()) else {}


def settings_table(cells: Cells) -> str:
    """Write the few-shot settings and ablations: validation and test MSE and MAE of each."""
    lines = [
        "| cell | validation MSE | test MSE | test MAE | linear's test MSE |",
        "|---" * 5 + "|",
    ]
    for name, horizon in dict.fromkeys((*ABLATED, *FEW_SHOT)):
        for setting in SETTINGS | ABLATIONS:
            seeds = of_setting(cells, name, horizon, setting)
            if seeds:
                columns = [
                    [metrics["validation"]["mse"] for metrics in seeds],
                    [metrics["test"]["mse"] for metrics in seeds],
                    [metrics["test"]["mae"] for metrics in seeds],
                    [metrics["baselines"]["linear"]["mse"] for metrics in seeds[:1]],
                ]
                lines.append(
                    f"| {name}-{horizon}, {setting} | " + " | ".join(map(spread, columns)) + " |"
                )
    return "\n".join(lines)


def of_setting(cells: Cells, name: str, horizon: int, setting: str) -> list[Result]:
    """The metrics of every seed of a setting."""
    return [cell["metrics"] for cell in seeds_of(cells, name, horizon, setting)]


def seeds_of(cells: Cells, name: str, horizon: int, setting: str) -> list[Result]:
    """The cells of every seed of a setting."""
    start = f"{name}-{horizon}-{setting}-seed"
    return [cell for key, cell in cells.items() if key.startswith(start)]


def spread(values: Sequence[float]) -> str:
    """Mean, standard deviation and number of seeds."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.4f}"
    return f"{text} ± {statistics.stdev(values):.4f} ({len(values)})" if len(values) > 1 else text


def mean_of(columns: Sequence[Sequence[float]]) -> str:
    """Over the horizons, if all are there."""
    if not columns or not all(columns):
        return ""
    return f"{statistics.mean(map(statistics.mean, columns)):.4f}"


def _has_results(task: Task, cells: Cells) -> bool:
    return any(name.startswith(f"{task.name}-") and "-full-" in name for name in cells)


def _others() -> list[str]:
    return list(PUBLISHED.values())


def _best(figures: Mapping[str, str]) -> str:
    """The lowest figure of those that are there, with its name."""
    there = {name: text for name, text in figures.items() if text}
    if not there:
        return ""
    name = min(there, key=lambda name: float(there[name]))
    return f"{there[name]} ({name})"
