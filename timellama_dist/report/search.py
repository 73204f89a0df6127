"""What a search found: which trials are worth having, a table of all, and a picture."""

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
    """Trials that were trained to their end; those that were stopped if there are none."""
    measured = [one for one in trials if one["validation"] is not None]
    return [one for one in measured if one["status"] == "finished"] or measured


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The one of the least validation error."""
    return min(judged(trials), key=lambda one: one["validation"], default=None)


def pareto_front(trials: Sequence[Trial], objectives: Sequence[str]) -> list[Trial]:
    """Trials than which no other is as good in all objectives and better in one.

    Returns:
        In the order of their validation error.
    """
    points = [(tuple(one[key] for key in objectives), one) for one in judged(trials)]
    front = [
        one
        for mine, one in points
        if not any(
            all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine
            for other, _ in points
        )
    ]
    return sorted(front, key=lambda one: one["validation"])


def summary(found: Mapping[str, Any]) -> str:
    """Markdown: the best trial, the front, every trial."""
    trials, objectives = found["trials"], found["objectives"]
    lines = ["# Search", "", best_lines(found)]
    lines += ["", f"## Pareto front: {', '.join(_label(key) for key in objectives)}", ""]
    lines += _table(pareto_front(trials, objectives), found["keys"])
    lines += ["", "## All trials", "", *_table(trials, found["keys"])]
    if found["pruned"]:
        lines += ["", "## Not begun: more memory than there is", ""]
        lines += [f"- {_keys(one['keys'])}: {one['problem']}" for one in found["pruned"]]
    return "\n".join([*lines, ""])


def best_lines(found: Mapping[str, Any]) -> str:
    """Counts, the best trial, and the configuration that the search began from."""
    trials = found["trials"]
    best, base = best_trial(trials), next((one for one in trials if one["is_base"]), None)
    lines = [_counts(found)]
    if best is not None:
        lines.append(f"best: {_named(best, found['metric'])}")
    if base is not None and base["validation"] is not None:
        lines.append(f"it began from: {_named(base, found['metric'])}")
    return "\n\n".join(lines)


def _counts(found: Mapping[str, Any]) -> str:
    """How many trials ended how."""
    statuses = [one["status"] for one in found["trials"]]
    counts = [f"{statuses.count(name)} {name}" for name in dict.fromkeys(statuses)]
    if found["pruned"]:
        counts.append(f"{len(found['pruned'])} not begun for want of memory")
    return f"{len(statuses)} trials: {', '.join(counts)}"


def plot_search(found: Mapping[str, Any], path: Path) -> None:
    """Draw the Pareto front, and the least error by expert count and rank.

    Args:
        found: as `search.json` has it.
        path: PNG to write.
    """
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_front(left, found)
    _draw_heat(figure, right, found)
    figure.savefig(path, dpi=120)


def _draw_front(axis: Axes, found: Mapping[str, Any]) -> None:
    key = found["objectives"][1]
    measured = [one for one in found["trials"] if one["validation"] is not None]
    for status, color in (("finished", "tab:blue"), ("other", "0.7")):
        shown = [one for one in measured if (one["status"] == "finished") == (status == "finished")]
        axis.scatter(
            [one[key] for one in shown],
            [one["validation"] for one in shown],
            color=color,
            s=22,
            label="trained to the end" if status == "finished" else "stopped early",
        )
    front = sorted(pareto_front(found["trials"], found["objectives"]), key=lambda one: one[key])
    axis.plot(
        [one[key] for one in front],
        [one["validation"] for one in front],
        color="tab:orange",
        marker="o",
        markersize=4,
        label="Pareto front",
    )
    for one in front[:_MOST_NAMED]:
        axis.annotate(
            str(one["number"]),
            (one[key], one["validation"]),
            textcoords="offset points",
            xytext=(5, 5),
            fontsize=8,
        )
    axis.set_xlabel(_label(key))
    axis.set_ylabel(f"validation {found['metric']}")
    axis.set_title("trials, by number on the front", fontsize=10)
    axis.legend(fontsize=8)


def _draw_heat(figure: Figure, axis: Axes, found: Mapping[str, Any]) -> None:
    """The least error of each pair of expert count and rank, and its number of trials."""
    cells: dict[tuple[int, int], list[float]] = {}
    for one in found["trials"]:
        if one["validation"] is not None:
            keys = found["base"] | one["keys"]
            experts, rank = (keys[".".join(key)] for key in HEAT)
            cells.setdefault((experts, rank), []).append(one["validation"])
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
        figure.colorbar(image, ax=axis, label=f"least validation {found['metric']}")
    axis.set_xticks(range(len(ranks)), [str(one) for one in ranks])
    axis.set_yticks(range(len(counts)), [str(one) for one in counts])
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
    for one in trials:
        cells = [
            f"{one['number']}{' (base)' if one['is_base'] else ''}",
            one["status"] + (f": {one['problem']}" if one["problem"] else ""),
            _cell(one["step"]),
            _cell(one["validation"], ".4f"),
            *(_cell(one["keys"].get(key), ".3g") for key in keys),
            _cell(one["active_parameters"], ","),
            _cell(one["trainable_parameters"], ","),
            _cell(one["step_s"], ".3f"),
            _cell(one["peak_bytes"] and one["peak_bytes"] / 2**30, ".2f"),
        ]
        rows.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return rows


def _cell(value: Any, form: str = "") -> str:
    if value is None:
        return ""
    numeric = isinstance(value, float) or (isinstance(value, int) and form == ",")
    return format(value, form) if numeric and not isinstance(value, bool) else str(value)


def _named(one: Trial, metric: str) -> str:
    return (
        f"trial {one['number']}, validation {metric} {one['validation']:.4f} "
        f"({one['status']}, {one['step']} steps; {_keys(one['keys'])})"
    )


def _keys(keys: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_cell(value, '.3g')}" for key, value in keys.items())


def _label(key: str) -> str:
    return _LABELS.get(key, key)
