"""What false alarms teach a trained detector: `python -m tests.bench.confirmed --data FOLDER`.

One detector is trained from 10 training images of every class, another from all (`--most` at most).
Then, class by class, the false alarms among the other images are confirmed as good, as in
`tests.bench.feedback`, and the first is held against the second.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from replaycad.data.layouts import find_classes, test_samples, train_samples
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.interface import Detector
from replaycad.detectors.limits import NormalScores, calibrated, measured
from replaycad.detectors.optimization import make_optimizers, optimize_step
from replaycad.detectors.patchcore.confirmed import Confirmed
from replaycad.detectors.patchcore.coreset import greedy_coreset
from replaycad.detectors.patchcore.embedding import embed
from replaycad.detectors.patchcore.growth import new_patches, spacing
from replaycad.detectors.registry import build_detector, preset_for
from replaycad.inference.feedback import CONFIRMED_LIMIT
from replaycad.metrics import image_auroc, pixel_ap
from tests.bench.encoders import Pyramids, truth

NUM_IMAGES, LEAST, MOST, SIZE, ROWS = 10, 13, 20, 256, 16
Levels = list[torch.Tensor]


def encoded(samples, encoder) -> Levels:
    """Features of images, levels `[N, C, H, W]` float16."""
    parts = list(Pyramids(samples, SIZE, encoder))
    return [torch.cat([part[level] for part in parts]).half() for level in range(len(parts[0]))]


def trained(pool: Levels, encoder, name: str, steps: int, seed: int) -> Detector:
    """A detector of all classes."""
    torch.manual_seed(seed)
    training = preset_for(name, "standard").training
    detector = build_detector(name, "standard", encoder.channels, encoder.strides, SIZE)
    optimizers = make_optimizers(detector, training, training.optimizers[0].learning_rate)
    order = torch.Generator().manual_seed(seed)
    for step in range(steps):
        rows = torch.randperm(len(pool[0]), generator=order)[: training.batch_size]
        batch = [level[rows].float() for level in pool]
        optimize_step(detector.train(), optimizers, batch, training, step / steps)
    return detector.eval()


def maps_of(detector: Detector, levels: Levels) -> torch.Tensor:
    """Maps `[N, S, S]`."""
    parts = zip(*(level.split(ROWS) for level in levels), strict=True)
    return torch.cat([detector.anomaly_maps([one.float() for one in part]) for part in parts])


def patches_of(levels: Levels) -> torch.Tensor:
    """What the bank beside the detector compares, `[N, P, D]`."""
    middle, coarse = (one.float() for one in levels[-2:])
    return embed(middle, coarse).flatten(2).transpose(1, 2)


def taught(detector, few, alarms, test, limits, seed) -> tuple[torch.Tensor, float]:
    """Maps of test images once false alarms are confirmed, and the limit of scores then."""
    own = patches_of(few).flatten(0, 1)
    router = own[greedy_coreset(own, 500, torch.Generator().manual_seed(seed), 128)]
    maps, patches, reach = maps_of(detector, alarms), patches_of(alarms), spacing(router)
    side = round(patches.shape[1] ** 0.5)
    pooled = (pool(maps[:, None], side).flatten()
              for pool in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d))  # fmt: skip
    mean, most = pooled
    odd = ((mean > limits["pixel"]) | (most > limits["image"])).nonzero()[:, 0]
    rows, _ = new_patches(own[:0], patches.flatten(0, 1)[odd], CONFIRMED_LIMIT, reach)
    kept = patches.flatten(0, 1)[odd[rows]]
    places = odd[rows] // patches.shape[1]

    def lowered(bank, maps, patches):
        memory = Confirmed([bank], [reach], [limits["typical_pixel"]])
        return memory(maps, patches, torch.zeros(len(maps), dtype=torch.int64))

    held_out = [
        lowered(kept[places != one], maps[one : one + 1], patches[one : one + 1])
        if (places != one).any() else maps[one : one + 1]
        for one in range(len(maps))
    ]  # fmt: skip
    scores = detector.image_scores(torch.cat(held_out)).numpy()
    photos = NormalScores(scores, np.zeros((len(scores), 1), np.float32))
    limit = min(limits["image"], calibrated(photos, limits)["image"])
    return lowered(kept, maps_of(detector, test), patches_of(test)), limit


def main() -> None:
    """Print a row of markdown for every class."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--detector", default="invad")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--most", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    typed = parser.parse_args()
    preset = preset_for(typed.detector, "standard")
    encoder = load_encoder(preset.encoder, levels=preset.levels)
    stream, learned = torch.Generator().manual_seed(typed.seed), {}
    for name in find_classes(typed.data):
        samples = train_samples(typed.data, name)
        order = torch.randperm(len(samples), generator=stream).tolist()[: typed.most]
        learned[name] = encoded([samples[row] for row in order], encoder)
    small, full = (
        trained([torch.cat([one[level][:count] for one in learned.values()])
                 for level in range(len(preset.levels))],
                encoder, typed.detector, typed.steps, typed.seed)
        for count in (NUM_IMAGES, None)
    )  # fmt: skip
    sys.stdout.write(
        "| class | photos | AUROC, AP: 10 images | after | all | "
        "false alarms: before, limit stays, falls | defects found |\n"
    )
    for name, levels in learned.items():
        few, rest = ([one[part] for one in levels]
                     for part in (slice(NUM_IMAGES), slice(NUM_IMAGES, None)))  # fmt: skip
        samples = test_samples(typed.data, name)
        test, (masks, labels) = encoded(samples, encoder), truth(samples, SIZE)
        limits = measured(small, maps_of(small, few), None).limits()
        scores = small.image_scores(maps_of(small, rest)).numpy()
        hits = np.flatnonzero(scores > limits["image"])
        alarms = np.random.default_rng(typed.seed).permutation(hits)[:MOST]
        alarms = alarms if len(hits) >= LEAST else np.argsort(-scores)[:LEAST]
        found, limit = taught(small, few, [one[alarms] for one in rest], test, limits, typed.seed)
        cells, rates = [name, str(len(alarms))], []
        before = maps_of(small, test)
        for maps in (before, found, maps_of(full, test)):
            told = image_auroc(small.image_scores(maps).numpy(), labels)
            cells.append(f"{100 * told:.1f}, {100 * pixel_ap(maps.numpy(), masks):.1f}")
        for maps, one in ((before, limits["image"]), (found, limits["image"]), (found, limit)):
            rates.append(small.image_scores(maps).numpy() > one)
        cells += [", ".join(f"{100 * one[labels == kind].mean():.0f}" for one in rates)
                  for kind in (0, 1)]  # fmt: skip
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
