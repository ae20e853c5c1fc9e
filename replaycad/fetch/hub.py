"""Brings what the Hugging Face hub publishes into its own cache, where every file is whole.

The hub's library begins a file anew when it was interrupted, which at 3.4 GB matters. So the bytes
are brought here, to the place in the cache that the library looks at before it asks for them, and
the library does the rest.
"""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from replaycad.artifacts.atomic import write_text
from replaycad.artifacts.digests import DigestCache, file_digest
from replaycad.diffusion.presets import needed_files, split_name
from replaycad.errors import WeightsError
from replaycad.fetch.parts import Part
from replaycad.fetch.transfer import (
    AGAIN,
    PROXY_HINT,
    TIMEOUT_S,
    check_etag,
    check_form,
    check_space,
    copy,
    download,
    hub_address,
    reaching,
)
from replaycad.progress import Report

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Listing:
    """What a revision of a model holds: its commit, and the bytes of each file by path."""

    commit: str
    sizes: Mapping[str, int]


def list_files(part: Part) -> Listing:
    """Ask the hub for the files of a part.

    Raises:
        UnreachableError: it does not answer.
        WeightsError: it has no such model, or something else answers in its place.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415

    address = f"{hub_address()}/{part.hub_id}/tree/{part.revision}"
    with reaching(address):
        found = HfApi().model_info(
            part.hub_id, revision=part.revision, files_metadata=True, timeout=TIMEOUT_S
        )
    sizes = {one.rfilename: one.size or 0 for one in found.siblings or ()}
    if not found.sha or not _COMMIT.fullmatch(found.sha):
        raise WeightsError(f"{address} does not answer as a hub does", PROXY_HINT)
    return Listing(found.sha, sizes)


def choose(part: Part, sizes: Mapping[str, int]) -> dict[str, str]:
    """Which of a model's files are needed: path -> path under which they are read.

    Raises:
        WeightsError: the model lacks one.
    """
    try:
        wanted = dict(part.files)
        if part.kind == "backbone":
            wanted = needed_files(sizes, split_name(part.name)[1])
        known = [path for path in wanted if path in sizes]
        # Others would do in their place, with other results.
        for path, read in part.files.items():
            if path[-1] != "/" and read not in (wanted[one] for one in known):
                raise WeightsError(f"it lacks {path}", f"it is at {part.address(path)}")
    except WeightsError as error:
        message = f"{part.title} cannot be used: {error.message}"
        raise WeightsError(message, error.hint) from None
    return wanted


def snapshot(part: Part) -> Path | None:
    """The folder of the cache in which the files of a part lie or would lie; None if unknown."""
    revision = part.revision
    if not _COMMIT.fullmatch(revision):
        reference = _storage(part) / "refs" / revision
        if not reference.is_file():
            return None
        revision = reference.read_text().strip()
    return _storage(part) / "snapshots" / revision


def _storage(part: Part) -> Path:
    from huggingface_hub import constants  # noqa: PLC0415

    return Path(constants.HF_HUB_CACHE) / f"models--{part.hub_id.replace('/', '--')}"


def bring(part: Part, report: Report, cache: DigestCache) -> dict[Path, Path]:
    """Bring the files of a part from the hub.

    Small files come first: where the weights are whole, everything is.

    Returns:
        pickle -> file of safetensors that is to be made of it.

    Raises:
        UnreachableError, WeightsError: as `list_files` and `download`.
        ArtifactError: the disk is full or closed.
    """
    listing = list_files(part)
    wanted = choose(part, listing.sizes)
    folder = _storage(part) / "snapshots" / listing.commit
    absent = [
        path for path, read in wanted.items()
        if not (folder / path).is_file() and not (folder / read).is_file()
    ]  # fmt: skip
    begun = sum(path.stat().st_size for path in (_storage(part) / "blobs").glob("*.part"))
    check_space(folder, sum(listing.sizes[path] for path in absent) - begun)
    for path in sorted(absent, key=lambda path: (listing.sizes[path], path)):
        _bring_file(part, listing, path, report)
    check(part, [folder / path for path in wanted if path not in absent], cache)
    _point(part, listing.commit)
    return _to_convert(folder, wanted)


def _bring_file(part: Part, listing: Listing, path: str, report: Report) -> None:
    """Bring one file into the cache and have the hub's library enter it there."""
    from huggingface_hub import (  # noqa: PLC0415
        get_hf_file_metadata,
        hf_hub_download,
        hf_hub_url,
    )

    address = hf_hub_url(part.hub_id, path, revision=listing.commit)
    with reaching(address):
        told = get_hf_file_metadata(address)
    etag = told.etag or ""
    if told.commit_hash != listing.commit or not re.fullmatch(r"[\w.-]+", etag):
        raise WeightsError(f"{address} does not answer as a hub does", PROXY_HINT)
    blob = _storage(part) / "blobs" / etag

    def whole(file: Path) -> None:
        check_etag(file, etag)
        check_form(file, path)

    if blob.is_file():  # another revision has it as well
        _check_or_remove(blob, [], lambda: whole(blob))
    else:
        what = f"{part.name} {path}"
        download(address, blob, told.size or listing.sizes[path], whole, report, what)
    with reaching(address):
        hf_hub_download(part.hub_id, path, revision=listing.commit)


