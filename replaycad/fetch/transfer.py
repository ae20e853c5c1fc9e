"""Brings one file: the bytes go into a part beside it, which takes its place when it is whole."""

import hashlib
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from safetensors import SafetensorError, safe_open

from replaycad.artifacts.atomic import NO_SPACE, cannot_write, hold, replacing, sync_folder
from replaycad.errors import WeightsError
from replaycad.progress import Report

TRIES = 5  # in a row without a byte
PAUSE_S = 1.0
BLOCK_BYTES = 1 << 20
TIMEOUT_S = 30.0
MEGABYTE = 1_000_000
AGAIN = "it was removed; run the same command again"
PROXY_HINT = (
    "a proxy or a login stands between: ask for a way around it, or bring the files with --from "
    "FOLDER"
)

Check = Callable[[Path], None]
"""Raises WeightsError for a file that is not what it should be."""


class UnreachableError(WeightsError):
    """A place on the network does not answer."""


@contextmanager
def reaching(address: str) -> Iterator[None]:
    """Turn what the hub's client raises for a place that does not answer into one kind of error.

    Raises:
        UnreachableError: it does not answer.
        WeightsError: the hub answers that the thing is not there, or not for you.
    """
    from huggingface_hub.errors import (  # noqa: PLC0415 - half a second
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
    )

    # The client is one of two libraries, as the hub's version has it; the hub's own error is
    # derived from the root of theirs.
    client_error: type[BaseException] = HfHubHTTPError.__mro__[1]
    host = urlsplit(address).netloc
    try:
        yield
    except OfflineModeIsEnabled:
        raise UnreachableError(f"{host} may not be asked, as HF_HUB_OFFLINE is set") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status == 429:  # later, perhaps
            raise UnreachableError(f"{host} answered {status}") from None
        raise WeightsError(
            f"{address} cannot be had: {host} answered {status}",
            "check the name and the revision; where a licence has to be accepted first, do so and "
            "run `hf auth login`",
        ) from None
    except HFValidationError:
        raise WeightsError(
            f"{address} is no address of the hub", "give a known name or owner/model"
        ) from None
    except json.JSONDecodeError:
        raise WeightsError(f"{address} does not answer as a hub does", PROXY_HINT) from None
    except client_error as error:
        reason = str(error) or type(error).__name__
        raise UnreachableError(f"{host} cannot be reached: {reason}") from None


