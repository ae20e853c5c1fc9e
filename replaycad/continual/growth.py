"""A class that grows: what stands for the images of before, what for new ones, and how many."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

ADDED = "added/"  # begins the name of an input that says which photos were added later
GROWN, COMPRESSED = "added", "compressed_key"
"""Fields of a header: which photos were added, and the key of what they were added to."""
DIGEST_BYTES = 6  # of the sha256 of a photo: two of 512 are alike once in 10^9 stores
MAX_ADDED = 512  # photos whose digests are remembered, the last ones, where the file is not small
BUDGET_SHARE = 0.02  # of a budget, at most, for digests of photos
LEAST_ADDED = 64  # digests that are remembered whatever the budget


def joined_rows(
    before: FloatArray, added: FloatArray, num_before: int, most: int
) -> FloatArray:
    """Poses or coefficients of old and new images, as many of either as its images ask for.

    Args:
        before: `[P, n]`, of some of the images before.
        added: `[N, n]`, of all new ones.
        num_before: images that the first stand for.
        most: rows that are kept.

    Returns:
        `[R, n]`, R at most `most`: a row is drawn about as often from either as an image of it.
    """
    share = num_before / (num_before + len(added))
    wanted = min(most, len(before) + len(added))
    num_old = min(len(before), max(1, round(share * wanted)))
    # Where few rows stand for many images, as few of the new ones are taken.
    num_new = max(1, min(len(added), most - num_old, round(num_old * (1 - share) / share)))
    old, new = (
        rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]
        for rows, count in ((before, num_old), (added, num_new))
    )
    return np.concatenate([old, new]).astype(np.float32)


def num_images(header: Mapping[str, Any], rows: int) -> int:
    """Images behind what is kept of a class; where a header does not say it, as many as rows."""
    found = header.get("num_images", 0)
    return found if isinstance(found, int) and found > 0 else max(rows, 1)


def known_photos(header: Mapping[str, Any]) -> list[str]:
    """Digests of the photos that were added to a class, in their order, as `photo_digest` gives."""
    grown = header.get(GROWN)
    text = str(grown.get("digests", "")) if isinstance(grown, dict) else ""
    width = DIGEST_BYTES * 4 // 3
    return [text[start : start + width] for start in range(0, len(text), width)]


def photo_digest(sha256: str) -> str:
    """The first bytes of a photo's sha256 as text that is no word of a language."""
    return base64.urlsafe_b64encode(bytes.fromhex(sha256)[:DIGEST_BYTES]).decode()


def grown_record(
    header: Mapping[str, Any], digests: Sequence[str], budget: int
) -> dict[str, Any]:
    """What a header says of the photos that were added so far.

    Args:
        header: of what they are added to.
        digests: of the new photos, as `photo_digest` gives them.
        budget: bytes of the file; 0 for no limit.

    Returns:
        `photos`, how many were added; `digests` of the last ones, one behind the other.
    """
    grown = header.get(GROWN)
    count = int(grown.get("photos", 0)) if isinstance(grown, dict) else 0
    most = MAX_ADDED
    if budget:
        most = min(most, max(LEAST_ADDED, int(BUDGET_SHARE * budget) // (DIGEST_BYTES * 4 // 3)))
    remembered = [*known_photos(header), *digests][-most:]
    return {"photos": count + len(digests), "digests": "".join(remembered)}
