"""What conditions of a class may hold, so that their file stays within so many bytes."""

from bisect import bisect_left
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.frequencies import have_places
from replaycad.artifacts.packing import finest_step
from replaycad.data.images import evenly
from replaycad.recipes import CompressConfig

IMAGE_BUDGET = 200_000  # bytes of a file with real images, unless the config says how many
HEADER_BYTES = 4_000  # of a file, about; what is written in the end is counted exactly
MAX_POSES = 256  # kept of a class, and coefficients likewise
PACKED_POSES = 64  # where every byte counts
FINEST, COARSEST = 1 / 512, 0.5  # steps of packed tokens, in parts of their root mean square
FINEST_SEEN, COARSEST_SEEN = 0.02, 0.5
"""Steps of packed frequencies, in units of the picture's latents: replays of six held-out classes
and four real ones lie 47 to 51 dB and about 30 dB from those of unrounded tokens."""
_TRIED = 64  # steps between these two, evenly in their logarithm


def affordable(
    config: CompressConfig,
    room: int,
    *,
    tokens: int,
    spatial: int,
    mask_bytes: int,
    num_images: int,
) -> CompressConfig | None:
    """The config, without the spatial layer and its masks where these do not fit.

    They go first: where replays are moved to poses they add the least for their bytes (measured:
    76.6/20.9 with, 76.0/20.9 without, on four real classes).

    Args:
        config: what is wanted.
        room: bytes of the whole file.
        tokens: numbers in the semantic embedding, K x D.
        spatial: numbers in the spatial layer, O x I + O.
        mask_bytes: of one stored mask.
        num_images: of the class, whose poses and coefficients are kept.

    Returns:
        None if that is certain not to fit, however coarsely tokens are stored.
    """
    number = 2 if config.half else 4
    least = HEADER_BYTES // 2 + min(num_images, PACKED_POSES) * number * (3 + config.num_variations)
    needed = HEADER_BYTES + min(num_images, MAX_POSES) * number * (3 + config.num_variations)
    if config.conditioning != "spatial":
        needed += tokens * (number + config.num_variations)  # variations take 8 bits a number
    if config.conditioning != "semantic":
        needed += spatial * number + config.num_masks * mask_bytes
    if needed <= room:
        return config
    if config.conditioning == "spatial" or least > room:
        return None
    return replace(config, conditioning="semantic", num_masks=0)


def fitted(kept: ConditionsArtifact, room: int) -> ConditionsArtifact | None:
    """The same conditions, their tokens rounded as finely as so many bytes of the file allow.

    Frequencies are rounded no finer than is seen, and then take fewer bytes.

    Args:
        kept: as searched.
        room: bytes of the whole file.

    Returns:
        None if they do not fit even at the coarsest step.
    """
    if kept.file_bytes() <= room or not len(kept.semantic_embedding):
        return kept if kept.file_bytes() <= room else None
    kept = replace(kept, poses=_fewer(kept.poses), coefficients=_fewer(kept.coefficients))
    levels = kept.levels
    if have_places(kept.semantic_embedding.shape):
        finest, coarsest = FINEST_SEEN, COARSEST_SEEN
    else:
        size = float(np.sqrt(np.square(levels[0]).mean()))
        finest, coarsest = size * FINEST, size * COARSEST
    least = max(finest, finest_step(levels))
    steps = np.geomspace(least, max(coarsest, least), _TRIED)
    # As 16 bits keep them; rounded up, for none may be below the finest.
    stored = [float(np.nextafter(np.float16(one), np.float16(np.inf))) for one in steps]
    place = bisect_left(
        stored, True, key=lambda step: replace(kept, step=step).file_bytes() <= room
    )
    return replace(kept, step=stored[place]) if place < len(stored) else None


def _fewer(rows: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    return None if rows is None else rows[evenly(len(rows), PACKED_POSES)]
