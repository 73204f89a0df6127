r"""Makes the tables of results: trains every cell that isn't there yet, and prints them all.

    python -m benchmarks.tables --data DIR

A cell is one training of `ray_jobs/train.py` with a packaged recipe, in a process of
its own, from a public table in DIR, or one of another's architecture on the same windows by
`benchmarks.published` (`pip install -e '.[baselines]'`). What it found is kept in
`benchmarks/results/`, a JSON file a cell, with the configuration, the commit and the machine; a
cell that is there isn't made again. So the tables grow over days, and an interrupted run goes on.
`--list` says what is missing.

On a cluster, where the job's copy of the project has no repository to ask for the commit:

    ray job submit --working-dir . -- env TIMELLAMA_COMMIT=$(git rev-parse HEAD) \
        python -m benchmarks.tables --data DIR --results DIR
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks import m4, published
from benchmarks.measuring import run_program, write_results
from timellama_dist.versions import versions

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "timellama_dist" / "recipes"
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, kw_only=True)
class Task:
    """One data set with its recipe and horizons."""

    name: str
    """Of the recipe, too."""
    file: str
    """Its table, or for M4 the folder of its tables."""
    horizons: tuple[int, ...]
    published: dict[str, tuple[float, ...]]
    """Test MSE by horizon, of other papers' methods, as they print it."""
    contexts: dict[int, int] = field(default_factory=dict)
    """By horizon, where it isn't the recipe's."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training."""

    task: Task
    horizon: int
    setting: str
    """`FULL_BATCHES`, or a key of `SETTINGS`, `ABLATIONS` or `PUBLISHED`; "full" is the recipe."""
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.task.name}-{self.horizon}-{self.setting}-seed{self.seed}"


