"""Seconds of a trial of a search beside the same run without Ray Tune.

    python -m benchmarks.search

The same configurations (`train.seed` counts up) over data that were prepared before, one after the
other, each way in a Ray session: by `build_trainer(...).fit()` in this process, and as the trials
of a grid. Seconds are from one to the next, so that a trial's start and end count, and what happens
once a session doesn't; the processes of the workers start anew in both.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import plain_words, spread
from timellama_dist.cluster import connected
from timellama_dist.config.load import load_config
from timellama_dist.config.schema import RunConfig
from timellama_dist.train.driver import build_trainer
from timellama_dist.tune.search import search
from timellama_dist.tune.settings import SearchConfig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--trials", type=int, default=3)
    said, rest = parser.parse_known_args()
    words = [*plain_words(), "--train.max_steps", "100", "--train.validate_every", "50", *rest]
    config = load_config(words, prog="benchmarks.search", description="")
    with tempfile.TemporaryDirectory() as scratch:
        with connected():
            # The first prepares the data, and imports what all of them need.
            _alone(config, 0, Path(scratch))
            data = replace(config.data, path=str(Path(scratch) / "alone-0" / "data"))
            config = replace(config, data=data)
            alone = [_alone(config, seed, Path(scratch)) for seed in range(1, said.trials + 1)]
        print(f"without Ray Tune, seconds a run: {spread(alone)}", flush=True)
        with connected():
            one, more = (_searched(config, n, Path(scratch)) for n in (1, said.trials + 1))
        print(f"a search of 1 trial {one:.1f} s, of {said.trials + 1} {more:.1f} s")
    trial = (more - one) / said.trials
    print(f"a trial: {trial:.1f} s, {trial / statistics.mean(alone):.3f} of a run without Ray Tune")


def _alone(config: RunConfig, seed: int, scratch: Path) -> float:
    run = replace(config.run, dir=str(scratch / f"alone-{seed}"))
    config = replace(config, run=run, train=replace(config.train, seed=seed))
    started = time.perf_counter()
    build_trainer(config, test=False).fit()
    return time.perf_counter() - started


def _searched(config: RunConfig, count: int, scratch: Path) -> float:
    """Seconds of a whole search."""
    seeds = {"train.seed": {"choice": list(range(count))}}
    said = SearchConfig(
        space=seeds, searcher="grid", scheduler="none", include_base=False, max_concurrent=1
    )
    run = replace(config.run, dir=str(scratch / f"search-{count}"))
    started = time.perf_counter()
    search(said, replace(config, run=run))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
