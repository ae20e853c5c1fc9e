"""Which anomaly mask belongs to which image: by name, with whatever stands before or behind it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from replaycad.data.levels import is_mask, num_levels
from replaycad.data.words import folded
from replaycad.errors import DatasetError

T = TypeVar("T")
Affix = tuple[str, str]
ROUNDS = 4  # affixes in one folder: labelling tools change theirs, and some write several masks
TRIED = 8  # of the most frequent affixes in each round
LOOKED_AT = 64  # names in which known ones are looked for anywhere, not at either end alone
OPENED = 8  # pictures of a folder that are opened to tell masks from photos


def paired(
    images: Sequence[str], masks: Sequence[Path]
) -> tuple[dict[int, list[int]], list[Affix]]:
    """Pair images with pictures of a folder of masks, by their names without endings.

    A mask is named as its image with one text before and one behind, the same for many; an image
    may have several masks, by several such affixes. Where that pairs nothing, letters that all
    images and all masks begin or end with may differ.

    Args:
        images: stems; one that occurs twice is nobody's.
        masks: likewise.
        accept: asked, by their places, whether pictures that were paired by one affix are masks.

    Returns:
        Which masks each image has, by place, and the affixes that were found, the most frequent
        first. Case does not matter.
    """
    image_at = _once([folded(name) for name in images])
    mask_at = _once([folded(path.stem) for path in masks])
    found: dict[int, list[int]] = {}
    affixes: list[Affix] = []
    refused: set[Affix] = set()
    while len(affixes) < ROUNDS and len(refused) < TRIED:
        affix, pairs = _best(image_at, mask_at, refused)
        if not pairs:
            break
        if not are_masks([masks[mask_at[mask]] for _, mask in pairs]):
            refused.add(affix)
            continue
        affixes.append(affix)
        for image, mask in pairs:
            found.setdefault(image_at[image], []).append(mask_at.pop(mask))
    if not found and not refused:
        cores = _by_core(image_at, mask_at)
        if cores and are_masks([masks[row] for row in cores.values()]):
            found = {image: [mask] for image, mask in cores.items()}
    return found, affixes


def split_masks(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, tuple[Path, ...]]]:
    """Tell photos from masks that lie in one folder beside them.

    Where one name goes on where another ends, or two files of one name end differently, the longer
    or the other is a mask if it has few levels and the photo has more. A file that cannot be read
    is a photo: whoever needs it will say so.

    Returns:
        The photos, and the masks of those that have some.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in paths:
        by_stem.setdefault(folded(path.stem), []).append(path)
    masks: dict[Path, tuple[Path, ...]] = {}
    taken: set[Path] = set()
    counts = _affixes_beside(by_stem)
    for affix in sorted(counts, key=lambda one: _rank(one[:2], counts[one]))[:TRIED]:
        pairs = _pairs_beside(by_stem, affix, taken)
        if not pairs or not _are_masks(pairs):
            continue
        for photo, mask in pairs:
            masks[photo] = (*masks.get(photo, ()), mask)
            taken.add(mask)
    photos = [path for path in paths if path not in taken]
    return photos, {photo: own for photo, own in masks.items() if photo not in taken}


def are_masks(paths: Sequence[Path]) -> bool:
    """Whether most of some pictures, of which a few are opened, may be masks."""
    shown = _few(paths)
    return 2 * sum(map(is_mask, shown)) >= len(shown)


def _affixes_beside(by_stem: dict[str, list[Path]]) -> Counter[tuple[str, str, str]]:
    """What names of one folder have before and behind others, with the ending of the longer one."""
    found: Counter[tuple[str, str, str]] = Counter()
    known = dict.fromkeys(by_stem, 0)
    few = set(_few(list(by_stem), LOOKED_AT))
    for stem, own in by_stem.items():
        affixes = _affixes(stem, known, anywhere=stem in few)
        affixes |= {("", "")} if len(own) > 1 else set()
        found.update((*affix, path.suffix.lower()) for affix in affixes for path in own)
    return found