# Copied: Time-LLM, PatchTST and DLinear as Time-LLM's paper prints them, the others from their own
# papers. Nothing of it was measured here.
TASKS = (
    Task(
        name="etth1",
        file="ETTh1.csv",
        horizons=(96, 192, 336, 720),
        published={
            "Time-LlaMA (its paper)": (0.377, 0.410, 0.421, 0.443),
            "Time-LLM": (0.362, 0.398, 0.430, 0.442),
            "PatchTST": (0.370, 0.413, 0.422, 0.447),
            "DLinear": (0.375, 0.405, 0.439, 0.472),
            "AutoTimes, LLaMA-7B": (0.360, 0.388, 0.401, 0.406),
        },
        contexts={720: 672},
    ),
    Task(
        name="ettm1",
        file="ETTm1.csv",
        horizons=(96, 192, 336, 720),
        published={
            "Time-LlaMA (its paper)": (0.291, 0.326, 0.352, 0.405),
            "Time-LLM": (0.272, 0.310, 0.352, 0.383),
            "PatchTST": (0.290, 0.332, 0.366, 0.416),
            "DLinear": (0.299, 0.335, 0.369, 0.425),
        },
        contexts=dict.fromkeys((336, 720), 1344),
    ),
    Task(
        name="weather",
        file="weather.csv",
        horizons=(96, 192, 336, 720),
        published={
            "Time-LlaMA (its paper)": (0.151, 0.193, 0.242, 0.313),
            "Time-LLM": (0.147, 0.189, 0.262, 0.304),
            "PatchTST": (0.149, 0.194, 0.245, 0.314),
            "DLinear": (0.176, 0.220, 0.265, 0.333),
        },
    ),
    Task(
        name="illness",
        file="national_illness.csv",
        horizons=(24, 36, 48, 60),
        published={
            "Time-LLM": (1.285, 1.404, 1.523, 1.531),
            "PatchTST": (1.319, 1.430, 1.553, 1.470),
            "DLinear": (2.215, 1.963, 2.130, 2.368),
        },
    ),
)
M4 = tuple(
    Task(name=name, file="m4", horizons=(horizon,), published={})
    for name, horizon in (("m4_hourly", 48), ("m4_weekly", 13))
)
# Of few windows fewer steps, as epochs count; judged after each.
_FEW: dict[str, Any] = {"train.epochs": 3, "train.validate_every": "null"}
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "few5": {"data.train_fraction": 0.05, **_FEW},
    "few10": {"data.train_fraction": 0.1, **_FEW},
}
# Others' code tests the windows of full batches only, of 16 on ILI, where that leaves out most; the
# setting ends ILI's test part, of these rows, with the last full batch.
FULL_BATCHES = "full-batches"
_ILLNESS_ROWS, _ILLNESS_BATCH = (676, 97, 193), 16
# What each part adds: the recipe without it.
_NO_DLORA = {"dlora.enabled": False}
ABLATIONS: dict[str, dict[str, Any]] = {
    "random": {"backbone.init": "random"},
    "frozen": _NO_DLORA,
    "no-backbone": {"backbone.kind": "none", **_NO_DLORA},
    "attention": {"backbone.kind": "attention", **_NO_DLORA},
    "no-alignment": {"model.alignment": False},
    "prefix": {"model.alignment": False, "model.prefix": True},
    "lora": {"dlora.num_experts": 1, "dlora.top_n": 7},
    "moe-lora": {"dlora.scope": "module", "dlora.top_n": 2},
    **{f"top-{n}": {"dlora.num_experts": 1, "dlora.top_n": n} for n in range(1, 7)},
    "experts-8": {"dlora.num_experts": 8, "dlora.rank": 2, "dlora.top_n": 32},
    "shortcut": {"model.shortcut": "frozen"},
    "no-shortcut": {"model.shortcut": "none"},
    "no-average": {"train.average_steps": 0},
}
ABLATED = (("illness", 24), ("ettm1", 96), ("weather", 96))
# Where the recipe is that already.
_NOT_ABLATED = {"shortcut": ABLATED[1:], "no-shortcut": ABLATED[:1]}
FEW_SHOT = (("etth1", 96), ("weather", 96))
# Others' architectures in the library's sizes; in smaller ones, as in their papers, where there are
# few windows.
PUBLISHED = {"patchtst": "PatchTST", "itransformer": "iTransformer", "dlinear": "DLinear"}
FEW_WINDOWS = ("etth1", "illness", "m4_hourly", "m4_weekly")
BUDGET = {"epochs": 30, "max_steps": 1000}
SMALLER: dict[str, dict[str, Any]] = {
    "patchtst": {
        "hidden_size": 16,
        "n_heads": 4,
        "linear_hidden_size": 128,
        "dropout": 0.3,
        "fc_dropout": 0.3,
    },
    "itransformer": {"hidden_size": 128, "d_ff": 128},
}
Result = dict[str, Any]


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
    missing = [cell for cell in cells if not (arguments.results / f"{cell.name}.json").exists()]
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


def all_cells(num_seeds: int) -> Iterator[Cell]:
    """Every cell: the first seed of all before the second of any, recipes before ablations."""
    everywhere = [(task.name, horizon) for task in (*TASKS, *M4) for horizon in task.horizons]
    settings = {
        "full": everywhere,
        FULL_BATCHES: [at for at in everywhere if at[0] == "illness"],
        **dict.fromkeys(("few5", "few10"), FEW_SHOT),
        **dict.fromkeys(PUBLISHED, everywhere),
        **{
            name: [at for at in ABLATED if at not in _NOT_ABLATED.get(name, ())]
            for name in ABLATIONS
        },
    }
    tasks = {task.name: task for task in (*TASKS, *M4)}
    for seed in range(num_seeds):
        for setting, places in settings.items():
            for name, horizon in places:
                yield Cell(task=tasks[name], horizon=horizon, setting=setting, seed=seed)


