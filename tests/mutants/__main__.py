"""Change the program wrongly, one change at a time: `python -m tests.mutants`.

Each change is made in a copy of the package, and the tests that should notice run against it. Ends
with exit code 1 if a change survives, with 2 if a change no longer fits the code or the tests fail
without it.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from tests.mutants.changes import CHANGES, Change

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 600  # seconds; a change that makes the program hang is noticed too
PASSED, FAILED = 0, 1  # exit codes of pytest; any other one means that tests did not run

Item = TypeVar("Item")
Result = TypeVar("Result")


def main() -> None:
    """Try the changes and print what became of each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="changes whose file or effect has this in it")
    parser.add_argument("--workers", type=int, default=2)
    typed = parser.parse_args()
    wanted = [one for one in CHANGES if typed.only in f"{one.file} {one.effect}"]
    misfits = [told for one in wanted if (told := misfit(one))]
    if misfits or not wanted:
        _leave(2, "\n".join(misfits) or f"no change has '{typed.only}' in it")

    with copies(typed.workers) as folders:
        files = sorted({test for one in wanted for test in one.tests.split()})
        results = side_by_side(run, files, folders)
        failing = [file for file, (status, _) in zip(files, results, strict=True) if status]
        if failing:
            _leave(2, f"these fail without any change: {' '.join(failing)}")
        outcomes = list(side_by_side(attempt, wanted, folders))
    _summary(wanted, outcomes)


def misfit(change: Change) -> str:
    """What is wrong with a change that cannot be made; empty if nothing is."""
    count = (ROOT / "replaycad" / change.file).read_text().count(change.old)
    if count == 1:
        return ""
    return f"{change.file}: expected once, found {count} times: {change.old!r} ({change.effect})"


@contextmanager
def copies(count: int) -> Iterator[list[Path]]:
    """Folders with a copy of the package and of its tests each."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        folders = [Path(place) / str(number) for number in range(count)]
        without = shutil.ignore_patterns("__pycache__")
        for folder in folders:
            for name in ("replaycad", "tests"):
                shutil.copytree(ROOT / name, folder / name, ignore=without)
            for name in ("pyproject.toml", "README.md", "Makefile"):
                shutil.copy(ROOT / name, folder / name)
        yield folders


def side_by_side(
    work: Callable[[Path, Item], Result], items: Sequence[Item], folders: Sequence[Path]
) -> Iterator[Result]:
    """Results of `work` in the order of the items; each folder serves one item at a time."""
    free: SimpleQueue[Path] = SimpleQueue()
    for folder in folders:
        free.put(folder)

    def borrow(item: Item) -> Result:
        folder = free.get()
        try:
            return work(folder, item)
        finally:
            free.put(folder)

    with ThreadPoolExecutor(len(folders)) as threads:
        yield from threads.map(borrow, items)


def attempt(folder: Path, change: Change) -> tuple[str, float]:
    """Make a change, run its tests, and take it back: `caught` or `SURVIVED`, and seconds."""
    file = folder / "replaycad" / change.file
    text = file.read_text()
    start = time.monotonic()
    file.write_text(text.replace(change.old, change.new))
    try:
        status, told = run(folder, change.tests)
    finally:
        file.write_text(text)
    if status not in (PASSED, FAILED):
        _leave(2, f"{told}\nthe tests did not run: {change.file}: {change.effect}")
    outcome = "SURVIVED" if status == PASSED else "caught"
    seconds = time.monotonic() - start
    sys.stdout.write(f"{outcome:8} {seconds:4.0f} s  {change.file}: {change.effect}\n")
    sys.stdout.flush()
    return outcome, seconds


def run(folder: Path, tests: str) -> tuple[int, str]:
    """Exit code of pytest, and what it said."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    # A changed file of the same size and second would be taken for the compiled one.
    surroundings = {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [*command, *tests.split()], cwd=folder, capture_output=True, text=True,
            timeout=TIMEOUT, env={**os.environ, "OMP_NUM_THREADS": "1", **surroundings},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return FAILED, "too slow"
    return done.returncode, done.stdout[-2000:] + done.stderr[-2000:]


def _summary(changes: Sequence[Change], outcomes: Sequence[tuple[str, float]]) -> None:
    survivors = [
        change for change, (outcome, _) in zip(changes, outcomes, strict=True)
        if outcome == "SURVIVED"
    ]  # fmt: skip
    unexpected = [change for change in survivors if not change.may_survive]
    minutes = sum(seconds for _, seconds in outcomes) / 60
    sys.stdout.write(
        f"{len(changes)} changes, {len(changes) - len(survivors)} caught, "
        f"{len(survivors)} survived, {minutes:.0f} minutes of tests\n"
    )
    for change in survivors:
        sys.stdout.write(f"{change.file}: {change.effect} {change.may_survive}\n")
    sys.exit(1 if unexpected else 0)


def _leave(status: int, text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.exit(status)


if __name__ == "__main__":
    main()
