"""replaycad commands as children of this process, which has imported all they need.

A child is a whole process: it can be killed, starved and denied like any other. Only the seconds
that importing torch takes are spared.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

NOBODY = 65534
HANG_SECONDS = 180.0


@dataclass
class Child:
    """A running command; its words go to the file `log`."""

    pid: int
    log: Path
    started: float = field(default_factory=time.monotonic)
    status: int | None = None

    def kill(self) -> None:
        """Kill it and what it started, as the kernel does when memory is short."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def is_over(self) -> bool:
        """Whether it ended, by itself or not."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def wait(self, seconds: float = HANG_SECONDS) -> bool:
        """Wait for its end; False if it takes longer."""
        end = time.monotonic() + seconds
        while not self.is_over():
            if time.monotonic() > end:
                return False
            time.sleep(0.01)
        return True

    def complaint(self) -> str:
        """What is wrong with how it ended; empty if it did its work or said why not in a line."""
        words = self.log.read_text(errors="replace")
        if self.status is None:
            return f"hangs: {words[-300:]}"
        if self.status == 0 and "Traceback" not in words:
            return ""
        told = [line for line in words.splitlines() if line.strip()]
        if self.status == 1 and len(told) == 1 and told[0].startswith("error: "):
            return ""
        return f"exit code {self.status}: {words[-2000:]}"


def start(
    arguments: Sequence[str],
    log: Path,
    *,
    user: int | None = None,
    file_bytes: int | None = None,
    listing: Path | None = None,
) -> Child:
    """Start a command.

    Args:
        arguments: as typed behind `replaycad`.
        log: where its words go.
        user: whose rights it has; None for one's own.
        file_bytes: no file may become longer; None for no limit.
        listing: where it writes at its end what it imported.
    """
    pid = os.fork()
    if pid:
        return Child(pid, log)
    code = 70
    try:
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        code = _perform(arguments)
        if listing is not None:
            listing.write_text(json.dumps(sorted(sys.modules)))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def run(arguments: Sequence[str], log: Path, user: int | None = None) -> Child:
    """Start a command and wait for its end."""
    child = start(arguments, log, user=user)
    if not child.wait():
        child.kill()
    return child


def _perform(arguments: Sequence[str]) -> int:
    from replaycad.cli.commands import app
    from replaycad.engine.settings import RunSettings

    RunSettings.__init__.__kwdefaults__["save_every_seconds"] = 0.0  # a checkpoint after every step
    try:
        app(list(arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def preload(names: Sequence[str]) -> None:
    """Import what a command was seen to import, so that its successors need not."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
