"""What a schema says of its own keys, read from its source: the help, and the manual's reference.

The docstring under a field is no part of the running program, so the source is parsed; that takes
a moment, and happens only where somebody asks.
"""

import ast
import inspect
import sys
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from timellama_dist.config.documents import dump_yaml
from timellama_dist.config.keys import (
    choices_of,
    default_values,
    hints_of,
    section_of,
)

_WIDTH = 100
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false"}


@dataclass(frozen=True, kw_only=True)
class KeyReference:
    """One dotted key."""

    key: str
    text: str
    """Its docstring."""
    metavar: str
    """The form of its values: INT, "nf4|none", "[FLOAT, FLOAT, FLOAT]"."""
    default: Any
    """A plain value."""

    @property
    def shown_default(self) -> str:
        """The default as YAML has it."""
        return dump_yaml([self.default])[2:].removesuffix("\n...\n").strip()


@dataclass(frozen=True, kw_only=True)
class SectionReference:
    """A section with its keys; the plain keys of a schema are a section without a name."""

    name: str
    title: str
    keys: tuple[KeyReference, ...]


def describe_schema(schema: type) -> list[SectionReference]:
    """The sections of a schema, its plain keys first."""
    hints, defaults = hints_of(schema), default_values(schema)
    plain = {name: hint for name, hint in hints.items() if section_of(hint) is None}
    sections = [_describe_section(schema, "", plain, defaults)] if plain else []
    for name, hint in hints.items():
        section = section_of(hint)
        if section is not None:
            sections.append(_describe_section(section, name, hints_of(section), defaults[name]))
    return sections


def help_text(schema: type, prog: str, description: str) -> str:
    """The help of a command whose options are a schema's keys."""
    lines = [description, ""] if description else []
    lines += [f"usage: {prog} [--config FILE] [--KEY VALUE ...]", "", "options:"]
    lines += _option("-h, --help", "Show this text.")
    lines += _option(
        "--config FILE",
        "A YAML file of the keys below; may be repeated. What stands "
        "later on the command line wins.",
    )
    lines += _option("--print_config", "Print the whole configuration as YAML, and end.")
    for section in describe_schema(schema):
        lines += ["", *_wrap(f"{section.name}: {section.title}".removeprefix(": "), "")]
        for key in section.keys:
            shown = "" if key.default in (None, "") else f" (default: {key.shown_default})"
            lines += _option(f"--{key.key} {key.metavar}", key.text + shown)
    return "\n".join(lines) + "\n"


def _describe_section(
    section: type, name: str, hints: dict[str, Any], defaults: dict[str, Any]
) -> SectionReference:
    texts = _field_texts(section)
    keys = tuple(
        KeyReference(
            key=f"{name}.{key}".lstrip("."),
            text=texts.get(key, ""),
            metavar=_metavar(hint),
            default=defaults[key],
        )
        for key, hint in hints.items()
    )
    title = " ".join((section.__doc__ or "").partition("\n\n")[0].split())
    return SectionReference(name=name, title=title, keys=keys)


def _metavar(hint: Any) -> str:
    return "|".join(_metavar_of(choice) for choice in choices_of(hint))


def _metavar_of(choice: Any) -> str:
    origin, inner = get_origin(choice), get_args(choice)
    if origin is Literal:
        return "|".join(map(str, inner))
    if origin is tuple:
        return f"[{', '.join(_metavar_of(item) for item in inner)}]"
    if origin is list:
        return f"[{_metavar_of(inner[0])}, ...]"
    return _METAVARS.get(choice, "{KEY: VALUE, ...}")


def _field_texts(section: type) -> dict[str, str]:
    """The docstring under each field, a class's own before those it inherits."""
    texts: dict[str, str] = {}
    for owner in reversed(section.__mro__[:-1]):
        texts |= _module_texts(owner.__module__).get(owner.__name__, {})
    return texts


@cache
def _module_texts(module: str) -> dict[str, dict[str, str]]:
    """By class and field, the strings that stand under the fields of a module's classes."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        node.name: {
            field.target.id: " ".join(text.value.value.split())
            for field, text in zip(node.body, node.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        }
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def _option(head: str, text: str) -> list[str]:
    return [f"  {head}", *_wrap(text, " " * 8)]


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )
