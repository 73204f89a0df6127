"""`timellama tune`: searches configurations of a run."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from timellama_dist.cli.opening import opening
from timellama_dist.config.load import load_begun, load_config, load_run
from timellama_dist.config.schema import RunConfig
from timellama_dist.console.exit_codes import run_command
from timellama_dist.errors import ConfigError
from timellama_dist.program import command_line, program
from timellama_dist.recipes import SEARCHES, with_paths
from timellama_dist.tune.files import BASE, SEARCH, load_search
from timellama_dist.tune.settings import SearchConfig

if TYPE_CHECKING:
    from timellama_dist.tune.search import SearchOutcome

DEFAULT_SEARCH = "small"
EXAMPLES = (
    "",
    "--search pareto --data.path my_table.csv --run.dir searches/first",
    "--search my_search.yaml --config etth1 --data.path ETTh1.csv",
)
MORE = """\
  --search NAME   a YAML file, or a packaged search (small if not given): which keys of a run
                  are explored, and how. All other keys hold for every trial:"""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: _tune(argv))


def _tune(argv: Sequence[str]) -> None:
    settings = read_arguments(argv)
    # Not at the top: `--help` and a mistake in a key shall not wait for pandas and matplotlib.
    from timellama_dist.tune.search import search

    print(f"\n{describe(search(*settings))}")


def describe(finished: "SearchOutcome") -> str:
    """What a finished search prints: its best trial, its files, and how to train what it found."""
    from timellama_dist.report.search import best_lines

    run_dir = finished.run_dir
    return "\n".join(
        [
            best_lines(finished.results),
            "",
            f"all trials  {run_dir / 'summary.md'}",
            f"picture     {run_dir / 'pareto.png'}",
            f"best        {run_dir / 'best.yaml'}",
            f"train it with: {command_line('train', '--config', run_dir / 'best.yaml')}",
        ]
    )


def read_arguments(argv: Sequence[str]) -> tuple[SearchConfig, RunConfig]:
    """The search and the configuration it begins from; a resumed one is what it was begun with.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of bounds, named by its key; there
            is no search to resume, or it was begun with others.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--search", type=Path)
    arguments, words = parser.parse_known_args(with_paths(argv))
    sentence = "Search configurations of Time-LlaMA with Ray Tune."
    names: dict[str, str] = {
        "prog": program("tune"),
        "description": opening(sentence, "tune", EXAMPLES, MORE),
    }
    run = load_run(words, **names)
    if not run.resume:
        base = load_config(words, **names)
        return load_search(arguments.search or SEARCHES.files[DEFAULT_SEARCH]), base
    run_dir = Path(str(run.dir)).expanduser().resolve()
    if not (run_dir / SEARCH).is_file():
        raise ConfigError(f"run.resume: {run_dir / SEARCH} does not exist: there is no search here")
    begun_search = load_search(run_dir / SEARCH)
    if arguments.search is not None and load_search(arguments.search) != begun_search:
        raise ConfigError(
            f"--search cannot be changed in a resumed search: {arguments.search} differs from "
            f"{run_dir / SEARCH}; leave it out, or begin another search"
        )
    begun = load_begun(str(run_dir / BASE), [], **names)
    resumed = load_begun(str(run_dir / BASE), words, **names)
    if replace(resumed, run=begun.run) != begun:
        raise ConfigError(
            "run.resume: a search goes on with the configuration it was begun with; give no other "
            "keys, or begin another search"
        )
    return begun_search, resumed
