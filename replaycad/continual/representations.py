"""The representation that a class is kept in, where `auto` chooses it: measured, without labels."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from replaycad.config.stages import ReplayConfig, Representation

REPRESENTATIONS: tuple[Representation, ...] = ("features", "exemplars", "hybrid", "conditions")
"""What `auto` chooses among, what needs the least first."""
FEATURES_SERVE = "patchcore"  # the only detector that has a use for patches
SIZED: tuple[str, ...] = ("features", "exemplars", "fragments", "hybrid", "auto")
"""Kept as large as detectors see them."""
ASKS_BACKBONE: tuple[str, ...] = ("conditions", "hybrid", "auto")
MARGIN = 0.05
"""Of separation, by which a later representation must be better: two standard deviations of the
difference between two picks of images of one class (of one pick 0.018; eight held-out procedural
classes of 200 images, four picks of each in 100,000 bytes)."""
DRAWING = "drawing of replays"  # the input that says which ones real images are held against
DETECTOR = "detector"  # the input that says whose banks are kept, or judge what is kept
NEAR = MARGIN
"""Of separation below that of a bank of all other images: a form that comes so near is kept without
trying those after it, none of which could be better by `MARGIN` than all images are."""
MOST_OTHERS = 256  # images of that bank
TRIED_ON = 64  # images, at most, that representations are tried on, and
TRIED_LEAST = 5  # below which there is nothing to choose: the images are kept
TRIED_REPLAYS = 128
"""Replays that they are tried with, at most: else as many as are learned from. A representation of
many images is judged too low by fewer replays than images (of a turning part, 90 images: 0.525 by
64 replays, 0.533 by 100, conditions 0.460 and 0.457)."""


def forms_for(*detectors: str) -> tuple[Representation, ...]:
    """What `auto` chooses among for detectors that are all to learn from it."""
    return REPRESENTATIONS if set(detectors) == {FEATURES_SERVE} else REPRESENTATIONS[1:]


def chosen_representation(separations: Mapping[Representation, float]) -> Representation:
    """The one that `auto` keeps a class in, from what `coverage.separations` says of each."""
    chosen: Representation | None = None
    for representation in REPRESENTATIONS:
        if representation not in separations:
            continue
        if chosen is None or separations[representation] > separations[chosen] + MARGIN:
            chosen = representation
    assert chosen is not None
    return chosen


def tried_drawing(drawing: ReplayConfig, backbone: str) -> ReplayConfig:
    """How replays are drawn to judge representations by; `drawing` is for those to learn from."""
    num_images = min(drawing.num_images, TRIED_REPLAYS)
    return replace(drawing, num_images=num_images, backbone=backbone, compile=False)


def header_alone(header: Mapping[str, Any], representation: Representation) -> dict[str, Any]:
    """The header that a class would have in this representation, had nobody chosen.

    Digests of networks that only other representations need are part of the key too.

    Args:
        header: of a choice, with its config, inputs and the digests of all networks.
        representation: one of `REPRESENTATIONS`.
    """
    weights = {
        name: digest
        for name, digest in header["weights"].items()
        if name == "encoder" or representation in ASKS_BACKBONE
    }
    others = {DRAWING} if representation == "features" else set[str]()
    inputs = {name: digest for name, digest in header["inputs"].items() if name not in others}
    config = {**header["config"], "keep": representation}
    return {**header, "config": config, "inputs": inputs, "weights": weights}
