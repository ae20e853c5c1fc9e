"""What conditions of a class may hold, so that their file stays within so many bytes."""

from dataclasses import replace

from replaycad.recipes import CompressConfig

IMAGE_BUDGET = 200_000  # bytes of a file with real images, unless the config says how many
HEADER_BYTES = 4_000  # of a file, about; what is written in the end is counted exactly
MAX_POSES = 256  # kept of a class, and coefficients likewise


def affordable(
    config: CompressConfig,
    room: int,
    *,
    tokens: int,
    spatial: int,
    mask_bytes: int,
    num_images: int,
) -> CompressConfig | None:
    """The config with no more variations, and no more of masks, than fit.

    The spatial layer with its masks goes first: where replays are moved to poses it adds the least
    for its bytes (measured: 76.6/20.9 with, 76.0/20.9 without, on four real classes).

    Args:
        config: what is wanted.
        room: bytes of the whole file.
        tokens: numbers in the semantic embedding, K x D.
        spatial: numbers in the spatial layer, O x I + O.
        mask_bytes: of one stored mask.
        num_images: of the class, whose poses and coefficients are kept.

    Returns:
        None if not even the tokens alone fit.
    """
    number = 2 if config.half else 4
    fewer = [config.num_variations]
    while fewer[-1]:
        fewer.append(fewer[-1] // 2)
    forms = [(config.conditioning, config.num_masks, config.num_variations)]
    if config.conditioning != "spatial":
        forms += [("semantic", 0, count) for count in fewer]
    for conditioning, num_masks, num_variations in forms:
        needed = HEADER_BYTES + min(num_images, MAX_POSES) * number * (3 + num_variations)
        if conditioning != "semantic":
            needed += spatial * number + num_masks * mask_bytes
        if conditioning != "spatial":
            needed += tokens * (number + num_variations)  # variations take 8 bits a number
        if needed <= room:
            return replace(
                config, conditioning=conditioning, num_masks=num_masks,
                num_variations=num_variations,
            )  # fmt: skip
    return None
