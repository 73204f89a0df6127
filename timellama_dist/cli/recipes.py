"""`timellama recipes`: lists the configurations that the package holds, or prints one."""

import sys
from collections.abc import Sequence

from timellama_dist.cli.opening import opening
from timellama_dist.console.exit_codes import run_command
from timellama_dist.errors import ConfigError
from timellama_dist.program import program
from timellama_dist.recipes import POLICIES, RECIPES, SEARCHES, Shelf, summary

EXAMPLES = ("", "etth1", "generic > my_recipe.yaml")
MORE = "A recipe's name is taken by --config, a search's by --search, a policy's by --deepspeed."


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: _recipes(argv))


def _recipes(argv: Sequence[str]) -> None:
    if {"-h", "--help"} & set(argv):
        sentence = "List the packaged recipes, searches and DeepSpeed policies, or print one."
        print(f"usage: {program('recipes')} [NAME]\n")
        print(opening(sentence, "recipes", EXAMPLES, MORE))
    elif len(argv) > 1:
        raise ConfigError(f"recipes takes one name, got {' '.join(argv)}")
    elif argv:
        sys.stdout.write(read(argv[0]))
    else:
        print(table())


def read(name: str) -> str:
    """The text of a packaged file.

    Raises:
        ConfigError: nothing packaged has that name.
    """
    for shelf in (RECIPES, SEARCHES, POLICIES):
        if name in shelf.files:
            return shelf.files[name].read_text(encoding="utf-8")
    return RECIPES.named(name, "recipes").read_text(encoding="utf-8")


def table() -> str:
    """Every packaged file's name with a sentence about it, by kind."""
    lines = [*_rows("recipes, for --config", RECIPES)]
    lines += ["", *_rows("searches, for tune --search", SEARCHES)]
    lines += ["", f"policies, for --deepspeed: {', '.join(POLICIES.files)}"]
    return "\n".join([*lines, "", f"Print one with: {program('recipes')} NAME"])


def _rows(heading: str, shelf: Shelf) -> list[str]:
    return [heading, *(f"  {name:<12}{summary(file)}" for name, file in shelf.files.items())]
