"""Keeps fragments of a class: squares of many images, of which replays are put together."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.fragments import MAX_OWNERS, Fragments
from replaycad.artifacts.masks import MasksArtifact
from replaycad.config.stages import CompressConfig
from replaycad.continual.budget import IMAGE_BUDGET
from replaycad.continual.coverage import Memory, allowed_turns, separations
from replaycad.continual.fragments import PARTS, SHARED, Frame, cut, cut_order
from replaycad.continual.kept_fragments import kept_fragments
from replaycad.data.images import evenly_spaced, load_images
from replaycad.data.samples import Sample
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.diffusion.alignment import Aligner, all_to_frame, beyond_border
from replaycad.errors import BudgetError, DatasetError
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
        such conditions without tokens and masks, of at most `config.budget` bytes; and the places
        in `samples` of the images that fragments are of.

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
    cutter = _Cutter(
        [samples[row] for row in given], masks, encoder, config, seed, header,
        aligner or Aligner(),
    )  # fmt: skip
    real = load_images([samples[row] for row in judged], config.image_size)
    ways = list(cutter.ways())
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
        f"{'as they lie' if kept.poses is None else 'turned upright'}, quality "
        f"{kept.header[QUALITY]}"
    )
    return kept, given


def _divided(count: int) -> tuple[list[int], list[int]]:
    """Places of images to judge by, and of those that fragments are cut from."""
    judged = evenly_spaced(count, min(MOST_LEFT_OUT, max(1, count // LEFT_OUT))).tolist()
    rest = [row for row in range(count) if row not in set(judged)]
    return judged, [rest[row] for row in evenly_spaced(len(rest), MAX_OWNERS)]


class _Cutter:
    """Cuts the images of one class in one way or another."""

    def __init__(
        self,
        samples: Sequence[Sample],
        masks: MasksArtifact,
        encoder: Encoder,
        config: CompressConfig,
        seed: int,
        header: dict[str, Any],
        aligner: Aligner,
    ) -> None:
        self._masks, self._config, self._seed = masks, config, seed
        self._images = load_images(samples, config.image_size)
        small = load_images(samples, min(POSE_SIZE, config.image_size))
        self._poses = None
        policy, framed = masks.header["policy"], small
        if config.alignment == "auto":
            found = aligner(small, seed)
            if found.is_free:
                self._poses = found.poses.numpy().astype(np.float16).astype(np.float32)
                fill = beyond_border(policy["mask_rule"])
                framed = all_to_frame(torch.from_numpy(small), found.poses, fill).numpy()
        turns = allowed_turns(policy, framed, encoder, seed)
        self._header = {
            **header, "placement": config.semantic_placement, "exemplar_size": config.image_size,
            "symmetries": [[one.rotate_degrees, one.flip] for one in turns],
        }  # fmt: skip
        chosen = config.exemplar_quality
        self._qualities = (chosen,) if chosen else QUALITIES

    def ways(self) -> Iterator[ConditionsArtifact]:
        """The class kept in each way, coarse before fine, as it lies before turned upright.

        None is coarser than one in which all squares fit: it would hold no more.

        Raises:
            BudgetError: if the budget holds no fragment.
        """
        side, budget = self._config.image_size, self._config.budget or IMAGE_BUDGET
        size = side // PARTS
        overlap = max(1, size // SHARED)
        none = np.zeros(0, np.uint8)
        some = self._images[evenly_spaced(len(self._images), COLOURS)]
        colours = np.rint(some.mean((2, 3))).astype(np.uint8)
        for poses in (None,) if self._poses is None else (None, self._poses):
            frame, rows = Frame(side, poses), range(len(self._images))
            stream = np.random.default_rng(stream_seed(self._seed, "cut"))
            order = cut_order(frame.seen(rows), size, overlap, stream)
            pictures = frame.moved(self._images, rows)
            own = colours if poses is None else None
            found = []
            for quality in reversed(self._qualities):
                empty = ConditionsArtifact(
                    class_name=self._masks.class_name,
                    semantic_embedding=np.zeros((0, 0), np.float32),
                    spatial_weight=None, spatial_bias=None,
                    object_masks=np.zeros((0, side, side), np.bool_),
                    policy=self._masks.header["policy"],
                    header={**self._header, QUALITY: quality},
                    half=self._config.half, poses=poses,
                    fragments=Fragments(b"", none, none, size, overlap, frame.canvas, own),
                )  # fmt: skip
                room = budget - empty.file_bytes() - SPARE
                fitting = cut(pictures, order, size, overlap, quality, room)
                if fitting is not None:
                    found.append(replace(empty, fragments=replace(fitting, colours=own)))
                    if len(fitting) == len(order):
                        break
            if not found:
                raise BudgetError(
                    f"compress: a budget of {budget} bytes holds no fragments of "
                    f"{self._masks.class_name}", "give more",
                )  # fmt: skip
            yield from reversed(found)
