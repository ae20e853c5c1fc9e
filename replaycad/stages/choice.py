"""Chooses what a class is kept as, where that is left to `auto`: it measures, without labels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.config.stages import CompressConfig, Representation
from replaycad.continual import representations
from replaycad.continual.budget import IMAGE_BUDGET
from replaycad.continual.coverage import separations
from replaycad.data.images import evenly_spaced, load_images
from replaycad.data.samples import Sample
from replaycad.detectors.encoders import Encoder
from replaycad.errors import BudgetError
from replaycad.progress import Report, silent
from replaycad.runtime import generator

Keep = Callable[[CompressConfig, dict[str, Any]], tuple[ConditionsArtifact, list[int]]]
Draw = Callable[[ConditionsArtifact, dict[str, Any]], np.ndarray]


def choose_representation(
    samples: Sequence[Sample],
    class_name: str,
    config: CompressConfig,
    header: dict[str, Any],
    seed: int,
    keep: Keep,
    draw: Draw,
    load_encoder: Callable[[], Encoder],
    report: Report = silent,
) -> ConditionsArtifact:
    """Keep a class in each representation; of these, the one whose replays tell images apart best.

    It is the very file that this representation would be without a choice, but for what its header
    says of the choice, where there is room for it. Where all images fit in but a few, these are
    kept and nothing is tried.

    Args:
        samples: training images.
        class_name: the class.
        config: of the stage.
        header: common part of the artifact's header.
        seed: of the images that pieces are pasted into.
        keep: (config of one representation, header) -> the artifact, and which samples it holds.
        draw: (artifact, header) -> replays `[N, 3, S, S]` uint8.
        load_encoder: gives the frozen encoder that compares images.
        report: hears of what was tried and chosen.

    Raises:
        BudgetError: if no representation fits into the budget.
    """
    budget = config.budget or IMAGE_BUDGET
    tried: dict[Representation, ConditionsArtifact] = {}
    unseen = np.ones(len(samples), np.bool_)  # images that no representation holds
    for form in representations.REPRESENTATIONS:
        trial = replace(config, keep=form, budget=budget)
        try:
            tried[form], rows = keep(trial, representations.header_alone(header, form))
        except BudgetError as error:
            report.note(f"{class_name}: not as {form}: {error.message}")
            continue
        unseen[rows] = False
        if unseen.sum() < representations.TRIED_LEAST:
            break
    if not tried:
        message = f"compress: a budget of {config.budget} bytes is too small for any form"
        raise BudgetError(message, "give more")
    measured: dict[Representation, float] = {}
    if len(tried) > 1:
        rest = np.flatnonzero(unseen)
        images = [samples[row] for row in rest[evenly_spaced(len(rest), representations.TRIED_ON)]]
        measured = _separations(tried, images, draw, load_encoder, header, seed)
    best = representations.chosen_representation(measured) if measured else next(iter(tried))
    told = "".join(f"; {form} tells {value:.3f} apart" for form, value in measured.items())
    report.note(f"{class_name}: kept as {best}{told}")
    kept = replace(tried[best], header={**tried[best].header, "config": header["config"]})
    explained = replace(kept, header={**kept.header, "separations": measured})
    return explained if explained.file_bytes() <= budget else kept


def _separations(
    tried: Mapping[Representation, ConditionsArtifact],
    samples: Sequence[Sample],
    draw: Draw,
    load_encoder: Callable[[], Encoder],
    header: dict[str, Any],
    seed: int,
) -> dict[Representation, float]:
    """How well replays of each tell these images from the same with a piece pasted in."""
    drawn = {form: draw(kept, {**header, "key": form}) for form, kept in tried.items()}
    real = load_images(samples, next(iter(drawn.values())).shape[-1])
    measured = separations(drawn, real, load_encoder(), generator(seed, "auto"))
    return {form: round(value, 4) for form, value in measured.items()}
