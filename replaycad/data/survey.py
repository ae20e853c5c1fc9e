"""What a data folder holds, as a user would want to be told before a long run."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from replaycad.artifacts.store import checked_name
from replaycad.data.images import picture_size, read_ignored
from replaycad.data.layouts import find_classes, ignore_path, read_class, strangers
from replaycad.data.look import Look, look_alike, look_at_masks, look_through
from replaycad.data.samples import Reading, Sample, counted, listed
from replaycad.errors import ConfigError, DatasetError

FEW = 20  # training images below which a class is hardly learned
SHOWN = 3  # names told of each kind of problem
DEFECT = 20  # px of a small defect, as one speaks of it
SEEN_LEAST = 4.0  # px of it that a detector must be shown: half of the place of a feature
_DEFECT_WORDS = re.compile(
    r"(?<![a-z])(defect|scratch|crack|broken|fault|damag|anomal|reject|(bad|ng|nok)(?![a-z]))",
    re.IGNORECASE,
)


def survey(data: Path, size: int = 256, fit: str = "pad", quick: bool = False) -> dict[str, Any]:
    """Look through a data folder before anything is learned from it.

    Args:
        data: the folder.
        size: side in pixels of what a detector sees.
        fit: what becomes of pictures that are not square, as `View.fit`.
        quick: do not unpack images; only the first bytes of each are read, and files of equal size
            are compared.

    Returns:
        `data`, `layout`, `skipped` (folders that hold images and are no class) and `classes`: each
        with name, `layout`, counts of `train`, `test_normal`, `test_defective`, `with_masks`, the
        `kinds` of defects, `sizes` as `WxH` and how many have it, `defect_px`, what a defect of
        `DEFECT` px becomes (null where no size is known), the `tile` to use (0 for none),
        `left_out` (ids by reason), `notes` on what was guessed or left out, `problems`, sentences
        that say what to do, and `odd`, paths of the training images that are unlike the others.

    Raises:
        DatasetError: if there is no class at all.
    """
    looks = {}
    classes = []
    for name in find_classes(data):
        found, looks[name] = _class_of(data, name, size, fit, quick)
        classes.append(found)
    for place, found in enumerate(classes):
        others = [each["name"] for each in classes[place + 1 :]]
        cased = [name for name in others if name.casefold() == found["name"].casefold()]
        if cased:
            found["problems"].append(
                f"its name differs from {listed(cased)} in case alone: some systems take them for "
                "one"
            )
        own = looks[found["name"]].shown
        alike = [name for name in others if look_alike(own, looks[name].shown)]
        if alike:
            found["problems"].append(
                f"its images look like those of {listed(alike)}: is it the same product?"
            )
    skipped = strangers(data)
    layouts = sorted({one["layout"] for one in classes} - {""})
    return {"data": str(data), "layout": "; ".join(layouts), "skipped": skipped, "classes": classes}


def _class_of(
    data: Path, name: str, size: int, fit: str, quick: bool
) -> tuple[dict[str, Any], Look]:
    problems: list[str] = []
    try:
        reading = read_class(data, name)
    except DatasetError as error:
        reading = Reading(class_name=name, layout="")
        problems.append(str(error))
    train, test = reading.train, reading.test
    if not train and not problems:
        problems.append("no training images: put normal ones into train/good")
    problems += _too_few(train) + _suspicious(train) + _repeated(train) + _shared(train, test)
    sizes, unreadable = _sizes([*train, *test])
    try:
        checked_name(name)
    except ConfigError as error:
        problems.append(f"{error.message}: rename the folder")
    if quick:
        look, read_as = Look(unreadable), []
    else:
        look, masks = look_through(train, test), look_at_masks(test)
        problems += masks.useless + masks.implausible
        read_as = [look.note, f"anomaly masks have {masks.cut.reason}" if masks.cut.reason else ""]
    problems += look.problems
    shown, tile, small = _defect(sizes, size)
    problems += small
    untested = [] if test else ["no test images: `eval` cannot measure it; `predict` can be used"]
    notes, wrong = _seen(data, name, sizes, 0 if tile else size, fit)
    notes += [note for note in read_as if note]
    return {
        "name": name, "layout": reading.layout, "train": len(train),
        "test_normal": sum(not sample.is_anomalous for sample in test),
        "test_defective": sum(sample.is_anomalous for sample in test),
        "with_masks": sum(bool(sample.mask_paths) for sample in test),
        "kinds": sorted({sample.kind for sample in test if sample.is_anomalous}),
        "sizes": dict(sizes.most_common(SHOWN)), "defect_px": shown, "tile": tile,
        "left_out": reading.left_out, "notes": [*untested, *reading.sentences(), *notes],
        "problems": problems + wrong, "odd": [str(sample.path) for sample in look.odd],
    }, look  # fmt: skip


def _defect(sizes: Counter[str], size: int) -> tuple[float | None, int, list[str]]:
    """What a small defect becomes in the largest picture; the tile that keeps it; what to do."""
    if not sizes:
        return None, 0, []
    longer = max(max(map(int, one.split("x"))) for one in sizes)
    shown = round(DEFECT * min(1.0, size / longer), 1)
    if shown >= SEEN_LEAST:
        return shown, 0, []
    told = f"a defect of {DEFECT} px becomes {shown:g} px at {size} px: use --tile {size}"
    return shown, size, [told]


def _seen(
    data: Path, name: str, sizes: Counter[str], size: int, fit: str
) -> tuple[list[str], list[str]]:
    """What a user should know of how pictures are seen, and what is wrong with that."""
    notes, problems = [], []
    uneven = [one for one in sizes if one.split("x")[0] != one.split("x")[1]]
    if uneven and size:
        named = ", ".join(uneven[:SHOWN])
        if fit == "pad":
            notes.append(f"pictures of {named} are padded to squares")
        else:
            told = f"pictures of {named} are squashed into squares"
            problems.append(f"{told}: `--set mask.fit=pad` keeps their shape")
    path = ignore_path(data, name)
    if path:
        try:
            found = "x".join(map(str, picture_size(path)))
            if not read_ignored(path):
                notes.append(f"{path.name} is all black: nothing is ignored")
            elif set(sizes) - {found}:
                other = next(iter(set(sizes) - {found}))
                problems.append(
                    f"{path.name} has {found} px, pictures have {other}: draw it in their size"
                )
            else:
                notes.append(f"what is white in {path.name} is ignored")
        except DatasetError as error:
            problems.append(str(error))
    return notes, problems


def _too_few(train: Sequence[Sample]) -> list[str]:
    if 0 < len(train) < FEW:
        return [f"only {len(train)} training images: a class needs some {FEW}, better 100"]
    return []


def _suspicious(train: Sequence[Sample]) -> list[str]:
    """Normal images by folder whose names speak of defects."""
    found = [one.image_id for one in train if _DEFECT_WORDS.search(Path(one.image_id).name)]
    if not found:
        return []
    names = ", ".join(found[:SHOWN])
    return [f"{len(found)} training images are named like defects ({names}): move them to test/"]


def _repeated(train: Sequence[Sample]) -> list[str]:
    """Training images that are there more than once: they count as often."""
    found = [one.image_id for group in same_files([train]) for one in sorted(
        group, key=lambda sample: sample.image_id)[1:]]  # fmt: skip
    if not found:
        return []
    names = listed(found)
    verb = "is" if len(found) == 1 else "are"
    told = f"{counted(len(found), 'training image')} {verb} there under another name too"
    return [f"{told} ({names})"]


def _shared(train: Sequence[Sample], test: Sequence[Sample]) -> list[str]:
    """Test images that are training images too: figures from them would flatter."""
    learned = {one.path for one in train}
    found = [
        one.image_id
        for group in same_files([train, test])
        if any(one.path in learned for one in group)
        for one in group
        if one.path not in learned
    ]
    if not found:
        return []
    names = listed(sorted(found))
    return [f"{len(found)} test images are also training images ({names}): remove one of the two"]


def same_files(parts: Sequence[Sequence[Sample]]) -> list[list[Sample]]:
    """Groups of images that are one file, byte by byte; only files of equal size are read."""
    by_size: dict[int, list[Sample]] = {}
    for sample in (sample for part in parts for sample in part):
        by_size.setdefault(_num_bytes(sample.path), []).append(sample)
    groups: dict[bytes, list[Sample]] = {}
    for some in by_size.values():
        for sample in some if len(some) > 1 else ():
            groups.setdefault(_digest(sample.path), []).append(sample)
    return [group for group in groups.values() if len(group) > 1]


def _sizes(samples: Sequence[Sample]) -> tuple[Counter[str], list[str]]:
    """Sizes from the files' headers, and what has none."""
    sizes: Counter[str] = Counter()
    unreadable = []
    for sample in samples:
        try:
            width, height = picture_size(sample.path)
        except DatasetError:
            unreadable.append(sample.image_id)
        else:
            sizes[f"{width}x{height}"] += 1
    if not unreadable:
        return sizes, []
    names = ", ".join(unreadable[:SHOWN])
    what = "1 file is not an image" if len(unreadable) == 1 else (
        f"{len(unreadable)} files are not images")  # fmt: skip
    return sizes, [f"{what} ({names}): replace or remove"]


def _num_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _digest(path: Path) -> bytes:
    try:
        return hashlib.sha256(path.read_bytes()).digest()
    except OSError:
        return str(path).encode()
