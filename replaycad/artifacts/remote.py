"""A store behind a URL: files are fetched into a folder of this machine, and put back whole.

Any place that fsspec knows will do (`s3://`, `gs://`, `sftp://`, `file://`, ...). What lies there
counts: a file that is not there is not there, whatever the folder of this machine still holds.
"""

import contextlib
import hashlib
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from replaycad.artifacts.atomic import replacing, write_text
from replaycad.errors import ArtifactError, ConfigError, ReplayCadError

CACHE = "REPLAYCAD_CACHE"
# Object stores show a file when all of it has arrived; elsewhere it is renamed to its place.
ATOMIC = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory"})
LEASE_SECONDS = 120.0
SETTLE_SECONDS = 1.0  # within which two who take over the same lease see each other
CHUNK_BYTES = 8 * 2**20


class Remote:
    """The files of a store by their path relative to it, such as `masks/bottle.safetensors`.

    Args:
        url: of the store.

    Attributes:
        mirror: folder of this machine that holds what was fetched or put.

    Raises:
        ConfigError: no package for such a URL is installed, or nobody knows such URLs.
    """

    def __init__(self, url: str) -> None:
        # fsspec and what it loads take as long to import as an up-to-date command may last.
        from fsspec.core import url_to_fs  # noqa: PLC0415

        self._url = url.rstrip("/")
        try:
            self._files, self._base = url_to_fs(self._url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"cannot open the store {url}: {error}", "see --store") from None
        cache = os.environ.get(CACHE) or Path.home() / ".cache" / "replaycad"
        self.mirror = Path(cache) / hashlib.sha256(self._url.encode()).hexdigest()[:16]
        protocols = self._files.protocol
        names = {protocols} if isinstance(protocols, str) else set(protocols)
        self._is_atomic = bool(names & ATOMIC)

    def fetch(self, relative: str) -> bool:
        """Bring the copy of a file up to date; remove it if the store has no such file.

        Returns:
            whether the copy changed.

        Raises:
            ArtifactError: the store cannot be reached.
        """
        local, noted = self.mirror / relative, self.mirror / ".stamps" / relative
        with self._talking("read", relative):
            stamp = self._stamp(relative)
            if stamp is None:
                known = local.exists()
                local.unlink(missing_ok=True)
                noted.unlink(missing_ok=True)
                return known
            if local.exists() and noted.exists() and noted.read_text() == stamp:
                return False
            with replacing(local) as file, self._files.open(self._place(relative), "rb") as source:
                while chunk := source.read(CHUNK_BYTES):
                    file.write(chunk)
        write_text(noted, stamp)
        return True

    def put(self, relative: str) -> None:
        """Publish a file: others see all of it or none.

        Raises:
            ArtifactError: the store cannot be reached, or does not hold what was sent.
        """
        local, place = self.mirror / relative, self._place(relative)
        arriving = place if self._is_atomic else f"{place}.{secrets.token_hex(4)}.arriving"
        with self._talking("write", relative):
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(local), arriving)
            if not self._is_atomic:
                if self._remote_digest(arriving) != _digest(local):
                    self._files.rm_file(arriving)
                    raise ArtifactError(
                        f"{self._url}/{relative} did not arrive as it was sent",
                        "run the same command again",
                    )
                self._files.mv(arriving, place)
            stamp = self._stamp(relative)
        write_text(self.mirror / ".stamps" / relative, stamp or "")

    def names(self, folder: str) -> list[str]:
        """File names in a folder of the store; none if it is not there.

        Raises:
            ArtifactError: the store cannot be reached.
        """
        with self._talking("read", folder):
            self._files.invalidate_cache()
            try:
                found = self._files.ls(self._place(folder), detail=False)
            except FileNotFoundError:
                return []
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found)

    @contextlib.contextmanager
    def lease(self, relative: str, wait: Callable[[], None]) -> Iterator[None]:
        """Hold a name in the store. A holder that dies loses it after `LEASE_SECONDS`.

        Two who took over at once would both make the same file of the same bytes: time is lost,
        nothing else.

        Args:
            relative: name of the lease.
            wait: called once if another has it.

        Raises:
            ArtifactError: the store cannot be reached.
        """
        place, own = self._place(relative), secrets.token_hex(8)
        told = False
        while not self._take(relative, place, own):
            if not told:
                wait()
            told = True
            time.sleep(SETTLE_SECONDS)
        over = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(relative, own, over), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()
            renewing.join()
            with contextlib.suppress(ArtifactError), self._talking("give back", relative):
                if self._holder(place)[0] == own:
                    self._files.rm_file(place)  # or it ends by itself

    def _take(self, relative: str, place: str, own: str) -> bool:
        with self._talking("write", relative):
            self._files.makedirs(place.rpartition("/")[0], exist_ok=True)
            holder, until = self._holder(place)
            if holder and until > time.time():
                return False
            try:
                self._files.pipe_file(place, _lease(own), mode="overwrite" if holder else "create")
            except FileExistsError:
                return False
            if holder:  # who overwrites may be overwritten
                time.sleep(SETTLE_SECONDS)
            return self._holder(place)[0] == own

    def _renew(self, relative: str, own: str, over: threading.Event) -> None:
        place = self._place(relative)
        while not over.wait(LEASE_SECONDS / 4):
            # Where this fails, the next one may succeed.
            with contextlib.suppress(ArtifactError), self._talking("renew", relative):
                if self._holder(place)[0] == own:
                    self._files.pipe_file(place, _lease(own))

    def _holder(self, place: str) -> tuple[str, float]:
        """Who has a lease and until when; nobody if there is none that makes sense."""
        self._files.invalidate_cache()
        try:
            entry = json.loads(self._files.cat_file(place))
            return str(entry["owner"]), float(entry["until"])
        except FileNotFoundError:
            return "", 0.0
        except (ValueError, KeyError, TypeError):
            return "nobody", 0.0

    def _stamp(self, relative: str) -> str | None:
        """What changes with a file of the store; None if there is none."""
        self._files.invalidate_cache()
        try:
            found: dict[str, Any] = self._files.info(self._place(relative))
        except FileNotFoundError:
            return None
        return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()

    def _remote_digest(self, place: str) -> str:
        digest = hashlib.sha256()
        with self._files.open(place, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def _place(self, relative: str) -> str:
        return f"{self._base.rstrip('/')}/{relative}"

    @contextlib.contextmanager
    def _talking(self, doing: str, relative: str) -> Iterator[None]:
        """Name the file in every way in which a network can fail; each library has its own."""
        try:
            yield
        except ReplayCadError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ArtifactError(
                f"cannot {doing} {self._url}/{relative}: {reason}",
                "check the URL, the network and your credentials, and run the command again",
            ) from error


def _lease(own: str) -> bytes:
    return json.dumps({"owner": own, "until": time.time() + LEASE_SECONDS}).encode()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
