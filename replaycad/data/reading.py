"""The folder of one class, read: what is normal, what is defective, which mask is of which image.

Nothing here refuses a folder: what is not understood is left out, and `Reading` says so.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from replaycad.data.folders import Place, Tree, place_of, walk
from replaycad.data.levels import Cut, cut_of, is_black
from replaycad.data.pairing import Affix, are_masks, paired, split_masks
from replaycad.data.samples import Reading, Sample, counted, listed
from replaycad.data.tables import sample_id
from replaycad.data.words import key_of, meaning

HELD_OUT = 5  # one normal image of so many is tested where no folder says which
USUAL_AFFIXES: tuple[Affix, ...] = (("", ""), ("", "_mask"))


@dataclass
class _Photo:
    """One image on its way to a sample."""

    path: Path
    place: Place
    masks: tuple[Path, ...] = ()


@dataclass
class _Class:
    """What is gathered of a class."""

    folder: Path
    reading: Reading
    photos: list[_Photo] = field(default_factory=list)

    def leave_out(self, reason: str, paths: Iterable[Path]) -> None:
        ids = [sample_id(path, self.folder) for path in paths]
        if ids:
            self.reading.left_out.setdefault(reason, []).extend(ids)

    def guess(self, sentence: str) -> None:
        self.reading.guesses.append(sentence)


def read_folder(folder: Path, class_name: str, only_training: bool = False) -> Reading:
    """Read the folder of a class.

    Args:
        folder: of the class.
        class_name: the class.
        only_training: do not look at the test images, where a folder says which those are.

    Raises:
        OSError: a folder cannot be read.
        DatasetError: a mask cannot be read that alone says whether an image is defective.
    """
    tree = walk(folder, only_training)
    found = _Class(folder=folder, reading=Reading(class_name=class_name, layout=""))
    masks = _gather(tree, found)
    _pair(masks, found)
    _label(found)
    _split(found)
    found.leave_out("links to nowhere", tree.dangling)
    found.leave_out("links to what is read anyway", tree.skipped)
    found.leave_out("such files cannot be read, save them as PNG or TIFF", tree.unread)
    found.reading.layout = _layout(found)
    _say_words(found)
    return found.reading


def _gather(tree: Tree, found: _Class) -> list[tuple[Place, list[Path]]]:
    """Collect the photos, with the masks beside them; return masks of folders of their own."""
    masks: list[tuple[Place, list[Path]]] = []
    num_beside = 0
    has_training = any(meaning(name) == "train" for name in tree.folders[()])
    for parts, paths in tree.images.items():
        place = place_of(parts, tree.folders)
        if place.split == "train" and has_training and meaning(parts[0]) != "train":
            if meaning(parts[0]) == "truth" and not place.stray:  # `masks/train`
                masks.append((place, paths))
            else:
                found.leave_out("the class has another folder for training", paths)
            continue
        if place.is_truth and not place.stray:
            masks.append((place, paths))
        elif place.stray:
            found.leave_out(f"the folder '{place.stray}' is not understood there", paths)
        else:
            photos, beside = split_masks(paths)
            num_beside += sum(map(len, beside.values()))
            found.photos += [_Photo(path, place, beside.get(path, ())) for path in photos]
    if num_beside:
        told = "is taken as the mask" if num_beside == 1 else "are taken as the masks"
        found.guess(f"{counted(num_beside, 'picture')} of few grey levels {told} of those beside")
    if any(one.place.label or one.place.split for one in found.photos):
        strays = [one for one in found.photos if not (one.place.label or one.place.split)]
        found.leave_out("no folder says what they are", (one.path for one in strays))
        found.photos = [one for one in found.photos if one.place.label or one.place.split]
    return masks


def _pair(masks: Sequence[tuple[Place, list[Path]]], found: _Class) -> None:
    """Give the photos their masks from folders of masks."""
    affixes: list[Affix] = []
    nobodys: list[Path] = []
    for place, paths in sorted(masks, key=lambda one: (one[0].split, one[0].key, one[1])):
        photos = _photos_of(place.split, place.key, found.photos)
        own, used = paired([one.path.stem for one in photos], paths)
        if not own and place.key:  # a folder of masks for each image
            photos = [
                one for one in _photos_of(place.split, place.key[:-1], found.photos)
                if key_of(one.path.stem) == place.key[-1]
            ]  # fmt: skip
            own = {0: list(range(len(paths)))} if len(photos) == 1 and are_masks(paths) else {}
        for image, rows in own.items():
            photos[image].masks += tuple(paths[row] for row in rows)
        if own and not used and photos[0].path.stem not in place.key and len(own) > 1:
            image, rows = min(own.items())
            named = f"{photos[image].path.name} has {paths[rows[0]].name}"
            found.guess(f"masks are paired by what differs in their names: {named}")
        affixes += used
        taken = {row for rows in own.values() for row in rows}
        nobodys += [path for row, path in enumerate(paths) if row not in taken]
    found.leave_out("masks of no image, or no masks", nobodys)
    for before, behind in dict.fromkeys(affixes):
        if (before, behind) not in USUAL_AFFIXES:
            found.guess(f"masks are named {before}<image>{behind}")


def _photos_of(split: str, key: tuple[str, ...], photos: Sequence[_Photo]) -> list[_Photo]:
    """Photos that a folder of masks may be of: those of the same names, or of some below them.

    Masks outside of a training folder say nothing of what is in it, which is read without them.
    """
    for length in (None, len(key)):
        chosen = [
            one for one in photos
            if one.place.label != "normal"
            and (one.place.key if length is None else one.place.key[:length]) == key
            and (split == one.place.split or (not split and one.place.split != "train"))
        ]  # fmt: skip
        if chosen:
            return chosen
    return []


def _label(found: _Class) -> None:
    """Label photos of which no folder says it: by their masks, or as normal where they are learned.

    A class whose folders say nothing at all is one of normal images.
    """
    silent = [one for one in found.photos if not one.place.label]
    unlabelled: list[_Photo] = []
    for split in sorted({one.place.split for one in silent}):
        own = [one for one in silent if one.place.split == split]
        if any(one.masks for one in own):
            cut = cut_of(one.masks for one in own)
            num_defective = 0
            for one in own:
                is_normal = not one.masks or _shows_nothing(one.masks, cut)
                num_defective += not is_normal
                label, kind = ("normal", "good") if is_normal else ("defect", "bad")
                one.place = replace(one.place, label=label, kind=kind)
            found.guess(
                f"masks say what is defective{f' in {split}' if split else ''}: "
                f"{counted(num_defective)}; the others are taken as normal"
            )
        elif split in ("train", ""):
            for one in own:
                one.place = replace(one.place, label="normal", kind="good")
        else:
            unlabelled += own
    sessions = sorted({"/".join(one.place.session) for one in silent} - {""})
    if sessions and not unlabelled and len(silent) == len(found.photos):
        found.guess(f"{listed(sessions)} taken as recordings, which say nothing of defects")
    found.leave_out("no folder says whether they are normal", (one.path for one in unlabelled))


def _split(found: _Class) -> None:
    """Part the photos into those for training and those for tests."""
    photos = [one for one in found.photos if one.place.label]
    splits = {one.place.split for one in photos}
    has_train = any(one.place.split == "train" for one in photos)
    free = [one for one in photos if not one.place.split and one.place.label == "normal"]
    defects = [one for one in photos if one.place.label == "defect"]
    train, test = [], []
    for photo in photos:
        split = photo.place.split
        if split == "held":
            found.leave_out("neither for training nor for tests", [photo.path])
        elif split == "train" and photo.place.label == "defect":
            found.leave_out("defects are not learned from", [photo.path])
        elif split == "train":
            train.append(photo)
        elif split == "test" or photo.place.label == "defect" or has_train:
            test.append(photo)
    if free and not has_train:
        held = set() if "test" in splits or not defects else _held_out(free, found)
        for place, photo in enumerate(free):
            (test if place in held else train).append(photo)
    found.reading.train += [_sample(one, found) for one in train]
    found.reading.test += [_sample(one, found) for one in test]


def _held_out(photos: Sequence[_Photo], found: _Class) -> set[int]:
    """Which normal images are tested, where defects are there and no folder says which.

    The last recordings, if some make up a fifth to a half of all; else every fifth image.
    """
    names = [one.place.session for one in photos]
    counts, taken, last = Counter(names), 0, set()
    for name in sorted(counts, key=_counting, reverse=True):
        if taken * HELD_OUT >= len(photos):
            break
        last.add(name)
        taken += counts[name]
    if len(counts) > 1 and taken * 2 <= len(photos):
        held = {place for place, name in enumerate(names) if name in last}
        which = f"those of {listed(sorted('/'.join(one) or '.' for one in last))}"
    else:
        held = set(range(HELD_OUT - 1, len(photos), HELD_OUT))
        which = "every fifth"
    if held:
        found.guess(
            f"{len(held)} of {len(photos)} normal images are kept for tests, {which}: no folder "
            "says which"
        )
    return held


def _counting(name: tuple[str, ...]) -> list[tuple[int, str]]:
    """Sorts S2 before S10."""
    parts = re.findall(r"\d+|\D+", "/".join(name))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _sample(photo: _Photo, found: _Class) -> Sample:
    is_anomalous = photo.place.label == "defect"
    return Sample(
        path=photo.path,
        image_id=sample_id(photo.path, found.folder),
        class_name=found.reading.class_name,
        kind=photo.place.kind,
        is_anomalous=is_anomalous,
        mask_paths=photo.masks if is_anomalous else (),
    )


def _layout(found: _Class) -> str:
    """What kind of folders these are, in a few words."""
    splits = {one.place.split for one in found.photos}
    if "train" in splits or "test" in splits:
        return "folders for training and tests"
    if any(one.place.label == "defect" for one in found.photos):
        return "folders of normal and defective images"
    return "plain folders of normal images"


def _say_words(found: _Class) -> None:
    """Say which folders were taken as normal, unless they are called good."""
    words = {one.place.word for one in found.photos if one.place.label == "normal"}
    words = {word for word in words if word.casefold() not in ("", "good")}
    if words:
        found.guess(f"{listed(sorted(words))} {'is' if len(words) == 1 else 'are'} taken as normal")


def _shows_nothing(paths: tuple[Path, ...], cut: Cut) -> bool:
    """`is_black`, remembered for files that have not changed."""
    stamps = tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in paths)
    return _is_black(stamps, cut)


@lru_cache(maxsize=65_536)
def _is_black(stamps: tuple[tuple[Path, int, int], ...], cut: Cut) -> bool:
    return is_black([path for path, _, _ in stamps], cut)
