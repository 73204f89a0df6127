"""YAML files and dotted flags -> RunConfig: the only module that knows jsonargparse."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings

from timellama_dist.config.schema import RunConfig
from timellama_dist.errors import ConfigError

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def build_parser(prog: str, description: str) -> ArgumentParser:
    """A parser whose options are the schema's dotted keys, with `--config` files stacked first."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_argument(
        "--config", action=ActionConfigFile, help="a YAML file of these keys; may be repeated"
    )
    parser.add_class_arguments(RunConfig, nested_key=None)
    return parser


def load_config(argv: Sequence[str], *, prog: str, description: str) -> RunConfig:
    """Read the command line into one configuration; `--help` prints and exits.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of bounds, named by its key.
    """
    parser = build_parser(prog, description)
    return _checked(parser, lambda: parser.parse_args(_spell_out_switches(argv)))


def config_from_flat(values: Mapping[str, Any], base: RunConfig | None = None) -> RunConfig:
    """A configuration with dotted keys changed, as in `{"dlora.rank": 8}`.

    Raises:
        ConfigError: as `load_config`.
    """
    parser = build_parser("config", "")
    merged = (base or RunConfig()).to_dict()
    for key, value in values.items():
        *parents, leaf = key.split(".")
        section = merged
        for parent in parents:
            section = section.setdefault(parent, {})
        section[leaf] = value
    return _checked(parser, lambda: parser.parse_object(merged))


def dump_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration as YAML that `--config` takes back."""
    parser = build_parser("config", "")
    text = parser.dump(parser.parse_object(config.to_dict()), skip_unset=False)
    path.write_text(text, encoding="utf-8")


def _checked(parser: ArgumentParser, parse: Callable[[], Namespace]) -> RunConfig:
    try:
        parsed = parser.instantiate(parse())
    except ConfigError:
        raise
    # jsonargparse raises its own errors, argparse's and whatever a dataclass's check raised.
    except Exception as error:
        raise ConfigError(_plain(str(error))) from error
    names = RunConfig.__dataclass_fields__
    return RunConfig(**{name: getattr(parsed, name) for name in names})


def _plain(message: str) -> str:
    """jsonargparse's message in one line, in the words of this project's other errors."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    if match := re.match(r'Parser key "(.+?)": Expected a (.+?)\. Got value: (.*)', line):
        key, expected, value = match.groups()
        if literal := re.match(r"typing\.Literal\[(.*)\]", expected):
            expected = "one of " + literal.group(1)
        expected = re.sub(r"<class '(\w+)'>", r"\1", expected)
        return f"{key} must be {expected}, got {value}"
    if match := re.match(r"Group '(.+?)' does not accept option '(.+?)'", line):
        return _unknown(".".join(match.groups()))
    if match := re.match(r"unrecognized arguments: --([\w.]+)", line):
        return _unknown(match.group(1))
    return re.sub(r'^Parser key "(.+?)": ', r"\1: ", line)


def _unknown(key: str) -> str:
    near = get_close_matches(key, _keys(RunConfig()), n=1)
    return f"unknown key {key}" + (f"; did you mean {near[0]}?" if near else "; see --help")


def _keys(config: Any, prefix: str = "") -> list[str]:
    names: list[str] = []
    for field in fields(config):
        value = getattr(config, field.name)
        nested = is_dataclass(value)
        names += _keys(value, f"{prefix}{field.name}.") if nested else [prefix + field.name]
    return names


def _spell_out_switches(argv: Sequence[str]) -> list[str]:
    """`--run.resume` alone means true; jsonargparse wants the value."""
    flat = {f"--{key}" for key in _keys(RunConfig()) if isinstance(_value(key), bool)}
    spelled: list[str] = []
    for word, following in zip(argv, [*argv[1:], "--"], strict=False):
        spelled.append(word)
        if word in flat and following.startswith("--"):
            spelled.append("true")
    return spelled


def _value(key: str) -> Any:
    return reduce(getattr, key.split("."), RunConfig())
