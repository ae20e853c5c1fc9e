"""How a long computation tells its caller where it stands, without knowing about terminals."""

from typing import Protocol


class Report(Protocol):
    """What a stage calls while it works."""

    def step(self, what: str, done: int, total: int, **values: float) -> None:
        """Say that `done` of `total` units of `what` are finished; `values` such as a loss."""

    def note(self, text: str) -> None:
        """Say one sentence that the user should read once."""


class SilentReport:
    """Ignores everything: for tests and for library use."""

    def step(self, what: str, done: int, total: int, **values: float) -> None:
        """Ignore progress."""

    def note(self, text: str) -> None:
        """Ignore a note."""


silent = SilentReport()
