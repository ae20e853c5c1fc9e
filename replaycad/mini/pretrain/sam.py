"""Pre-training of the small segment-anything model: point prompts on exact masks."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from segment_anything.modeling import Sam
from torch import nn
from torch.nn import functional as F

from replaycad.mini.pretrain.augment import (
    chance,
    change_colours,
    change_light,
    change_sharpness,
    random_windows,
    smooth_field,
    uniform,
    warp,
)
from replaycad.mini.pretrain.encoder import TIMM_NAME
from replaycad.mini.pretrain.loop import LoopConfig, export_module, mixed_precision, train_loop
from replaycad.mini.pretrain.pool import Pool, open_pool
from replaycad.mini.world.pictures import HELD_OUT_SEED
from replaycad.runtime import generator, stream_seed
from replaycad.segmentation.sam import build_sam_from_config

# 2.5 M parameters. Relative positions would cost a third of the speed; two blocks behind a stem
# learn more in the same time than four.
SAM_CONFIG: Mapping[str, Any] = MappingProxyType({
    "image_size": 128,
    "patch_size": 8,
    "encoder_embed_dim": 128,
    "encoder_depth": 2,
    "encoder_num_heads": 4,
    "global_attn_indexes": [0, 1],
    "stem": TIMM_NAME,
    "use_rel_pos": False,
    "window_size": 8,
    "prompt_embed_dim": 128,
    "decoder_num_heads": 4,
    "decoder_mlp_dim": 256,
    "iou_head_hidden_dim": 64,
})  # fmt: skip
SEED = 0
BATCH_SIZE = 16
LEARNING_RATE = 1.5e-3
EMA_DECAY = 0.99
CLOSE_UP_SHARE = 0.4
READER_GRID = 4  # mask logits along the side of one embedding
NUM_POINTS = 4
WHOLE_FRAME = 0.97  # a picture with more object than this is a surface


def embed_images(sam: Sam, images: torch.Tensor) -> torch.Tensor:
    """Embeddings `[B, C, h, w]` of pictures `[B, 3, S, S]` float, RGB in 0..255."""
    return sam.image_encoder((images - sam.pixel_mean) / sam.pixel_std)


def predict_masks(
    sam: Sam, embeddings: torch.Tensor, points: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Answer several prompts for each of many pictures, in one batch.

    Args:
        embeddings: `[B, C, h, w]`, what `embed_images` gave.
        points: `[B, P, N, 2]` float, (x, y) in pixels.
        labels: `[B, P, N]` float: 1 inside, 0 outside, -1 no point.

    Returns:
        Mask logits `[B, P, 4, s, s]` (the single-mask output, then the three alternatives) and
        predicted IoU `[B, P, 4]`.
    """
    batch, prompts, count, _ = points.shape
    sparse, dense = sam.prompt_encoder(
        (points.reshape(-1, count, 2), labels.reshape(-1, count)), None, None
    )
    # The decoder takes one picture with many prompts, and adds picture and dense prompt: so each
    # prompt carries its own picture, and the common picture is nothing.
    dense = dense + embeddings.repeat_interleave(prompts, 0)
    logits, quality = sam.mask_decoder.predict_masks(
        image_embeddings=torch.zeros_like(embeddings[:1]),
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
    logits = logits.view(batch, prompts, *logits.shape[1:])
    return logits.float(), quality.view(batch, prompts, -1).float()


def random_points(masks: torch.Tensor, count: int, g: torch.Generator) -> torch.Tensor:
    """Points `[B, count, 2]` (x, y) in masks `[B, 1, S, S]` (0/1), mostly away from the outline.

    An empty mask yields points anywhere.
    """
    inner = 1 - F.max_pool2d(1 - masks, 5, stride=1, padding=2)
    weights = (inner + 0.03 * masks + 1e-9).flatten(1)
    index = torch.multinomial(weights, count, replacement=True, generator=g)
    width = masks.shape[-1]
    return torch.stack([index % width, index // width], 2).float()


def object_prompts(masks: torch.Tensor, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One to three points on the object, at times with one on the background (label 0).

    Args:
        masks: `[B, 1, S, S]` float, 1 on the object.

    Returns:
        Points `[B, 4, 2]` and labels `[B, 4]`.
    """
    batch = len(masks)
    points = random_points(masks, NUM_POINTS, g)
    used = torch.randint(1, NUM_POINTS, (batch, 1), generator=g)
    labels = torch.where(torch.arange(NUM_POINTS)[None] < used, 1.0, -1.0)
    has_outside = (masks.mean((1, 2, 3)) < WHOLE_FRAME) & (torch.rand(batch, generator=g) < 0.2)
    points[has_outside, -1] = random_points(1 - masks, 1, g)[has_outside, 0]
    labels[has_outside, -1] = 0.0
    return points, labels


def background_prompts(
    masks: torch.Tensor, g: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Points on the background: the picture's corners (paper A.3), some of them, or any points.

    Args:
        masks: `[B, 1, S, S]` float, 1 on the object; a surface has no background, and points on it
            mean the whole frame.

    Returns:
        Points `[B, 4, 2]` and labels `[B, 4]`; a corner that the object covers is left out.
    """
    batch, _, size, _ = masks.shape
    inset = 1 + torch.rand(batch, NUM_POINTS, 2, generator=g) * 7
    far = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    corners = torch.where(far[None] > 0, size - 1 - inset, inset)
    place = corners.round().long()
    covered = masks[torch.arange(batch)[:, None], 0, place[..., 1], place[..., 0]] > 0.5
    is_surface = masks.mean((1, 2, 3)) >= WHOLE_FRAME
    # The stages always ask with four corners, so half of the prompts are exactly that.
    dropped = (torch.rand(batch, NUM_POINTS, generator=g) < 0.5) & chance(batch, 0.4, g).view(-1, 1)
    labels = torch.where((covered & ~is_surface[:, None]) | dropped, -1.0, 1.0)
    anywhere = (labels < 0).all(1) | (torch.rand(batch, generator=g) < 0.15)
    outside = torch.where(is_surface.view(-1, 1, 1, 1), masks, 1 - masks)
    points = torch.where(anywhere.view(-1, 1, 1), random_points(outside, NUM_POINTS, g), corners)
    labels[anywhere] = torch.tensor([1.0, 1.0, -1.0, -1.0])
    return points, labels


def mask_loss(
    logits: torch.Tensor, quality: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of the single mask, of the best of the three alternatives, and of the predicted IoU.

    Args:
        logits: `[B, P, 4, s, s]`.
        quality: predicted IoU `[B, P, 4]`.
        targets: `[B, P, s, s]` in 0..1.

    Returns:
        The loss, and the mean IoU of the single mask (0..1).
    """
    wanted = targets[:, :, None].expand_as(logits)
    loss = outline_loss(logits, wanted)
    iou = mask_iou(logits.detach(), wanted)
    best = loss[:, :, 1:].amin(2)
    return (loss[:, :, 0] + best).mean() + (quality - iou).square().mean(), iou[:, :, 0].mean()


def outline_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus dice of logits and targets (0..1), both `[..., H, W]`: `[...]`."""
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((-2, -1))
    probability = logits.sigmoid()
    overlap = (probability * targets).sum((-2, -1))
    total = probability.sum((-2, -1)) + targets.sum((-2, -1))
    # Plain cross-entropy, not segment-anything's focal loss: it learns faster in a short run.
    return 2 * entropy + 1 - (2 * overlap + 1) / (total + 1)


def mask_iou(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """IoU (0..1) of logits and targets (0..1), both `[..., H, W]`: `[...]`."""
    found, wanted = logits > 0, targets > 0.5
    union = (found | wanted).sum((-2, -1)).clamp_min(1)
    return (found & wanted).sum((-2, -1)) / union


def change_background(
    images: torch.Tensor, masks: torch.Tensor, g: torch.Generator
) -> torch.Tensor:
    """Put a part of the objects before another background: a smooth one, or a surface of the batch.

    Args:
        images: `[B, 3, S, S]` in 0..1.
        masks: `[B, 1, S, S]` in 0..1.
    """
    batch, _, size, _ = images.shape
    tone = uniform(batch, 0.0, 1.0, g) + 0.08 * torch.randn(batch, 3, 1, 1, generator=g)
    plain = (tone + 0.06 * smooth_field(batch, 1, 2, size, g)).clamp(0, 1)
    surfaces = (masks.mean((1, 2, 3)) >= WHOLE_FRAME).nonzero()[:, 0]
    if len(surfaces):
        pick = surfaces[torch.randint(len(surfaces), (batch,), generator=g)]
        plain = torch.where(chance(batch, 0.4, g), images[pick], plain)
    edge = F.avg_pool2d(masks, 3, stride=1, padding=1, count_include_pad=False)
    is_changed = chance(batch, 0.35, g) & (masks.mean((1, 2, 3), keepdim=True) < WHOLE_FRAME)
    return torch.where(is_changed, torch.lerp(plain, images, edge), images)


def close_up(windows: torch.Tensor, masks: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    """Tighten windows `[B, 2, 3]` around what masks `[B, 1, S, S]` show, a little room left.

    Product photographs are often filled by the product; drawn objects are smaller. Windows stay
    inside the picture; where the mask is empty they stay as they are.
    """
    size = masks.shape[-1]
    sides = []
    for axis in (1, 2):  # over the rows for x, over the columns for y
        hit = masks[:, 0].amax(axis) > 0.5
        first = hit.float().argmax(1)
        last = size - 1 - hit.flip(1).float().argmax(1)
        sides.append(torch.stack([first, last + 1], 1) * (2 / size) - 1)
    low, high = torch.stack(sides, 1).unbind(2)  # [B, 2] each, -1 to 1
    side = ((high - low).amax(1) / 2 * uniform(len(masks), 1.02, 1.4, g).flatten()).clamp(0.2, 1)
    room = (1 - side)[:, None]
    shift = ((low + high) / 2).clamp(-room, room)
    turn = windows[:, :, :2] / windows[:, :, :2].det().abs().sqrt()[:, None, None]
    closer = torch.cat([turn * side[:, None, None], shift[:, :, None]], 2)
    is_empty = masks.amax((1, 2, 3)) <= 0.5
    return torch.where(is_empty[:, None, None], windows, closer)


def draw_batch(
    pool: Pool, batch_size: int, seed: int, step: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures of the pool with random changes, and two prompts for each.

    Returns:
        Images `[B, 3, S, S]` in 0..255, points `[B, 2, 4, 2]`, labels `[B, 2, 4]` and targets
        `[B, 2, S/2, S/2]` in 0..1: the object for the first prompt, the background for the second
        (for surfaces the whole frame).
    """
    g = generator(seed, "sam", step)
    dice = np.random.default_rng(stream_seed(seed, "sam", "pictures", step))
    classes = dice.integers(len(pool.images), size=batch_size)
    numbers = dice.integers(pool.images.shape[1], size=batch_size)
    images = torch.from_numpy(pool.images[classes, numbers]).permute(0, 3, 1, 2).float() / 255
    masks = torch.from_numpy(pool.object_masks[classes, numbers])[:, None].float()
    size = images.shape[-1]
    windows = random_windows(batch_size, 0.7, g)
    is_close = chance(batch_size, CLOSE_UP_SHARE, g)[:, 0]
    windows = torch.where(is_close, close_up(windows, masks, g), windows)
    both = warp(torch.cat([images, masks], 1), windows, size)
    images, masks = both[:, :3], both[:, 3:]
    images = change_background(images, masks, g)
    images = change_sharpness(change_light(change_colours(images, g), 1.0, g), 1.0, g)
    hard = (masks > 0.5).float()
    object_points, object_labels = object_prompts(hard, g)
    background_points, background_labels = background_prompts(hard, g)
    is_surface = masks.mean((1, 2, 3), keepdim=True) >= WHOLE_FRAME
    inside = torch.where(is_surface, torch.ones_like(masks), masks)
    outside = torch.where(is_surface, inside, 1 - masks)
    targets = F.avg_pool2d(torch.cat([inside, outside], 1), 2)
    points = torch.stack([object_points, background_points], 1)
    return images * 255, points, torch.stack([object_labels, background_labels], 1), targets


@torch.no_grad()
def evaluate_sam(sam: Sam, pool: Pool, num_pictures: int = 2) -> dict[str, float]:
    """Mean IoU (0..1) of object masks on the pool's objects (surfaces: of the whole frame).

    Returns:
        `corners`: complement of what four corners give; `centre`: one point inside the object;
        `surface`: one point in the middle of surfaces (absent if the pool has none).
    """
    device = sam.pixel_mean.device
    pictures = pool.images[:, :num_pictures].reshape(-1, *pool.images.shape[2:])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    masks = torch.from_numpy(pool.object_masks[:, :num_pictures]).flatten(0, 1)[:, None].float()
    size = images.shape[-1]
    near, far = 2.56, size - 1 - 2.56
    corners = torch.tensor([[near, near], [far, near], [near, far], [far, far]])
    scores: dict[str, list[torch.Tensor]] = {"corners": [], "centre": [], "surface": []}
    for rows in torch.arange(len(images)).split(32):
        inner = deepest_points(masks[rows])
        points = torch.stack([corners.expand(len(rows), 4, 2), inner.expand(-1, 4, -1)], 1)
        labels = torch.ones(len(rows), 2, 4)
        labels[:, 1, 1:] = -1
        embeddings = embed_images(sam, images[rows].float().to(device))
        logits, _ = predict_masks(sam, embeddings, points.to(device), labels.to(device))
        enlarged = F.interpolate(logits[:, :, 0].cpu(), size=(size, size), mode="bilinear")
        is_surface = masks[rows].mean((1, 2, 3)) >= WHOLE_FRAME
        centre = mask_iou(enlarged[:, 1], masks[rows, 0])
        scores["corners"].append(mask_iou(-enlarged[:, 0], masks[rows, 0])[~is_surface])
        scores["centre"].append(centre[~is_surface])
        scores["surface"].append(centre[is_surface])
    joined = {name: torch.cat(values) for name, values in scores.items()}
    return {name: values.mean().item() for name, values in joined.items() if len(values)}


def deepest_points(masks: torch.Tensor) -> torch.Tensor:
    """The point `[B, 1, 2]` (x, y) farthest from the outline of each mask `[B, 1, S, S]` (0/1)."""
    depth, shrunk = masks.clone(), masks
    while shrunk.any():
        shrunk = -F.max_pool2d(-F.pad(shrunk, (1, 1, 1, 1)), 3, stride=1)
        depth += shrunk
    index = depth.flatten(1).argmax(1)
    width = masks.shape[-1]
    return torch.stack([index % width, index // width], 1)[:, None].float()


def write_sheet(sam: Sam, images: np.ndarray, path: Path) -> None:
    """Save pictures `[N, S, S, 3]` uint8 above what four corners leave as the object, as a PNG."""
    size = images.shape[1]
    near, far = 2.56, size - 1 - 2.56
    corners = torch.tensor([[near, near], [far, near], [near, far], [far, far]])
    pictures = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    device = sam.pixel_mean.device
    with torch.no_grad():
        points = corners.expand(len(images), 1, 4, 2).to(device)
        ones = torch.ones(len(images), 1, 4, device=device)
        logits, _ = predict_masks(sam, embed_images(sam, pictures.to(device)), points, ones)
    enlarged = F.interpolate(logits[:, 0, :1].cpu(), size=(size, size), mode="bilinear")
    marked = torch.where(enlarged > 0, pictures * 0.25, pictures)
    sheet = torch.cat([pictures, marked], 2).permute(2, 0, 3, 1).flatten(1, 2)
    Image.fromarray(sheet.byte().numpy()).save(path)


def train_sam(
    pool: Pool,
    work: Path,
    weights: Path,
    config: LoopConfig,
    device: torch.device,
    held_out: Pool | None = None,
    sam_config: Mapping[str, Any] = SAM_CONFIG,
) -> Sam:
    """Train on the pool, measure, export to `weights/sam`.

    The stem starts from the encoder in `weights/encoder` if there is one.

    Args:
        pool: pictures to learn from.
        work: folder of the checkpoint, the losses, a sample sheet and `sam_measured.json`.
        config: its budget and cadence count; rate and averaging are this model's own.
        held_out: pictures of other classes, to measure on; drawn into `work` if not given.
    """
    config = replace(config, learning_rate=LEARNING_RATE, ema_decay=EMA_DECAY)
    torch.manual_seed(stream_seed(SEED, "sam", "weights"))
    sam = build_sam_from_config(sam_config)
    start = weights / "encoder" / "model.safetensors"
    if sam_config.get("stem") and start.exists():
        sam.image_encoder.patch_embed.levels.load_state_dict(load_file(start))
    sam = sam.to(device).train()
    # A plain reader of the embeddings, thrown away later: through it the encoder learns what is
    # object and what is background long before the prompts make sense to the decoder.
    reader = nn.Conv2d(sam.prompt_encoder.embed_dim, READER_GRID**2, 1).to(device)
    if held_out is None:
        held_out = open_pool(work, 64, 8, 4, first_class=HELD_OUT_SEED)
    sheet_images = np.array(held_out.images[:16, 0])

    def loss_function(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        batch = draw_batch(pool, BATCH_SIZE, SEED, step)
        images, points, labels, targets = (tensor.to(device) for tensor in batch)
        with mixed_precision(device):
            embeddings = embed_images(sam, images)
            logits, quality = predict_masks(sam, embeddings, points, labels)
            direct = F.pixel_shuffle(reader(embeddings), READER_GRID).float()
        loss, iou = mask_loss(logits, quality, targets)
        direct_loss = outline_loss(direct, targets[:, :1])
        return loss + direct_loss.mean(), {"iou": iou.item(), "direct": direct_loss.mean().item()}

    def sample_sheet(_step: int) -> None:
        sam.eval()  # the stem's batch norms must not learn from these
        write_sheet(sam, sheet_images, work / "sam.png")
        sam.train()

    train_loop("sam", {"sam": sam, "reader": reader}, loss_function, work, config, sample_sheet)
    sam.eval()
    export_module(sam, weights / "sam", dict(sam_config))
    measured = json.dumps(evaluate_sam(sam, held_out), indent=1)
    (work / "sam_measured.json").write_text(measured + "\n")
    return sam
