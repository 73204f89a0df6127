"""What is told in one line: a user's mistake (exit code 2), and a run he stopped (130)."""


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
