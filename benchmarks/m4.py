"""M4's hourly and weekly collections for `benchmarks.tables`: prepared, scored, and in a table.

Scores are the competition's, on the last horizon of every series.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measuring import run_program

ROOT = Path(__file__).parents[1]
COLLECTIONS = {"m4_hourly": ("Hourly", "h"), "m4_weekly": ("Weekly", "W")}
"""By the recipe's name: how the names of its files begin, and its frequency."""
BASELINES = {"linear": "ridge", "seasonal naive": "seasonal_naive", "Naive2": "naive2"}
FIGURES = ("smape", "mase", "owa")
Scores = dict[str, float]


def prepare(collection: str, tables: Path, horizon: int, output: Path) -> Path:
    """Prepare a collection, whose last two horizons are the validation and the test part."""
    begin, frequency = COLLECTIONS[collection]
    files = [str(tables / f"{begin}-{part}.csv") for part in ("train", "test")]
    words = ["--input", *files, "--frequency", frequency]
    words += ["--split", "0", str(horizon), str(horizon), "--output", str(output)]
    run_job("prepare", words)
    return output


def score(model: Path, data: Mapping[str, Any]) -> dict[str, Scores]:
    """Of the model and the baselines on a collection, given the run's keys of `data`."""
    found = {"Time-LlaMA": evaluate(["--model", str(model)])}
    for row, baseline in BASELINES.items():
        words = ["--model", baseline]
        for key in ("path", "context_len", "horizon", "short_series"):
            words += [f"--data.{key}", str(data[key])]
        words += ["--data.fit_context", "false"]
        found[row] = evaluate(words)
    return found


def evaluate(words: Sequence[str]) -> Scores:
    """What `ray_jobs/evaluate.py` says."""
    with TemporaryDirectory() as folder:
        output = Path(folder) / "scores.json"
        run_job("evaluate", [*words, "--output", str(output)])
        return scores_of(json.loads(output.read_text()))


def scores_of(results: Mapping[str, Any]) -> Scores:
    """The competition's figures of one data set, of what an evaluation wrote."""
    (found,) = results["by_dataset"].values()
    return {key: found["test"][key] for key in FIGURES}


def run_job(name: str, words: Sequence[str]) -> None:
    """One of `ray_jobs`, in a process of its own."""
    run_program([str(ROOT / "ray_jobs" / f"{name}.py"), *words])


def table(found: Mapping[str, Sequence[Mapping[str, Scores]]]) -> str:
    """sMAPE, MASE and OWA by collection, a row a forecaster; the means over seeds.

    Args:
        found: of each collection, each cell's scores by forecaster.
    """
    heads = [f"{name.removeprefix('m4_')}, sMAPE / MASE / OWA" for name in found]
    lines = ["| M4 | " + " | ".join(heads) + " |", "|---" * (1 + len(heads)) + "|"]
    cells = [cell for those in found.values() for cell in those]
    for row in dict.fromkeys(row for cell in cells for row in cell):
        columns = [means([cell[row] for cell in those if row in cell]) for those in found.values()]
        lines.append(f"| {row}, here | " + " | ".join(columns) + " |")
    return "\n".join(lines)


def means(scores: Sequence[Scores]) -> str:
    """Of each figure over seeds; nothing without any."""
    if not scores:
        return ""
    return " / ".join(f"{statistics.mean(one[key] for one in scores):.3f}" for key in FIGURES)
