"""Searches a space of configurations with Ray Tune: checks, trials, results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timellama_dist.cluster import connected
from timellama_dist.config.load import (
    config_from_flat,
    dump_config,
    dump_settings,
)
from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import InterruptedRunError
from timellama_dist.program import command_line
from timellama_dist.report.search import best_trial, judged, plot_search, summary
from timellama_dist.train.checks import absolute_paths, plan_in_directory
from timellama_dist.train.describe import describe
from timellama_dist.tune.files import BASE, SEARCH
from timellama_dist.tune.settings import SearchConfig

if TYPE_CHECKING:
    from timellama_dist.tune.space import Space


@dataclass(frozen=True)
class SearchOutcome:
    """A finished search."""

    run_dir: Path
    results: dict[str, Any]
    """As `search.json` has it."""


def search(search: SearchConfig, base: RunConfig) -> SearchOutcome:
    """Run a whole search, from the checks to its results.

    Raises:
        ConfigError: the search, or none of its trials, can be run.
        DataError: the data can't be used.
        InterruptedRunError: the user pressed Ctrl-C; the search can go on.
    """
    begun = absolute_paths(base)
    base = config_from_flat(search.fixed, begun)
    plan = plan_in_directory(_longest(search, base), "search-")
    run_dir = plan.run_dir
    # Not at the top: Ray Tune takes seconds, for which a mistake shall not wait.
    from timellama_dist.tune.space import Space
    from timellama_dist.tune.tuning import fit_cluster, make_tuner, run_tuner
    from timellama_dist.tune.watcher import RESULTS

    planned = plan.config
    if "data.context_len" in search.distributions:
        planned = config_from_flat({"data.context_len": base.data.context_len}, planned)
    space = Space(
        search=search,
        base=planned,
        num_channels=max(dataset.num_channels for dataset in plan.sets),
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
        raise InterruptedRunError(f"stopped; go on with: {_resume_command(run_dir)}")
    if not judged(results["trials"]):
        raise RuntimeError(
            f"no trial was measured, see {run_dir / RESULTS}; try again: {_resume_command(run_dir)}"
        )
    return SearchOutcome(run_dir, results)


def _longest(search: SearchConfig, base: RunConfig) -> RunConfig:
    """With the longest context that is searched: data that have its windows have all others'."""
    searched = search.distributions.get("data.context_len")
    if searched is None:
        return base
    return config_from_flat({"data.context_len": max(searched.extremes)}, base)


def _write_results(space: "Space", run_dir: Path, results: dict[str, Any]) -> None:
    """summary.md, pareto.png and best.yaml, of what there is."""
    (run_dir / "summary.md").write_text(summary(results), encoding="utf-8")
    best = best_trial(results["trials"])
    if best is not None:
        plot_search(results, run_dir / "pareto.png")
        config = config_from_flat(best["keys"], space.base)
        # A run of its own, wherever the search was.
        dump_config(config, run_dir / "best.yaml", leave_out=["run"])


def _resume_command(run_dir: Path) -> str:
    return command_line("tune", "--run.dir", run_dir, "--run.resume")
