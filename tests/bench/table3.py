"""The paper's Table 3 on classes whose part moves: `python -m tests.bench.table3`.

A class is kept in the paper's own way, one embedding for all images and nothing but the mask to say
how the part lies, or with `--mechanism default` with poses and variations. A memory bank of the
replays of one class alone scores its test images, so that no order of classes plays a part. Beside
it stands how well what is drawn around the mask of an unseen image follows that mask.

The classes are the first held-out ones from class seed 1,002,000 on that show one part, which moves
far or a little (`MOTIONS`: words of the caption, and the overlap below which its masks in two
images stay), and whose masks the program finds well (`MASKS_IOU`): three to choose settings on, the
four after them to report.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from itertools import combinations, count, islice
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.format import read_header
from replaycad.artifacts.masks import MasksArtifact
from replaycad.config.stages import ReplayConfig
from replaycad.data.classes import ClassPolicy
from replaycad.diffusion.backbones import load_backbone
from replaycad.diffusion.sampling import sample
from replaycad.engine.builder import Builder
from replaycad.engine.compress import CompressStage
from replaycad.engine.evaluate import EvalStage
from replaycad.engine.mask import MaskStage
from replaycad.engine.replay import ReplayStage
from replaycad.engine.train import TrainStage
from replaycad.experiments.strategies import STRATEGIES
from replaycad.mini.world.pictures import HELD_OUT_SEED, ClassSpec, draw, draw_class, write_dataset
from replaycad.segmentation.sam import load_segmenter
from replaycad.stages.replay import rebuild_conditions

FIRST_SEED = HELD_OUT_SEED + 2_000
CHOOSING, REPORTING = slice(3), slice(3, 7)  # of the classes found
MOTIONS = {"far": ({"turned", "shifted", "anywhere"}, 0.75), "little": ({"steady"}, 0.95)}
LEAST_AREA, MASKS_IOU = 0.03, 0.8
TRAIN, GOOD, DEFECTIVE, UNSEEN = 60, 20, 30, 12  # images of a class
COMPARED = ("none", "spatial", "semantic", "replay")
MECHANISMS = {
    "paper": {"compress.alignment": "none", "compress.num_variations": "0"},
    "default": {},
}
FIGURES = ("image_auroc", "pixel_ap", "mask_iou", "error")


def overlap(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean IoU of masks `[N, H, W]` bool."""
    both, either = (found & wanted).sum((1, 2)), (found | wanted).sum((1, 2))
    return float((both / np.maximum(either, 1)).mean())


def moves(spec: ClassSpec, motion: str) -> bool:
    """One part, large enough for the latents, that moves so."""
    words, most = MOTIONS[motion]
    told = set(spec.caption.split())
    if spec.is_surface or "one" not in told or not words & told:
        return False
    masks = np.stack([draw(spec, number, 64).object_mask for number in range(8)])
    first, second = zip(*combinations(range(len(masks)), 2), strict=True)
    return masks.mean() >= LEAST_AREA and overlap(masks[list(first)], masks[list(second)]) < most


def usable(builder: Builder, motion: str) -> Iterator[tuple[str, ClassSpec]]:
    """Classes by the rule above, their data sets written and their masks made."""
    for seed in count(FIRST_SEED):
        spec = draw_class(seed)
        if not moves(spec, motion):
            continue
        name = f"{seed}-{spec.family}"
        if not (builder.settings.data / name).exists():
            write_dataset(builder.settings.data, {name: seed}, TRAIN, GOOD, DEFECTIVE, seed=0)
        builder.build(MaskStage(builder, name))
        masks = MasksArtifact.load(builder.store.path("masks", name))
        truth = np.stack([draw(spec, number).object_mask for number in range(TRAIN)])
        found = overlap(masks.object_masks, truth)
        sys.stderr.write(f"{name}: {spec.caption}, masks by '{masks.rule}' IoU {found:.2f}\n")
        if masks.rule != "frame" and found >= MASKS_IOU:
            yield name, spec


