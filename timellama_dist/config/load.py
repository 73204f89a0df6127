"""YAML files and dotted flags -> a command's settings, and settings -> YAML."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from timellama_dist.config.command_line import CONFIG, PRINT_CONFIG, read_words
from timellama_dist.config.documents import dump_yaml, read_yaml
from timellama_dist.config.former import complete
from timellama_dist.config.keys import default_values, merge
from timellama_dist.config.schema import RunConfig, RunSection
from timellama_dist.config.validation import build

Settings = TypeVar("Settings")


def load_config(argv: Sequence[str], *, prog: str, description: str) -> RunConfig:
    """Read the command line into one configuration; `--help` prints and exits.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of bounds, named by its key.
    """
    return load_settings(RunConfig, argv, prog=prog, description=description)


def load_begun(file: str, argv: Sequence[str], *, prog: str, description: str) -> RunConfig:
    """Read a run's own `config.yaml`, and over it the command line it goes on with.

    Args:
        file: what a run directory of this or an older version holds.
        argv: the words after the program's name.
        prog: what errors call the program.
        description: the first lines of the help.

    Raises:
        ConfigError: as `load_config`.
    """
    begun = complete(read_yaml(file))
    return load_settings(RunConfig, argv, prog=prog, description=description, defaults=begun)


def load_run(argv: Sequence[str], *, prog: str, description: str) -> RunSection:
    """Read the section `run` of a command line alone; other sections may not fit each other yet.

    Raises:
        ConfigError: as `load_config`.
    """
    values, _ = _read_values(RunConfig, argv, prog, description, None)
    return build(RunSection, values["run"], "run.")


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
    values, shown = _read_values(schema, argv, prog, description, defaults)
    settings = build(schema, values)
    if shown:
        print(_to_yaml(settings), end="")
        raise SystemExit(0)
    return settings


def config_from_flat(values: Mapping[str, Any], base: RunConfig | None = None) -> RunConfig:
    """Change dotted keys of a configuration, as in `{"dlora.rank": 8}`.

    Raises:
        ConfigError: as `load_config`.
    """
    merged = (base or RunConfig()).to_dict()
    merge(merged, values, RunConfig)
    return build(RunConfig, merged)


def dump_config(config: RunConfig, path: Path, leave_out: Sequence[str] = ()) -> None:
    """Write the resolved configuration as YAML that `--config` takes back.

    Args:
        config: the run.
        path: the file.
        leave_out: names of sections about which the file shall say nothing.
    """
    dump_settings(config, path, leave_out)


def dump_settings(settings: Any, path: Path, leave_out: Sequence[str] = ()) -> None:
    """Write what `load_settings` gave, likewise."""
    # A run is resumed by it: a full disk must not cost the one that is there.
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(_to_yaml(settings, leave_out), encoding="utf-8")
    draft.replace(path)


def _to_yaml(settings: Any, leave_out: Sequence[str] = ()) -> str:
    values = asdict(settings)
    return dump_yaml({key: value for key, value in values.items() if key not in leave_out})


def _read_values(
    schema: type,
    argv: Sequence[str],
    prog: str,
    description: str,
    defaults: Mapping[str, Any] | None,
) -> tuple[dict[str, Any], bool]:
    """Nested plain values: the schema's, then `defaults`, then the command line in its order.

    Returns:
        The values, and whether the user only wants to see them.
    """
    words = read_words(argv, schema, prog=prog, description=description)
    values = default_values(schema)
    merge(values, defaults or {}, schema)
    for key, value in words:
        if key != PRINT_CONFIG:
            merge(values, read_yaml(value) if key == CONFIG else {key: value}, schema)
    return values, any(key == PRINT_CONFIG for key, _ in words)
