"""Removes one class from a store: what was kept of it, and its part of every detector."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from replaycad.artifacts.atomic import cannot_write, remove_leftovers
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.pieces import Piece, few, number_pieces, pieces_of, search, telling
from replaycad.artifacts.store import SUFFIX, Store
from replaycad.artifacts.traces import (
    OF_ONE_CLASS,
    Held,
    Names,
    all_files,
    names_of,
    survey,
    traces_of,
)
from replaycad.continual.forgetting import INDEX, rows_of, without_class
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.detectors.registry import preset_for
from replaycad.engine.recorded import Others, header_without
from replaycad.errors import ArtifactError, ConfigError
from replaycad.progress import Report, silent

SHOWN_ROWS = 16  # of the bank of a class in one detector, which are looked for afterwards
SHOWN_SHARDS = 16  # of replays, likewise
CACHES = (".banks", ".digests.json")
"""Made again when they are missing. The files of `.banks` do not say which class they are of, and
`.digests.json` has the places of images."""
PAGES = (".html", ".png", ".csv", ".json")  # of results, and what lies beside scores


@dataclass(frozen=True)
class Work:
    """What has to be done, in this order; what is left says at any point what remains to be done.

    Attributes:
        names: how the class is called.
        remade: files that later commands make again.
        removed: detectors that know no other class, or are to be removed.
        reduced: new names of the detectors that lose the class, by their names; each stands before
            those that it went on from.
        trained: detectors that cannot lose the class and are not to be removed.
        kept: what was kept of the class.
    """

    names: Names
    remade: list[Path]
    removed: list[str]
    reduced: dict[str, str]
    trained: list[str]
    kept: list[Path]


def forget(
    store: Store,
    class_name: str,
    remove_detectors: bool = False,
    dry_run: bool = False,
    report: Report = silent,
) -> dict[str, Any]:
    """Remove a class from a store and its detectors, and look whether anything of it is left.

    Every file is written in one step. After an interruption, the same call finishes the work.

    Args:
        store: whose artifacts are meant.
        class_name: the class.
        remove_detectors: also remove detectors that were trained on it and cannot lose it.
        dry_run: change nothing.
        report: hears of other commands that are waited for.

    Returns:
        JSON: `class_name`; `removed`, files relative to the store; `reduced`, new names of
        detectors by their names; in a dry run `trained`, detectors that are in the way; else
        `num_files`, `num_bytes` and `num_pieces` of the search, and `left`, a list of `file` and
        `what` was found in it.

    Raises:
        ConfigError: the store does not know the class, or a detector cannot lose it; nothing was
            changed.
        ArtifactError: an artifact cannot be read, or a file cannot be written or removed.
    """
    held = survey(store)
    work = _planned(store, class_name, held, remove_detectors)
    gone = [*work.remade, *_detector_files(store, work.removed), *work.kept]
    document: dict[str, Any] = {
        "class_name": class_name, "reduced": work.reduced,
        "removed": [path.relative_to(store.root).as_posix() for path in gone],
    }  # fmt: skip
    if dry_run:
        return document | {"trained": work.trained}
    if work.trained:
        stuck = ", ".join(work.trained)
        raise ConfigError(
            f"detectors that were trained on {class_name} cannot lose it: {stuck}",
            "train others without it first, then add --remove-detectors",
        )
    pieces = _pieces(held, work)
    _perform(store, held, work, report)
    found = search(all_files(store), pieces)
    left = [
        (path.relative_to(store.root).as_posix(), f"holds {piece.origin}")
        for path, piece in found.found
    ]
    named = traces_of(store, class_name, work.names)
    left += [(file, f"names it: {place}") for file, places in named.items() for place in places]
    return document | {
        "num_files": found.num_files, "num_bytes": found.num_bytes, "num_pieces": len(pieces),
        "left": [{"file": file, "what": what} for file, what in left],
    }  # fmt: skip


def _planned(store: Store, class_name: str, held: list[Held], remove_detectors: bool) -> Work:
    names = names_of(class_name, held)
    for one in held:
        if one.fault and one.kind in (*OF_ONE_CLASS, "detectors") and not names.is_own(one.name):
            raise ArtifactError(one.fault, "remove it: nobody can tell what it holds")
    knowing = [one for one in held if one.kind == "detectors" and class_name in one.classes]
    reduced = [one for one in knowing if _can_lose(one.header, class_name)]
    only = [one.name for one in knowing if len(one.classes) == 1]
    trained = [one.name for one in knowing if one not in reduced and one.name not in only]
    own = [
        one for kind in ("replays", "conditions", "masks")  # their folder is told by the others
        for one in held
        if one.kind == kind
        and (class_name in one.classes or (one.fault and names.is_own(one.name)))
    ]  # fmt: skip
    kept = [path for kind in OF_ONE_CLASS for path in _beside(store, kind, names.is_own)]
    for folder in sorted((store.root / "replays").glob("*.shards")):
        if names.is_own(folder.stem):
            kept += sorted(path for path in folder.iterdir() if path.is_file())
    kept += [one.path for one in own]
    is_there = any(names.in_place(path.relative_to(store.root)) for path in kept)
    if not (knowing or own or is_there):
        known = sorted({name for one in held for name in one.classes})
        there = f"it knows {', '.join(known)}" if known else "it knows none"
        raise ConfigError(f"{store.root} knows no class '{class_name}'", there)
    return Work(
        names=names,
        remade=_remade(store, held, names, class_name),
        removed=only + (trained if remove_detectors else []),
        reduced=_new_names(held, reduced, names),
        trained=[] if remove_detectors else trained,
        kept=kept,
    )


def _can_lose(header: Mapping[str, Any], class_name: str) -> bool:
    """Whether a detector knows classes that it judges each by its own bank and its own limits."""
    others = {name for name in header["class_order"] if name != class_name}
    by_class = header["thresholds"].get("by_class", {})
    try:
        preset = preset_for(header["detector"], header["preset"])
    except ConfigError:  # of another version
        return False
    is_routed = isinstance(preset, PatchCorePreset) and preset.is_routed
    return is_routed and bool(others) and (class_name not in by_class or others <= set(by_class))


def _new_names(held: Sequence[Held], reduced: Sequence[Held], names: Names) -> dict[str, str]:
    """Names of detectors afterwards: one that is called like the class is called like the last."""
    by_name = {one.name: one for one in reduced}
    taken = {one.name: one for one in held if one.kind == "detectors"}

    def depth(name: str, seen: frozenset[str] = frozenset()) -> int:
        init = by_name[name].header.get("config", {}).get("init", "")
        is_further = init in by_name and init not in seen
        return 1 + depth(init, seen | {name}) if is_further else 0

    found = {}
    for name in sorted(by_name, key=depth, reverse=True):
        found[name] = name
        if names.in_text(name):
            left = without_class(DetectorArtifact.load(by_name[name].path), names.class_name)
            number, new = 1, left.class_order[-1]
            # The same one is there already if this was interrupted.
            while new in taken and taken[new].header.get("content_id") != left.content_id:
                number += 1
                new = f"{left.class_order[-1]}-{number}"
            found[name], taken[new] = new, by_name[name]
    return found


def _remade(store: Store, held: Sequence[Held], names: Names, class_name: str) -> list[Path]:
    """Files that hold the class, or may do so, and that later commands make again."""
    found = []
    for cache in CACHES:
        path = store.root / cache
        found += sorted(path.glob("*")) if path.is_dir() else [path] * path.exists()
    found += sorted((store.root / ".partial" / "detectors").glob(f"*{SUFFIX}"))
    for kind in ("scores", "results"):
        own = {
            one.name for one in held if one.kind == kind
            and (one.fault or class_name in one.classes or names.in_header(one.header)
                 or names.in_text(one.name))
        }  # fmt: skip
        known = {one.name for one in held if one.kind == kind}
        for path in sorted((store.root / kind).glob("*")):
            # What lies beside no artifact does not say of which classes it is.
            if path.suffix in (*PAGES, SUFFIX) and (path.stem in own or path.stem not in known):
                found.append(path)
        found += _beside(store, kind, own.__contains__)
    found += _beside(store, "detectors", names.in_text)
    # What says of which classes a file is goes last.
    order = {".json": 1, SUFFIX: 2}
    return sorted(dict.fromkeys(found), key=lambda path: order.get(path.suffix, 0))


def _beside(store: Store, kind: str, is_meant: Callable[[str], bool]) -> list[Path]:
    """What lies in hidden folders for artifacts of a kind: unfinished work, times, locks."""
    found = [
        path for path in sorted((store.root / ".partial" / kind).glob(f"*{SUFFIX}"))
        if is_meant(path.name.rsplit(".", 2)[0])  # NAME.KEY.safetensors
    ]  # fmt: skip
    for folder in (".timings", ".locks"):
        found += [
            path for path in sorted((store.root / folder / kind).glob("*")) if is_meant(path.stem)
        ]
    return found


def _detector_files(store: Store, names: Sequence[str]) -> list[Path]:
    """Files of detectors; the artifacts, which say what they are, go last."""
    beside = _beside(store, "detectors", set(names).__contains__)
    return [*beside, *(store.path("detectors", name) for name in names)]


def _pieces(held: Sequence[Held], work: Work) -> list[Piece]:
    """Some of the bytes that are kept of the class, none of which is kept of another as well."""
    class_name, found = work.names.class_name, []
    shards = [path for path in work.kept if path.parent.suffix == ".shards"]
    artifacts = [one for one in held if one.path in work.kept and not one.fault]
    for one in artifacts:
        found += pieces_of(one.path, one.label)
        limits = one.header.get("features", {}).get("limits", {})
        found += number_pieces(limits, f"{one.label} limits")
    for path in few([one for one in shards if one.suffix == SUFFIX], SHOWN_SHARDS):
        found += pieces_of(path, f"replays/{path.parent.stem}")
    for one in held:
        if one.kind != "detectors" or one.name not in (*work.reduced, *work.removed):
            continue
        limits = one.header["thresholds"].get("by_class", {}).get(class_name, {})
        found += number_pieces(limits, f"detectors/{one.name} limits")
        trained = DetectorArtifact.load(one.path)
        if INDEX in trained.state:
            for row in few(list(rows_of(trained, class_name)), SHOWN_ROWS):
                origin = f"detectors/{one.name} a row of its bank"
                found += [Piece(origin, part) for part in telling(row.tobytes(), 1)]
    pieces = few(list({piece.content: piece for piece in found}.values()))
    others = [
        path for one in held if one.kind in OF_ONE_CLASS and one not in artifacts
        for path in (one.path, *one.path.with_suffix(".shards").glob(f"*{SUFFIX}"))
        if path not in work.kept
    ]  # fmt: skip
    shared = {piece.content for _, piece in search(others, pieces).found}
    return [piece for piece in pieces if piece.content not in shared]


def _perform(store: Store, held: Sequence[Held], work: Work, report: Report) -> None:
    class_name = work.names.class_name
    for path in work.remade:
        _remove(path)
    for path in all_files(store):  # of killed commands
        if path.name.startswith(".") and path.suffix == ".tmp":
            remove_leftovers(path.with_name(path.name[1:].rsplit(".", 2)[0]), "tmp")
    for path in _detector_files(store, work.removed):
        _remove(path)
    detectors = {one.name: one for one in held if one.name in work.reduced}
    others = Others(
        classes={one.name: one.classes[0] for one in held
                 if one.kind in ("replays", "conditions") and one.classes},
        contents={
            one.header["content_id"]:
            without_class(DetectorArtifact.load(one.path), class_name).content_id
            for one in held if one.kind == "detectors" and one.name in detectors
        },
        renamed=work.reduced, removed=frozenset(work.removed),
    )  # fmt: skip
    for name, new in work.reduced.items():
        path = store.path("detectors", name)
        with store.alone_with(
            "detectors", name, lambda: report.note("waiting: another command makes a detector")
        ):
            trained = DetectorArtifact.load(path)
            header = header_without(trained.header, class_name, others)
            left = without_class(replace(trained, header=header), class_name)
            left.save(store.path("detectors", new))
        if new != name:
            for old in _detector_files(store, [name]):
                _remove(old)
    for path in work.kept:
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a file, there or not, and its folder if that is empty then."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error
    for folder in (path.parent, path.parent.parent):
        if folder.suffix == ".shards" or any(one.startswith(".") for one in folder.parts[-2:]):
            with contextlib.suppress(OSError):
                folder.rmdir()
