r"""Makes the tables of results: trains every cell that isn't there yet, and prints them all.

    python -m benchmarks.tables --data DIR

A cell is one training of `ray_jobs/train.py` with a packaged recipe, in a process of
its own, from a public table in DIR, or one of another's architecture on the same windows by
`benchmarks.published` (`pip install -e '.[baselines]'`). A finished cell becomes a line of
`benchmarks/results/<data set>.jsonl`, with the configuration, the commit and the machine. A cell
that is there isn't made again: the tables grow over days, and an interrupted program goes on.
`--list` names the missing cells.

On a cluster, where the job's copy of the project has no repository to ask for the commit:

    ray job submit --working-dir . -- env TIMELLAMA_COMMIT=$(git rev-parse HEAD) \
        python -m benchmarks.tables --data DIR --results DIR
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from benchmarks import m4, published
from benchmarks.cells import (
    BUDGET,
    FEW_WINDOWS,
    M4,
    PUBLISHED,
    SMALLER,
    Cell,
    all_cells,
    keys_of,
)
from benchmarks.measuring import run_program
from benchmarks.result_tables import RESULTS, Result, keep, markdown, read_cells
from timellama_dist.versions import versions

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "timellama_dist" / "recipes"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="the folder of the tables")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", metavar="TEXT", help="cells with this in their name")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--list", action="store_true", help="name the missing cells and end")
    parser.add_argument("words", nargs="*", help="further words for train.py, after --")
    arguments = parser.parse_args()
    cells = [cell for cell in all_cells(arguments.seeds) if arguments.only in cell.name]
    finished = read_cells(arguments.results)
    missing = [cell for cell in cells if cell.name not in finished]
    if arguments.list:
        print("\n".join(cell.name for cell in missing))
        return
    if missing:
        if arguments.data is None:
            parser.error(f"--data: {len(missing)} cells are missing")
        if not versions().get("commit"):
            parser.error("a cell names its commit: run in a clone, or set TIMELLAMA_COMMIT")
        make_all(missing, arguments)
    print(markdown(read_cells(arguments.results)))


def make_all(cells: Sequence[Cell], arguments: argparse.Namespace) -> None:
    """Train the cells, some at a time; each is kept as soon as it is done."""
    arguments.results.mkdir(parents=True, exist_ok=True)

    def make(cell: Cell) -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            result = run(cell, arguments, Path(scratch).resolve())
        seconds = time.monotonic() - started
        keep(arguments.results, cell, {"seconds": seconds, **result})
        print(f"{cell.name}: {errors_line(result)}, {seconds:.0f} s", flush=True)

    print(f"{len(cells)} cells to make", flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        # To the end, whichever fails; the first failure is then raised.
        futures = [pool.submit(make, cell) for cell in cells]
        for future in futures:
            future.result()


def run(cell: Cell, arguments: argparse.Namespace, scratch: Path) -> Result:
    """Make one cell; M4's series are prepared for it first."""
    table = arguments.data.resolve() / cell.task.file
    if cell.task in M4:
        table = m4.prepare(cell.task.name, table, cell.horizon, scratch / "prepared")
    recipe = yaml.safe_load((CONFIGS / f"{cell.task.name}.yaml").read_text(encoding="utf-8"))
    data = recipe["data"] | {"path": str(table), "horizon": cell.horizon}
    data["context_len"] = cell.task.contexts.get(cell.horizon, data["context_len"])
    if cell.setting in PUBLISHED:
        return run_published(cell, data, scratch)
    return run_train(cell, data, scratch, arguments.words)


def run_train(cell: Cell, data: dict[str, Any], scratch: Path, words: Sequence[str]) -> Result:
    """Make a cell by one run of `ray_jobs/train.py`."""
    keys = {"train.seed": cell.seed, **keys_of(cell)}
    keys |= {f"data.{key}": data[key] for key in ("path", "context_len", "horizon")}
    run_dir = scratch / cell.name
    # With one worker nothing is to be sharded; stage 3 only costs time then.
    words = ["--deepspeed", str(ROOT / "ds_configs" / "zero1.json"), *words]
    words = [*words_of(keys), *words, "--run.dir", str(run_dir)]
    recipe = ["--config", str(CONFIGS / f"{cell.task.name}.yaml")]
    run_program([str(ROOT / "ray_jobs" / "train.py"), *recipe, *words], scratch)
    metrics = json.loads((run_dir / "metrics.json").read_text())
    lines = (run_dir / "history.jsonl").read_text().splitlines()
    history = [record for record in map(json.loads, lines) if record["kind"] == "validation"]
    config = (run_dir / "config.yaml").read_text()
    return {
        "metrics": {key: value for key, value in metrics.items() if key != "by_dataset"},
        "validations": [
            {key: record[key] for key in ("step", "mse", "mae", "path_share") if key in record}
            for record in history
        ],
        **({"m4": m4.score(run_dir / "model", data)} if cell.task in M4 else {}),
        "config": relative(config, scratch, Path(data["path"]).parent),
    }


def run_published(cell: Cell, data: dict[str, Any], scratch: Path) -> Result:
    """Make a cell by `benchmarks.published` on the windows of the recipe.

    On M4 the loss is MAE, as in the recipe: its scores are absolute errors.
    """
    name = PUBLISHED[cell.setting]
    keys: dict[str, Any] = {"model": name, "seed": cell.seed, **BUDGET}
    if cell.task.name in FEW_WINDOWS:
        keys["arguments"] = json.dumps(SMALLER.get(cell.setting, {}))
    if cell.task in M4:
        keys["loss"] = "mae"
    keys |= {f"data.{key}": value for key, value in data.items() if key != "prompt"}
    output = scratch / "scores.json"
    run_program([published.__file__, *words_of(keys), "--output", str(output)], scratch)
    scores = json.loads(output.read_text())
    best = scores["training"]["chosen"]
    facts = {key: scores[key] for key in ("training", "settings", "versions")}
    return {
        "metrics": {
            "test": scores["test"],
            "validation": {key: best[key] for key in ("mse", "mae")},
        },
        **({"m4": {name: m4.scores_of(scores)}} if cell.task in M4 else {}),
        "published": json.loads(relative(json.dumps(facts), scratch, Path(data["path"]).parent)),
    }


def words_of(keys: Mapping[str, Any]) -> list[str]:
    """Spell keys as a command line."""
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


def errors_line(result: Result) -> str:
    """Say a cell's test errors in a line."""
    metrics = result["metrics"]
    parts = {"test": metrics["test"]}
    if "baselines" in metrics:
        parts["linear"] = metrics["baselines"]["linear"]
    return ", ".join(f"{name} {part['mse']:.4f}/{part['mae']:.4f}" for name, part in parts.items())


def relative(text: str, scratch: Path, data: Path) -> str:
    """Strip a configuration of the folders of the machine that it ran on."""
    for folder in (scratch, data, ROOT):
        text = text.replace(f"{folder}/", "")
    return text


if __name__ == "__main__":
    main()
