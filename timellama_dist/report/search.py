"""A search's results: the trials worth having, a table of all, and a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Trial = Mapping[str, Any]

AXES = ("validation", "active_parameters")
"""What the front is drawn over where the search had one objective."""

HEAT = (("dlora", "num_experts"), ("dlora", "rank"))
"""Keys of the picture's rows and columns."""

_LABELS = {
    "active_parameters": "active parameters",
    "trainable_parameters": "trainable parameters",
    "step_s": "seconds a step",
}

_MOST_NAMED = 12


def judged(trials: Sequence[Trial]) -> list[Trial]:
    """Choose trials that were trained to their end; those that were stopped if there are none."""
    measured = [trial for trial in trials if trial["validation"] is not None]
    return [trial for trial in measured if trial["status"] == "finished"] or measured


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Choose the trial of the least validation error."""
    return min(judged(trials), key=lambda trial: trial["validation"], default=None)


def pareto_front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Choose trials than which no other is as good in all objectives and better in one.

    Returns:
        In the order of their validation error.
    """
    points = [(tuple(trial[key] for key in objectives), trial) for trial in judged(trials)]
    front = [
        trial
        for point, trial in points
        if not any(
            all(a <= b for a, b in zip(rival, point, strict=True)) and rival != point
            for rival, _ in points
        )
    ]
    return sorted(front, key=lambda trial: trial["validation"])


def summary(results: Mapping[str, Any]) -> str:
    """Write Markdown: the best trial, the front, every trial."""
    trials, objectives = results["trials"], results["objectives"]
    lines = ["# Search", "", best_lines(results)]
    lines += ["", f"## Pareto front: {', '.join(_label(key) for key in objectives)}", ""]
    lines += _table(pareto_front(trials, objectives), results["keys"])
    lines += ["", "## All trials", "", *_table(trials, results["keys"])]
    if results["pruned"]:
        lines += ["", "## Not begun: more memory than there is", ""]
        lines += [f"- {_keys(trial['keys'])}: {trial['problem']}" for trial in results["pruned"]]
    return "\n".join([*lines, ""])


def best_lines(results: Mapping[str, Any]) -> str:
    """Write the counts, the best trial, and the configuration that the search began from."""
    trials = results["trials"]
    best, base = best_trial(trials), next((trial for trial in trials if trial["is_base"]), None)
    lines = [_counts(results)]
    if best is not None:
        lines.append(f"best: {_named(best, results['metric'])}")
    if base is not None and base["validation"] is not None:
        lines.append(f"it began from: {_named(base, results['metric'])}")
    return "\n\n".join(lines)


def _counts(results: Mapping[str, Any]) -> str:
    """Count the trials by how they ended."""
    statuses = [trial["status"] for trial in results["trials"]]
    counts = [f"{statuses.count(name)} {name}" for name in dict.fromkeys(statuses)]
    if results["pruned"]:
        counts.append(f"{len(results['pruned'])} not begun for want of memory")
    return f"{len(statuses)} trials: {', '.join(counts)}"


def plot_search(results: Mapping[str, Any], path: Path) -> None:
    """Draw the Pareto front, and the least error by expert count and rank.

    Args:
        results: as `search.json` has it.
        path: PNG to write.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_front(left, results)
    _draw_heat(figure, right, results)
    figure.savefig(path, dpi=120)


def _draw_front(axis: Axes, results: Mapping[str, Any]) -> None:
    key = results["objectives"][1]
    measured = [trial for trial in results["trials"] if trial["validation"] is not None]
    for status, color in (("finished", "tab:blue"), ("other", "0.7")):
        shown = [
            trial for trial in measured if (trial["status"] == "finished") == (status == "finished")
        ]
        axis.scatter(
            [trial[key] for trial in shown],
            [trial["validation"] for trial in shown],
            color=color,
            s=22,
            label="trained to the end" if status == "finished" else "stopped early",
        )
    front = sorted(
        pareto_front(results["trials"], results["objectives"]), key=lambda trial: trial[key]
    )
    axis.plot(
        [trial[key] for trial in front],
        [trial["validation"] for trial in front],
        color="tab:orange",
        marker="o",
        markersize=4,
        label="Pareto front",
    )
    for trial in front[:_MOST_NAMED]:
        axis.annotate(
            str(trial["number"]),
            (trial[key], trial["validation"]),
            textcoords="offset points",
            xytext=(5, 5),
            fontsize=8,
        )
    axis.set_xlabel(_label(key))
    axis.set_ylabel(f"validation {results['metric']}")
    axis.set_title("trials, by number on the front", fontsize=10)
    axis.legend(fontsize=8)


def _draw_heat(figure: Figure, axis: Axes, results: Mapping[str, Any]) -> None:
    """Draw the least error of each pair of expert count and rank, and its number of trials."""
    cells: dict[tuple[int, int], list[float]] = {}
    for trial in results["trials"]:
        if trial["validation"] is not None:
            keys = results["base"] | trial["keys"]
            experts, rank = (keys[".".join(key)] for key in HEAT)
            cells.setdefault((experts, rank), []).append(trial["validation"])
    counts, ranks = (sorted({cell[n] for cell in cells}) for n in (0, 1))
    least = np.full((len(counts), len(ranks)), math.nan)
    for (experts, rank), errors in cells.items():
        row, column = counts.index(experts), ranks.index(rank)
        least[row, column] = min(errors)
        axis.text(
            column,
            row,
            f"{min(errors):.4f}\n({len(errors)})",
            ha="center",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1.5},
        )
    if cells:
        image = axis.imshow(least, cmap="viridis_r", aspect="auto")
        figure.colorbar(image, ax=axis, label=f"least validation {results['metric']}")
    axis.set_xticks(range(len(ranks)), [str(rank) for rank in ranks])
    axis.set_yticks(range(len(counts)), [str(count) for count in counts])
    axis.set_xlabel("rank of an expert")
    axis.set_ylabel("experts of a module")
    axis.set_title("least error (number of trials)", fontsize=10)


def _table(trials: Sequence[Trial], keys: Sequence[str]) -> list[str]:
    titles = [
        *("trial", "status", "steps", "validation"),
        *(key.rpartition(".")[2] for key in keys),
        *("active", "trainable", "s a step", "peak GiB"),
    ]
    rows = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for trial in trials:
        cells = [
            f"{trial['number']}{' (base)' if trial['is_base'] else ''}",
            trial["status"] + (f": {trial['problem']}" if trial["problem"] else ""),
            _cell(trial["step"]),
            _cell(trial["validation"], ".4f"),
            *(_cell(trial["keys"].get(key), ".3g") for key in keys),
            _cell(trial["active_parameters"], ","),
            _cell(trial["trainable_parameters"], ","),
            _cell(trial["step_s"], ".3f"),
            _cell(trial["peak_bytes"] and trial["peak_bytes"] / 2**30, ".2f"),
        ]
        rows.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return rows


def _cell(value: Any, form: str = "") -> str:
    if value is None:
        return ""
    numeric = isinstance(value, float) or (isinstance(value, int) and form == ",")
    return format(value, form) if numeric and not isinstance(value, bool) else str(value)


def _named(trial: Trial, metric: str) -> str:
    return (
        f"trial {trial['number']}, validation {metric} {trial['validation']:.4f} "
        f"({trial['status']}, {trial['step']} steps; {_keys(trial['keys'])})"
    )


def _keys(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_cell(value, '.3g')}" for key, value in keys.items())


def _label(key: str) -> str:
    return _LABELS.get(key, key)
