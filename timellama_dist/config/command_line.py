"""The words of a command line -> keys and values in their order; what they mean is another's."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from timellama_dist.config.keys import (
    hints_of,
    is_switch,
    is_text,
    iterate_keys,
    may_be_null,
    section_of,
    unknown_key,
)
from timellama_dist.errors import ConfigError

CONFIG, PRINT_CONFIG = "config", "print_config"


class _Keep(argparse.Action):
    """Keeps keys and values in the order in which they were given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.given.append((self.dest, values))


class _Parser(argparse.ArgumentParser):
    """Refuses by an exception, and gives the help that the schema is good for."""

    def __init__(self, prog: str, description: str, schema: type) -> None:
        super().__init__(prog=prog, allow_abbrev=False, exit_on_error=False)
        self._text, self._schema = description, schema

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)

    def format_help(self) -> str:
        # Reads the schema's source.
        from timellama_dist.config.reference import help_text

        return help_text(self._schema, self.prog, self._text)


def build_parser(prog: str, description: str, schema: type) -> argparse.ArgumentParser:
    """Make a parser with one option for each dotted key of a schema, and `--config`."""
    parser = _Parser(prog, description, schema)
    parser.add_argument(f"--{CONFIG}", action=_Keep)
    parser.add_argument(f"--{PRINT_CONFIG}", action=_Keep, nargs=0)
    for name, hint in hints_of(schema).items():
        if section_of(hint) is not None:
            parser.add_argument(f"--{name}", action=_Keep)
    for key, hint in iterate_keys(schema):
        switch: dict[str, Any] = {"nargs": "?", "const": True} if is_switch(hint) else {}
        parser.add_argument(f"--{key}", dest=key, action=_Keep, **switch)
    return parser


def read_words(
    argv: Sequence[str], schema: type, *, prog: str, description: str
) -> list[tuple[str, Any]]:
    """Keys and values of a command line, in its order; `--help` prints and exits.

    Args:
        argv: the words after the program's name.
        schema: frozen dataclass with the keys.
        prog: what help and errors call the program.
        description: the first lines of the help.

    Returns:
        Texts by their keys, "config" with a file's name among them; None for null.

    Raises:
        ConfigError: an unknown key, a key without a value, or a word that belongs to none.
    """
    hints = dict(iterate_keys(schema))
    parser = build_parser(prog, description, schema)
    kept = argparse.Namespace(given=[])
    try:
        _, rest = parser.parse_known_args(argv, kept)
    except argparse.ArgumentError as error:
        key = str(error.argument_name).removeprefix("--")
        if key in hints or key == CONFIG:
            raise ConfigError(key=key, must="be given a value") from error
        raise ConfigError(str(error)) from error
    if rest:
        word = rest[0]
        if word.startswith("--") and len(word) > 2:
            raise unknown_key(word[2:].partition("=")[0], schema)
        raise ConfigError(
            f"unrecognized arguments: {' '.join(rest)}; keys are given as --KEY VALUE"
        )
    return [(key, _value(value, hints.get(key))) for key, value in kept.given]


def _value(text: Any, hint: Any) -> Any:
    """A file can tell null from the text "null"; a command line can't."""
    is_null = text == "null" and is_text(hint) and may_be_null(hint)
    return None if is_null else text
