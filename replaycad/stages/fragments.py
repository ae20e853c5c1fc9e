"""Keeps fragments of a class: squares of many images, of which replays are put together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.fragments import MAX_OWNERS, Fragments
from replaycad.artifacts.masks import MasksArtifact
from replaycad.config.stages import CompressConfig
from replaycad.continual.budget import IMAGE_BUDGET
from replaycad.continual.coverage import Memory, allowed_turns, separations
from replaycad.continual.fragments import PARTS, SHARED, Frame, cut, cut_order, shown_cells
from replaycad.continual.kept_fragments import kept_fragments
from replaycad.continual.part import Part, on_plain_ground, shape_of
from replaycad.data.images import evenly_spaced, load_images
from replaycad.data.samples import Sample
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.diffusion.aligner import Aligner
from replaycad.diffusion.alignment import all_to_frame, beyond_border
from replaycad.errors import BudgetError, DatasetError
from replaycad.mask_ops import Operation, resize_masks
from replaycad.progress import Report, silent
from replaycad.runtime import generator, stream_seed

LEAST_IMAGES = 8
"""Of fewer, each of the four sets of cells would be those of one image."""
LEFT_OUT, MOST_LEFT_OUT = 5, 32
"""Every fifth image gives no fragment, so that something is left to judge replays by, but no more
than that many."""
POSE_SIZE = 128  # px at which poses and symmetries are looked for
QUALITIES = (50, 70, 85)  # of AVIF
QUALITY = "exemplar_quality"  # of the header
CLEARLY = 0.01
"""Of separation, by which a later way must be better. Of two that are nearer than that the coarser
holds more fragments (transistors in 100 kB: 0.753 and 0.752, pixel AP 48.9 and 41.3)."""
TRIED_REPLAYS = 48
COLOURS = 64
"""Images whose mean colours are kept, where images lie as they lie. A replay takes one of these, or
its squares, each lit in its own way, would make a patchwork: of magnetic tiles 80 % of the pixel AP
of real images in place of 69. More of the light than its mean (ten cosines) takes 91 to 88 % of
transistors, whose place is in it, and 87 to 62 % of a mesh that turns.
"""
LEAST_OF_PART = 0.02  # of a square that a part must fill to be cut from it
SPARE = 64  # bytes of the budget for longer numbers in the header


def keep_fragments(
    samples: Sequence[Sample],
    masks: MasksArtifact,
    encoder: Encoder,
    preset: PatchCorePreset,
    config: CompressConfig,
    seed: int,
    header: dict[str, Any],
    report: Report = silent,
    aligner: Aligner | None = None,
) -> tuple[ConditionsArtifact, list[int]]:
    """Keep fragments of one class in place of conditions.

    Args:
        samples: training images, in the order of the masks.
        masks: of these images, with the class's policy in the header.
        encoder: frozen; judges ways to keep the class.
        preset: of the memory banks that judge.
        config: of the stage, with its `image_size`.
        seed: of every random draw.
        header: common part of the artifact's header.
        report: hears how many are kept.
        aligner: finds the poses, if it does not know them; None for a new one.

    Returns:
        such conditions without tokens, of at most `config.budget` bytes, with the shape of a part
        for a mask where its ground lies still; and the places in `samples` of the images that
        fragments are of.

    Raises:
        BudgetError: if the budget holds no fragment.
        DatasetError: if there are too few images, or one cannot be read.
    """
    if len(samples) < LEAST_IMAGES:
        raise DatasetError(
            f"{masks.class_name} has {len(samples)} images; fragments are cut from {LEAST_IMAGES} "
            "or more",
            "use keep=conditions or keep=exemplars",
        )
    judged, given = _divided(len(samples))
    ways = _Cutter(
        [samples[row] for row in given], masks, masks.object_masks[given], encoder, config, seed,
        header, aligner or Aligner(),
    ).kept()  # fmt: skip
    real = load_images([samples[row] for row in judged], config.image_size)
    kept, reached = ways[0], -np.inf
    for tried in ways if len(ways) > 1 else ():
        seeds = [stream_seed(seed, "tried", number) for number in range(TRIED_REPLAYS)]
        drawn, stream = kept_fragments(tried).draw(seeds), generator(seed, "tried")
        memory = Memory.of(drawn, encoder, stream, preset)
        stream = generator(seed, "tried", "judged")
        found = separations({"": memory}, real, encoder, stream)[""]
        if found > reached + CLEARLY:
            kept, reached = tried, found
    assert kept.fragments is not None
    report.note(
        f"{masks.class_name}: {len(kept.fragments)} fragments of {len(given)} images kept, "
        f"{_told(kept)}, quality {kept.header[QUALITY]}"
    )
    return kept, given


def _told(kept: ConditionsArtifact) -> str:
    if len(kept.object_masks):
        return "their part turned upright, the ground as it lies"
    return "as they lie" if kept.poses is None else "turned upright"


def _divided(count: int) -> tuple[list[int], list[int]]:
    """Places of images to judge by, and of those that fragments are cut from."""
    judged = evenly_spaced(count, min(MOST_LEFT_OUT, max(1, count // LEFT_OUT))).tolist()
    rest = [row for row in range(count) if row not in set(judged)]
    return judged, [rest[row] for row in evenly_spaced(len(rest), MAX_OWNERS)]


@dataclass(frozen=True)
class _Way:
    """One way to cut a class.

    Attributes:
        frame: that replays are put together in.
        symmetries: turns and flips of replays.
        pictures: of each lattice `[N, 3, C, C]` uint8.
        shown: which of its cells each image shows.
        colours: mean colours of some images, or None.
        shape: of the part, `[0 or 1, H, H]`.
    """

    frame: Frame
    symmetries: list[Operation]
    pictures: list[NDArray[np.uint8]]
    shown: list[NDArray[np.bool_]]
    colours: NDArray[np.uint8] | None
    shape: NDArray[np.bool_]


class _Cutter:
    """Cuts the images of one class in one way or another."""

    def __init__(
        self,
        samples: Sequence[Sample],
        masks: MasksArtifact,
        object_masks: NDArray[np.bool_],
        encoder: Encoder,
        config: CompressConfig,
        seed: int,
        header: dict[str, Any],
        aligner: Aligner,
    ) -> None:
        self._masks, self._config, self._seed, self._encoder = masks, config, seed, encoder
        self._object_masks, self._aligner = object_masks, aligner
        self._budget = config.budget or IMAGE_BUDGET
        self._size = config.image_size // PARTS
        self._overlap = max(1, self._size // SHARED)
        self._images = load_images(samples, config.image_size)
        self._small = load_images(samples, min(POSE_SIZE, config.image_size))
        self._header = {
            **header, "placement": config.semantic_placement, "exemplar_size": config.image_size,
        }  # fmt: skip
        chosen = config.exemplar_quality
        self._qualities = (chosen,) if chosen else QUALITIES

    def kept(self) -> list[ConditionsArtifact]:
        """The class kept in each way, coarse before fine.

        None is coarser than one in which all squares fit: it would hold no more.

        Raises:
            BudgetError: if the budget holds no fragment.
        """
        kept = [kept for way in self._ways() for kept in self._in_qualities(way)]
        if not kept:
            raise BudgetError(
                f"compress: a budget of {self._budget} bytes holds no fragments of "
                f"{self._masks.class_name}", "give more",
            )  # fmt: skip
        return kept

    def _ways(self) -> Iterator[_Way]:
        """As images lie; turned upright; their part turned upright, on a ground that lies still."""
        policy = self._masks.header["policy"]
        none = np.zeros((0, 1, 1), np.bool_)
        whole, small = list(range(len(self._images))), self._small
        found = self._free_poses(small)
        upright = small
        if found is not None:
            fill = beyond_border(policy["mask_rule"])
            upright = all_to_frame(torch.from_numpy(small), torch.from_numpy(found), fill).numpy()
        turns = allowed_turns(policy, upright, self._encoder, self._seed)
        for poses in (None,) if found is None else (None, found):
            frame = Frame(self._config.image_size, poses)
            shown = shown_cells(frame.seen(whole), self._size, self._overlap)
            yield _Way(
                frame, turns, [frame.moved(self._images, whole)], [shown],
                self._colours() if poses is None else None, none,
            )  # fmt: skip
        if policy["mask_rule"] == "frame" or self._object_masks.all((1, 2)).any():
            return
        own = resize_masks(self._object_masks, small.shape[-1])
        poses = self._free_poses(on_plain_ground(small, own))
        shape = none if poses is None else shape_of(self._object_masks, poses)
        if poses is not None and shape.any():
            yield self._part_on_ground(poses, shape, whole)

    def _part_on_ground(
        self, poses: NDArray[np.float32], shape: NDArray[np.bool_], whole: list[int]
    ) -> _Way:
        side, size, overlap = self._config.image_size, self._size, self._overlap
        frame = Frame(side, poses)
        part = Part(shape, poses, side)
        ground = shown_cells(part.ground(whole), size, overlap)
        needed = part.upright(frame.canvas)
        upright = shown_cells(frame.seen(whole), size, overlap)
        upright &= shown_cells(needed[None], size, overlap, LEAST_OF_PART)
        return _Way(
            frame, [], [self._images, frame.moved(self._images, whole)], [ground, upright], None,
            shape[None],
        )  # fmt: skip

    def _free_poses(self, images: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """How images lie that turn through the circle, as numbers of 16 bits; else None."""
        if self._config.alignment != "auto":
            return None
        found = self._aligner(images, self._seed)
        return found.poses.numpy().astype(np.float16).astype(np.float32) if found.is_free else None

    def _colours(self) -> NDArray[np.uint8]:
        some = self._images[evenly_spaced(len(self._images), COLOURS)]
        return np.rint(some.mean((2, 3))).astype(np.uint8)

    def _in_qualities(self, way: _Way) -> list[ConditionsArtifact]:
        size, overlap, none = self._size, self._overlap, np.zeros(0, np.uint8)
        ends = np.cumsum([cells.shape[1] for cells in way.shown])
        turns = [[one.rotate_degrees, one.flip] for one in way.symmetries]
        stream = np.random.default_rng(stream_seed(self._seed, "cut"))
        order, found = cut_order(way.shown, stream), list[ConditionsArtifact]()
        for quality in reversed(self._qualities):
            empty = ConditionsArtifact(
                class_name=self._masks.class_name,
                semantic_embedding=np.zeros((0, 0), np.float32),
                spatial_weight=None, spatial_bias=None, object_masks=way.shape,
                policy=self._masks.header["policy"],
                header={**self._header, "symmetries": turns, QUALITY: quality},
                half=self._config.half, poses=way.frame.poses,
                fragments=Fragments(
                    b"", none, none, size, overlap, way.frame.canvas, way.colours
                ),
            )  # fmt: skip
            room = self._budget - empty.file_bytes() - SPARE
            fitting = cut(way.pictures, order, size, overlap, quality, room)
            given = () if fitting is None else np.searchsorted(ends, fitting.cells, "right")
            if fitting is not None and len(np.unique(given)) == len(ends):
                fitting = replace(fitting, colours=way.colours)
                found.append(replace(empty, fragments=fitting))
                if len(fitting) == len(order):
                    break
        return found[::-1]
