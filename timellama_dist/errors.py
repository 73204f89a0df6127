"""What is told in one line: a user's mistake (exit code 2), and a run he stopped (130)."""

from collections.abc import Mapping


class UserError(ValueError):
    """A mistake in what the user gave; its message is the whole report.

    The message names the key, file, column or row, the bound and the value got.
    """


class ConfigError(UserError):
    """A configuration value, or two values together, that cannot be run."""


class DataError(UserError):
    """A table or prepared data set that cannot be used as it is."""


class CheckpointError(UserError):
    """A checkpoint or exported model that is damaged, missing or of another run."""


class InterruptedRunError(Exception):
    """The user stopped a run; its message says what was saved and how to go on."""


def require(condition: bool, key: str, bound: str, value: object) -> None:
    """Raise a ConfigError that names the key, its bound and the value, unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key} must be {bound}, got {value!r}")


def require_at_least(least: int, values: Mapping[str, int | None]) -> None:
    """Require values, given by their keys, to be at least `least`; None, a key left out, passes."""
    for key, value in values.items():
        require(value is None or value >= least, key, f"at least {least}", value)