def _pairs_beside(
    by_stem: dict[str, list[Path]], affix: tuple[str, str, str], taken: set[Path]
) -> list[tuple[Path, Path]]:
    before, behind, ending = affix
    found = []
    for stem, own in by_stem.items():
        photos = [path for path in own if path not in taken]
        others = [
            path for path in by_stem.get(f"{before}{stem}{behind}", ())
            if path.suffix.lower() == ending and path not in taken
        ]  # fmt: skip
        if not before + behind:
            photos = [path for path in photos if path not in others]
        if len(photos) == len(others) == 1:
            found.append((photos[0], others[0]))
    return found


def _are_masks(pairs: Sequence[tuple[Path, Path]]) -> bool:
    """Whether in most of some pairs the second is a mask of the first."""
    votes = []
    for photo, mask in _few(pairs):
        try:
            votes.append(is_mask(mask) and num_levels(photo) > num_levels(mask))
        except DatasetError:
            votes.append(False)
    return 2 * sum(votes) > len(votes)


def _few(found: Sequence[T], count: int = OPENED) -> Sequence[T]:
    return found[:: max(1, len(found) // count)][:count]


def _once(names: Sequence[str]) -> dict[str, int]:
    """Place of the names that occur once."""
    counts = Counter(names)
    return {name: place for place, name in enumerate(names) if counts[name] == 1}


def _best(
    image_at: dict[str, int], mask_at: dict[str, int], refused: set[Affix]
) -> tuple[Affix, list[tuple[str, str]]]:
    """The affix that pairs most, the shortest of several, and its pairs."""
    few = set(_few(list(mask_at), LOOKED_AT))
    counts = Counter(
        affix for name in mask_at for affix in _affixes(name, image_at, True, name in few)
    )
    best: tuple[Affix, list[tuple[str, str]]] = (("", ""), [])
    tried = sorted(counts, key=lambda one: _rank(one, counts[one]))
    for affix in [one for one in tried if one not in refused][:TRIED]:
        before, behind = affix
        pairs = [
            (image, f"{before}{image}{behind}")
            for image in image_at
            if f"{before}{image}{behind}" in mask_at
        ]
        if len(pairs) > len(best[1]):
            best = affix, pairs
    return best


def _affixes(
    name: str, known: dict[str, int], is_mask_name: bool = False, anywhere: bool = True
) -> set[Affix]:
    """What stands around known names in a name; a number is never cut in two."""
    found = set()
    size = len(name)
    spans = [(0, stop) for stop in range(1, size + 1)] + [(start, size) for start in range(1, size)]
    if anywhere:
        spans += [(start, stop) for start in range(1, size) for stop in range(start + 1, size)]
    for start, stop in spans:
        if name[start:stop] not in known or (stop - start == size and not is_mask_name):
            continue
        before, behind = name[:start], name[stop:]
        if _cuts(before[-1:], name[start]) or _cuts(name[stop - 1], behind[:1]):
            continue
        found.add((before, behind))
    return found


def _rank(affix: Affix, count: int) -> tuple[int, bool, int, Affix]:
    """Sorts affixes: frequent ones first, those that do not begin with a number, short ones."""
    return -count, any(map(str.isdigit, affix[0])), len("".join(affix)), affix


def _cuts(left: str, right: str) -> bool:
    return left.isdigit() and right.isdigit()


def _by_core(image_at: dict[str, int], mask_at: dict[str, int]) -> dict[int, int]:
    """Pairs of what remains without the letters that all have in common, if that is one to one."""
    images, masks = _cores(list(image_at)), _cores(list(mask_at))
    if len(images) != len(image_at) or len(masks) != len(mask_at) or "" in images:
        return {}
    return {image_at[images[core]]: mask_at[masks[core]] for core in images if core in masks}


def _cores(names: list[str]) -> dict[str, str]:
    """Names by what differs between them; digits never belong to what is common."""
    before = _common(names)
    behind = _common([name[::-1] for name in names])
    return {name[before : len(name) - behind]: name for name in names}


def _common(names: list[str]) -> int:
    """How many characters all names begin with, less the digits at their end."""
    first, last = min(names, default=""), max(names, default="")
    length = 0
    while first[length : length + 1] == last[length : length + 1] != "":
        length += 1
    return len(first[:length].rstrip("0123456789"))
