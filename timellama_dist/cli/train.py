"""`timellama train`: trains one run and says what to do with its model."""

import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from timellama_dist.cli.opening import opening
from timellama_dist.config.load import load_begun, load_config, load_run
from timellama_dist.config.schema import RunConfig
from timellama_dist.console.exit_codes import run_command
from timellama_dist.data.prepared.manifest import MANIFEST_NAME
from timellama_dist.program import command_line, program
from timellama_dist.recipes import with_paths
from timellama_dist.report.table import memory_line, results_table
from timellama_dist.storage import copy_tree, open_place

if TYPE_CHECKING:
    from timellama_dist.train.execution import Outcome

EXAMPLES = (
    "",
    "--data.path my_table.csv --data.horizon 24",
    "--config etth1 --data.path ETTh1.csv --run.dir runs/first",
)
MORE = """\
Without arguments: the public data set epf (hourly electricity markets, 6 channels) with 2 blocks of
SmolLM2-135M in 4 bits, on 2 workers with ZeRO-3. --config takes a YAML file or a packaged recipe,
--deepspeed a JSON file or a packaged policy; the command `recipes` lists both."""


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: _train(argv))


def _train(argv: Sequence[str]) -> None:
    config = read_arguments(argv)
    # Not at the top: `--help` and a mistake in a key shall not wait for pandas.
    from timellama_dist.train.driver import train

    print(f"\n{describe(train(config), config)}")


def read_arguments(argv: Sequence[str]) -> RunConfig:
    """The run's configuration; a resumed run starts from what it was begun with.

    Raises:
        ConfigError: see `load_config`; or there is no run to resume.
        DataError: the run's storage refuses.
    """
    words = with_paths(argv)
    sentence = "Train Time-LlaMA on a table of time series."
    names: dict[str, str] = {
        "prog": program("train"),
        "description": opening(sentence, "train", EXAMPLES, MORE),
    }
    run = load_run(words, **names)
    if not run.resume:
        return load_config(words, **names)
    # torch takes a second, for which `--help` and a mistake shall not wait.
    from timellama_dist.train.checks import absolute_paths
    from timellama_dist.train.resume import check_resumed
    from timellama_dist.train.run_directory import begun_config

    begun = begun_config(RunConfig(run=run))
    with tempfile.TemporaryDirectory() as scratch:
        here = open_place(scratch) / begun.name
        copy_tree(begun, here)
        first, resumed = (
            absolute_paths(load_begun(here.path, more, **names)) for more in ([], words)
        )
        check_resumed(first, resumed)
        return resumed


def describe(outcome: "Outcome", config: RunConfig) -> str:
    """What a finished run prints: its results, its files, and the commands that use its model."""
    run_dir, metrics = outcome.run_dir, outcome.metrics
    lines = [
        results_table(metrics),
        "",
        memory_line(metrics),
        f"exported model  {run_dir / 'model'}",
        f"metrics         {run_dir / 'metrics.json'}",
        f"forecasts       {run_dir / 'forecasts.png'}",
        f"report          {run_dir / 'report.html'}",
    ]
    if outcome.copy is not None:
        lines.append(f"copied to       {outcome.copy}")
    return "\n".join([*lines, "", *next_commands(outcome, config)])


def next_commands(outcome: "Outcome", config: RunConfig) -> list[str]:
    """The commands that use a finished run's model, a line each."""
    names = list(outcome.metrics["by_dataset"])
    of_one = ["--dataset", names[0]] if len(names) > 1 else []
    words = ["--model", outcome.run_dir / "model"]
    table = ["--input", _first_data(outcome, config, names[0])]
    output = ["--output", outcome.run_dir / "forecasts"]
    return [
        f"forecast        {command_line('forecast', *words, *of_one, *table, *output)}",
        f"evaluate        {command_line('evaluate', *words)}",
        f"serve           {command_line('serve', *words)}",
    ]


def _first_data(outcome: "Outcome", config: RunConfig, name: str) -> str:
    """The user's first table or prepared data set; for a public one what the run made of it."""
    path = config.data.parts[0].path
    made = outcome.run_dir / "data" / ("" if config.data.mixture is None else name)
    if not open_place(path).exists() and (made / MANIFEST_NAME).is_file():
        return str(made)
    return path
