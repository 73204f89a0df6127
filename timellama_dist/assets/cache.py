"""The user's cache: where fetched and converted files stay, each made once."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock

from timellama_dist.errors import ConfigError


def cache_dir() -> Path:
    """Make the folder of fetched and converted files: `TIMELLAMA_CACHE`, or in the user's cache.

    Raises:
        ConfigError: it cannot be made.
    """
    folder = Path(
        os.environ.get("TIMELLAMA_CACHE") or platformdirs.user_cache_dir("timellama_dist")
    ).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the cache folder {folder} (TIMELLAMA_CACHE): {error}") from error
    return folder


def wheels_dir() -> Path:
    """Name the folder that is looked into before pip is asked: for machines without a network."""
    return cache_dir() / "wheels"


@contextlib.contextmanager
def made_once(output: Path) -> Iterator[Path | None]:
    """Yield a path to fill, renamed to `output` at the end, or None if `output` is there.

    A reader never sees half a file, and of several processes one does the work while the others
    wait for it.
    """
    if output.exists():
        yield None
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(output.with_name(f".{output.name}.lock")):
        if output.exists():
            yield None
            return
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
            partial = Path(folder) / "made"
            yield partial
            partial.rename(output)
