"""Checks plain values against a schema's types and makes the schema's dataclasses of them."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin

from timellama_dist.config.keys import choices_of, hints_of, may_be_null, part_of, section_of
from timellama_dist.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

Settings = TypeVar("Settings")


class _Typed(str):
    """A value that an error shows as the user typed it, without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def build(schema: type[Settings], values: Mapping[str, Any], place: str = "") -> Settings:
    """Make a schema's dataclass of nested plain values.

    Args:
        schema: the dataclass.
        values: its keys, none of them unknown.
        place: where the schema stands, as in "run.".

    Raises:
        ConfigError: a value is of a wrong type or out of its bounds; named by its key.
    """
    # Takes a tenth of a second, for which a driver without values to check shall not wait.
    from pydantic import ValidationError

    # JSON, as it is strict about numbers and yet makes tuples of lists.
    text = json.dumps(values, default=_plain)
    section: Any = schema
    try:
        settings: Settings = _adapter(section).validate_json(text, strict=True)
        return settings
    except ValidationError as error:
        problems = error.errors(include_url=False)
    # Types first: a bound is checked only where a section's types are right.
    problems.sort(key=lambda problem: problem["type"] == "value_error")
    raise _config_error(problems[0], schema, values, place)


@cache
def _adapter(schema: type) -> "TypeAdapter[Any]":
    """Made once: a search reads hundreds of configurations."""
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's own; anything else, such as a path, as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _config_error(
    problem: "ErrorDetails", schema: type, values: Mapping[str, Any], place: str
) -> Exception:
    if problem["type"] == "value_error":
        # What the dataclass itself raised.
        return problem["ctx"]["error"]
    key, hint, value = _find(problem["loc"], schema, values, place)
    if value is None and not may_be_null(hint):
        return ConfigError(key=key, must="be given a value", got=_Typed("null"))
    shown = _Typed(value) if isinstance(value, str) else value
    return ConfigError(key=key, must=f"be {describe_type(hint)}", got=shown)


def _find(
    location: Sequence[int | str], schema: type, values: Mapping[str, Any], place: str
) -> tuple[str, Any, Any]:
    """The key that an error is about, its type and its value; what lies inside a value is that
    value's affair."""
    hint: Any = schema
    value: Any = values
    key = place.removesuffix(".")
    for step in location:
        section = section_of(hint)
        if section is not None and step in hints_of(section):
            key = f"{key}.{step}".lstrip(".")
            hint, value = hints_of(section)[str(step)], value[step]
        elif isinstance(step, int) and part_of(hint) is not None:
            key = f"{key}[{step}]"
            hint, value = part_of(hint), value[step]
        else:
            break
    return key, hint, value


def describe_type(hint: Any) -> str:
    """A key's type in words: "int", "one of 'nf4', 'none'", "list[str] or null"."""
    words = [_describe(choice) for choice in choices_of(hint)]
    return " or ".join([*words, "null"] if may_be_null(hint) else words)


def _describe(choice: Any) -> str:
    origin = get_origin(choice)
    if origin is Literal:
        return "one of " + ", ".join(repr(word) for word in get_args(choice))
    if origin is None:
        return "null" if choice is NoneType else getattr(choice, "__name__", str(choice))
    return f"{origin.__name__}[{', '.join(_describe(item) for item in get_args(choice))}]"
