"""The dotted keys of a schema: sections of sections, and the parts of a mixture.

A schema is a frozen dataclass whose fields are plain values or such dataclasses.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from timellama_dist.errors import ConfigError


@cache
def hints_of(section: type) -> dict[str, Any]:
    """The type of each key of one section."""
    hints, keys = get_type_hints(section), fields(cast(Any, section))
    return {key.name: hints[key.name] for key in keys}


def section_of(hint: Any) -> type | None:
    """The section that a key holds, if it holds one."""
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def part_of(hint: Any) -> type | None:
    """The section that each item of a key's list is, as of `data.mixture`."""
    for choice in choices_of(hint):
        if get_origin(choice) is list:
            return section_of(get_args(choice)[0])
    return None


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The types that a key may have, without null."""
    if get_origin(hint) in (None, Literal, list, tuple, dict):
        return (hint,)
    return tuple(choice for choice in get_args(hint) if choice is not NoneType)


def may_be_null(hint: Any) -> bool:
    """Is null a value of a key?"""
    return NoneType in get_args(hint) and get_origin(hint) is not Literal


def is_text(hint: Any) -> bool:
    """Does a key take text as it stands, or one of several words?"""
    return any(choice is str or get_origin(choice) is Literal for choice in choices_of(hint))


def is_switch(hint: Any) -> bool:
    """Does a key alone, without a value, mean true?"""
    return bool in choices_of(hint)


def iterate_keys(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key of a schema, with its type."""
    for name, hint in hints_of(schema).items():
        section = section_of(hint)
        if section is None:
            yield prefix + name, hint
        else:
            yield from iterate_keys(section, f"{prefix}{name}.")


def default_values(schema: type) -> dict[str, Any]:
    """Nested plain values of a schema of which nothing is given."""
    values: dict[str, Any] = {}
    for key in fields(schema):
        default: Any = key.default_factory() if callable(key.default_factory) else key.default
        values[key.name] = default if section_of(key.type) is None else asdict(default)
    return values


def merge(
    values: dict[str, Any],
    given: Mapping[Any, Any],
    schema: type,
    place: str = "",
) -> None:
    """Put given keys over values, section by section; lists are replaced whole.

    Args:
        values: nested plain values of the schema; they are changed.
        given: nested sections, dotted keys, or both; a text where the schema wants something else
            is read as YAML.
        schema: what they are values of.
        place: where the schema stands, as in "data.".

    Raises:
        ConfigError: on an unknown key, or where a section of keys is wanted.
    """
    hints = hints_of(schema)
    for key, value in given.items():
        name, dot, rest = str(key).partition(".")
        hint = hints.get(name)
        section = section_of(hint)
        if hint is None or not isinstance(key, str) or (dot and section is None):
            raise unknown_key(f"{place}{key}", schema, place)
        if section is not None:
            inner = {rest: value} if dot else value
            merge(values[name], _mapping(inner, place + name), section, f"{place}{name}.")
        else:
            values[name] = _leaf(value, hint, place + name)


def unknown_key(key: str, schema: type, place: str = "") -> ConfigError:
    """The error about a key that there isn't, with those that may have been meant.

    Args:
        key: as the user gave it.
        schema: whose keys there are.
        place: where that schema stands.
    """
    # Workers import this module with the schema, and none of them makes such an error.
    from difflib import get_close_matches

    keys = [name for name, _ in iterate_keys(schema, place)]
    leaf = key.rpartition(".")[2]
    near = [name for name in keys if name.rpartition(".")[2] == leaf]
    near = near or get_close_matches(key, keys, n=1)
    return ConfigError(
        f"unknown key {key}; " + (f"did you mean {' or '.join(near)}?" if near else "see --help")
    )


def _leaf(value: Any, hint: Any, key: str) -> Any:
    if isinstance(value, str) and not is_text(hint):
        value = _read_text(value)
    part = part_of(hint)
    if part is None or not isinstance(value, list | tuple):
        return value
    items: list[dict[str, Any]] = []
    for number, item in enumerate(value):
        items.append({})
        merge(items[-1], _mapping(item, f"{key}[{number}]"), part, f"{key}[{number}].")
    return items


def _mapping(value: Any, key: str) -> Mapping[Any, Any]:
    value = _read_text(value) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise ConfigError(key=key, must="be a section of keys", got=value)
    return value


def _read_text(text: str) -> Any:
    # Its parser is needed only where there is something to parse.
    from timellama_dist.config.documents import parse_value

    return parse_value(text)