def score(builder: Builder, name: str, strategy: str, mechanism: str, seed: int) -> Any:
    """Figures of the detector as percentages; `real`: of one trained on the images themselves."""
    stored = f"{name}-{mechanism}-{strategy}-{seed}"
    if strategy == "real":
        builder.build(TrainStage(builder, [name], [], stored, seed))
    else:
        changes = dict(STRATEGIES[strategy].compress or ())
        builder.build(CompressStage(builder, name, stored, seed, changes))
        builder.build(ReplayStage(builder, stored, seed, name))
        builder.build(TrainStage(builder, [], [stored], stored, seed))
    outcome = builder.build(EvalStage(builder, [name], stored))
    found = read_header(outcome.plan.path)["metrics"]["classes"][name]
    return stored, {figure: 100 * found[figure] for figure in FIGURES[:2]}


class Following:
    """How drawings around the exact masks of unseen images follow them, and how far they err."""

    def __init__(self, config: ReplayConfig) -> None:
        self._config = config
        self._diffusion = load_backbone("mini", torch.device("cpu"))
        self._segmenter = load_segmenter("mini")

    def measure(self, conditions: ConditionsArtifact, spec: ClassSpec) -> dict[str, float]:
        """IoU of part found and mask asked for in %, mean distance to the image in grey levels."""
        unseen = [draw(spec, 100_000 + number) for number in range(UNSEEN)]
        wanted = np.stack([one.object_mask for one in unseen])
        real = np.stack([one.image for one in unseen])
        policy = self._segmenter.settle(list(real), ClassPolicy.from_dict(conditions.policy))
        built = rebuild_conditions(conditions, self._diffusion)
        passes = sample(self._diffusion, built, list(wanted), list(range(UNSEEN)), self._config)
        drawn = torch.cat(list(passes)).permute(0, 2, 3, 1).numpy()
        found = np.stack([self._segmenter.object_mask(one, policy) for one in drawn])
        error = np.abs(drawn.astype(np.float32) - real).mean()
        return {"mask_iou": 100 * overlap(found, wanted), "error": float(error)}


def table(rows: list[dict[str, Any]]) -> str:
    """Strategy by figure: mean over classes and seeds +- what the seeds' means differ by."""
    lines = []
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        own, cells = [row for row in rows if row["strategy"] == strategy], []
        for figure in FIGURES:
            means = [
                fmean(row[figure] for row in own if row["seed"] == seed)
                for seed in sorted({row["seed"] for row in own})
                if figure in own[0]
            ]
            cells.append(f"{fmean(means):.1f} +- {pstdev(means):.1f}" if means else "-")
        lines.append(f"| {' | '.join((strategy, *cells))} |\n")
    return "".join(lines)


def main() -> None:
    """Print a row of JSON for every detector, and the table at the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, default=Path("build/table3"))
    parser.add_argument("--choosing", action="store_true", help="on the classes for choosing")
    parser.add_argument("--motion", choices=MOTIONS, default="far")
    parser.add_argument("--mechanism", choices=MECHANISMS, default="paper")
    parser.add_argument("--strategy", nargs="+", default=["real", *COMPARED])
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], help="settings, as the program takes them")
    typed = parser.parse_args()
    settings: Mapping[str, str] = {
        "train.detector": "patchcore", "train.encoder": "mini", "replay.num_images": str(TRAIN),
        **MECHANISMS[typed.mechanism], **dict(one.split("=", 1) for one in typed.set),
    }  # fmt: skip
    part, rows = CHOOSING if typed.choosing else REPORTING, []
    data, store = typed.store / "data", typed.store / "artifacts"
    with Builder.of(data, store, settings, device="cpu") as builder:
        following = Following(builder.settings.config(ReplayConfig))
        classes = list(islice(usable(builder, typed.motion), part.start, part.stop))
        for seed in typed.seed:
            for name, spec in classes:
                for strategy in typed.strategy:
                    stored, figures = score(builder, name, strategy, typed.mechanism, seed)
                    if strategy != "real" and typed.mechanism == "paper":
                        path = builder.store.path("conditions", stored)
                        figures |= following.measure(ConditionsArtifact.load(path), spec)
                    rows.append({"class": name, "strategy": strategy, "seed": seed, **figures})
                    sys.stdout.write(json.dumps(rows[-1]) + "\n")
                    sys.stdout.flush()
    sys.stdout.write(table(rows))


if __name__ == "__main__":
    main()
