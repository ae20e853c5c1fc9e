"""Says of each part whether it is there, and brings those that are not."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from replaycad.artifacts.digests import DigestCache, file_digest
from replaycad.detectors.encoder_files import locate_encoder
from replaycad.diffusion.presets import (
    backbone_files,
    locate_backbone,
    needed_files,
    split_name,
)
from replaycad.errors import ReplayCadError, WeightsError
from replaycad.fetch import hub
from replaycad.fetch.converting import convert
from replaycad.fetch.parts import Part, as_dict
from replaycad.fetch.transfer import AGAIN, MEGABYTE, UnreachableError, check_form, copy, download
from replaycad.progress import Report
from replaycad.segmentation.presets import (
    OFFICIAL_ADDRESS,
    OFFICIAL_NAME,
    check_tag,
    locate,
    weights_folder,
)

BUNDLED = "mini"
SAM_VARIABLE = "REPLAYCAD_SAM_URL"  # names a mirror of the published address

State = Literal["bundled", "present", "fetched", "missing"]


@dataclass(frozen=True)
class Found:
    """What became of a part, and which files it lacks: path -> address."""

    part: Part
    state: State
    missing: dict[str, str]

    def document(self) -> dict[str, Any]:
        """The same for JSON."""
        return {**as_dict(self.part), "state": self.state, "missing": self.missing}


def look(part: Part) -> Found:
    """Say whether a part is there, without the network and without reading its weights.

    Raises:
        WeightsError: it is the user's own and neither there nor to be converted, or it should
            have come with the package.
    """
    try:
        _files(part)
    except WeightsError:
        if part.page:
            return Found(part, "missing", _lacking(part))
        if not _unconverted(part):
            raise
        return Found(part, "missing", {})
    return Found(part, "bundled" if part.name == BUNDLED else "present", {})


def fetch_all(parts: Sequence[Part], source: Path | None, report: Report) -> list[Found]:
    """Bring every part that is not there, and check those that are.

    Args:
        parts: in the order in which they are brought.
        source: folder with files that were brought by hand, in place of the network.
        report: hears of progress, and of each part's size and licence.

    Raises:
        WeightsError: a place cannot be reached, or a file is not what it should be.
        ArtifactError: the disk is full or closed.
    """
    done: list[Found] = []
    with DigestCache(weights_folder()) as cache:
        for part in parts:
            try:
                done.append(_fetch(part, source, report, cache))
            except UnreachableError as error:
                raise _not_reached(error, parts[len(done) :]) from None
    return done


def _fetch(part: Part, source: Path | None, report: Report, cache: DigestCache) -> Found:
    found = look(part)
    if found.state == "bundled":
        return found
    if found.state == "present":
        report.note(f"checking {part.title}")
        _check(part, cache)
        return found
    if part.page:
        size = f"{part.num_bytes / MEGABYTE:,.0f} MB" if part.num_bytes else "size not known"
        where = source or part.page
        report.note(f"fetching {part.title}: {size}, {part.licence}; from {where}")
    if part.kind == "segmenter":
        _bring_segmenter(part, source, report)
    else:
        _convert_all(_bring_files(part, source, report, cache), report)
    _files(part)
    return Found(part, "fetched", {})


def _bring_files(
    part: Part, source: Path | None, report: Report, cache: DigestCache
) -> dict[Path, Path]:
    """Bring what the hub has, unless it is there and only waits to be converted."""
    if not part.page:
        return _unconverted(part)
    pickles = hub.waiting(part)
    if pickles is not None:
        hub.check(part, list(pickles), cache)
        return pickles
    return hub.take(part, source) if source else hub.bring(part, report, cache)


def _convert_all(pickles: dict[Path, Path], report: Report) -> None:
    for source, target in pickles.items():
        report.note(f"converting {source.parent.name}/{source.name} to safetensors")
        convert(source, target)


def _bring_segmenter(part: Part, source: Path | None, report: Report) -> None:
    (name,) = part.files
    target = weights_folder() / name
    check = _tag_check(name)
    if source is None:
        base = os.environ.get(SAM_VARIABLE) or OFFICIAL_ADDRESS
        download(f"{base.rstrip('/')}/{name}", target, 0, check, report, name)
    elif (source / name).is_file():
        copy(source / name, target, check)
    else:
        raise WeightsError(f"{source} has no file {name}", f"bring it from {part.address(name)}")


def _tag_check(name: str) -> Callable[[Path], None]:
    match = OFFICIAL_NAME.fullmatch(name)
    tag = match[2] if match else ""
    return lambda path: check_tag(path, tag)


def _files(part: Part) -> list[Path]:
    """The files that a stage would read of a part.

    Raises:
        WeightsError: one is missing, or is not the one that would be fetched.
    """
    if part.kind == "segmenter":
        return locate(part.name).paths
    if part.kind == "encoder":
        return list(locate_encoder(part.name).files)
    folder, variant = locate_backbone(part.name), split_name(part.name)[1]
    lacking = [read for read in part.files.values() if not (folder / read).exists()]
    if lacking:  # another variant would do in its place, with other results
        raise WeightsError(f"{part.title} lacks {', '.join(lacking)}")
    return [path for paths in backbone_files(folder, variant).values() for path in paths]


def _check(part: Part, cache: DigestCache) -> None:
    """Hold a part that is there against the digests that are known of it.

    Raises:
        WeightsError: a file is damaged; it alone was removed.
    """
    if not part.page:
        return
    if part.kind != "segmenter":
        hub.check(part, _files(part), cache)
        return
    path = locate(part.name).weights
    if cache.get(path, path.stat()) is not None:
        return
    try:
        _tag_check(path.name)(path)
    except WeightsError as error:
        path.unlink()
        raise WeightsError(error.message, AGAIN) from None
    file_digest(path, cache)


def _lacking(part: Part) -> dict[str, str]:
    """Published files of a part that are not there, and where a person finds them."""
    if part.kind == "segmenter" or not part.files:
        return {path: part.address(path) for path in part.files or [""]}
    folder = hub.snapshot(part)
    return {
        path: part.address(path)
        for path, read in part.files.items()
        if folder is None or not ((folder / path).exists() or (folder / read).exists())
    }


def _unconverted(part: Part) -> dict[Path, Path]:
    """Pickled weights in a folder of the user's -> the file of safetensors that it lacks."""
    place, variant = split_name(part.name)
    folder = Path(place)
    if part.kind != "backbone" or not folder.is_dir():
        return {}
    names = [path.relative_to(folder).as_posix() for path in folder.glob("*/*")]
    try:
        wanted = needed_files(names, variant)
    except WeightsError:
        return {}
    pickles = {folder / path: folder / read for path, read in wanted.items() if path != read}
    for path in pickles:
        check_form(path, path.name)
    return pickles


def _not_reached(error: ReplayCadError, parts: Sequence[Part]) -> WeightsError:
    """One line for what is still missing where the network is."""
    missing = [found for found in map(look, parts) if found.state == "missing"]
    titles = ", ".join(found.part.title for found in missing)
    return WeightsError(
        f"{error.message}; still missing: {titles}",
        "run the same command again when it can be reached; or with --dry-run, which lists the "
        f"addresses ({sum(len(found.missing) for found in missing)}) of what is to be brought by "
        "hand, and then with --from FOLDER",
    )
