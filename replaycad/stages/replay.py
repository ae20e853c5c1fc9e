"""Draws images of a class from its conditions (paper section 3.3)."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.replay_writer import ReplaysWriter
from replaycad.diffusion.alignment import beyond_border, to_pose
from replaycad.diffusion.backbones import Diffusion
from replaycad.diffusion.conditioning import Conditions, SpatialEncoder
from replaycad.diffusion.sampling import sample
from replaycad.errors import ArtifactError
from replaycad.mask_ops import replay_mask, resize_masks
from replaycad.progress import Report, silent
from replaycad.recipes import ReplayConfig
from replaycad.runtime import stream_seed


def image_seeds(class_name: str, seed: int, num_images: int) -> np.ndarray:
    """Seeds `[N]` int64 of the images: each alone fixes its image, whatever N is."""
    return np.array(
        [stream_seed(seed, "replay", class_name, index) for index in range(num_images)], np.int64
    )


def pose_mask(conditions: ConditionsArtifact, image_seed: int) -> np.ndarray:
    """Pick one stored mask uniformly and move it as the class's policy says: `[H, W]` bool.

    Masks of a common frame stay as they are: the drawn image is moved, and its mask with it. Where
    no mask is stored the whole frame is the object.
    """
    if not len(conditions.object_masks):
        return np.ones(conditions.object_masks.shape[1:], dtype=np.bool_)
    rng = np.random.default_rng(stream_seed(int(image_seed), "pose"))
    picked = conditions.object_masks[rng.integers(len(conditions.object_masks))]
    if conditions.poses is not None:
        return picked
    policy = conditions.policy
    return replay_mask(
        picked,
        policy["replay_augmentation"],
        rng,
        rotate_degrees=policy["replay_rotate_degrees"],
        shift_fraction=policy["replay_shift_fraction"],
        rotate_180=policy.get("replay_rotate_180", False),
    )


def rebuild_conditions(artifact: ConditionsArtifact, diffusion: Diffusion) -> Conditions:
    """The module that the search trained, from what was stored.

    Raises:
        ArtifactError: if the stored tensors do not fit the backbone.
    """
    width = diffusion.cross_attention_dim
    embedding, spatial = artifact.semantic_embedding, None
    if len(embedding) and embedding.shape[1] != width:
        raise ArtifactError(
            f"conditions of {artifact.class_name} are {embedding.shape[1]} wide, the backbone "
            f"attends to {width}",
            "use the backbone that they were made with",
        )
    if artifact.spatial_weight is not None:
        out_features, in_features = artifact.spatial_weight.shape
        spatial = SpatialEncoder(in_features, out_features, width)
        with torch.no_grad():
            spatial.weight.copy_(torch.from_numpy(artifact.spatial_weight))
            spatial.bias.copy_(torch.from_numpy(artifact.spatial_bias))
    semantic = torch.from_numpy(embedding) if len(embedding) else None
    variations = artifact.semantic_variations
    built = Conditions(
        semantic, spatial, artifact.header["placement"],
        None if variations is None else torch.from_numpy(variations),
    )  # fmt: skip
    return built.to(diffusion.device, torch.float32).requires_grad_(False)


def replay_class(
    conditions: ConditionsArtifact,
    diffusion: Diffusion,
    config: ReplayConfig,
    seed: int,
    writer: ReplaysWriter,
    report: Report = silent,
) -> None:
    """Draw the images that are not on disk yet.

    Args:
        conditions: of one class.
        diffusion: the frozen model that they were made with.
        config: of the stage.
        seed: of the images' seeds.
        writer: takes the images as they are drawn; may hold some from a killed run.
        report: hears of the images done.

    Raises:
        ArtifactError: if conditions and backbone do not fit, or the disk is full.
    """
    built = rebuild_conditions(conditions, diffusion)
    # A batch begun by a killed run is drawn again whole: on some machines the last bit of an image
    # depends on how many are drawn beside it.
    done = writer.rows_done
    first = done - done % config.batch_size
    seeds = image_seeds(conditions.class_name, seed, config.num_images)[first:]
    masks = _PosedMasks(conditions, seeds)
    shifted = _Offset(report, first, config.num_images)
    placed = None
    if conditions.coefficients is not None:
        placed = pick_rows(conditions.coefficients, seeds)
    start = 0
    for images in sample(diffusion, built, masks, seeds.tolist(), config, shifted, placed):
        stop = start + len(images)
        fresh = slice(min(max(start, done - first), stop), stop)
        if fresh.start < stop:
            drawn = images.numpy()[fresh.start - start :]
            posed = np.stack([masks[index] for index in range(fresh.start, stop)])
            drawn_masks = resize_masks(posed, diffusion.image_size)
            if conditions.poses is not None:
                fill = beyond_border(conditions.policy["mask_rule"])
                poses = pick_rows(conditions.poses, seeds[fresh])
                drawn, drawn_masks = move(drawn, drawn_masks, poses, fill)
            if config.jpeg_quality:
                drawn = through_jpeg(drawn, config.jpeg_quality)
            writer.append(drawn, drawn_masks, seeds[fresh])
        start = stop


def through_jpeg(images: np.ndarray, quality: int) -> np.ndarray:
    """Compress images `[N, 3, H, W]` uint8 as JPEG with halved colour and read them again.

    The release keeps its replays so, at quality 75; what that costs in detail is part of its
    figures.
    """
    drawn = []
    for image in images:
        with io.BytesIO() as file:
            picture = Image.fromarray(image.transpose(1, 2, 0))
            picture.save(file, "JPEG", quality=quality, subsampling="4:2:0")
            drawn.append(np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1))
    return np.stack(drawn)


def pick_rows(stored: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """One of the stored poses or coefficients `[P, n]` for each image seed `[N]` int64: `[N, n]`.

    A seed picks the same row of both, so the pose and the coefficients of one training image: where
    the light stands still, what a part that turns looks like depends on how it lies.
    """
    streams = [np.random.default_rng(stream_seed(int(seed), "placement")) for seed in seeds]
    return stored[[rng.integers(len(stored)) for rng in streams]]


def move(
    images: np.ndarray, object_masks: np.ndarray, poses: np.ndarray, fill: str
) -> tuple[np.ndarray, np.ndarray]:
    """Move images of the common frame `[N, 3, H, W]` uint8 and their masks `[N, H, W]` bool.

    Args:
        poses: `[N, 3]` float32.
        fill: what is seen beyond the border, as `diffusion.alignment` names it.

    Returns:
        Both, moved.
    """
    placed = torch.from_numpy(poses)
    moved = to_pose(torch.from_numpy(images).float(), placed, fill).round().clamp(0, 255)
    masks = torch.from_numpy(object_masks)[:, None].float()
    moved_masks = to_pose(masks, placed, fill)[:, 0] > 0.5
    return moved.to(torch.uint8).numpy(), moved_masks.numpy()


class _PosedMasks(Sequence[np.ndarray]):
    """Posed masks `[H, W]` bool by image number, made when asked for."""

    def __init__(self, conditions: ConditionsArtifact, seeds: np.ndarray) -> None:
        self._conditions, self._seeds = conditions, seeds

    def __len__(self) -> int:
        return len(self._seeds)

    def __getitem__(self, index: Any) -> Any:
        if index >= len(self):
            raise IndexError(index)
        return pose_mask(self._conditions, self._seeds[index])

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))


class _Offset:
    """A report that counts the images of the killed run as well."""

    def __init__(self, report: Report, first: int, total: int) -> None:
        self._report, self._first, self._total = report, first, total

    def step(self, what: str, done: int, total: int, **values: float) -> None:  # noqa: ARG002
        self._report.step(what, self._first + done, self._total, **values)

    def note(self, text: str) -> None:
        self._report.note(text)