def make_all(cells: Sequence[Cell], arguments: argparse.Namespace) -> None:
    """Train the cells, some at a time; each is kept as soon as it is done."""
    arguments.results.mkdir(parents=True, exist_ok=True)

    def make(cell: Cell) -> None:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            found = run(cell, arguments, Path(scratch).resolve())
        seconds = time.monotonic() - started
        facts = {"cell": cell.name, "seconds": seconds, **found}
        write_results(str(arguments.results / f"{cell.name}.json"), "tables", facts)
        print(f"{cell.name}: {told(found)}, {seconds:.0f} s", flush=True)

    print(f"{len(cells)} cells to make", flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        # To the end, whichever fails; the first failure is then raised.
        futures = [pool.submit(make, cell) for cell in cells]
        for future in futures:
            future.result()


def run(cell: Cell, arguments: argparse.Namespace, scratch: Path) -> Result:
    """What one training found; M4's series are prepared for it first."""
    table = arguments.data.resolve() / cell.task.file
    if cell.task in M4:
        table = m4.prepare(cell.task.name, table, cell.horizon, scratch / "prepared")
    recipe = yaml.safe_load((CONFIGS / f"{cell.task.name}.yaml").read_text(encoding="utf-8"))
    data = recipe["data"] | {"path": str(table), "horizon": cell.horizon}
    data["context_len"] = cell.task.contexts.get(cell.horizon, data["context_len"])
    if cell.setting in PUBLISHED:
        return run_published(cell, data, scratch)
    return run_train(cell, data, scratch, arguments.words)


def keys_of(cell: Cell) -> dict[str, Any]:
    """What a cell changes in its recipe."""
    if cell.setting != FULL_BATCHES:
        return (SETTINGS | ABLATIONS)[cell.setting]
    train, validation, test = _ILLNESS_ROWS
    left_out = (test - cell.horizon + 1) % _ILLNESS_BATCH
    return {"data.split": [train, validation, test - left_out]}


def run_train(cell: Cell, data: dict[str, Any], scratch: Path, words: Sequence[str]) -> Result:
    """What one run of `ray_jobs/train.py` found."""
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
    history = [one for one in map(json.loads, lines) if one["kind"] == "validation"]
    config = (run_dir / "config.yaml").read_text()
    return {
        "metrics": {key: value for key, value in metrics.items() if key != "by_dataset"},
        "validations": [
            {key: one[key] for key in ("step", "mse", "mae", "path_share") if key in one}
            for one in history
        ],
        **({"m4": m4.score(run_dir / "model", data)} if cell.task in M4 else {}),
        "config": relative(config, scratch, Path(data["path"]).parent),
    }


def run_published(cell: Cell, data: dict[str, Any], scratch: Path) -> Result:
    """What `benchmarks.published` found on the windows of the recipe.

    On M4 by MAE as in the recipe: its scores are absolute errors.
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
    found = json.loads(output.read_text())
    best = found["training"]["chosen"]
    facts = {key: found[key] for key in ("training", "settings", "versions")}
    return {
        "metrics": {
            "test": found["test"],
            "validation": {key: best[key] for key in ("mse", "mae")},
        },
        **({"m4": {name: m4.scores_of(found)}} if cell.task in M4 else {}),
        "published": json.loads(relative(json.dumps(facts), scratch, Path(data["path"]).parent)),
    }


def words_of(keys: Mapping[str, Any]) -> list[str]:
    """A command line's."""
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


def told(found: Result) -> str:
    """A line's worth of a cell."""
    metrics = found["metrics"]
    parts = {"test": metrics["test"]}
    if "baselines" in metrics:
        parts["linear"] = metrics["baselines"]["linear"]
    return ", ".join(f"{name} {one['mse']:.4f}/{one['mae']:.4f}" for name, one in parts.items())


def relative(text: str, scratch: Path, data: Path) -> str:
    """A configuration without the folders of the machine that it ran on."""
    for folder in (scratch, data, ROOT):
        text = text.replace(f"{folder}/", "")
    return text


def read_cells(folder: Path) -> dict[str, Result]:
    """Every finished cell by name."""
    files = sorted(folder.glob("*-seed*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


def markdown(cells: dict[str, Result]) -> str:
    """All tables."""
    begun = {key.split("-")[0] for key in cells if "-full-" in key}
    parts = [long_term(task, cells) for task in TASKS if task.name in begun]
    scores = {
        task.name: [
            cell["m4"]
            for setting in ("full", *PUBLISHED)
            for cell in seeds_of(cells, task.name, task.horizons[0], setting)
        ]
        for task in M4
    }
    parts += [m4.table(scores)] if any(scores.values()) else []
    parts.append(settings_table(cells))
    return "\n\n".join(parts)


def long_term(task: Task, cells: dict[str, Result]) -> str:
    """Test MSE of a data set by horizon, ours beside others'."""
    heads = [*map(str, task.horizons), "mean"]
    rows: dict[str, list[list[float]]] = {
        f"{name}, here": []
        for name in ("Time-LlaMA", "Time-LlaMA's MAE", "linear", "seasonal naive")
    }
    for horizon in task.horizons:
        found = of_setting(cells, task.name, horizon, "full")
        rows["Time-LlaMA, here"].append([one["test"]["mse"] for one in found])
        rows["Time-LlaMA's MAE, here"].append([one["test"]["mae"] for one in found])
        for name, kind in (("linear", "linear"), ("seasonal naive", "seasonal_naive")):
            # It has no seed.
            rows[f"{name}, here"].append([one["baselines"][kind]["mse"] for one in found[:1]])
    found_at = [of_setting(cells, task.name, horizon, FULL_BATCHES) for horizon in task.horizons]
    if any(found_at):
        where = "full batches, here"
        rows[f"Time-LlaMA, {where}"] = [[one["test"]["mse"] for one in at] for at in found_at]
        rows[f"seasonal naive, {where}"] = [
            [one["baselines"]["seasonal_naive"]["mse"] for one in at[:1]] for at in found_at
        ]
    for setting, name in PUBLISHED.items():
        found_at = [of_setting(cells, task.name, horizon, setting) for horizon in task.horizons]
        if any(found_at):
            rows[f"{name}, trained here"] = [[one["test"]["mse"] for one in at] for at in found_at]
    lines = [f"| {task.name}, test MSE | " + " | ".join(heads) + " |", "|---" * 6 + "|"]
    for name, values in rows.items():
        lines.append(f"| {name} | " + " | ".join([*map(spread, values), mean_of(values)]) + " |")
    for name, printed in task.published.items():
        texts = [f"{one:.3f}" for one in (*printed, statistics.mean(printed))]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)


def settings_table(cells: dict[str, Result]) -> str:
    """Few-shot and ablations: validation and test MSE and MAE of each."""
    lines = [
        "| cell | validation MSE | test MSE | test MAE | linear's test MSE |",
        "|---" * 5 + "|",
    ]
    for name, horizon in dict.fromkeys((*ABLATED, *FEW_SHOT)):
        for setting in SETTINGS | ABLATIONS:
            found = of_setting(cells, name, horizon, setting)
            if found:
                columns = [
                    [one["validation"]["mse"] for one in found],
                    [one["test"]["mse"] for one in found],
                    [one["test"]["mae"] for one in found],
                    [one["baselines"]["linear"]["mse"] for one in found[:1]],
                ]
                lines.append(
                    f"| {name}-{horizon}, {setting} | " + " | ".join(map(spread, columns)) + " |"
                )
    return "\n".join(lines)


def of_setting(cells: dict[str, Result], name: str, horizon: int, setting: str) -> list[Result]:
    """The metrics of every seed of a setting."""
    return [cell["metrics"] for cell in seeds_of(cells, name, horizon, setting)]


def seeds_of(cells: dict[str, Result], name: str, horizon: int, setting: str) -> list[Result]:
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
    if not all(columns):
        return ""
    return f"{statistics.mean(map(statistics.mean, columns)):.4f}"


if __name__ == "__main__":
    main()
