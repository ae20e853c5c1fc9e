"""Fragments of a class, and the images that are put together from them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.fragments import MAX_OWNERS, Fragments
from replaycad.continual.fragments import Frame, lattice
from replaycad.continual.part import Part
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
        shape: `[H, H]` bool, of a part that turns on a ground that lies still; None otherwise.

    Raises:
        ValueError: if the sheet is not of these fragments.
    """

    def __init__(
        self,
        fragments: Fragments,
        frame: Frame,
        symmetries: Sequence[Sequence[Any]],
        shape: NDArray[np.bool_] | None = None,
    ) -> None:
        most = len(frame.poses) if frame.poses is not None else MAX_OWNERS
        if fragments.colours is not None and frame.poses is not None:
            raise ValueError("they have both poses and mean colours")
        if fragments.canvas != frame.canvas:
            raise ValueError(f"they do not fit into a frame of {frame.canvas} px")
        if fragments.owners.max(initial=0) >= most:
            raise ValueError(f"they are of more than {most} images")
        self._frame, self._colours = frame, fragments.colours
        self._operations = [Operation(rotate_degrees=turn, flip=flip) for turn, flip in symmetries]
        owners, squares = np.unique(fragments.owners), fragments.squares()
        # Rows that a replay takes its colour from where nothing turns, and else its pose.
        self._rows = owners if self._colours is None else np.arange(len(self._colours))
        self._part, self._ground, before = None, None, 0
        if shape is not None and frame.poses is not None:
            self._part = Part(shape, frame.poses, frame.side)
            self._upright = self._part.upright(frame.canvas)
            ground = replace(fragments, canvas=frame.side)
            before = len(lattice(frame.side, fragments.size, fragments.overlap)) ** 2
            own = fragments.cells < before
            self._ground = _quilter(ground, own, 0, squares, self._part.ground(owners.tolist()))
        own = fragments.cells >= before
        self._quilter = _quilter(fragments, own, before, squares, frame.seen(owners.tolist()))

    def draw(self, seeds: Sequence[int]) -> NDArray[np.uint8]:
        """Images `[n, 3, S, S]` uint8, of which a seed alone fixes each.

        A seed picks whose pose or mean colour the image takes, every square, and a turn or flip.
        """
        streams = [np.random.default_rng(stream_seed(int(seed), "fragments")) for seed in seeds]
        rows = [int(stream.choice(self._rows)) for stream in streams]
        if self._part is not None and self._ground is not None:
            images = self._part_on_ground(self._part, self._ground, rows, streams)
        else:
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

    def _part_on_ground(
        self,
        part: Part,
        ground: Quilter,
        rows: list[int],
        streams: Sequence[np.random.Generator],
    ) -> NDArray[np.uint8]:
        wanted = np.broadcast_to(self._upright, (len(rows), *self._upright.shape))
        parts = self._frame.posed(self._quilter.draw(wanted, streams), rows)
        covers = part.covers(rows)
        grounds = ground.draw(covers < 1, streams)
        share = covers[:, None]
        return np.rint(share * parts + (1 - share) * grounds).astype(np.uint8)


def _quilter(
    fragments: Fragments,
    own: NDArray[np.bool_],
    before: int,
    squares: NDArray[np.uint8],
    shown: NDArray[np.bool_],
) -> Quilter:
    """Of those fragments alone whose cells belong to one lattice, the first numbered `before`.

    Args:
        fragments: of which `canvas` is that lattice's.
        own: `[Q]`, which.
        before: cells of the lattices before it.
        squares: `[Q, 3, P, P]`, of all fragments.
        shown: `[O, C, C]`, what each owner shows of the canvas, in rising order.

    Raises:
        ValueError: if there are none, or one lies outside.
    """
    places = lattice(fragments.canvas, fragments.size, fragments.overlap)
    cells = fragments.cells[own].astype(int) - before
    if not len(cells) or cells.max() >= len(places) ** 2:
        raise ValueError(f"they do not fit into a frame of {fragments.canvas} px")
    numbers = np.searchsorted(np.unique(fragments.owners), fragments.owners[own])
    seen, size = [], fragments.size
    for number, cell in zip(numbers, cells.tolist(), strict=True):
        top, left = (places[one] for one in divmod(cell, len(places)))
        seen.append(shown[number, top : top + size, left : left + size])
    kept = replace(fragments, cells=cells.astype(np.uint8), owners=fragments.owners[own])
    return Quilter(kept, squares[own], np.stack(seen))


def kept_fragments(conditions: ConditionsArtifact) -> KeptFragments:
    """The fragments among the conditions of a class, read.

    Raises:
        ArtifactError: if there are none, or they cannot be read.
    """
    if conditions.fragments is None:
        raise ArtifactError(f"the conditions of {conditions.class_name} hold no fragments")
    try:
        frame = Frame(conditions.exemplar_size, conditions.poses)
        shape = conditions.object_masks[0] if len(conditions.object_masks) else None
        turns = conditions.header.get("symmetries", [])
        return KeptFragments(conditions.fragments, frame, turns, shape)
    except ValueError as error:
        message = f"fragments of {conditions.class_name} cannot be read"
        raise ArtifactError(f"{message}: {error}", "compress the class again") from None
