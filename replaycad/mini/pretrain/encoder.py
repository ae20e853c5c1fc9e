"""Pre-training of the small encoder: features whose nearest neighbours give defects away."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F

from replaycad.mini.pretrain.augment import (
    change_colours,
    change_light,
    change_sharpness,
    random_windows,
    smooth_field,
    uniform,
    warp,
)
from replaycad.mini.pretrain.loop import LoopConfig, export_module, mixed_precision, train_loop
from replaycad.mini.pretrain.pool import Pool, open_pool
from replaycad.mini.world.pictures import HELD_OUT_SEED
from replaycad.runtime import generator, stream_seed

# ImageNet's normalisation, so that this encoder and any timm encoder take the same inputs.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
TIMM_NAME = "resnet10t"
OUT_INDICES = (1, 2, 3)

NUM_CLASSES = 7  # classes per step
NUM_BANK = 3  # normal pictures per class that play the training set
NUM_PAIRS = 2  # test pictures per class, each once with and once without a defect
PER_CLASS = NUM_BANK + 2 * NUM_PAIRS
CROP = 96
SEED = 0
LEARNING_RATE = 2e-3
EMA_DECAY = 0.995
WEIGHT_DECAY = 0.03
STATISTICS_STEPS = 12
MEASURED_EPISODES = 16
MIN_WORD_CLASSES = 8  # a word that fewer classes carry teaches nothing


class Episode(NamedTuple):
    """One step's pictures, class after class: bank, then normal, then defective pictures.

    Attributes:
        inputs: `[E * (3 + 2 + 2), 3, S, S]` float, ImageNet-normalised.
        clean: the same in 0..1 before light, blur and noise.
        anomaly_masks: `[E * 2, 1, S, S]` in 0..1, of the defective pictures.
        words: `[E, V]` 0/1, the words of each class's caption.
    """

    inputs: torch.Tensor
    clean: torch.Tensor
    anomaly_masks: torch.Tensor
    words: torch.Tensor


class Heads(nn.Module):
    """What is learnt beside the encoder and thrown away: one small reader per task."""

    def __init__(self, channels: list[int], num_words: int) -> None:
        """Build readers for features of the given channels and a vocabulary of `num_words`."""
        super().__init__()
        middle, coarse = channels[1:]
        self.words = nn.Linear(middle + coarse, num_words)
        self.identity = nn.Linear(middle + coarse, 64)
        self.segment = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in channels)
        # Level 2 redraws the picture at half, level 3 at quarter size: 4 x 4 pixels per place.
        self.redraw = nn.ModuleList(nn.Conv2d(width, 48, 1) for width in (middle, coarse))
        # Distances become logits by a slope and an offset on their logarithm, one pair per space.
        self.slope = nn.Parameter(torch.full((len(channels) + 1,), 2.0))
        self.offset = nn.Parameter(torch.zeros(len(channels) + 1))


def build_encoder(timm_name: str = TIMM_NAME) -> nn.Module:
    """Untrained timm network that returns features at stride 4, 8 and 16."""
    return timm.create_model(timm_name, features_only=True, out_indices=OUT_INDICES)


def feature_channels(encoder: nn.Module) -> list[int]:
    """Channels of the features that a network of timm returns, fine to coarse."""
    info: Any = encoder.feature_info
    return list(info.channels())


def word_table(captions: list[str]) -> torch.Tensor:
    """Which class's caption has which word: `[C, V]` 0/1, words in alphabetical order.

    Words of fewer than eight classes, or of nearly all, are left out.
    """
    bags = [set(caption.lower().replace(",", " ").split()) for caption in captions]
    counts: dict[str, int] = {}
    for word in (word for bag in bags for word in bag):
        counts[word] = counts.get(word, 0) + 1
    least, most = min(MIN_WORD_CLASSES, len(bags) // 2), 0.9 * len(bags)
    words = sorted(word for word, count in counts.items() if least <= count <= most)
    return torch.tensor([[float(word in bag) for word in words] for bag in bags])


def paste_blobs(
    images: torch.Tensor, object_masks: torch.Tensor, g: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a defect of no kind: a blob on the object that shows something else.

    Args:
        images: `[B, 3, S, S]` in 0..1.
        object_masks: `[B, 1, S, S]` in 0..1; blobs are centred on the object.

    Returns:
        The pictures, and the blobs `[B, 1, S, S]` in 0..1 where they changed anything visible.
    """
    batch, _, size, _ = images.shape
    index = torch.multinomial(object_masks.flatten(1) + 1e-6, 1, generator=g)[:, 0]
    centre = torch.stack([index % size, index // size], 1).view(batch, 2, 1, 1) / size
    axis = (torch.arange(size) + 0.5) / size
    place = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))[None] - centre
    angle = uniform(batch, 0, 3.1416, g)
    along = place[:, :1] * angle.cos() + place[:, 1:] * angle.sin()
    across = place[:, 1:] * angle.cos() - place[:, :1] * angle.sin()
    radius = uniform(batch, -4.2, -1.8, g).exp()  # 2 to 21 px of 128
    stretch = uniform(batch, 0.0, 1.0, g).exp()
    distance = torch.hypot(along / stretch, across * stretch) / radius
    ragged = distance + 0.35 * smooth_field(batch, 1, 12, size, g)
    blob = ((1.2 - ragged) * 4).clamp(0, 1) * uniform(batch, 0.4, 1.0, g)
    shift = [int(s) for s in torch.randint(size // 8, size, (2,), generator=g)]
    moved = torch.roll(images, shift, (2, 3))
    plain = uniform(batch, 0, 1, g) + 0.15 * torch.randn(batch, 3, 1, 1, generator=g)
    choice = uniform(batch, 0, 1, g)
    other = torch.where(choice < 0.35, moved, torch.where(choice < 0.65, images.roll(1, 0), plain))
    pasted = torch.lerp(images, other.clamp(0, 1), blob)
    change = F.avg_pool2d((pasted - images).abs().mean(1, keepdim=True), 5, 1, 2)
    return pasted, (change > 0.02).float()


def draw_episode(
    pool: Pool, words: torch.Tensor, seed: int, step: int, size: int = CROP
) -> Episode:
    """Draw the classes and pictures of one step, with all random changes.

    What makes a product (window, colours) changes alike for all pictures of a class; what a camera
    does (light, blur, noise) changes by picture.

    Args:
        words: `[C, V]` 0/1, of every class of the pool.
        seed: of the stream; the step's number picks everything else.
    """
    g = generator(seed, "encoder", step)
    dice = np.random.default_rng(stream_seed(seed, "encoder", "pictures", step))
    classes = dice.choice(len(pool.images), NUM_CLASSES, replace=False)
    pictures, masks, objects = [], [], []
    for row in classes:
        # Defective picture q is normal picture q with a defect, so neither is in the bank.
        pairs = dice.choice(pool.defective_images.shape[1], NUM_PAIRS, replace=False)
        rest = np.setdiff1d(np.arange(pool.images.shape[1]), pairs)
        order = np.concatenate([dice.choice(rest, NUM_BANK, replace=False), pairs])
        pictures += [pool.images[row, order], pool.defective_images[row, pairs]]
        objects.append(pool.object_masks[row, order[-NUM_PAIRS:]])
        masks.append(pool.anomaly_masks[row, pairs])
    images = torch.from_numpy(np.concatenate(pictures)).permute(0, 3, 1, 2).float() / 255
    anomaly_masks = torch.from_numpy(np.concatenate(masks))[:, None].float()
    object_masks = torch.from_numpy(np.concatenate(objects))[:, None].float()
    images = images.view(NUM_CLASSES, PER_CLASS, *images.shape[1:])
    images, anomaly_masks = _mix_in_blobs(images, object_masks, anomaly_masks, g)
    windows = random_windows(len(images), 0.6, g, PER_CLASS)
    mask_windows = windows.view(NUM_CLASSES, PER_CLASS, 2, 3)[:, :NUM_PAIRS].flatten(0, 1)
    clean = change_colours(warp(images, windows, size), g, PER_CLASS)
    inputs = change_sharpness(change_light(clean, 0.7, g), 0.7, g)
    inputs = (inputs - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    warped = warp(anomaly_masks, mask_windows, size)
    return Episode(inputs, clean, warped, words[torch.from_numpy(classes)])


def _mix_in_blobs(
    images: torch.Tensor,
    object_masks: torch.Tensor,
    anomaly_masks: torch.Tensor,
    g: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Replace a third of the drawn defects by blobs; `[E, 7, 3, S, S]` -> `[E * 7, 3, S, S]`."""
    normal = images[:, NUM_BANK : NUM_BANK + NUM_PAIRS].flatten(0, 1)
    pasted, blobs = paste_blobs(normal, object_masks, g)
    is_blob = uniform(len(normal), 0, 1, g) < 0.35
    defective = torch.where(is_blob, pasted, images[:, -NUM_PAIRS:].flatten(0, 1))
    masks = torch.where(is_blob, blobs, anomaly_masks)
    defective = defective.view(NUM_CLASSES, NUM_PAIRS, *images.shape[2:])
    return torch.cat([images[:, :-NUM_PAIRS], defective], 1).flatten(0, 1), masks


def smooth(features: torch.Tensor) -> torch.Tensor:
    """Average over 3 x 3 places, as PatchCore does; `[B, C, h, w]`."""
    return F.avg_pool2d(features, 3, stride=1, padding=1, count_include_pad=False)


def feature_spaces(features: list[torch.Tensor]) -> list[torch.Tensor]:
    """The spaces in which detectors compare: levels 2 and 3 as they are, and the direction of each.

    Args:
        features: three levels `[B, C, h, w]`.

    Returns:
        Four maps `[B, C, h, w]`: the joined levels for PatchCore, then every level with unit length
        for detectors that go by the cosine.
    """
    # Level 1 at half its resolution: the search costs the fourth power of it.
    pooled = [F.avg_pool2d(features[0], 2), smooth(features[1]), smooth(features[2])]
    coarse = F.interpolate(pooled[2], size=pooled[1].shape[-2:], mode="bilinear")
    return [torch.cat([pooled[1], coarse], 1), *(F.normalize(level, dim=1) for level in pooled)]


def nearest_distances(features: torch.Tensor) -> torch.Tensor:
    """Distance from each place of the test pictures to its nearest neighbour in the class's bank.

    Args:
        features: `[E * 7, C, h, w]`, pictures in the order of an `Episode`.

    Returns:
        `[E, 4, h, w]`: first the normal, then the defective pictures.
    """
    channels, height, width = features.shape[1:]
    rows = features.view(NUM_CLASSES, PER_CLASS, channels, -1).transpose(2, 3)  # [E, 7, h*w, C]
    bank = rows[:, :NUM_BANK].flatten(1, 2)
    query = rows[:, NUM_BANK:].flatten(1, 2)
    with torch.no_grad():  # only the nearest one gets a gradient, so the search needs none
        index = (bank.square().sum(2)[:, None] - 2 * query @ bank.mT).argmin(2)
    nearest = torch.gather(bank, 1, index[:, :, None].expand(-1, -1, channels))
    distance = ((query - nearest).square().sum(2) + 1e-8).sqrt()
    return distance.view(NUM_CLASSES, -1, height, width)


def defect_loss(
    logits: torch.Tensor, anomaly_masks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Defects shall stand out: place by place, and by their highest place as a picture's score.

    Args:
        logits: `[E, 4, h, w]`, normal then defective pictures; higher is more anomalous.
        anomaly_masks: `[E * 2, 1, S, S]` in 0..1.

    Returns:
        The loss, and the share of (defective, normal) pairs of a class in the right order.
    """
    share = F.adaptive_avg_pool2d(anomaly_masks, (logits.shape[-2], logits.shape[-1]))
    near = F.max_pool2d(share, 3, stride=1, padding=1)
    share, near = (x.view(NUM_CLASSES, NUM_PAIRS, *logits.shape[-2:]) for x in (share, near))
    normal, defective = logits[:, :NUM_PAIRS], logits[:, NUM_PAIRS:]
    # A small defect fills no place of a coarse level: a hit is relative to the fullest place.
    peak = share.amax((2, 3), keepdim=True)
    hit = (share >= 0.5 * peak) & (peak > 0.02)
    clear = near < 0.01  # places between the two are left open
    wanted = F.softplus(-defective[hit]).sum() / hit.sum().clamp_min(1)
    unwanted = F.softplus(normal).mean() + F.softplus(defective[clear]).mean()
    highest = logits.flatten(2).amax(2)
    gap = highest[:, NUM_PAIRS:, None] - highest[:, None, :NUM_PAIRS]
    has_defect = hit.flatten(2).any(2)[:, :, None].expand_as(gap)
    order = F.softplus(-gap)[has_defect].sum() / has_defect.sum().clamp_min(1)
    right = (gap > 0)[has_defect].float().sum() / has_defect.sum().clamp_min(1)
    return wanted + 0.5 * unwanted + order, right


def identity_loss(vectors: torch.Tensor) -> torch.Tensor:
    """Pictures of a class shall lie together, apart from other classes; vectors `[E * 7, C]`."""
    vectors = F.normalize(vectors, dim=1)
    owner = torch.arange(NUM_CLASSES).repeat_interleave(PER_CLASS).to(vectors.device)
    itself = torch.eye(len(vectors), dtype=torch.bool, device=vectors.device)
    logits = (vectors @ vectors.T / 0.1).masked_fill(itself, -1e4)
    same = (owner[:, None] == owner[None]) & ~itself
    return -(logits.log_softmax(1) * same).sum(1).mean() / (PER_CLASS - 1)


def redraw_loss(heads: Heads, features: list[torch.Tensor], clean: torch.Tensor) -> torch.Tensor:
    """Levels 2 and 3 shall still know the picture `[B, 3, S, S]` without blur, noise and shade."""
    loss = clean.new_zeros(())
    for level, head, factor in zip(features[1:], heads.redraw, (2, 4), strict=True):
        loss = loss + F.l1_loss(F.pixel_shuffle(head(level), 4), F.avg_pool2d(clean, factor))
    return loss


def episode_loss(
    heads: Heads, features: list[torch.Tensor], episode: Episode
) -> tuple[torch.Tensor, dict[str, float]]:
    """Sum of all tasks.

    Args:
        features: three levels `[E * 7, C, h, w]` float32 of `episode.inputs`.

    Returns:
        The loss and figures to log: `order` is the share of defective pictures that score above a
        normal one of their class by nearest neighbours.
    """
    loss = features[0].new_zeros(())
    orders = []
    for number, space in enumerate(feature_spaces(features)):
        distance = nearest_distances(space)
        logits = heads.slope[number] * (distance.log() - heads.offset[number])
        part, right = defect_loss(logits, episode.anomaly_masks)
        loss = loss + part * (1.0 if number == 0 else 0.4)
        orders.append(right)
    for level, head in zip(features, heads.segment, strict=True):
        logits = head(level).view(NUM_CLASSES, PER_CLASS, *level.shape[-2:])[:, NUM_BANK:]
        loss = loss + 0.15 * defect_loss(logits, episode.anomaly_masks)[0]
    pooled = torch.cat([level.mean((2, 3)) for level in features[1:]], 1)
    words = F.binary_cross_entropy_with_logits(
        heads.words(pooled), episode.words.repeat_interleave(PER_CLASS, 0)
    )
    identity = identity_loss(heads.identity(pooled))
    redraw = redraw_loss(heads, features, episode.clean)
    figures = {"order": orders[0], "words": words, "identity": identity, "redraw": redraw}
    loss = loss + 2.0 * words + 0.2 * identity + 2.0 * redraw
    return loss, {name: value.item() for name, value in figures.items()}


@torch.no_grad()
def settle_statistics(encoder: nn.Module, pool: Pool, device: torch.device) -> None:
    """Measure the batch norms' statistics anew, for the averaged weights and at full size."""
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    encoder.train()
    for step in range(STATISTICS_STEPS):
        episode = draw_episode(pool, torch.zeros(len(pool.images), 1), SEED, -1 - step, size=128)
        encoder(episode.inputs.to(device))
    encoder.eval()


@torch.no_grad()
def evaluate_encoder(encoder: nn.Module, pool: Pool, device: torch.device) -> dict[str, float]:
    """Share (0..1) of defective pictures that nearest neighbours score above normal ones.

    Args:
        pool: pictures of classes that were not trained on.
    """
    encoder.eval()
    words = torch.zeros(len(pool.images), 1)
    rights = []
    for step in range(MEASURED_EPISODES):
        episode = draw_episode(pool, words, 1, step, size=128)
        spaces = feature_spaces(encoder(episode.inputs.to(device)))
        masks = episode.anomaly_masks.to(device)
        rights.append([defect_loss(nearest_distances(s), masks)[1].item() for s in spaces])
    names = ("order", "order_level1", "order_level2", "order_level3")
    return dict(zip(names, np.mean(rights, axis=0).tolist(), strict=True))


def train_encoder(
    pool: Pool,
    work: Path,
    weights: Path,
    config: LoopConfig,
    device: torch.device,
    held_out: Pool | None = None,
    timm_name: str = TIMM_NAME,
) -> nn.Module:
    """Train on the pool, measure, export to `weights/encoder`.

    Args:
        pool: pictures to learn from.
        work: folder of the checkpoint, the losses and `encoder_measured.json`.
        config: its budget and cadence count; rate and averaging are this model's own.
        held_out: pictures of other classes, to measure on; drawn into `work` if not given.
    """
    config = replace(
        config, learning_rate=LEARNING_RATE, ema_decay=EMA_DECAY, weight_decay=WEIGHT_DECAY
    )
    torch.manual_seed(stream_seed(SEED, "encoder", "weights"))
    words = word_table(pool.captions)
    encoder = build_encoder(timm_name).to(device).to(memory_format=torch.channels_last).train()
    heads = Heads(feature_channels(encoder), words.shape[1]).to(device)
    if held_out is None:
        held_out = open_pool(work, 64, 8, 4, first_class=HELD_OUT_SEED)

    def loss_function(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        episode = Episode(*(part.to(device) for part in draw_episode(pool, words, SEED, step)))
        with mixed_precision(device):
            features = encoder(episode.inputs.contiguous(memory_format=torch.channels_last))
        return episode_loss(heads, [level.float() for level in features], episode)

    train_loop("encoder", {"encoder": encoder, "heads": heads}, loss_function, work, config)
    settle_statistics(encoder, pool, device)
    settings = {"timm_name": timm_name, "out_indices": OUT_INDICES, "mean": MEAN, "std": STD}
    export_module(encoder, weights / "encoder", settings)
    measured = json.dumps(evaluate_encoder(encoder, held_out, device), indent=1)
    (work / "encoder_measured.json").write_text(measured + "\n")
    return encoder
