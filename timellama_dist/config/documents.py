"""YAML: the text of a file or of one value, and the text that a configuration is written as."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from timellama_dist.errors import ConfigError

_FLOAT = re.compile(
    r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
        |[-+]?\.[0-9_]+(?:[eE][-+]?[0-9]+)?
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
    re.VERBOSE,
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML's, but that 1e-3 is a number and a date stays text."""
    changed = ("tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
    kept = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in changed]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for first in "-+.0123456789":
        kept.setdefault(first, []).append((changed[0], _FLOAT))
    return kept


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice in one mapping; PyYAML takes the last."""

    yaml_implicit_resolvers = _resolvers()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, (key, _) in enumerate(node.value):
            if key.value in keys[:number]:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} is given twice", problem_mark=key.start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that the loader would take for something else."""

    yaml_implicit_resolvers = _resolvers()


def read_yaml(path: str) -> dict[Any, Any]:
    """The keys that a YAML file holds.

    Raises:
        ConfigError: the file can't be read, isn't YAML or holds no mapping; its name and the line
            are given.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise ConfigError(f"config: File does not exist: {path!r}")
    try:
        text = file.read_text(encoding="utf-8")
        values = yaml.load(text, _Loader)
    except OSError as error:
        raise ConfigError(f"config: cannot read {path!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"Problems parsing config {path}, line {line}: not text in UTF-8"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"Problems parsing config {path}, {_problem(error, text)}") from error
    if not isinstance(values, dict):
        kind = "nothing" if values is None else f"a {type(values).__name__}"
        raise ConfigError(f"config: {path}, line 1: must hold a mapping of keys, got {kind}")
    return values


def parse_value(text: str) -> Any:
    """The value that a text is in YAML or JSON; the text itself where it is neither."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


def dump_yaml(values: Any) -> str:
    """Plain values as YAML that `read_yaml` takes back."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _problem(error: yaml.YAMLError, text: str) -> str:
    """Where and what, in one line."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line = 1 if mark is None else mark.line + 1
        return f"line {line}: {error.problem or error.context}"
    position = getattr(error, "position", 0)
    return f"line {text.count(chr(10), 0, position) + 1}: {getattr(error, 'reason', error)}"
