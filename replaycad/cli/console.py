"""What a terminal sees: progress with time left, notes, tables, the one error line."""

import json
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from replaycad.errors import ReplayCadError

_PLAIN_WIDTH = 200  # a pipe has no width: wide enough that no table is folded


def print_json(document: Any) -> None:
    """Write one JSON document to stdout."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write one small table to stdout; the first column is left-aligned, the others right."""
    table = Table(box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    terminal = sys.stdout.isatty()
    Console(width=None if terminal else _PLAIN_WIDTH, markup=False, highlight=False).print(table)


def print_line(text: str) -> None:
    """Write one line of the result to stdout."""
    sys.stdout.write(text + "\n")


def print_error(error: ReplayCadError) -> None:
    """Write the one line of a foreseen failure to stderr."""
    sys.stderr.write(" ".join(f"error: {error}".split()) + "\n")


def print_interrupted(kept: Sequence[str]) -> None:
    """Say on stderr what an interrupted command leaves behind."""
    what = "; ".join(kept) if kept else "nothing is finished yet"
    sys.stderr.write(f"interrupted: {what}. Run the same command again to continue.\n")


class TerminalReport:
    """Progress bars with time left and notes, on stderr; bars only where a person looks.

    Args:
        quiet: no bars and no notes.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
        self._bars = self._console.is_terminal and not quiet
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> "TerminalReport":
        """Start drawing."""
        if self._bars:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self._console,
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Clear the bars."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
        self._tasks.clear()

    def step(self, what: str, done: int, total: int, **values: float) -> None:
        """Move the bar called `what`."""
        if self._progress is None:
            return
        figures = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, figures=figures)
        self._progress.update(self._tasks[what], completed=done, total=total, figures=figures)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(what))

    def note(self, text: str) -> None:
        """Write one line to stderr."""
        if not self._quiet:
            self._console.print(text)
