"""What conditions of a class may hold, so that their file stays within so many bytes."""

from bisect import bisect_left
from dataclasses import replace

import numpy as np

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.token_coding import finest_step, is_transformed
from replaycad.config.stages import CompressConfig
from replaycad.data.images import evenly_spaced

IMAGE_BUDGET = 200_000  # bytes of a file with real images, unless the config says how many
HEADER_BYTES = 4_000  # of a file, about; what is written in the end is counted exactly
MAX_POSES = 256  # kept of a class, and coefficients likewise
FEWER_POSES = (MAX_POSES, 128, 64)  # the first with which tokens are rounded finely enough
FINEST, FINE, COARSEST = 1 / 512, 1 / 24, 0.5
"""Steps of packed tokens, in parts of their root mean square; up to the second the number of poses
counts for more. Measured with the bundled network's tokens, on replays of three real classes, two
seeds, 64 poses, image AUROC / pixel AP: 68.8 / 9.2 in floats, 68.7 / 9.1 at 1/24, 67.1 / 9.2 at
1/12, 65.4 / 8.5 at 1/6."""
FINEST_SEEN, FINE_SEEN, COARSEST_SEEN = 0.02, 0.08, 0.5
"""The same of transformed tokens, in units of the picture's latents: replays of six held-out
classes and four real ones lie 48 to 51, 38 to 43 and 27 to 36 dB from those of unrounded tokens."""
_TRIED = 64  # steps between these two, evenly_spaced in their logarithm


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
    row = number * (3 + config.num_variations)  # a pose and its coefficients
    least = HEADER_BYTES // 2 + min(num_images, FEWER_POSES[-1]) * row
    needed = HEADER_BYTES + min(num_images, MAX_POSES) * row
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

    Transformed tokens are rounded no finer than is seen, and then take fewer bytes.

    Args:
        kept: as searched.
        room: bytes of the whole file.

    Returns:
        None if they do not fit even at the coarsest step.
    """
    if kept.file_bytes() <= room or not len(kept.semantic_embedding):
        return kept if kept.file_bytes() <= room else None
    steps, fine = _steps(kept)
    rounded = None
    for number in FEWER_POSES:
        rounded = _rounded(_with_rows(kept, number), room, steps)
        if rounded is not None and rounded.step <= fine:
            break
    return rounded


def _steps(kept: ConditionsArtifact) -> tuple[list[float], float]:
    """Steps to try from the finest on, as 16 bits keep them, and one that is fine enough."""
    finest, fine, coarsest = FINEST_SEEN, FINE_SEEN, COARSEST_SEEN
    if not is_transformed(kept.semantic_embedding.shape):
        size = float(np.sqrt(np.square(kept.semantic_embedding).mean()))
        finest, fine, coarsest = size * FINEST, size * FINE, size * COARSEST
    least = max(finest, finest_step(kept.levels))
    steps = np.geomspace(least, max(coarsest, least), _TRIED)
    # Rounded up, for none may be below the finest.
    return [float(np.nextafter(np.float16(step), np.float16(np.inf))) for step in steps], fine


def _rounded(kept: ConditionsArtifact, room: int, steps: list[float]) -> ConditionsArtifact | None:
    """Tokens rounded to the finest step that fits; None if not even the coarsest does."""
    place = bisect_left(steps, True, key=lambda step: replace(kept, step=step).file_bytes() <= room)
    return replace(kept, step=steps[place]) if place < len(steps) else None


def _with_rows(kept: ConditionsArtifact, number: int) -> ConditionsArtifact:
    """Poses and coefficients of fewer training images, the same ones."""
    poses, coefficients = (
        None if rows is None else rows[evenly_spaced(len(rows), number)]
        for rows in (kept.poses, kept.coefficients)
    )
    return replace(kept, poses=poses, coefficients=coefficients)
