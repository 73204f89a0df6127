"""Seconds of a trial of a search beside the same run without Ray Tune.

    python -m benchmarks.search

The same configurations (`train.seed` counts up), one after the other, each way in a Ray session:
by `build_trainer(...).fit()` in this process, and as the trials of a grid. Ray's start counts for
neither; the processes of the workers start anew in both.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import spread
from timellama_dist.config.load import load_config
from timellama_dist.config.schema import RunConfig
from timellama_dist.config.search import SearchConfig
from timellama_dist.launch.cluster import connected
from timellama_dist.launch.search import search
from timellama_dist.launch.train import build_trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--trials", type=int, default=3)
    said, rest = parser.parse_known_args()
    words = ["--train.max_steps", "100", "--train.validate_every", "50", *rest]
    config = load_config(words, prog="benchmarks.search", description="")
    with tempfile.TemporaryDirectory() as scratch:
        with connected():
            alone = [_alone(config, seed, Path(scratch)) for seed in range(said.trials)]
        # The first begins with the second's data and trainer imported.
        print(f"without Ray Tune, seconds a run: {spread(alone[1:])}; the first {alone[0]:.1f}")
        with connected():
            trials, whole = _searched(config, said.trials, Path(scratch))
        print(f"as a trial, seconds: {spread(trials[1:])}; the first {trials[0]:.1f}")
        print(f"the whole search, by trial: {whole / said.trials:.1f}")
        ratio = sum(trials[1:]) / sum(alone[1:])
    print(f"a trial, until its last report / the whole run: {ratio:.3f}")


def _alone(config: RunConfig, seed: int, scratch: Path) -> float:
    run = replace(config.run, dir=str(scratch / f"alone-{seed}"))
    config = replace(config, run=run, train=replace(config.train, seed=seed))
    started = time.perf_counter()
    build_trainer(config, test=False).fit()
    return time.perf_counter() - started


def _searched(config: RunConfig, count: int, scratch: Path) -> tuple[list[float], float]:
    """Seconds of each trial until its last report, and of the whole search."""
    seeds = {"train.seed": {"choice": list(range(count))}}
    said = SearchConfig(
        space=seeds, searcher="grid", scheduler="none", include_base=False, max_concurrent=1
    )
    run = replace(config.run, dir=str(scratch / "search"))
    started = time.perf_counter()
    found = search(said, replace(config, run=run))
    whole = time.perf_counter() - started
    return [one["seconds"] for one in found.results["trials"]], whole


if __name__ == "__main__":
    main()
