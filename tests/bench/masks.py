"""Masks of classes, by the rule their name asks for and by one that proved itself.

`python -m tests.bench.masks --data FOLDER --drawn 8` prints a row for each class of a folder, and
for held-out classes drawn on a plain and on a patterned ground, whose truth is known.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from replaycad.data.classes import auto_policy, policy_for
from replaycad.data.images import evenly_spaced, load_image
from replaycad.data.layouts import find_classes, train_samples
from replaycad.mini.world.demo import CLASSES
from replaycad.mini.world.pictures import HELD_OUT_SEED, draw, draw_class
from replaycad.segmentation.proof import prove
from replaycad.segmentation.sam import Segmenter, load_segmenter
from replaycad.stages.mask import SETTLE_IMAGES

MAX_DRAWN = 2_000  # seeds looked through


def measure(
    segmenter: Segmenter, name: str, images: list[np.ndarray], truth: list[np.ndarray]
) -> dict[str, Any]:
    """A row for one class: by its name, then by what proved itself.

    Args:
        segmenter: whose masks they are.
        name: of the class.
        images: `[H, W, 3]` uint8 each.
        truth: `[H, W]` bool each, or none where it is not known.
    """
    policy = policy_for(name) or auto_policy(name)
    named = replace(policy, mask_rule="corners") if policy.mask_rule == "auto" else policy
    few = [images[index] for index in evenly_spaced(len(images), SETTLE_IMAGES)]
    row: dict[str, Any] = {"class": name}
    for column, wanted, as_typed in (("named", named, True), ("proven", policy, False)):
        start = time.perf_counter()
        settled = segmenter.settle(few, wanted, as_typed)
        masks = [segmenter.object_mask(image, settled) for image in images]
        proof = prove(masks)
        row[column] = {
            "rule": settled.mask_rule, "seconds": round(time.perf_counter() - start, 1),
            "plausible": round(proof.plausible, 2), "spread": round(proof.spread, 2),
            "agreement": round(proof.agreement, 2),
        }  # fmt: skip
        if truth:
            ious = [(a & b).sum() / (a | b).sum() for a, b in zip(masks, truth, strict=True)]
            row[column]["iou"] = round(float(np.mean(ious)), 3)
    return row


def drawn(count: int, num_images: int) -> Iterator[tuple[str, list, list]]:
    """The demo's screw, then so many classes on a plain ground and so many on a patterned one."""
    seeds = {"screw": CLASSES["screw"]}
    left = {"plain": count, "patterned": count}
    for seed in range(HELD_OUT_SEED, HELD_OUT_SEED + MAX_DRAWN):
        spec = draw_class(seed)
        kind = "plain" if spec.scene.ground is None else "patterned"
        if not spec.is_surface and left[kind]:
            left[kind] -= 1
            seeds[f"{kind}_{seed}"] = seed
    for name, seed in seeds.items():
        pictures = [draw(draw_class(seed), number) for number in range(num_images)]
        yield name, [one.image for one in pictures], [one.object_mask for one in pictures]


def main() -> None:
    """Print a line of JSON for every class, and the means over those of known truth."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder of classes")
    parser.add_argument("--drawn", type=int, default=0, help="classes of either ground to draw")
    parser.add_argument("--num", type=int, default=60, help="images of a class")
    parser.add_argument("--size", type=int, default=128, help="pixels of images from files")
    parser.add_argument("--segmenter", default="mini")
    parser.add_argument("--threads", type=int, default=1)
    typed = parser.parse_args()
    torch.set_num_threads(typed.threads)
    segmenter, rows = load_segmenter(typed.segmenter), []
    for name in find_classes(typed.data) if typed.data else ():
        samples = train_samples(typed.data, name)
        paths = [samples[index].path for index in evenly_spaced(len(samples), typed.num)]
        images = [load_image(path, typed.size) for path in paths]
        rows.append(measure(segmenter, name, images, []))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
    for name, images, truth in drawn(typed.drawn, typed.num) if typed.drawn else ():
        rows.append(measure(segmenter, name, images, truth))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
    for kind in ("plain", "patterned"):
        of_kind = [row for row in rows if row["class"].startswith(kind)]
        if of_kind:
            means = {
                column: round(float(np.mean([row[column]["iou"] for row in of_kind])), 3)
                for column in ("named", "proven")
            }
            sys.stdout.write(json.dumps({"mean iou": kind, **means}) + "\n")


if __name__ == "__main__":
    main()
