"""What the library raises on purpose: one root, few leaves. A message says what was given, what was expected, what to do."""


class DasnetError(Exception):
    """Root of all errors that a user can cause and mend."""


class DataError(DasnetError):
    """A data set, an image or an annotation cannot be used; the message names the file and the record."""


class BudgetError(DasnetError):
    """A mask budget cannot be read or cannot be met by the masks that exist."""


class CheckpointError(DasnetError):
    """A checkpoint or weight file is damaged, foreign, or does not fit."""


class ConfigError(DasnetError):
    """Options that contradict each other, or a name that does not exist."""


class TrainingError(DasnetError):
    """A training cannot go on; the message names what it met."""


class Stopped(DasnetError):
    """A training was told to stop and has saved where it stands. `signal`: the number of what told it."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class UnknownNameError(ConfigError, KeyError):
    """A registry has no such name."""

    def __str__(self) -> str:  # KeyError would print the message in quotes
        return str(self.args[0])
