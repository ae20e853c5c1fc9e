"""A learned class drifts: `python -m tests.bench.drift --data FOLDER --class magnetic_tile`.

After the protocol of arXiv 2605.24251, ten steps each: colour (jitter of brightness, contrast and
saturation up to 0.5), blur (kernel 1 to 19 px, sigma 0.5 to 5), geometry (up to 20 degrees, 10 px
and 10 % of scale). What it leaves open is chosen here: training and test photos of a step drift
alike, every photo by its own draw; borders that come into view are black; image AUROC is the mean
over the ten steps, after the last of them.

* `frozen`: a memory bank of the photos before any drift.
* `bank`: the bank takes the photos of each step, and is reduced to its limit each time.
* `poses`: frozen, but filled with photos moved as far as they may come to lie, which a class with
  poses has of itself.

Beside them stand false alarms of good test photos by the limit of training, and from which step on
`predict` tells the drift.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import v2

from replaycad.data.images import evenly_spaced, load_images
from replaycad.data.layouts import test_samples, train_samples
from replaycad.detectors.encoders import Encoder, load_encoder
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.patchcore.preset import PRESETS
from replaycad.inference.drift import RISEN
from replaycad.metrics import image_auroc
from replaycad.runtime import generator

STEPS = 10
TRAIN_IMAGES = 100  # evenly spaced
POSES = 2  # moved copies of each photo
BATCH = 8
Change = Callable[[torch.Tensor], torch.Tensor]


def colour(step: int) -> Change:
    """Jitter of brightness, contrast and saturation."""
    return v2.ColorJitter(0.05 * step, 0.05 * step, 0.05 * step)


def blur(step: int) -> Change:
    """Gaussian blur."""
    return v2.GaussianBlur(2 * step - 1, 0.5 * step)


def geometry(step: int) -> Change:
    """A turn, a shift and a change of scale."""
    shift = step / 256
    return v2.RandomAffine(2 * step, (shift, shift), (1 - 0.01 * step, 1 + 0.01 * step))


KINDS = {"colour": colour, "blur": blur, "geometry": geometry}


def changed(images: np.ndarray, change: Change, seed: int) -> np.ndarray:
    """Images `[N, 3, S, S]` uint8, each by its own draw."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return np.stack([change(one).numpy() for one in torch.from_numpy(images)])


def pyramids(images: np.ndarray, encoder: Encoder) -> Iterator[list[torch.Tensor]]:
    """Features, a few images at a time."""
    for start in range(0, len(images), BATCH):
        yield encoder.encode_images(torch.from_numpy(images[start : start + BATCH]))


def filled(images: np.ndarray, encoder: Encoder, seed: int) -> PatchCore:
    """A bank of images."""
    preset = PRESETS["standard"]
    bank = PatchCore(encoder.channels, encoder.strides, images.shape[-1], preset)
    bank.fit(pyramids(images, encoder), 0, generator(seed, "drift"))
    return bank


def grown(bank: PatchCore, images: np.ndarray, encoder: Encoder, seed: int) -> PatchCore:
    """The bank with patches of more images, reduced to its limit."""
    new = filled(images, encoder, seed)
    pool = torch.cat([bank.bank, new.bank])
    limit = min(len(pool), bank.preset.bank_limit)
    picks = bank._picks(pool, limit, generator(seed, "grown"))
    bank.set_bank(0, pool[picks], torch.full((limit,), -1))
    return bank


def scores(bank: PatchCore, images: np.ndarray, encoder: Encoder) -> np.ndarray:
    """Image scores `[N]`."""
    return np.concatenate([
        bank.image_scores(bank.anomaly_maps(levels)).numpy() for levels in pyramids(images, encoder)
    ])  # fmt: skip


def limits(bank: PatchCore, images: np.ndarray, encoder: Encoder) -> tuple[float, float]:
    """Median of training photos and what one in a hundred exceeds, each without itself."""
    found = []
    for number, levels in enumerate(pyramids(images, encoder)):
        places = list(range(number * BATCH, number * BATCH + len(levels[0])))
        found.append(bank.image_scores(bank.fitted_maps(levels, [0] * len(places), places)))
    each = torch.cat(found).numpy()
    return float(np.median(each)), float(np.quantile(each, 0.99))


def main() -> None:
    """Print a row for each kind of drift."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--class", dest="class_name", default="magnetic_tile")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    typed = parser.parse_args()
    preset = PRESETS["standard"]
    encoder = load_encoder(preset.encoder, levels=preset.levels)
    real = train_samples(typed.data, typed.class_name)
    train = load_images([real[row] for row in evenly_spaced(len(real), TRAIN_IMAGES)], 256)
    tested = test_samples(typed.data, typed.class_name)
    test, labels = load_images(tested, 256), np.array([one.is_anomalous for one in tested])
    for seed in typed.seed:
        still = filled(train, encoder, seed)
        typical, limit = limits(still, train, encoder)
        alone = image_auroc(scores(still, test, encoder), labels)
        sys.stdout.write(f"seed {seed}, no drift: {100 * alone:.1f}\n")
        for kind, change in KINDS.items():
            drifted = [changed(test, change(step), seed + step) for step in range(1, STEPS + 1)]
            found = [scores(still, images, encoder) for images in drifted]
            figures = {"frozen": [image_auroc(one, labels) for one in found]}
            good = [(one[~labels] - typical) / (limit - typical) for one in found]
            alarms = [float((one > 1).mean()) for one in good]
            told = [step for step, one in enumerate(good, start=1) if np.median(one) > RISEN]
            bank = filled(train, encoder, seed)
            for step in range(1, STEPS + 1):
                shown = changed(train, change(step), 100 + seed + step)
                bank = grown(bank, shown, encoder, seed + step)
            figures["bank"] = [image_auroc(scores(bank, one, encoder), labels) for one in drifted]
            if kind == "geometry":
                moved = [changed(train, change(STEPS), 200 + seed + n) for n in range(POSES)]
                poses = filled(np.concatenate([train, *moved]), encoder, seed)
                figures["poses"] = [
                    image_auroc(scores(poses, one, encoder), labels) for one in drifted
                ]
            for name, each in figures.items():
                steps = " ".join(f"{100 * one:.1f}" for one in each)
                sys.stdout.write(f"{kind} {name}: mean {100 * np.mean(each):.1f} ({steps})\n")
            percent = " ".join(f"{100 * one:.0f}" for one in alarms)
            first = told[0] if told else "never"
            sys.stdout.write(f"{kind}: false alarms % {percent}; told from step {first} on\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