def take(part: Part, source: Path) -> dict[Path, Path]:
    """Take the files of a part from a folder that holds OWNER/MODEL/PATH.

    Returns:
        pickle -> file of safetensors that is to be made of it.

    Raises:
        WeightsError: the folder lacks a file, or one cannot be what its name says.
        ArtifactError: the disk is full or closed.
    """
    brought = source / part.hub_id
    if not brought.is_dir():
        raise WeightsError(
            f"{source} has no folder {part.hub_id}",
            f"put the files of {part.address('')} there, under the paths they have there",
        )
    sizes = {
        path.relative_to(brought).as_posix(): path.stat().st_size
        for path in sorted(brought.rglob("*")) if path.is_file()
    }  # fmt: skip
    wanted = choose(part, sizes)
    commit = part.revision
    if not _COMMIT.fullmatch(commit):  # which commit it was nobody knows: its bytes are its name
        digests = "".join(f"{path} {file_digest(brought / path)}\n" for path in sorted(wanted))
        commit = hashlib.sha1(digests.encode(), usedforsecurity=False).hexdigest()
    folder = _storage(part) / "snapshots" / commit
    for path in sorted(wanted, key=lambda path: (sizes[path], path)):
        if not (folder / path).is_file():
            copy(brought / path, folder / path, partial(check_form, name=path))
    _point(part, commit)
    return _to_convert(folder, wanted)


def _point(part: Part, commit: str) -> None:
    """Let the name of a branch mean this commit, as the hub's library does."""
    if part.revision != commit:
        write_text(_storage(part) / "refs" / part.revision, commit)


def _to_convert(folder: Path, wanted: Mapping[str, str]) -> dict[Path, Path]:
    return {
        folder / path: folder / read for path, read in wanted.items()
        if path != read and not (folder / read).is_file()
    }  # fmt: skip


def waiting(part: Part) -> dict[Path, Path] | None:
    """What is to be converted of a part whose files are all there; None where one is not."""
    folder = snapshot(part)
    if folder is None or not part.files:
        return None
    for path, read in part.files.items():
        place = folder / path
        if not ((folder / read).is_file() or (place.is_dir() if path[-1] == "/" else
                                              place.is_file())):  # fmt: skip
            return None
    return _to_convert(folder, part.files)


def check(part: Part, paths: list[Path], cache: DigestCache) -> None:
    """Hold files of the cache against their digests, where the cache tells these.

    Args:
        part: that they belong to.
        paths: in the snapshot; a blob's name is its digest.
        cache: of files that were found whole before.

    Raises:
        WeightsError: one is damaged; it alone was removed.
    """
    for path in paths:
        if not path.is_file():
            continue
        blob = Path(os.path.realpath(path))

        def whole(blob: Path = blob, name: str = path.name) -> None:
            stat = blob.stat()
            if cache.get(blob, stat) is not None:
                return
            if _DIGEST.fullmatch(blob.name):
                check_etag(blob, blob.name)
                if len(blob.name) == 64:
                    cache.put(blob, stat, blob.name)
            else:
                check_form(blob, name)

        try:
            _check_or_remove(blob, [path], whole)
        except WeightsError as error:
            raise WeightsError(f"{part.title}: {error.message}", error.hint) from None


def _check_or_remove(blob: Path, names: list[Path], whole: Callable[[], None]) -> None:
    """Remove a damaged file, and the names that the cache has for it."""
    try:
        whole()
    except WeightsError as error:
        for path in (*names, blob):
            path.unlink(missing_ok=True)
        shown = error.message.replace(str(blob), str(names[0] if names else blob))
        raise WeightsError(shown, AGAIN) from None
