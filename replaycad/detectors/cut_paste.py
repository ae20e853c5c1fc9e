"""Where CutPaste (Li et al. 2021) cuts a piece and pastes it: two rectangles of one size."""

from collections.abc import Sequence

Window = tuple[slice, slice]


def windows(
    share: float, aspect: float, places: Sequence[float], height: int, width: int,
    least: int = 1, spare: int = 0,
) -> tuple[Window, Window]:  # fmt: skip
    """Rows and columns of a piece, and those that it covers.

    Args:
        share: of the area, 0..1.
        aspect: height over width.
        places: top and left of the one, then of the other, as shares 0..1 of the room there is.
        height, width: of the whole, in pixels or places of a feature map.
        least: length of a side.
        spare: by how much a side is shorter than that of the whole, at least.
    """
    area = share * height * width
    high = min(max(least, round((area * aspect) ** 0.5)), height - spare)
    wide = min(max(least, round((area / aspect) ** 0.5)), width - spare)
    room = (height - high, width - wide) * 2
    top, left, to_top, to_left = (int(p * (r + 1)) for p, r in zip(places, room, strict=True))
    return (
        (slice(top, top + high), slice(left, left + wide)),
        (slice(to_top, to_top + high), slice(to_left, to_left + wide)),
    )
