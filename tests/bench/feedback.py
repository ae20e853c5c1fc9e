"""What false alarms teach a memory bank: `python -m tests.bench.feedback --data FOLDER`.

Of every class a bank is filled from 10 of its training images. Of the others, those are told to be
good that the bank finds anomalous, at most 20; where there are fewer than `--photos`, so many of
the highest scores. What the bank learns from them is held against a bank of all training images.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from replaycad.data.layouts import find_classes, test_samples, train_samples
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.limits import measured, together
from replaycad.detectors.patchcore.growth import new_patches, spacing
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.patchcore.preset import PRESETS, PatchCorePreset
from replaycad.inference.feedback import GROWTH
from replaycad.metrics import image_auroc, pixel_ap
from tests.bench.encoders import LEVELS, Pyramids, truth

NUM_IMAGES, MOST = 10, 20
Pyramid = list[torch.Tensor]
FIGURES = ("image AUROC", "pixel AP")


def singles(pyramids: Iterable[Pyramid]) -> list[Pyramid]:
    """One pyramid per image."""
    return [[level[row : row + 1] for level in part] for part in pyramids
            for row in range(len(part[0]))]  # fmt: skip


class Tested:
    """A class: its images, and figures of banks on its test images."""

    def __init__(self, data: Path, name: str, encoder, preset: PatchCorePreset) -> None:
        size, self._preset, self._encoder = preset.image_size, preset, encoder
        self.train = singles(Pyramids(train_samples(data, name), size, encoder))
        self.test = singles(Pyramids(test_samples(data, name), size, encoder))
        self._masks, self._labels = truth(test_samples(data, name), size)

    def filled(self, images: list[Pyramid], seed: int) -> PatchCore:
        """A detector whose only bank is of these."""
        size = self._preset.image_size
        found = PatchCore(self._encoder.channels, self._encoder.strides, size, self._preset)
        found.fit(images, 0, torch.Generator().manual_seed(seed))
        return found

    def maps(self, detector: PatchCore, images: list[Pyramid]) -> torch.Tensor:
        """Maps `[N, S, S]`."""
        return torch.cat([detector.anomaly_maps(one) for one in images])

    def figures(self, detector: PatchCore, limit: float) -> list[float]:
        """Image AUROC, pixel AP; false alarms and defects found by this limit; in percent."""
        maps = self.maps(detector, self.test)
        scores, labels = detector.image_scores(maps).numpy(), self._labels
        alarms = scores > limit
        return [100 * float(one) for one in (
            image_auroc(scores, labels), pixel_ap(maps.numpy(), self._masks),
            alarms[labels == 0].mean(), alarms[labels == 1].mean(),
        )]  # fmt: skip

    def run(self, seed: int, least: int) -> tuple[list[list[float]], int, int]:
        """Figures of the small bank before and after; how many photos and patches were added."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        few = [self.train[row] for row in order[:NUM_IMAGES]]
        rest = [self.train[row] for row in order[NUM_IMAGES:]]
        small = self.filled(few, seed)
        limit = together([
            measured(small, small.fitted_maps(one, [0], [place]), None)
            for place, one in enumerate(few)
        ]).limits()["image"]  # fmt: skip
        scores = small.image_scores(self.maps(small, rest)).numpy()
        alarms = np.flatnonzero(scores > limit)[:MOST]
        if len(alarms) < least:
            alarms = np.argsort(-scores)[:least]
        before = self.figures(small, limit)
        bank = small.bank_of(0)[0]
        patches = torch.cat([small.patches(rest[row])[0] for row in alarms])
        room = round(GROWTH * self._preset.bank_limit) - len(bank)
        rows, _ = new_patches(bank, patches, room, spacing(bank))
        grown = torch.cat([bank, patches[rows]])
        small.set_bank(0, grown, torch.full((len(grown),), -1))
        return [before, self.figures(small, limit)], len(alarms), len(rows)


def main() -> None:
    """Print a row of markdown for every class, and what share of the gap is closed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--class", dest="classes", nargs="+")
    parser.add_argument("--photos", type=int, default=13)
    parser.add_argument("--seeds", type=int, default=3)
    typed = parser.parse_args()
    preset, encoder = PRESETS["standard"], load_encoder("efficientnet-lite0", levels=LEVELS)
    assert isinstance(preset, PatchCorePreset)
    preset = replace(preset, image_size=256)
    sys.stdout.write(
        f"| class | photos | patches | {' | '.join(FIGURES)}: {NUM_IMAGES} images, after, all | "
        "false alarms: before, after | defects found: before, after |\n"
    )
    means = []
    for name in typed.classes or find_classes(typed.data):
        tested = Tested(typed.data, name, encoder, preset)
        full = tested.figures(tested.filled(tested.train, 0), np.inf)
        runs = [tested.run(seed, typed.photos) for seed in range(typed.seeds)]
        found = np.array([pair for pair, *_ in runs]).mean(axis=0)
        means.append([*found[:, :2], np.array(full[:2])])
        counts = [f"{np.mean([run[place] for run in runs]):.0f}" for place in (1, 2)]
        cells = [name, *counts]
        cells += [f"{found[0, k]:.1f}, {found[1, k]:.1f}, {full[k]:.1f}" for k in (0, 1)]
        cells += [f"{found[0, k]:.0f}, {found[1, k]:.0f}" for k in (2, 3)]
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()
    few, after, full = np.array(means).transpose(1, 0, 2)  # each [classes, 2]
    for place, figure in enumerate(FIGURES):
        gain, gap = (after - few)[:, place], (full - few)[:, place]
        sys.stdout.write(
            f"{figure}: mean {few[:, place].mean():.1f} -> {after[:, place].mean():.1f} of "
            f"{full[:, place].mean():.1f}: {gain.mean() / gap.mean():.0%} of the gap, "
            f"worst class {gain.min():+.1f}\n"
        )


if __name__ == "__main__":
    main()
