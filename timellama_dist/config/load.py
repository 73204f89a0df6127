"""YAML files and dotted flags -> a command's settings: the only module that knows jsonargparse."""

import json
import re
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from jsonargparse import (
    ActionConfigFile,
    ArgumentParser,
    DefaultHelpFormatter,
    Namespace,
    set_parsing_settings,
)

from timellama_dist.config.schema import MixturePart, RunConfig, RunSection
from timellama_dist.errors import ConfigError

set_parsing_settings(docstring_parse_attribute_docstrings=True)

Settings = TypeVar("Settings")


class _HelpFormatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """The description's lines stay as they are: some are commands."""


def build_parser(prog: str, description: str, schema: type = RunConfig) -> ArgumentParser:
    """A parser whose options are the schema's dotted keys, with `--config` files stacked first."""
    parser = ArgumentParser(
        prog=prog,
        description=description,
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="a YAML file of these keys; may be repeated"
    )
    parser.add_class_arguments(schema, nested_key=None)
    return parser


def load_config(argv: Sequence[str], *, prog: str, description: str) -> RunConfig:
    """Read the command line into one configuration; `--help` prints and exits.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of bounds, named by its key.
    """
    return load_settings(RunConfig, argv, prog=prog, description=description)


def load_run(argv: Sequence[str], *, prog: str, description: str) -> RunSection:
    """The section `run` of a command line alone; values of others may not fit each other yet.

    Raises:
        ConfigError: as `load_config`.
    """
    parser = build_parser(prog, description)
    try:
        return RunSection(**vars(parser.parse_args(_spell_out_switches(argv, RunConfig)).run))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(_plain(str(error), RunConfig)) from error


def load_settings(
    schema: type[Settings],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    defaults: Mapping[str, Any] | None = None,
) -> Settings:
    """Read a command line into a dataclass of the schema's kind; `--help` prints and exits.

    Args:
        schema: frozen dataclass, its fields plain or sections of keys.
        argv: the words after the program's name.
        prog: what help and errors call the program.
        description: the first lines of the help.
        defaults: sections of keys that come before everything on the command line.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of bounds, named by its key.
    """
    parser = build_parser(prog, description, schema)
    words = _spell_out_switches(argv, schema)
    if defaults:
        # As if it were the first file: jsonargparse takes a file's text for its path.
        words = ["--config", json.dumps(defaults), *words]
    return _checked(parser, lambda: parser.parse_args(words), schema)


def config_from_flat(values: Mapping[str, Any], base: RunConfig | None = None) -> RunConfig:
    """A configuration with dotted keys changed, as in `{"dlora.rank": 8}`.

    Raises:
        ConfigError: as `load_config`.
    """
    parser = _flat_parser()
    merged = (base or RunConfig()).to_dict()
    for key, value in values.items():
        *parents, leaf = key.split(".")
        section = merged
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ConfigError(_unknown(key, RunConfig))
        section[leaf] = value
    return _checked(parser, lambda: parser.parse_object(merged), RunConfig)


@cache
def _flat_parser() -> ArgumentParser:
    """Made once: a search reads hundreds of configurations."""
    return build_parser("config", "")


def dump_config(config: RunConfig, path: Path, leave_out: Sequence[str] = ()) -> None:
    """Write the resolved configuration as YAML that `--config` takes back.

    Args:
        config: the run.
        path: the file.
        leave_out: names of sections about which the file shall say nothing.
    """
    dump_settings(config, path, leave_out)


def dump_settings(settings: Any, path: Path, leave_out: Sequence[str] = ()) -> None:
    """The same for what `load_settings` gave."""
    parser = build_parser("config", "", type(settings))
    values = parser.parse_object(asdict(settings))
    for section in leave_out:
        del values[section]
    text = parser.dump(values, skip_unset=False, skip_validation=bool(leave_out))
    # A run is resumed by it: a full disk must not cost the one that is there.
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _checked(
    parser: ArgumentParser, parse: Callable[[], Namespace], schema: type[Settings]
) -> Settings:
    try:
        values = parse()
        _refuse_empty(values, schema)
        parsed = parser.instantiate(values)
    except ConfigError:
        raise
    # jsonargparse raises its own errors, argparse's and whatever a dataclass's check raised.
    except Exception as error:
        raise ConfigError(_plain(str(error), schema)) from error
    known: Any = schema
    return schema(**{field.name: getattr(parsed, field.name) for field in fields(known)})


