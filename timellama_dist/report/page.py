"""A run's report: one HTML file with everything in it, and a page that compares runs."""

import base64
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from timellama_dist.errors import DataError
from timellama_dist.report.plots import (
    plot_errors,
    plot_forecasts,
    plot_load,
    plot_losses,
    plot_routers,
)

REPORT = "report.html"

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title><style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em;
  color: #222; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse } th, td { padding: .2em .9em; text-align: right }
th:first-child, td:first-child { text-align: left } tr:nth-child(even) td { background: #f6f6f6 }
img { max-width: 100% } pre { background: #f6f6f6; padding: 1em; overflow-x: auto; font-size: 12px }
</style></head><body><h1>$title</h1>
$body
</body></html>
""")


@dataclass(frozen=True, kw_only=True)
class ShownSet:
    """A data set as the report shows it, beside what the run's files hold."""

    name: str
    channels: Sequence[str]
    examples: Mapping[str, np.ndarray]
    """See `plot_forecasts`."""
    radii: Mapping[float, np.ndarray]
    """Half the widths of intervals by level in percent, shape (H, C), z-scored."""


@dataclass(frozen=True)
class RunFiles:
    """The files of a finished run."""

    name: str
    config: str
    metrics: dict[str, Any]
    history: list[dict[str, Any]]
    """One record of a kind and step, in the order of steps."""

    @classmethod
    def read(cls, run_dir: Path) -> "RunFiles":
        """Read a run directory.

        Raises:
            DataError: it isn't that of a finished run.
        """
        try:
            config = (run_dir / "config.yaml").read_text(encoding="utf-8")
            metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
            lines = (run_dir / "history.jsonl").read_text(encoding="utf-8").splitlines()
            history = _last_of_each([json.loads(line) for line in lines])
            return cls(run_dir.resolve().name, config, metrics, history)
        except (OSError, ValueError) as error:
            raise DataError(f"{run_dir} is not the directory of a finished run: {error}") from error

    def routers(self, dataset: str) -> list[tuple[int, dict[str, Any]]]:
        """List what the routers chose at each validation, with its step."""
        validations = [
            (record["step"], record.get("detail", {}).get(dataset, {}).get("routers"))
            for record in self.history
            if record["kind"] == "validation"
        ]
        return [(step, routers) for step, routers in validations if routers]


def _last_of_each(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep the last record of each kind and step: a resumed run made some steps twice."""
    last = {(record["kind"], record["step"]): record for record in history}
    return sorted(last.values(), key=lambda record: record["step"])


def write_report(run_dir: Path, sets: Sequence[ShownSet], modules: Sequence[str]) -> Path:
    """Write `report.html` of a finished run into its directory.

    Args:
        run_dir: the run.
        sets: its data sets.
        modules: names of a block's adapted linears, in the routers' order.

    Raises:
        DataError: the run directory lacks a file.
    """
    run = RunFiles.read(run_dir)
    parts = [
        _heading("Test part, z-scored", _results(run.metrics)),
        _heading("Losses", _picture(partial(plot_losses, run.history))),
        *(part for shown in sets for part in _of_set(run, shown, modules)),
        _heading("Time and memory", _costs(run.metrics)),
        _heading("Configuration", f"<pre>{html.escape(run.config)}</pre>"),
        _heading("Versions", _table([("", "version"), *run.metrics["versions"].items()])),
    ]
    path = run_dir / REPORT
    path.write_text(_page(run.name, parts), encoding="utf-8")
    return path


def write_comparison(runs: Sequence[RunFiles], path: Path) -> None:
    """Write a page with the results and losses of several runs, one below the other."""
    parts = [_heading("Test part, z-scored", _table(comparison_rows(runs)))]
    for run in runs:
        picture = _picture(partial(plot_losses, run.history))
        parts.append(_heading(run.name, picture))
        parts += [
            _heading(
                f"{run.name}, {name}: routers over time",
                _picture(partial(plot_load, run.routers(name))),
            )
            for name in run.metrics["by_dataset"]
            if run.routers(name)
        ]
    path.write_text(_page("Comparison of runs", parts), encoding="utf-8")


def comparison_rows(runs: Sequence[RunFiles]) -> list[tuple[str, ...]]:
    """Make a row for each run, below a row of titles."""
    names = ("run", "MSE", "MAE", "linear MSE", "naive MSE", "steps", "seconds", "trained")
    rows: list[tuple[str, ...]] = [names]
    for run in runs:
        metrics, test = run.metrics, run.metrics["test"]
        baselines = (metrics["baselines"][kind]["mse"] for kind in ("linear", "seasonal_naive"))
        figures = [f"{figure:.4f}" for figure in (test["mse"], test["mae"], *baselines)]
        seconds = f"{metrics['train']['seconds']:.0f}"
        trained = str(metrics["parameters"]["trainable"])
        rows.append((run.name, *figures, str(metrics["train"]["steps"]), seconds, trained))
    return rows


def _of_set(run: RunFiles, shown: ShownSet, modules: Sequence[str]) -> list[str]:
    name, result = shown.name, run.metrics["by_dataset"][shown.name]
    intervals = " and ".join(f"{level:g} %" for level in shown.radii)
    title = f"{name}: z-scored, test MSE {result['test']['mse']:.4f}"
    parts = [
        _heading(
            f"{name}: forecasts" + (f", intervals of {intervals}" if intervals else ""),
            _picture(
                lambda file: plot_forecasts(
                    shown.examples, shown.channels, file, title=title, radii=shown.radii
                )
            ),
        ),
        _heading(
            f"{name}: errors",
            _picture(partial(plot_errors, result["detail"], shown.channels)),
        ),
    ]
    if routers := result["detail"]["routers"]:
        parts.append(
            _heading(
                f"{name}: experts chosen on the test part",
                _picture(partial(plot_routers, routers, modules)),
            )
        )
    if over_time := run.routers(name):
        parts.append(
            _heading(
                f"{name}: experts chosen at each validation",
                _picture(partial(plot_load, over_time)),
            )
        )
    return parts


def _results(metrics: Mapping[str, Any]) -> str:
    rows: list[Sequence[Any]] = [("", "MSE", "MAE")]
    models = {"Time-LlaMA (this run)": metrics["test"], **metrics["baselines"]}
    if len(metrics["by_dataset"]) > 1:
        models |= {
            f"this run on {name}": errors["test"] for name, errors in metrics["by_dataset"].items()
        }
    for name, errors in models.items():
        rows.append((name.replace("_", " "), f"{errors['mse']:.4f}", f"{errors['mae']:.4f}"))
    return _table(rows)


def _costs(metrics: Mapping[str, Any]) -> str:
    train, memory = metrics["train"], metrics["memory"]
    # Of a start that found the run at its end no saving is known.
    rate, saving = train["windows_per_s"], metrics["checkpoints"]["seconds"]
    rows: list[Sequence[Any]] = [
        ("", ""),
        ("training", f"{train['seconds']:.1f} s, {train['steps']} steps"),
        ("windows per second", "-" if rate is None else f"{rate:.0f}"),
        ("saving a checkpoint", "-" if saving is None else f"{saving:.1f} s"),
        ("workers, ZeRO stage", f"{metrics['world_size']}, {metrics['zero_stage']}"),
        ("frozen backbone, unsharded", _mib(memory["frozen_bytes_unsharded"])),
    ]
    for rank, held in enumerate(memory["frozen_bytes_per_rank"]):
        peak = memory["peak_rss_bytes_per_rank"][rank]
        rows.append((f"rank {rank}: frozen, peak of all", f"{_mib(held)}, {_mib(peak)}"))
    counts = metrics["parameters"]
    rows += [(f"parameters, {kind}", str(count)) for kind, count in counts.items()]
    return _table(rows)


def _mib(size: float) -> str:
    return f"{size / 2**20:.1f} MiB"


def _page(title: str, parts: Sequence[str]) -> str:
    return _PAGE.substitute(title=html.escape(title), body="\n".join(parts))


def _heading(title: str, body: str) -> str:
    return f"<h2>{html.escape(title)}</h2>\n{body}"


def _table(rows: Sequence[Sequence[Any]]) -> str:
    head, *body = ([html.escape(str(cell)) for cell in row] for row in rows)
    lines = ["<tr>" + "".join(f"<th>{cell}</th>" for cell in head) + "</tr>"]
    lines += ["<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in body]
    return "<table>" + "\n".join(lines) + "</table>"


def _picture(draw: Callable[[Any], None]) -> str:
    file = io.BytesIO()
    draw(file)
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
