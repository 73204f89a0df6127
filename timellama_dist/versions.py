"""Versions of what a result depends on."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_PACKAGES = ("timellama-dist", "torch", "transformers", "deepspeed", "ray", "peft", "bitsandbytes")


def installed_versions() -> dict[str, str]:
    """Versions of what a result depends on, on this node."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """Installed versions of what a result depends on, and this project's commit, if it is known.

    A job's copy of the project has no repository: `TIMELLAMA_COMMIT` says it there.
    """
    found = installed_versions()
    root = Path(__file__).parents[1]
    if (root / ".git").exists():
        git = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
        )
        found["commit"] = git.stdout.strip()
    elif commit := os.environ.get("TIMELLAMA_COMMIT"):
        found["commit"] = commit
    return found
