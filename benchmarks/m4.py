"""M4's hourly and weekly collections for `benchmarks.tables`: prepared, scored, and in a table.

Scores are the competition's, on the last horizon of every series.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring import run_program

ROOT = Path(__file__).parents[1]
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Collection:
    """Series of one frequency."""

    files: str
    """How the names of its files begin."""
    frequency: str
    horizon: int
    context_len: int
    """Of the baselines: as the recipe has it."""


COLLECTIONS = {
    "hourly": Collection(files="Hourly", frequency="h", horizon=48, context_len=336),
    "weekly": Collection(files="Weekly", frequency="W", horizon=13, context_len=52),
}
BASELINES = {"linear": "ridge", "seasonal naive": "seasonal_naive", "Naive2": "naive2"}


def prepare(tables: Path, folder: Path) -> None:
    """Prepare both collections where the recipe looks for them, below `folder`."""
    for name, one in COLLECTIONS.items():
        files = [str(tables / f"{one.files}-{part}.csv") for part in ("train", "test")]
        split = ["0", str(one.horizon), str(one.horizon)]
        run_job(
            "prepare",
            [*("--input", *files), *("--frequency", one.frequency), *("--split", *split)],
            [*("--output", str(folder / "prepared" / f"m4_{name}"))],
        )


def score(model: Path, folder: Path) -> dict[str, Scores]:
    """Of the model and the baselines: sMAPE, MASE and OWA of each collection."""
    found = {"Time-LlaMA": evaluate(["--model", str(model)], folder)}
    for row, baseline in BASELINES.items():
        found[row] = {}
        for name, one in COLLECTIONS.items():
            words = ["--model", baseline, "--data.path", str(folder / "prepared" / f"m4_{name}")]
            words += ["--data.context_len", str(one.context_len)]
            words += ["--data.horizon", str(one.horizon), "--data.short_series", "pad"]
            (scores,) = evaluate(words, folder).values()
            found[row][name] = scores
    return found


def evaluate(words: Sequence[str], folder: Path) -> Scores:
    """What `ray_jobs/evaluate.py` says of each data set."""
    output = folder / "scores.json"
    run_job("evaluate", words, ["--output", str(output)])
    return scores_of(json.loads(output.read_text())["by_dataset"])


def scores_of(by_dataset: Mapping[str, Any]) -> Scores:
    """The competition's three of what was found on each data set."""
    return {
        name: {key: found["test"][key] for key in ("smape", "mase", "owa")}
        for name, found in by_dataset.items()
    }


def run_job(name: str, *words: Sequence[str]) -> None:
    """One of `ray_jobs`, in a process of its own."""
    run_program([str(ROOT / "ray_jobs" / f"{name}.py"), *(word for some in words for word in some)])


def table(found: Sequence[Mapping[str, Scores]]) -> str:
    """sMAPE, MASE and OWA by collection, a row a forecaster; the means over seeds."""
    heads = [f"{name}, sMAPE / MASE / OWA" for name in COLLECTIONS]
    lines = ["| M4 | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    for row in dict.fromkeys(row for one in found for row in one):
        columns = [
            " / ".join(
                f"{statistics.mean(one[row][name][key] for one in found if row in one):.3f}"
                for key in ("smape", "mase", "owa")
            )
            for name in COLLECTIONS
        ]
        lines.append(f"| {row}, here | " + " | ".join(columns) + " |")
    return "\n".join(lines)
