"""Replaces a file in one step, so that a reader sees the old bytes or the new ones."""

import contextlib
import errno
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from replaycad.errors import ArtifactError

try:
    import fcntl
except ImportError:  # Windows does not remove an open file, which serves the same end
    fcntl = None  # type: ignore[assignment]

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path` that takes its place when the block ends well.

    The bytes are on disk before the name changes. On any failure the temporary file is removed
    and `path` is as it was. Temporary files that killed runs left for it are removed first.

    Raises:
        ArtifactError: the folder or the file cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path, "tmp")
        with temporary.open("xb") as file:
            hold(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` with `text` in UTF-8, in one step.

    Raises:
        ArtifactError: as `replacing`.
    """
    with replacing(path) as file:
        file.write(text.encode())


def cannot_write(path: Path, error: OSError) -> ArtifactError:
    """Say why `path` was not written, with the action that fits the cause."""
    reason = error.strerror or str(error)
    if error.errno in NO_SPACE:
        hint = f"free some space for {path.parent} and run the same command again"
    else:
        hint = f"check that {path.parent} is a folder you may write to, or choose another --store"
    return ArtifactError(f"cannot write {path}: {reason}; what was there before is untouched", hint)


def hold(file: IO[bytes]) -> bool:
    """Lock an open file for as long as it stays open; False if another writer has it.

    The system drops the lock when the process dies, however it dies: that tells a leftover from a
    file that is being written.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def remove_leftovers(path: Path, suffix: str, keep: Path | None = None) -> list[Path]:
    """Remove the hidden `.<name>.*.<suffix>` files beside `path` that no running process holds.

    Returns:
        those that one holds.
    """
    held = []
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.{suffix}"):
        if leftover == keep:
            continue
        if fcntl is None:  # Windows does not remove what somebody has open
            try:
                leftover.unlink(missing_ok=True)
            except OSError:
                held.append(leftover)
            continue
        with contextlib.suppress(OSError), leftover.open("rb+") as file:
            if hold(file):
                leftover.unlink()
            else:
                held.append(leftover)
    return held


def sync_folder(folder: Path) -> None:
    """Put a changed folder entry on disk, where the system knows how to."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