def _refuse_empty(values: Any, section: type, prefix: str = "") -> None:
    """jsonargparse takes null for anything, and a scalar for a whole section."""
    for number, part in enumerate(getattr(values, "mixture", None) or []):
        _refuse_empty(part, MixturePart, f"{prefix}mixture[{number}].")
    for name, hint in get_type_hints(section).items():
        value = getattr(values, name)
        if isinstance(hint, type) and is_dataclass(hint):
            if not isinstance(value, Namespace):
                raise ConfigError(f"{name} must be a section of keys, got {value!r}")
            _refuse_empty(value, hint, f"{name}.")
        elif value is None and type(None) not in get_args(hint):
            raise ConfigError(f"{prefix}{name} must be given a value, got null")


def _plain(message: str, schema: type) -> str:
    """jsonargparse's message in one line, in the words of this project's other errors."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    if match := _IN_A_PART.match(line):
        return _plain_in_part(match[1], match[2], schema)
    if match := re.match(r'Parser key "(.+?)": Expected a (.+?)\. Got value: (.*)', line):
        key, expected, value = match.groups()
        if literal := re.match(r"typing\.Literal\[(.*)\]", expected):
            expected = "one of " + literal.group(1)
        expected = re.sub(r"<class '(\w+)'>", r"\1", expected)
        return f"{key} must be {expected}, got {value}"
    if match := re.match(r'Parser key "(.+?)": .* Subtypes: \[(.*)\] Errors: .* value: (.*)', line):
        key, expected, value = match.groups()
        expected = re.sub(r"<class '(\w+)'>", r"\1", expected).replace(", NoneType", " or null")
        expected = expected.replace(f"{MixturePart.__module__}.", "")
        return f"{key} must be {expected}, got {value}"
    if match := re.match(r"Option '(.+?)' is not accepted", line):
        return _unknown(match.group(1), schema)
    if match := re.match(r"Group '(.+?)' does not accept option '(.+?)'", line):
        return _unknown(".".join(match.groups()), schema)
    if match := re.match(r"unrecognized arguments: --([\w.]+)", line):
        return _unknown(match.group(1), schema)
    return re.sub(r'^Parser key "(.+?)": ', r"\1: ", line)


_IN_A_PART = re.compile(
    r'Parser key "data\.mixture": .*? Errors: - (.*) - Expected a <class \'NoneType\'> '
    r"Given value type: <class 'list'> Given value: (\[.*)"
)


def _plain_in_part(problem: str, mixture: str, schema: type) -> str:
    """The same for what is wrong inside of one part."""
    # The parts before the wrong one have been read: they are shown as objects.
    key = f"data.mixture[{mixture.count('Namespace(class_path=')}]"
    if match := re.match(r"Not a valid subclass of \w+\. Got value: (.*?) Subclass types", problem):
        return f"{key} must be a section of keys, got {match.group(1)}"
    problem = re.sub(r"^Problem with given class_path \S+: ", "", problem)
    return _plain(re.sub(r"^(Parser key \"|Option ')", rf"\1{key}.", problem), schema)


def _unknown(key: str, schema: type) -> str:
    part, bracket, _ = key.rpartition("].")
    keys = _keys(MixturePart, part + bracket) if bracket else _keys(schema)
    leaf = key.rpartition(".")[2]
    near = [known for known in keys if known.rpartition(".")[2] == leaf]
    near = near or get_close_matches(key, keys, n=1)
    return f"unknown key {key}; " + (f"did you mean {' or '.join(near)}?" if near else "see --help")


def _keys(section: type, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the schema, with its type."""
    keys: dict[str, Any] = {}
    for name, hint in get_type_hints(section).items():
        nested = isinstance(hint, type) and is_dataclass(hint)
        keys |= _keys(hint, f"{prefix}{name}.") if nested else {prefix + name: hint}
    return keys


def _spell_out_switches(argv: Sequence[str], schema: type) -> list[str]:
    """`--run.resume` alone means true; jsonargparse wants the value."""
    keys = _keys(schema)
    switches = {f"--{key}" for key, hint in keys.items() if bool in (hint, *get_args(hint))}
    spelled: list[str] = []
    for word, following in zip(argv, [*argv[1:], "--"], strict=False):
        spelled.append(word)
        if word in switches and following.startswith("--"):
            spelled.append("true")
    return spelled
