"""Fragments of a class, and the images that are put together from them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.fragments import MAX_OWNERS, Fragments
from replaycad.continual.fragments import Frame, lattice
from replaycad.continual.quilting import Quilter
from replaycad.errors import ArtifactError
from replaycad.mask_ops import Operation, apply_to_images
from replaycad.runtime import stream_seed


class KeptFragments:
    """The fragments of one class, read once.

    Args:
        fragments: as they are stored.
        frame: that they lie in.
        symmetries: turns and flips that the class allows, degrees and flip of each.

    Raises:
        ValueError: if the sheet is not of these fragments.
    """

    def __init__(
        self, fragments: Fragments, frame: Frame, symmetries: Sequence[Sequence[Any]]
    ) -> None:
        places = lattice(fragments.canvas, fragments.size, fragments.overlap)
        rows, columns = np.divmod(fragments.cells.astype(int), len(places))
        most = len(frame.poses) if frame.poses is not None else MAX_OWNERS
        if fragments.colours is not None and frame.poses is not None:
            raise ValueError("they have both poses and mean colours")
        if fragments.canvas != frame.canvas or rows.max(initial=0) >= len(places):
            raise ValueError(f"they do not fit into a frame of {frame.canvas} px")
        if fragments.owners.max(initial=0) >= most:
            raise ValueError(f"they are of more than {most} images")
        self._frame = frame
        self._operations = [Operation(rotate_degrees=turn, flip=flip) for turn, flip in symmetries]
        self._colours, owners = fragments.colours, np.unique(fragments.owners)
        # Rows that a replay takes its colour from where nothing turns, and else its pose.
        self._rows = owners if self._colours is None else np.arange(len(self._colours))
        shown = dict(zip(owners.tolist(), frame.seen(owners.tolist()), strict=True))
        size, seen = fragments.size, []
        for owner, row, column in zip(fragments.owners.tolist(), rows, columns, strict=True):
            top, left = places[row], places[column]
            seen.append(shown[owner][top : top + size, left : left + size])
        self._quilter = Quilter(fragments, fragments.squares(), np.stack(seen))

    def draw(self, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Images `[n, 3, S, S]` uint8, of which a seed alone fixes each.

        A seed picks whose pose or mean colour the image takes, every square, and a turn or flip.
        """
        streams = [np.random.default_rng(stream_seed(int(seed), "fragments")) for seed in seeds]
        rows = [int(stream.choice(self._rows)) for stream in streams]
        pictures = self._quilter.draw(self._frame.seen(rows), streams)
        images = self._frame.posed(pictures, rows)
        if self._colours is not None:
            change = self._colours[rows] - images.mean((2, 3))
            images = np.rint(images + change[:, :, None, None]).clip(0, 255).astype(np.uint8)
        if not self._operations:
            return images
        turned = [self._operations[stream.integers(len(self._operations))] for stream in streams]
        return np.concatenate([
            apply_to_images(operation, image[None])
            for operation, image in zip(turned, images, strict=True)
        ])  # fmt: skip


def kept_fragments(conditions: ConditionsArtifact) -> KeptFragments:
    """The fragments among the conditions of a class, read.

    Raises:
        ArtifactError: if there are none, or they cannot be read.
    """
    if conditions.fragments is None:
        raise ArtifactError(f"the conditions of {conditions.class_name} hold no fragments")
    try:
        frame = Frame(conditions.exemplar_size, conditions.poses)
        return KeptFragments(conditions.fragments, frame, conditions.header.get("symmetries", []))
    except ValueError as error:
        message = f"fragments of {conditions.class_name} cannot be read"
        raise ArtifactError(f"{message}: {error}", "compress the class again") from None
