"""Draws images of a class from its conditions (paper section 4.3)."""

import io
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.replays import ReplaysWriter
from replaycad.config.stages import ReplayConfig
from replaycad.continual.exemplars import decode, resized
from replaycad.continual.kept_fragments import kept_fragments
from replaycad.continual.kept_images import KeptImages
from replaycad.data.views import BLANK, View
from replaycad.diffusion.alignment import beyond_border, to_pose
from replaycad.diffusion.backbones import Diffusion
from replaycad.diffusion.conditioning import Conditions, SpatialEncoder
from replaycad.diffusion.sampling import pass_size, sample
from replaycad.errors import ArtifactError
from replaycad.mask_ops import replay_mask, resize_masks
from replaycad.progress import Report, silent
from replaycad.runtime import stream_seed

SMALL_DEGREES, SMALL_SHIFT = 2, 0.05
"""Largest angle, and largest shift in widths, of a mask where a recipe moves all classes alike."""


def image_seeds(class_name: str, seed: int, num_images: int) -> np.ndarray:
    """Seeds `[N]` int64 of the images: each alone fixes its image, whatever N is."""
    return np.array(
        [stream_seed(seed, "replay", class_name, index) for index in range(num_images)], np.int64
    )


def pose_mask(
    conditions: ConditionsArtifact, image_seed: int, moves: str = "policy"
) -> np.ndarray:
    """Pick one stored mask uniformly and rotate and shift it (section 4.3): `[H, W]` bool.

    Masks of a common frame stay as they are: the drawn image is moved, and its mask with it. So do
    masks of the whole frame, which is also the object where no mask is stored.

    Deviation: section 4.3 gives neither angles nor distances. The recipe `paper` moves every class
    by up to 2 degrees and 5 % of the width, the middle of what the authors' table has where it
    moves masks a little; `release` follows that table, in which 9 of 14 classes of MVTec AD stay.

    Args:
        conditions: of the class.
        image_seed: decides mask and move.
        moves: `policy` (as the class's policy says), `small` (that little, whatever it says) or
            `at_least_small` (that little where the policy leaves masks as they are).
    """
    if not len(conditions.object_masks):
        return np.ones(conditions.object_masks.shape[1:], dtype=np.bool_)
    rng = np.random.default_rng(stream_seed(int(image_seed), "pose"))
    picked = conditions.object_masks[rng.integers(len(conditions.object_masks))]
    if conditions.poses is not None or picked.all():
        return picked
    policy = conditions.policy
    is_still = policy["replay_augmentation"] == "identity"
    if moves == "small" or (moves == "at_least_small" and is_still):
        return replay_mask(
            picked, "small", rng, rotate_degrees=SMALL_DEGREES, shift_fraction=SMALL_SHIFT
        )
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
        writer: takes the images as they are drawn, resized to its own size; may hold some from a
            killed run.
        report: hears of the images done.

    Raises:
        ArtifactError: if conditions and backbone do not fit, or the disk is full.
    """
    kept = kept_images(conditions) if conditions.exemplars else None
    view, size = View.from_dict(conditions.header.get("view")), writer.image_size
    # A batch begun by a killed run is drawn again whole: on some machines the last bit of an image
    # depends on how many are drawn beside it.
    done = writer.rows_done
    at_once = pass_size(config, diffusion.device)
    step = -(-config.batch_size // at_once) * at_once  # whole passes: a part would be filled up
    first = done - done % step
    seeds = image_seeds(conditions.class_name, seed, config.num_images)
    # Where real images are kept, every second replay is one of those; the others start from them.
    is_real = np.arange(len(seeds)) % 2 == (1 if kept else 2)
    drawn = _drawn(conditions, diffusion, config, seeds[first:][~is_real[first:]], kept)
    for start in range(first, config.num_images, step):
        batch = slice(start, min(start + step, config.num_images))
        pairs = [
            (kept.varied(one), np.ones((size, size), np.bool_)) if kept and real else next(drawn)
            for one, real in zip(seeds[batch], is_real[batch], strict=True)
        ]  # fmt: skip
        images = np.stack([resized(image, size) for image, _ in pairs])
        masks = np.concatenate([resize_masks(mask[None], size) for _, mask in pairs])
        if config.jpeg_quality:
            images = through_jpeg(images, config.jpeg_quality)
        images = as_photos(images, view)
        fresh = slice(max(done - start, 0), None)
        writer.append(images[fresh], masks[fresh], seeds[batch][fresh])
        report.step("replay", batch.stop, config.num_images)


def _drawn(
    conditions: ConditionsArtifact,
    diffusion: Diffusion,
    config: ReplayConfig,
    seeds: np.ndarray,
    kept: KeptImages | None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images `[3, H, W]` uint8 and masks `[H, W]` bool of these seeds, drawn a pass at a time."""
    built, placed, starts = rebuild_conditions(conditions, diffusion), None, None
    if conditions.coefficients is not None:
        placed = pick_rows(conditions.coefficients, seeds)
    if kept is not None:
        starts = (resized(kept.in_frame(one), diffusion.image_size) for one in seeds)
    posed = (pose_mask(conditions, one, config.mask_moves) for one in seeds)
    start = 0
    for passed in sample(diffusion, built, posed, seeds.tolist(), config, silent, placed, starts):
        own = seeds[start : start + len(passed)]
        start += len(passed)
        images = passed.numpy()
        masks = np.stack([pose_mask(conditions, one, config.mask_moves) for one in own])
        masks = resize_masks(masks, diffusion.image_size)
        if conditions.poses is not None:
            fill = beyond_border(conditions.policy["mask_rule"])
            images, masks = move(images, masks, pick_rows(conditions.poses, own), fill)
        yield from zip(images, masks, strict=True)