def download(
    address: str, target: Path, num_bytes: int, check: Check, report: Report, what: str
) -> None:
    """Bring a file from the network, going on from what an interrupted call left of it.

    Args:
        address: http or https.
        target: where it shall lie; its name should say which bytes it holds.
        num_bytes: how long it is; 0 if unknown.
        check: of the whole file, before it takes its place.
        report: hears of progress.
        what: name of the bar.

    Raises:
        WeightsError: the answer is not the file, of which nothing is left behind, or the folder is
            closed.
        UnreachableError: no answer, or it stops again and again; what came is kept.
        ArtifactError: the disk is full.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab+") as file:
            if not hold(file):
                raise WeightsError(
                    f"another command is bringing {target}", "wait until it has ended"
                )
            _fill(file, address, num_bytes, report, what)
            file.flush()
            os.fsync(file.fileno())
        _check_part(part, address, num_bytes, check)
        part.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise cannot_write(target, error) from None
        raise WeightsError(
            f"cannot write {target}: {error.strerror or error}",
            "check its folder, or let HF_HOME or REPLAYCAD_WEIGHTS name another",
        ) from None
    finally:
        _remove_empty(part)


def _remove_empty(part: Path) -> None:
    """A call that brought nothing leaves nothing."""
    with suppress(OSError):
        if part.stat().st_size == 0:
            part.unlink()


def _check_part(part: Path, address: str, num_bytes: int, check: Check) -> None:
    """Check the whole file; one that is not right is not gone on from."""
    try:
        if num_bytes and part.stat().st_size != num_bytes:
            raise WeightsError(
                f"{address} sent {part.stat().st_size} bytes, not {num_bytes}", PROXY_HINT
            )
        check(part)
    except WeightsError as error:
        part.unlink()
        where = error.message.replace(str(part), f"what {address} sent")
        raise WeightsError(where, "run the same command again") from None


def _fill(file: BinaryIO, address: str, num_bytes: int, report: Report, what: str) -> None:
    """Append what is missing; a connection that drops is taken up again."""
    left = TRIES
    while True:
        before = file.seek(0, 2)
        if num_bytes and before >= num_bytes:
            return
        try:
            with reaching(address):
                _append(file, address, num_bytes, report, what)
            if not num_bytes or file.tell() >= num_bytes:
                return
            raise UnreachableError(f"{urlsplit(address).netloc} stopped in the middle of a file")
        except UnreachableError:
            left = TRIES if file.seek(0, 2) > before else left - 1
            if before == 0 and file.tell() == 0:
                left = min(left, 1)  # it was never there: no use in waiting long
            if left <= 0:
                raise
            time.sleep(PAUSE_S)


def _append(file: BinaryIO, address: str, num_bytes: int, report: Report, what: str) -> None:
    from huggingface_hub.utils import build_hf_headers, get_session  # noqa: PLC0415

    from_hub = urlsplit(address).netloc == urlsplit(hub_address()).netloc
    headers = {"Accept-Encoding": "identity"} | (build_hf_headers() if from_hub else {})
    have = file.tell()
    if have:
        headers["Range"] = f"bytes={have}-"
    session = get_session()
    with session.stream("GET", address, headers=headers, timeout=TIMEOUT_S) as answer:
        if answer.status_code == 416 and not num_bytes:  # nothing is left to come: it is whole,
            return  # or is found not to be
        if answer.status_code == 416:
            _empty(file)
            raise UnreachableError(f"{address} is shorter than what came of it before")
        if answer.status_code >= 500 or answer.status_code == 429:
            raise UnreachableError(f"{urlsplit(address).netloc} answered {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise WeightsError(f"{address} answered {answer.status_code}", PROXY_HINT)
        if "text/html" in answer.headers.get("Content-Type", ""):
            raise WeightsError(f"{address} answered with a web page, not with the file", PROXY_HINT)
        if answer.status_code == 200:
            _empty(file)
        left = int(answer.headers.get("Content-Length") or 0)
        check_space(Path(file.name).parent, left)
        total = num_bytes or file.tell() + left
        for block in answer.iter_bytes():  # as they come: what came before a drop counts
            file.write(block)
            done = file.tell()
            report.step(f"{what}, MB", done // MEGABYTE, max(total, done) // MEGABYTE)


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def hub_address() -> str:
    """Where the hub is: huggingface.co, or what `HF_ENDPOINT` says."""
    from huggingface_hub import constants  # noqa: PLC0415

    return constants.ENDPOINT


def copy(source: Path, target: Path, check: Check) -> None:
    """Bring a file from a folder, in one step.

    Raises:
        WeightsError: it is not what it should be; nothing of it is left behind.
        ArtifactError: the disk is full or closed.
    """
    check_space(target.parent, source.stat().st_size)
    with replacing(target) as file:
        with source.open("rb") as opened:
            shutil.copyfileobj(opened, file, BLOCK_BYTES)
        file.flush()
        try:
            check(Path(file.name))
        except WeightsError as error:
            where = error.message.replace(file.name, str(source))
            raise WeightsError(where, "bring the file again") from None


def check_space(folder: Path, num_bytes: int) -> None:
    """Refuse before it is begun what will not fit on the disk.

    Raises:
        WeightsError: there is not enough space.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if num_bytes > free:
        raise WeightsError(
            f"{folder} has {free / 1e9:.1f} GB free and {num_bytes / 1e9:.1f} GB are needed",
            "free some space, or let HF_HOME or REPLAYCAD_WEIGHTS name another disk",
        )


def check_etag(path: Path, etag: str) -> None:
    """Hold a file against the digest by which the hub calls it.

    Args:
        path: the file.
        etag: sha256 of a large file, git's sha1 of a small one; anything else says nothing.

    Raises:
        WeightsError: they differ.
    """
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        kind, digest = "sha256", hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", etag):
        kind, digest = "git sha1", hashlib.sha1(usedforsecurity=False)
        digest.update(b"blob %d\0" % path.stat().st_size)
    else:
        return
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != etag:
        raise WeightsError(
            f"{path} is damaged: its {kind} should be {etag:.12}, found {digest.hexdigest():.12}"
        )


def check_form(path: Path, name: str) -> None:
    """Look whether a file whose digest nobody knows can be what its name says.

    Raises:
        WeightsError: it cannot, such as a web page in place of weights, or a file cut off.
    """
    try:
        if name.endswith(".safetensors"):
            with safe_open(path, "numpy"):
                pass  # it opens whole files alone
        elif name.endswith(".json"):
            json.loads(path.read_text("utf-8"))
        elif name.endswith(".txt"):
            if path.read_text("utf-8").lstrip()[:1] in ("", "<"):
                raise ValueError("a web page or nothing")
        elif not zipfile.is_zipfile(path):
            raise ValueError("no whole file of torch.save")
    except (ValueError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged: {error} in place of {name}", AGAIN) from None
