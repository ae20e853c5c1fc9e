"""Encoders and image sizes for the memory bank: `python -m tests.bench.encoders --data FOLDER`.

Every class gets its own bank from its real training images, and its test images are held against
the bank that they are routed to, as the preset `standard` does. Images are encoded once for all
seeds, which only pick other patches.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from replaycad.data.images import load_anomaly_mask, load_images
from replaycad.data.layouts import find_classes, test_samples, train_samples
from replaycad.data.samples import Sample
from replaycad.detectors.encoders import Encoder, load_encoder
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.patchcore.preset import PRESETS, PatchCorePreset
from replaycad.metrics import class_metrics

BATCH = 16
LEVELS = (2, 3)


class Pyramids:
    """Features of images in 16 bits, encoded once."""

    def __init__(self, samples: Sequence[Sample], size: int, encoder: Encoder) -> None:
        self._parts = []
        for start in range(0, len(samples), BATCH):
            images = torch.from_numpy(load_images(samples[start : start + BATCH], size))
            self._parts.append([level.half() for level in encoder.encode_images(images)])

    def __iter__(self):
        return ([level.float() for level in part] for part in self._parts)


def truth(samples: Sequence[Sample], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Anomaly masks `[N, S, S]` bool and labels `[N]` uint8."""
    masks = np.zeros((len(samples), size, size), np.bool_)
    for row, sample in zip(masks, samples, strict=True):
        if sample.mask_paths:
            row[:] = load_anomaly_mask(sample, size)
    return masks, np.array([sample.is_anomalous for sample in samples], np.uint8)


def figures(data: Path, name: str, size: int, seeds: int) -> tuple[np.ndarray, list[float]]:
    """Image AUROC and pixel AP `[seeds, classes, 2]`; seconds of encoding, filling, scoring."""
    encoder = load_encoder(name, levels=LEVELS)
    preset = PRESETS["standard"]
    assert isinstance(preset, PatchCorePreset)
    classes, started = find_classes(data), time.perf_counter()
    learned = [Pyramids(train_samples(data, one), size, encoder) for one in classes]
    tested = [Pyramids(test_samples(data, one), size, encoder) for one in classes]
    seconds = [time.perf_counter() - started, 0.0, 0.0]
    found = np.empty((seeds, len(classes), 2))
    for seed in range(seeds):
        started = time.perf_counter()
        detector = PatchCore(
            encoder.channels, encoder.strides, size, replace(preset, image_size=size)
        )
        for index, pyramids in enumerate(learned):
            detector.fit(pyramids, index, torch.Generator().manual_seed(seed))
        seconds[1] += (time.perf_counter() - started) / seeds
        started = time.perf_counter()
        for index, one in enumerate(classes):
            maps = torch.cat([detector.anomaly_maps(part) for part in tested[index]])
            masks, labels = truth(test_samples(data, one), size)
            told = class_metrics(detector.image_scores(maps).numpy(), labels, maps.numpy(), masks)
            found[seed, index] = told["image_auroc"], told["pixel_ap"]
        seconds[2] += (time.perf_counter() - started) / seeds
    return 100 * found, seconds


def main() -> None:
    """Print a row of markdown for every encoder and size."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", nargs="+", default=["mini", "efficientnet-lite0"])
    parser.add_argument("--size", nargs="+", type=int, default=[128, 256, 384])
    parser.add_argument("--seeds", type=int, default=3)
    typed = parser.parse_args()
    named = " | ".join(find_classes(typed.data))
    sys.stdout.write(f"| encoder | px | mean | {named} | encode s | fill s | score s |\n")
    for name in typed.encoder:
        for size in typed.size:
            found, seconds = figures(typed.data, name, size, typed.seeds)
            means = found.mean(axis=1)
            cells = [name.partition(":")[0], str(size)]
            cells.append(" / ".join(
                f"{means[:, which].mean():.1f} ± {means[:, which].std():.1f}" for which in (0, 1)
            ))  # fmt: skip
            cells += [f"{auroc:.1f} / {ap:.1f}" for auroc, ap in found.mean(axis=0)]
            cells += [f"{value:.0f}" for value in seconds]
            sys.stdout.write(f"| {' | '.join(cells)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
