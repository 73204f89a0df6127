"""Errors that a command tells in one line: a mistake (exit code 2), a stopped run (130)."""

from collections.abc import Mapping
from typing import Any, Self

_ABSENT: Any = object()


class UserError(ValueError):
    """A mistake in what the user gave; its text is the whole report.

    Either a text that names file, column or row, the bound and the value; or a configuration key
    with them, from which the text is made: "dlora.top_n must be at least 1, got 0".

    Args:
        text: the whole report, where no single key is to blame.
        key: the dotted key as the user typed it.
        must: what its value must do, as in "be at least 1".
        got: the value.
        hint: what to do about it, where that isn't obvious.
    """

    def __init__(
        self,
        text: str = "",
        *,
        key: str | None = None,
        must: str = "",
        got: Any = _ABSENT,
        hint: str = "",
    ) -> None:
        if key is not None:
            value = "" if got is _ABSENT else f", got {got!r}"
            text = f"{key} must {must}{value}" + (f"; {hint}" if hint else "")
        super().__init__(text)
        self.key, self.must, self.hint = key, must, hint
        self.got = None if got is _ABSENT else got
        self.names_value = got is not _ABSENT

    def under(self, section: str, place: str) -> Self:
        """Name the key as one of another section.

        Args:
            section: where the key was thought to stand, such as `data`.
            place: where it stands, such as `data.mixture[1]`.

        Returns:
            The same error about `place.<key>`; an error without a key of that section begins with
            the place instead.
        """
        if self.key is None or not f"{self.key}.".startswith(f"{section}."):
            return type(self)(f"{place}: {self}")
        return type(self)(
            key=place + self.key.removeprefix(section),
            must=self.must,
            got=self.got if self.names_value else _ABSENT,
            hint=self.hint,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # An error of a Ray task is sent to the driver.
        return (_rebuild, (type(self), str(self), vars(self)))


class ConfigError(UserError):
    """A configuration value, or two values together, that cannot be run."""


class DataError(UserError):
    """A table or prepared data set that cannot be used as it is."""


class CheckpointError(UserError):
    """A checkpoint or exported model that is damaged, missing or of another run."""


class InterruptedRunError(Exception):
    """The user stopped a run; its message says what was saved and how to go on."""


def _rebuild(kind: type[UserError], text: str, fields: dict[str, Any]) -> UserError:
    error = kind(text)
    vars(error).update(fields)
    return error


def require(condition: bool, key: str, bound: str, value: object) -> None:
    """Raise a ConfigError that names the key, its bound and the value, unless `condition` holds."""
    if not condition:
        raise ConfigError(key=key, must=f"be {bound}", got=value)


def require_at_least(least: int, values: Mapping[str, int | None]) -> None:
    """Require values, given by their keys, to be at least `least`; None, a key left out, passes."""
    for key, value in values.items():
        require(value is None or value >= least, key, f"at least {least}", value)
