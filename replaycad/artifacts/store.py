"""Where the artifacts of a project lie, by kind and name."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from replaycad.artifacts.atomic import cannot_write, remove_leftovers
from replaycad.errors import ConfigError

KINDS = ("masks", "conditions", "replays", "detectors", "scores", "results")
SUFFIX = ".safetensors"
_DEVICE = re.compile(r"con|prn|aux|nul|(com|lpt)\d", re.IGNORECASE)
MAX_NAME_BYTES = 180  # the suffixes of temporary files fit into the 255 that file systems allow


class Store:
    """A folder with one folder per kind.

    Args:
        root: made when something is first written.

    Raises:
        ConfigError: the root is a URL.
    """

    def __init__(self, root: str | Path) -> None:
        if "://" in str(root):
            raise ConfigError(
                f"--store takes a folder, not the URL {root}",
                "mount the bucket, or sync it with `aws s3 sync` or rclone",
            )
        self.root = Path(root)

    def path(self, kind: str, name: str, suffix: str = SUFFIX) -> Path:
        """Where an artifact lies, there or not.

        Args:
            kind: one of `KINDS`.
            name: a class, a detector or a run.
            suffix: `.safetensors`, or of what lies beside it.

        Raises:
            ConfigError: the kind is unknown, or the name cannot be a file name.
        """
        return self.root / _known(kind) / f"{checked_name(name)}{suffix}"

    def num_bytes(self, kind: str, name: str) -> int:
        """Bytes of an artifact with its shards; 0 if it is not there.

        Raises:
            ConfigError: as `path`.
        """
        path = self.path(kind, name)
        parts = [path, *path.with_suffix(".shards").glob(f"*{SUFFIX}")]
        return sum(part.stat().st_size for part in parts if part.is_file())

    def partial(self, kind: str, name: str, key: str) -> Path:
        """Where the unfinished work on an artifact lies; another key is another file.

        Raises:
            ConfigError: as `path`.
        """
        file_name = f"{checked_name(name)}.{checked_name(key)[:16]}{SUFFIX}"
        return self.root / ".partial" / _known(kind) / file_name

    def drop_partials(self, kind: str, name: str, keep: str = "") -> None:
        """Remove unfinished work on an artifact, save that of the key `keep`.

        Raises:
            ConfigError: as `path`.
            ArtifactError: a file cannot be removed.
        """
        folder = self.root / ".partial" / _known(kind)
        prefix = f"{checked_name(name)}."
        remove_leftovers(folder / name, "tmp")
        for path in sorted(folder.glob(f"*{SUFFIX}")) if folder.is_dir() else []:
            key = path.name.removeprefix(prefix).removesuffix(SUFFIX)
            if not path.name.startswith(prefix) or "." in key or (keep and key == keep[:16]):
                continue
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(path, error) from error
        for empty in (folder, folder.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()

    @contextlib.contextmanager
    def alone_with(self, kind: str, name: str, wait: Callable[[], None]) -> Iterator[None]:
        """Hold an artifact for making it; other commands, on this store, wait for the block's end.

        The system gives it back when the process dies, however it dies.

        Args:
            kind: one of `KINDS`.
            name: of the artifact.
            wait: called once if another command has it.

        Raises:
            ConfigError: as `path`.
        """
        # It takes 40 ms, and most commands make nothing.
        from filelock import FileLock, Timeout  # noqa: PLC0415

        folder = self.root / ".locks" / _known(kind)
        lock = FileLock(folder / f"{checked_name(name)}.lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                wait()
                lock.acquire()
        except (OSError, NotImplementedError):
            pass  # no locks here, or nothing may be written, which the stage will say better
        try:
            yield
        finally:
            lock.release()

    def list(self, kind: str) -> list[str]:
        """Names of the artifacts of a kind, in alphabetical order.

        Raises:
            ConfigError: the kind is unknown.
        """
        folder = self.root / _known(kind)
        found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(
            name.removesuffix(SUFFIX) for name in found
            if name.endswith(SUFFIX) and not name.startswith(".")
        )  # fmt: skip


def checked_name(name: str) -> str:
    """Return a name that can be one file name on every system.

    Raises:
        ConfigError: it is empty, too long, not allowed somewhere, or holds a sign that is not.
    """
    if not name:
        fault = "is empty"
    elif name.startswith("."):
        fault = "starts with a dot"
    elif any(sign in '/\\:*?"<>|' or not sign.isprintable() for sign in name):
        fault = "holds a character that file names must not hold"
    elif len(name.encode()) > MAX_NAME_BYTES:
        fault = f"is longer than {MAX_NAME_BYTES} bytes"
    elif name != name.strip() or name.endswith("."):
        fault = "starts or ends with a space, or ends with a dot"
    elif _DEVICE.fullmatch(name.split(".")[0]):
        fault = "is that of a device on Windows"
    else:
        return name
    raise ConfigError(f"the name {name[:60]!r} {fault}", "use letters, digits, - and _")


def _known(kind: str) -> str:
    """Return a kind that exists."""
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of artifact '{kind}'", f"valid kinds: {', '.join(KINDS)}")
    return kind
