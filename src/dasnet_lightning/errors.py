"""Exceptions of the library. A message says what was given, what was expected and what to do."""

import re

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def one_line(text: str) -> str:
    """Escape line breaks and other control characters of names from files, for messages and tables."""
    return CONTROL_CHARACTERS.sub(lambda match: repr(match[0])[1:-1], text)


class DasnetError(Exception):
    """Base class of all errors that a user can cause and fix."""


class DataError(DasnetError):
    """A data set, image or annotation is not usable; the message names the file and the record."""


class BudgetError(DasnetError):
    """A mask budget is malformed or larger than the number of available masks."""


class CheckpointError(DasnetError):
    """A checkpoint or weight file is damaged, comes from another program, or does not fit the model."""


class ConfigError(DasnetError):
    """An option is invalid, contradicts another one, or names something that does not exist."""


class TrainingError(DasnetError):
    """Training cannot continue; the message names the cause."""


class Stopped(DasnetError):
    """Training received a stop signal and has saved a checkpoint to resume from.

    Attributes:
        signal: the number of the signal.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class UnknownNameError(ConfigError, KeyError):
    """A name is not in the registry."""

    def __str__(self) -> str:  # KeyError prints the repr of its message
        return str(self.args[0])
