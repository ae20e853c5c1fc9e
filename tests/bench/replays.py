"""What replays are worth: `python -m tests.bench.replays --data FOLDER --budget 50000 200000`.

Each class alone: a memory bank of its replays (`--keep conditions`, `fragments`, ...) beside a bank
of its real images, at the default encoder and size, on the same test images. The share is of pixel
AP; it is what a sequence keeps of a past class, where images are routed to their class.

Beside it stand precision and recall of patches (Kynkäänniemi et al. 2019) under the same encoder:
which share of patches of replays lies within the manifold of real ones, and of real ones within
that of replays. A manifold is the union of balls about its patches, each as wide as the distance to
the third nearest patch of another image. Real images against others of them say what can be had.

`--held-out 8` draws as many procedural classes that pre-training did not see, to choose on;
`--sheet FILE` shows real images above replays of every class, to be looked at.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from PIL import Image

from replaycad.artifacts.replays import ReplaysReader
from replaycad.continual.exemplars import resized
from replaycad.data.images import evenly_spaced, load_images
from replaycad.data.layouts import find_classes, test_samples, train_samples
from replaycad.detectors.encoders import Encoder, load_encoder
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.patchcore.preset import PRESETS
from replaycad.engine.builder import Builder
from replaycad.engine.compress import CompressStage
from replaycad.engine.replay import ReplayStage
from replaycad.engine.settings import RunSettings
from replaycad.errors import BudgetError
from replaycad.metrics import class_metrics
from replaycad.mini.world.pictures import HELD_OUT_SEED, write_dataset
from replaycad.progress import silent
from replaycad.runtime import generator
from tests.bench.encoders import truth

FIRST_SEED = HELD_OUT_SEED + 3_000
HELD_OUT = (100, 15, 25)  # images to train on, good and defective ones to test on, of 256 px
PATCHES = 2_000  # of each side, for precision and recall
NEIGHBOUR = 3
BATCH = 8
SHOWN = 10  # images of a class in a row of the sheet
FIGURES = ("image_auroc", "pixel_ap")


def pyramids(images: np.ndarray, encoder: Encoder) -> Iterator[list[torch.Tensor]]:
    """Features of images `[N, 3, S, S]` uint8, a few at a time."""
    for start in range(0, len(images), BATCH):
        yield encoder.encode_images(torch.from_numpy(images[start : start + BATCH]))


def radii(patches: torch.Tensor, owners: torch.Tensor) -> torch.Tensor:
    """Distance `[N]` of each patch to its third nearest of another image."""
    distances = torch.cdist(patches, patches)
    distances[owners[:, None] == owners] = torch.inf
    return distances.kthvalue(NEIGHBOUR, dim=1).values


def within(patches: torch.Tensor, others: torch.Tensor, reach: torch.Tensor) -> float:
    """Share of patches `[N, D]` in a ball about one of `others` `[M, D]`, as wide as `reach`."""
    return float((torch.cdist(patches, others) <= reach).any(dim=1).float().mean())


class Judge:
    """A class: its images, and what banks say of its test images."""

    def __init__(self, data: Path, name: str, encoder: Encoder) -> None:
        self._encoder, self.preset = encoder, PRESETS["standard"]
        size = self.preset.image_size
        self.real = load_images(train_samples(data, name), size)
        tested = test_samples(data, name)
        self._tested = load_images(tested, size)
        self._masks, self._labels = truth(tested, size)

    def figures(self, images: np.ndarray, seed: int) -> dict[str, float]:
        """Of a bank of these images."""
        encoder = self._encoder
        bank = PatchCore(encoder.channels, encoder.strides, images.shape[-1], self.preset)
        bank.fit(pyramids(images, encoder), 0, generator(seed, "replays"))
        maps = torch.cat([bank.anomaly_maps(part) for part in pyramids(self._tested, encoder)])
        told = class_metrics(
            bank.image_scores(maps).numpy(), self._labels, maps.numpy(), self._masks
        )
        return {figure: told[figure] for figure in FIGURES}

    def patches(self, images: np.ndarray, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Some patches `[N, D]` of images, picked at random, and which image each is from."""
        encoder = self._encoder
        bank = PatchCore(encoder.channels, encoder.strides, images.shape[-1], self.preset)
        parts = torch.cat([bank.patches(part) for part in pyramids(images, encoder)])
        owners = torch.arange(len(parts)).repeat_interleave(parts.shape[1])
        picks = torch.randperm(len(owners), generator=generator(seed, "patches"))[:PATCHES]
        return parts.flatten(0, 1)[picks], owners[picks]

    def manifold(self, images: np.ndarray, seed: int) -> tuple[float, float]:
        """Precision and recall of patches of these images beside all real ones."""
        real, drawn = self.patches(self.real, seed), self.patches(images, seed + 1)
        return within(drawn[0], real[0], radii(*real)), within(real[0], drawn[0], radii(*drawn))


