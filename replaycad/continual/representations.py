"""Which form a class is kept in, where the choice is left to `auto`: measured, without a label."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from replaycad.config.recipes import Form, ReplayConfig

FORMS: tuple[Form, ...] = ("exemplars", "hybrid", "conditions")
"""What `auto` chooses among, what needs the least first."""
ASKS_ENCODER: tuple[str, ...] = ("exemplars", "hybrid", "auto")  # picking real images
ASKS_BACKBONE: tuple[str, ...] = ("conditions", "hybrid", "auto")
MARGIN = 0.05
"""Of separation, by which a later form must be better: two standard deviations of the difference
between two picks of images of one class (of one pick 0.018; eight held-out procedural classes of
200 images, four picks of each in 100,000 bytes)."""
DRAWING = "drawing"  # the input of a choice that says how replays would be drawn
TRIED_ON = 64  # images, at most, that forms are tried on, and
TRIED_LEAST = 5  # below which there is nothing to choose: the images are kept
TRIED_REPLAYS = 128
"""Replays that they are tried with, at most: else as many as are learned from, for by fewer than it
holds a form of many images is judged too low (of a turning part, 90 images: 0.525 by 64 replays,
0.533 by 100, conditions 0.460 and 0.457)."""


def chosen_form(separations: Mapping[Form, float]) -> Form:
    """The form that `auto` keeps a class in, from what `coverage.separations` says of each."""
    chosen: Form | None = None
    for form in (form for form in FORMS if form in separations):
        if chosen is None or separations[form] > separations[chosen] + MARGIN:
            chosen = form
    assert chosen is not None
    return chosen


def tried_drawing(drawing: ReplayConfig, backbone: str) -> ReplayConfig:
    """How replays are drawn that forms are judged by, where those to learn from are so drawn."""
    num_images = min(drawing.num_images, TRIED_REPLAYS)
    return replace(drawing, num_images=num_images, backbone=backbone, compile=False)


def header_alone(header: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """The header that a class would have in this form, had nobody chosen.

    Digests of networks that only other forms need take the room of an image; the key has them too.

    Args:
        header: of a choice, with its config, inputs and the digests of all networks.
        form: one of `FORMS`.
    """
    weights = {
        name: digest
        for name, digest in header["weights"].items()
        if form in (ASKS_ENCODER if name == "encoder" else ASKS_BACKBONE)
    }
    inputs = {name: digest for name, digest in header["inputs"].items() if name != DRAWING}
    config = {**header["config"], "keep": form}
    return {**header, "config": config, "inputs": inputs, "weights": weights}
