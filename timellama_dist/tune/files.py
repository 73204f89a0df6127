"""The files of a search: the one that describes it, and those in its run directory."""

from pathlib import Path

from timellama_dist.config.load import load_settings
from timellama_dist.errors import ConfigError
from timellama_dist.tune.settings import SearchConfig

SEARCH, BASE = "search.yaml", "config.yaml"


def load_search(file: Path) -> SearchConfig:
    """Read a search file.

    Raises:
        ConfigError: it can't be used; the message names the file and the key.
    """
    if not file.is_file():
        raise ConfigError(f"--search must name a YAML file, there is no {file}")
    try:
        return load_settings(SearchConfig, ["--config", str(file)], prog="tune", description="")
    except ConfigError as error:
        raise ConfigError(f"{file.name}: {error}") from error