def replay_kept(
    conditions: ConditionsArtifact,
    config: ReplayConfig,
    seed: int,
    writer: ReplaysWriter,
    report: Report = silent,
) -> None:
    """Fill a replay set without a diffusion model.

    Real images that were kept are moved as the class moves; fragments are put together.

    Args:
        conditions: of one class, with exemplars or fragments.
        config: of the stage; only `num_images`, `batch_size` and `jpeg_quality` are read.
        seed: of the images' seeds; each alone fixes its image.
        writer: takes the images; may hold some from a killed run.
        report: hears of the images done.

    Raises:
        ArtifactError: if what is kept cannot be read, or the disk is full.
    """
    has_images = conditions.fragments is None
    kept = kept_images(conditions) if has_images else kept_fragments(conditions)
    view = View.from_dict(conditions.header.get("view"))
    seeds = image_seeds(conditions.class_name, seed, config.num_images)
    for start in range(writer.rows_done, config.num_images, config.batch_size):
        batch = seeds[start : start + config.batch_size]
        drawn = kept.draw(batch.tolist())
        if config.jpeg_quality:
            drawn = through_jpeg(drawn, config.jpeg_quality)
        whole = np.ones((len(batch), *drawn.shape[2:]), np.bool_)
        writer.append(as_photos(drawn, view), whole, batch)
        report.step("replay", start + len(batch), config.num_images)


def kept_images(conditions: ConditionsArtifact) -> KeptImages:
    """The real images among the conditions of a class.

    Raises:
        ArtifactError: if there are none, or an image cannot be decoded.
    """
    if conditions.exemplar_poses is None:
        raise ArtifactError(f"the conditions of {conditions.class_name} hold no images")
    try:
        size = conditions.exemplar_size
        images = np.stack([decode(one, size) for one in conditions.exemplars])
    except ValueError as error:
        message = f"an image among the conditions of {conditions.class_name} cannot be read"
        raise ArtifactError(f"{message}: {error}", "compress the class again") from None
    return KeptImages(
        images, conditions.exemplar_poses, conditions.poses, conditions.policy,
        conditions.header.get("symmetries", []),
    )  # fmt: skip


def as_photos(images: np.ndarray, view: View) -> np.ndarray:
    """Images `[N, 3, S, S]` uint8, as all photos of the class are.

    They are grey where all its files are: the backbone draws clouds of colour on them. Of two real
    classes in 34 kB a memory bank of grey replays had 74.1 and 40.0 in place of 71.1 and 39.8
    (image AUROC of magnetic_tile and grid; pixel AP 16.1 and 0.5 in place of 15.4 and 0.5, one
    seed). And they are blank where whole pictures of the class are ignored: however an image was
    moved or turned, there and there alone.
    """
    if view.colours == "grey":
        grey = np.rint(images.mean(axis=1, keepdims=True, dtype=np.float32)).astype(np.uint8)
        images = np.repeat(grey, 3, axis=1)
    ignored = view.ignored_whole(images.shape[-1])
    if ignored is None:
        return images
    blank = np.array(BLANK, np.uint8)[:, None, None]
    return np.where(ignored, blank, images)


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
