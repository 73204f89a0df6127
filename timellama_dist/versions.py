"""Versions of what a result depends on."""

import os
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from timellama_dist import __version__

_PACKAGES = ("torch", "transformers", "deepspeed", "ray", "peft", "bitsandbytes")


def installed_versions() -> dict[str, str]:
    """Versions of what a result depends on, on this node."""
    installed = {"python": platform.python_version(), "timellama-dist": __version__}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            installed[package] = version(package)
    return installed


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on, and this project's commit, if it is known.

    A job's copy of the project has no repository: `TIMELLAMA_COMMIT` says it there.
    """
    installed = installed_versions()
    root = Path(__file__).parents[1]
    if (root / ".git").exists():
        git = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
        installed["commit"] = git.stdout.strip()
    elif commit := os.environ.get("TIMELLAMA_COMMIT"):
        installed["commit"] = commit
    return installed
