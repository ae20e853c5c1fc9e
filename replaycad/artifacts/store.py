"""Where the artifacts of a project lie, by kind and name."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from replaycad.artifacts.atomic import cannot_write, remove_leftovers
from replaycad.artifacts.remote import Remote
from replaycad.errors import ConfigError

KINDS = ("masks", "conditions", "replays", "detectors", "scores", "results")
SUFFIX = ".safetensors"
BESIDE = (".json", ".csv", ".png", ".html")  # of scores and of results
MAX_NAME_BYTES = 180  # the suffixes of temporary files fit into the 255 that file systems allow


class Store:
    """A folder with one folder per kind, on this machine or behind a URL.

    Args:
        root: made when something is first written; a URL as fsspec takes it, such as
            `s3://bucket/line-3`, is mirrored in a folder of this machine.

    Attributes:
        address: as it was given.
        root: the folder of this machine.

    Raises:
        ConfigError: nothing that is installed opens such a URL.
    """

    def __init__(self, root: str | Path) -> None:
        self.address = str(root)
        self._remote = Remote(self.address) if "://" in self.address else None
        self.root = self._remote.mirror if self._remote else Path(root)

    def path(self, kind: str, name: str, suffix: str = SUFFIX) -> Path:
        """Where an artifact lies, there or not; from a URL it is fetched, if it changed.

        Args:
            kind: one of `KINDS`.
            name: a class, a detector or a run.
            suffix: `.safetensors`, or of what lies beside it.

        Raises:
            ConfigError: the kind is unknown, or the name cannot be a file name.
            ArtifactError: the URL cannot be reached.
        """
        path = self.root / _known(kind) / f"{checked_name(name)}{suffix}"
        if self._remote and self._remote.fetch(self._relative(path)) and path.exists():
            self._fetch_around(path)
        return path

    def publish(self, kind: str, name: str) -> None:
        """Put an artifact and what lies beside it to the URL, what depends on nothing first.

        Raises:
            ConfigError: as `path`.
            ArtifactError: the URL cannot be reached.
        """
        if not self._remote:
            return
        folder = self.root / _known(kind)
        main = folder / f"{checked_name(name)}{SUFFIX}"
        beside = [*main.with_suffix(".shards").glob(f"*{SUFFIX}"), self._timing(kind, name)]
        beside += [folder / f"{name}{suffix}" for suffix in BESIDE]
        for path in (*beside, main):
            if path.exists():
                self._remote.put(self._relative(path))

    def _fetch_around(self, path: Path) -> None:
        """Fetch what belongs to an artifact that was fetched: shards, JSON, the time it took."""
        assert self._remote is not None
        shards = path.with_suffix(".shards")
        held = self._remote.names(self._relative(shards)) if path.parent.name == "replays" else []
        for name in held:
            self._remote.fetch(self._relative(shards / name))
        if path.suffix == SUFFIX:
            self._remote.fetch(self._relative(path.with_suffix(".json")))
            self._remote.fetch(self._relative(self._timing(path.parent.name, path.stem)))

    def _timing(self, kind: str, name: str) -> Path:
        return self.root / ".timings" / kind / f"{name}.json"

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

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

        The system gives it back when the process dies, however it dies; behind a URL it is a lease
        that runs out.

        Args:
            kind: one of `KINDS`.
            name: of the artifact.
            wait: called once if another command has it.

        Raises:
            ConfigError: as `path`.
            ArtifactError: the URL cannot be reached.
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
        far = self._remote
        lease = far.lease(f".locks/{kind}/{name}.json", wait) if far else contextlib.nullcontext()
        try:
            with lease:
                yield
        finally:
            lock.release()

    def list(self, kind: str) -> list[str]:
        """Names of the artifacts of a kind, in alphabetical order.

        Raises:
            ConfigError: the kind is unknown.
        """
        folder = self.root / _known(kind)
        if self._remote:
            found = self._remote.names(kind)
        else:
            found = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(
            name.removesuffix(SUFFIX) for name in found
            if name.endswith(SUFFIX) and not name.startswith(".")
        )  # fmt: skip


def checked_name(name: str) -> str:
    """Return a name that can be one file name on every system.

    Raises:
        ConfigError: it is empty, too long, starts with a dot, or holds a sign that is not allowed.
    """
    if not name:
        fault = "is empty"
    elif name.startswith("."):
        fault = "starts with a dot"
    elif any(sign in '/\\:*?"<>|' or not sign.isprintable() for sign in name):
        fault = "holds a character that file names must not hold"
    elif len(name.encode()) > MAX_NAME_BYTES:
        fault = f"is longer than {MAX_NAME_BYTES} bytes"
    elif name != name.strip():
        fault = "starts or ends with a space"
    else:
        return name
    raise ConfigError(f"the name {name[:60]!r} {fault}", "use letters, digits, - and _")


def _known(kind: str) -> str:
    """Return a kind that exists."""
    if kind not in KINDS:
        raise ConfigError(f"unknown kind of artifact '{kind}'", f"valid kinds: {', '.join(KINDS)}")
    return kind
