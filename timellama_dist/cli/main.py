"""The command `timellama`: finds the command that was asked for and hands it the other words.

Only that command's module is imported, so that `timellama --help` doesn't wait for the others.
"""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from timellama_dist import __version__
from timellama_dist.program import program

COMMANDS = {
    "train": "train a model on a table of time series",
    "prepare": "check tables and write them as a prepared data set",
    "tune": "search configurations with Ray Tune",
    "evaluate": "score a model or a baseline over every window",
    "forecast": "forecast every series of a table",
    "serve": "answer forecast requests over HTTP",
    "plan": "estimate memory and time of a run, before it is begun",
    "report": "compare finished runs",
    "recipes": "list or print the packaged configurations",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    Args:
        argv: a command's name and its words; what follows the program's name if not given.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    name, *rest = words
    if name == "--version":
        print(f"timellama {__version__}")
        return 0
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(COMMANDS)}"
        print(f"error: unknown command {name}; {hint}", file=sys.stderr)
        return 2
    exit_code: int = import_module(f"timellama_dist.cli.{name}").main(rest)
    return exit_code


def overview() -> str:
    """What `timellama --help` prints: what it is, its commands, three examples."""
    run = program("").rstrip()
    rows = [f"  {name:<10}{line}" for name, line in COMMANDS.items()]
    examples = (
        "train --data.path my_table.csv --data.horizon 24",
        "forecast --model RUN/model --input my_table.csv --output forecasts",
        "train --config etth1 --data.path ETTh1.csv",
    )
    return "\n".join(
        [
            f"usage: {run} COMMAND [--key value]...",
            "",
            "Time-LlaMA: forecasts time series with a frozen LLaMA and D-LoRA experts, trained on",
            "Ray and DeepSpeed.",
            "",
            *rows,
            "",
            *(f"  {run} {words}" for words in examples),
            "",
            f"{run} COMMAND --help lists a command's keys; {run} --version.",
        ]
    )
