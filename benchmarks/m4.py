"""M4's hourly and weekly collections for `benchmarks.tables`: prepared, scored, and in a table.

Scores are the competition's, on the last horizon of every series.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measuring import run_program

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "ray_jobs" / "configs" / "m4.yaml"
COLLECTIONS = {"hourly": ("Hourly", "h"), "weekly": ("Weekly", "W")}
"""By the recipe's name: how the names of its files begin, and its frequency."""
BASELINES = {"linear": "ridge", "seasonal naive": "seasonal_naive", "Naive2": "naive2"}
Scores = dict[str, dict[str, float]]


def parts() -> dict[str, dict[str, Any]]:
    """The recipe's keys of `data` for each collection."""
    data = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["data"]
    return {part["name"]: data | part for part in data.pop("mixture")}


def prepare(tables: Path, folder: Path) -> None:
    """Prepare both collections where the recipe looks for them, below `folder`."""
    for name, part in parts().items():
        begin, frequency = COLLECTIONS[name]
        files = [str(tables / f"{begin}-{rest}.csv") for rest in ("train", "test")]
        split = ["0", str(part["horizon"]), str(part["horizon"])]
        words = ["--input", *files, "--frequency", frequency, "--split", *split]
        run_job("prepare", [*words, "--output", str(folder / part["path"])])


def score(model: Path, folder: Path) -> dict[str, Scores]:
    """Of the model and the baselines: sMAPE, MASE and OWA of each collection."""
    found = {"Time-LlaMA": evaluate(["--model", str(model)], folder)}
    for row, baseline in BASELINES.items():
        found[row] = {}
        for name, part in parts().items():
            words = ["--model", baseline, "--data.path", str(folder / part["path"])]
            for key in ("context_len", "horizon", "short_series"):
                words += [f"--data.{key}", str(part[key])]
            (scores,) = evaluate(words, folder).values()
            found[row][name] = scores
    return found


def evaluate(words: Sequence[str], folder: Path) -> Scores:
    """What `ray_jobs/evaluate.py` says of each data set."""
    output = folder / "scores.json"
    run_job("evaluate", [*words, "--output", str(output)])
    return scores_of(json.loads(output.read_text())["by_dataset"])


def scores_of(by_dataset: Mapping[str, Any]) -> Scores:
    """The competition's three of what was found on each data set."""
    return {
        name: {key: found["test"][key] for key in ("smape", "mase", "owa")}
        for name, found in by_dataset.items()
    }


def run_job(name: str, words: Sequence[str]) -> None:
    """One of `ray_jobs`, in a process of its own."""
    run_program([str(ROOT / "ray_jobs" / f"{name}.py"), *words])


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
