"""Failures that replaycad foresees: each says what was found and what to do about it."""


class ReplayCadError(Exception):
    """A foreseen failure; the command line shows it as one line and exits with 1.

    Args:
        message: names the thing, what was expected and what was found.
        hint: one action that helps; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class DatasetError(ReplayCadError):
    """The images of the user cannot be read, found or understood."""


class ArtifactError(ReplayCadError):
    """A file between two stages is missing, damaged, foreign or of another make."""


class WeightsError(ReplayCadError):
    """The weights of a frozen network are missing or not the expected ones."""


class ConfigError(ReplayCadError):
    """An option or a combination of options makes no sense."""


class BudgetError(ConfigError):
    """What shall be kept of a class does not fit into the bytes that it may take."""


class TrainingError(ReplayCadError):
    """A loss became NaN or infinite; the last good checkpoint is kept."""