def replays_of(
    builder: Builder, name: str, keep: str, budget: int, seed: int, size: int
) -> np.ndarray:
    """Replays of a class kept in so many bytes, `[N, 3, size, size]` uint8."""
    stored = f"{name}-{keep}-{budget}-{seed}"
    changes = {"keep": keep, "budget": budget}
    builder.build(CompressStage(builder, name, stored, seed, changes))
    builder.build(ReplayStage(builder, stored, seed, name))
    reader = ReplaysReader(builder.store.path("replays", stored))
    return np.stack([resized(image, size) for image in reader.images(range(len(reader)))])


def sheet_row(images: np.ndarray) -> np.ndarray:
    """Some of the images side by side, `[S, SHOWN * S, 3]`."""
    shown = images[evenly_spaced(len(images), SHOWN)]
    row = np.concatenate(list(shown.transpose(0, 2, 3, 1)), axis=1)
    return np.pad(row, ((0, 0), (0, SHOWN * images.shape[-1] - row.shape[1]), (0, 0)))


def measured(
    builder: Builder, data: Path, classes: Sequence[str], typed: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """A row for each class, budget and seed, printed as it is found; rows of the sheet."""
    preset = PRESETS["standard"]
    encoder = load_encoder(preset.encoder, levels=preset.levels)
    rows, sheet = [], []
    for name in classes:
        judge = Judge(data, name, encoder)
        half = len(judge.real) // 2
        bound = [judge.figures(judge.real, seed) for seed in typed.seed]
        same = judge.manifold(judge.real[half:], typed.seed[0])
        sheet.append(sheet_row(judge.real))
        for budget in typed.budget:
            for place, seed in enumerate(typed.seed):
                try:
                    drawn = replays_of(
                        builder, name, typed.keep, budget, seed, preset.image_size
                    )
                except BudgetError as error:
                    sys.stdout.write(f"{name} {budget}: {error.message}\n")
                    break
                if not place:
                    sheet.append(sheet_row(drawn))
                found, real = judge.figures(drawn, seed), bound[place]
                precision, recall = judge.manifold(drawn, seed)
                rows.append({
                    "class": name, "budget": budget, "seed": seed, **found,
                    **{f"real_{figure}": real[figure] for figure in FIGURES},
                    "share": found["pixel_ap"] / real["pixel_ap"],
                    "precision": precision, "recall": recall, "recall_of_half": same[1],
                })  # fmt: skip
                sys.stdout.write(json.dumps(rows[-1]) + "\n")
                sys.stdout.flush()
    return rows, sheet


def table(rows: Sequence[dict[str, Any]], budget: int, seeds: Sequence[int]) -> Iterator[str]:
    """Lines of markdown for one budget: each class, and the mean with its spread over seeds."""
    own = [row for row in rows if row["budget"] == budget]
    yield f"| {budget} bytes | replays | real images | share of AP | precision, recall |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name in dict.fromkeys(row["class"] for row in own):
        of = [row for row in own if row["class"] == name]
        mean = {key: 100 * fmean(row[key] for row in of) for key in of[0] if key != "class"}
        yield (
            f"| {name} | {mean['image_auroc']:.1f} / {mean['pixel_ap']:.1f} | "
            f"{mean['real_image_auroc']:.1f} / {mean['real_pixel_ap']:.1f} | "
            f"{mean['share']:.0f} % | {mean['precision']:.0f}, {mean['recall']:.0f} |"
        )
    each = [
        100 * fmean(row["pixel_ap"] for row in of) / (100 * fmean(r["real_pixel_ap"] for r in of))
        for of in ([row for row in own if row["seed"] == seed] for seed in seeds) if of
    ]  # fmt: skip
    if each:
        yield f"| share of the means | | | {100 * fmean(each):.1f} ± {100 * pstdev(each):.1f} % | |"


def main() -> None:
    """Print a row of JSON for every case, then a table for every budget."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder of classes")
    parser.add_argument("--class", dest="classes", nargs="+")
    parser.add_argument("--held-out", type=int, default=0, help="procedural classes instead")
    parser.add_argument("--keep", default="conditions", help="form that replays are drawn from")
    parser.add_argument("--store", type=Path, default=Path("build/replays"))
    parser.add_argument("--budget", type=int, nargs="+", default=[50_000, 100_000, 200_000])
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--num", type=int, default=120)
    parser.add_argument("--sheet", type=Path)
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = typed.data or Path(folder)
        if typed.held_out:
            numbers = {f"p{n:02d}": FIRST_SEED + n for n in range(typed.held_out)}
            write_dataset(data, numbers, *HELD_OUT, seed=0, size=256)
        settings = RunSettings(
            data=data, root=typed.store, overrides={"replay": {"num_images": str(typed.num)}}
        )
        with Builder(settings, silent) as builder:
            classes = typed.classes or find_classes(data)
            rows, sheet = measured(builder, data, classes, typed)
    for budget in typed.budget:
        sys.stdout.writelines(f"{line}\n" for line in table(rows, budget, typed.seed))
    if typed.sheet:
        Image.fromarray(np.concatenate(sheet)).save(typed.sheet)


if __name__ == "__main__":
    main()
