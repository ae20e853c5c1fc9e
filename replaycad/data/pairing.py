"""Which anomaly mask belongs to which image: by name, with whatever stands before or behind it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from replaycad.data.levels import is_two_level

Affix = tuple[str, str]
ROUNDS = 3  # affixes in one folder; labelling tools change theirs
LOOKED_AT = 64  # names from which affixes are guessed; each guess is then counted over all
OPENED = 8  # pictures of a folder that are opened to tell masks from photos


def paired(images: Sequence[str], masks: Sequence[str]) -> tuple[dict[int, int], list[Affix]]:
    """Pair names without their endings, one to one.

    A mask is named as its image with one text before and one behind, the same in the whole folder;
    where that pairs nothing, letters that all images and all masks begin or end with may differ.

    Args:
        images: stems; one that occurs twice is nobody's.
        masks: likewise.

    Returns:
        Which mask each image has, by place, and the affixes that were found, the most frequent
        first. Case does not matter.
    """
    images, masks = [name.casefold() for name in images], [name.casefold() for name in masks]
    image_at, mask_at = _once(images), _once(masks)
    found: dict[int, int] = {}
    affixes: list[Affix] = []
    for _ in range(ROUNDS):
        affix, pairs = _best(image_at, mask_at)
        if not pairs:
            break
        affixes.append(affix)
        for image, mask in pairs:
            found[image_at.pop(image)] = mask_at.pop(mask)
    if not found:
        found = _by_core(image_at, mask_at)
    return found, affixes


def split_masks(paths: Sequence[Path]) -> tuple[list[Path], dict[Path, Path]]:
    """Tell photos from masks that lie in one folder beside them.

    A pair of names of which one goes on where the other ends, or of one name with two endings, is
    photo and mask if the latter has two grey levels and the former has not.

    Returns:
        The photos, and the mask of those that have one.

    Raises:
        DatasetError: a picture of such a pair cannot be read.
    """
    by_ending: dict[str, list[Path]] = {}
    for path in paths:
        by_ending.setdefault(path.suffix.casefold(), []).append(path)
    for photos, masks in _candidates(by_ending, paths):
        found, _ = paired([one.stem for one in photos], [one.stem for one in masks])
        if photos is masks:  # a name is no pair with itself
            found = _beside(photos)
        pairs = [(photos[image], masks[mask]) for image, mask in sorted(found.items())]
        step = max(1, len(pairs) // OPENED)
        shown = pairs[::step][:OPENED]
        if (
            shown
            and all(is_two_level(mask) for _, mask in shown)
            and not all(is_two_level(photo) for photo, _ in shown)
        ):
            taken = {mask for _, mask in pairs}
            return [path for path in paths if path not in taken], dict(pairs)
    return list(paths), {}


def _candidates(
    by_ending: dict[str, list[Path]], paths: Sequence[Path]
) -> list[tuple[Sequence[Path], Sequence[Path]]]:
    """Photos and masks as endings would have them, then as affixes would."""
    endings = sorted(by_ending)
    found: list[tuple[Sequence[Path], Sequence[Path]]] = [
        (by_ending[one], by_ending[other]) for one in endings for other in endings if one != other
    ]
    return [*found, (paths, paths)]


def _beside(paths: Sequence[Path]) -> dict[int, int]:
    """Pairs among names of one folder of which one goes on where the other ends."""
    stems = [path.stem.casefold() for path in paths]
    once = _once(stems)
    counts = Counter(affix for name in _some(stems) for affix in _affixes(name, once))
    for affix, _ in counts.most_common(ROUNDS):
        pairs = _pairs(once, once, affix)
        if pairs:
            return {once[image]: once[mask] for image, mask in pairs}
    return {}


def _once(names: Sequence[str]) -> dict[str, int]:
    """Place of the names that occur once."""
    counts = Counter(names)
    return {name: place for place, name in enumerate(names) if counts[name] == 1}


def _some(names: Sequence[str]) -> Sequence[str]:
    return names[:: max(1, len(names) // LOOKED_AT)][:LOOKED_AT]


def _best(image_at: dict[str, int], mask_at: dict[str, int]) -> tuple[Affix, list[tuple[str, str]]]:
    """The affix that pairs most, the shortest of several, and its pairs."""
    counts: Counter[Affix] = Counter()
    counts.update(
        affix for name in _some(list(mask_at)) for affix in _affixes(name, image_at, True)
    )
    best: tuple[Affix, list[tuple[str, str]]] = (("", ""), [])
    for affix in sorted(counts, key=lambda one: (-counts[one], len("".join(one)), one))[:8]:
        pairs = _pairs(image_at, mask_at, affix)
        if len(pairs) > len(best[1]):
            best = affix, pairs
    return best


def _affixes(name: str, known: dict[str, int], is_mask: bool = False) -> set[Affix]:
    """What stands around known names in a name; a number is never cut in two."""
    found = set()
    for start in range(len(name)):
        for stop in range(start + 1, len(name) + 1):
            if name[start:stop] not in known or (stop - start == len(name) and not is_mask):
                continue
            before, behind = name[:start], name[stop:]
            if _cuts(before[-1:], name[start]) or _cuts(name[stop - 1], behind[:1]):
                continue
            found.add((before, behind))
    return found


def _cuts(left: str, right: str) -> bool:
    return left.isdigit() and right.isdigit()


def _pairs(
    image_at: dict[str, int], mask_at: dict[str, int], affix: Affix
) -> list[tuple[str, str]]:
    """Images and masks that an affix pairs."""
    before, behind = affix
    return [
        (image, f"{before}{image}{behind}")
        for image in image_at
        if f"{before}{image}{behind}" in mask_at
    ]


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
