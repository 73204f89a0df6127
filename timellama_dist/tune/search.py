"""Searches a space of configurations with Ray Tune: checks, trials, what was found.

python ray_jobs/tune.py --search ray_jobs/configs/searches/small.yaml
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timellama_dist.config.load import (
    config_from_flat,
    dump_config,
    dump_settings,
    load_begun,
    load_config,
    load_run,
    load_settings,
)
from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import ConfigError, InterruptedRunError
from timellama_dist.tune.settings import SearchConfig

if TYPE_CHECKING:
    from timellama_dist.tune.space import Space

DESCRIPTION = """Search configurations of Time-LlaMA with Ray Tune.

  --search FILE   a YAML file: which keys of a run are explored, and how; see
                  ray_jobs/configs/searches/. All other keys hold for every trial:"""

SEARCH, BASE = "search.yaml", "config.yaml"


@dataclass(frozen=True)
class Found:
    """A finished search."""

    run_dir: Path
    results: dict[str, Any]
    """As `search.json` has it."""


def read_arguments(
    argv: Sequence[str], default_search: Path | None = None
) -> tuple[SearchConfig, RunConfig]:
    """The search and the configuration it begins from; a resumed one is what it was begun with.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of bounds, named by its key; there
            is no search to resume, or it was begun with others.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--search", type=Path)
    said, rest = parser.parse_known_args(argv)
    names: dict[str, str] = {"prog": "tune.py", "description": DESCRIPTION}
    run = load_run(rest, **names)
    if not run.resume:
        base = load_config(rest, **names)
        file = said.search or default_search
        if file is None:
            raise ConfigError("--search must name a YAML file, see ray_jobs/configs/searches/")
        return load_search(file), base
    run_dir = Path(str(run.dir)).expanduser().resolve()
    if not (run_dir / SEARCH).is_file():
        raise ConfigError(f"run.resume: {run_dir / SEARCH} does not exist: there is no search here")
    search = load_search(run_dir / SEARCH)
    if said.search is not None and load_search(said.search) != search:
        raise ConfigError(
            f"--search cannot be changed in a resumed search: {said.search} differs from "
            f"{run_dir / SEARCH}; leave it out, or begin another search"
        )
    begun = load_begun(str(run_dir / BASE), [], **names)
    resumed = load_begun(str(run_dir / BASE), rest, **names)
    if replace(resumed, run=begun.run) != begun:
        raise ConfigError(
            "run.resume: a search goes on with the configuration it was begun with; give no other "
            "keys, or begin another search"
        )
    return search, resumed


def load_search(file: Path) -> SearchConfig:
    """Read a search file.

    Raises:
        ConfigError: it can't be used; the message names the file and the key.
    """
    if not file.is_file():
        raise ConfigError(f"--search must name a YAML file, there is no {file}")
    try:
        return load_settings(SearchConfig, ["--config", str(file)], prog="tune.py", description="")
    except ConfigError as error:
        raise ConfigError(f"{file.name}: {error}") from error


def search(search: SearchConfig, base: RunConfig) -> Found:
    """Run a whole search, from the checks to its results.

    Raises:
        ConfigError: the search, or none of its trials, can be run.
        DataError: the data can't be used.
        InterruptedRunError: the user pressed Ctrl-C; the search can go on.
    """
    from timellama_dist.cluster import connected
    from timellama_dist.report.search import judged
    from timellama_dist.train.describe import describe
    from timellama_dist.train.driver import absolute_paths, plan_with_dir

    begun = absolute_paths(base)
    base = config_from_flat(search.fixed, begun)
    run_dir, plan = plan_with_dir(_longest(search, base), "search-")
    # After that: Ray Tune takes seconds, for which a mistake shall not wait.
    from timellama_dist.tune.space import Space
    from timellama_dist.tune.tuning import fit_cluster, make_tuner, run_tuner
    from timellama_dist.tune.watcher import RESULTS

    planned = plan.config
    if "data.context_len" in search.distributions:
        planned = config_from_flat({"data.context_len": base.data.context_len}, planned)
    space = Space(
        search=search,
        base=planned,
        num_channels=max(one.num_channels for one in plan.sets),
    )
    note = space.check()
    print(describe(plan), flush=True)
    if note is not None:
        print(f"note: {note}", flush=True)
    with connected():
        space, concurrent = fit_cluster(space)
        print(
            f"up to {search.most_trials} trials ({search.searcher}, {search.scheduler}), "
            f"{concurrent} at the same time, in {run_dir}",
            flush=True,
        )
        run_dir.mkdir(parents=True, exist_ok=True)
        # What the user gave, before the space's plain values: a resumed search reads both again.
        dump_config(begun, run_dir / BASE)
        dump_settings(search, run_dir / SEARCH)
        stopped = run_tuner(make_tuner(space, plan, run_dir, concurrent))
    results = json.loads((run_dir / RESULTS).read_text(encoding="utf-8"))
    _write_results(space, run_dir, results)
    if stopped:
        raise InterruptedRunError(f"stopped; go on with: {_how_on(run_dir)}")
    if not judged(results["trials"]):
        raise RuntimeError(
            f"no trial was measured, see {run_dir / RESULTS}; try again: {_how_on(run_dir)}"
        )
    return Found(run_dir, results)


def _longest(search: SearchConfig, base: RunConfig) -> RunConfig:
    """With the longest context that is searched: data that have its windows have all others'."""
    searched = search.distributions.get("data.context_len")
    if searched is None:
        return base
    return config_from_flat({"data.context_len": max(searched.extremes)}, base)


def _write_results(space: "Space", run_dir: Path, results: dict[str, Any]) -> None:
    """summary.md, pareto.png and best.yaml, of what there is."""
    from timellama_dist.report.search import best_trial, plot_search, summary

    (run_dir / "summary.md").write_text(summary(results), encoding="utf-8")
    best = best_trial(results["trials"])
    if best is not None:
        plot_search(results, run_dir / "pareto.png")
        found = config_from_flat(best["keys"], space.base)
        # A run of its own, wherever the search was.
        dump_config(found, run_dir / "best.yaml", leave_out=["run"])


def _how_on(run_dir: Path) -> str:
    return f"python ray_jobs/tune.py --run.dir {run_dir} --run.resume"


def main(argv: Sequence[str], default_search: Path | None = None) -> int:
    """The command `ray_jobs/tune.py`; returns its exit code."""
    from timellama_dist.console.exit_codes import run_command

    return run_command(lambda: _command(argv, default_search))


def _command(argv: Sequence[str], default_search: Path | None) -> None:
    from timellama_dist.report.search import best_lines

    found = search(*read_arguments(argv, default_search))
    print()
    print(best_lines(found.results))
    print()
    for title, name in (
        ("all trials", "summary.md"),
        ("picture", "pareto.png"),
        ("best", "best.yaml"),
    ):
        print(f"{title:<12}{found.run_dir / name}")
    print(f"train it with: python ray_jobs/train.py --config {found.run_dir / 'best.yaml'}")
