"""Chooses what a class is kept as, where that is left to `auto`: it measures, without labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.config.stages import CompressConfig, Representation
from replaycad.continual import representations
from replaycad.continual.budget import IMAGE_BUDGET
from replaycad.continual.coverage import Memory, separations
from replaycad.continual.exemplars import resized
from replaycad.continual.kept import Kept
from replaycad.data.images import evenly_spaced, load_images
from replaycad.data.samples import Sample
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.errors import BudgetError
from replaycad.progress import Report, silent
from replaycad.runtime import generator

Keep = Callable[[CompressConfig, dict[str, Any]], Kept]
Draw = Callable[[ConditionsArtifact, dict[str, Any]], np.ndarray]
ALL = "all"  # the bank of all other training images


def choose_representation(
    samples: Sequence[Sample],
    class_name: str,
    config: CompressConfig,
    header: dict[str, Any],
    seed: int,
    forms: Sequence[Representation],
    keep: Keep,
    draw: Draw,
    load_encoder: Callable[[], Encoder],
    preset: PatchCorePreset,
    report: Report = silent,
) -> Kept:
    """Keep a class in each representation; of these, the one whose bank tells images apart best.

    It is the very file that this representation would be without a choice, but for what its header
    says of the choice, where there is room for it. Where all images fit in but a few, or all that
    a detector would have of them, these are kept and nothing is tried. A further form is tried only
    where none before it comes near to a bank of all training images, for the later ones take
    longer.

    Args:
        samples: training images.
        class_name: the class.
        config: of the stage.
        header: common part of the artifact's header.
        seed: of the images that pieces are pasted into.
        forms: to choose among, what needs the least first.
        keep: (config of one representation, header) -> what is kept.
        draw: (artifact, header) -> replays `[N, 3, S, S]` uint8.
        load_encoder: gives the frozen encoder that compares images.
        preset: of the memory banks that are compared.
        report: hears of what was tried and chosen.

    Raises:
        BudgetError: if no representation fits into the budget.
    """
    budget = config.budget or IMAGE_BUDGET
    trial = _Trial(samples, config, header, seed, draw, load_encoder, preset)
    tried: dict[Representation, Kept] = {}
    measured: dict[Representation, float] = {}
    for form in forms:
        if any(kept.is_whole for kept in tried.values()):
            report.note(f"{class_name}: nothing else tried: this is a bank of all images")
            break
        if tried:
            measured, is_near = trial.beside_all(tried)
            if is_near:
                report.note(
                    f"{class_name}: nothing else tried: this comes near to a bank of all images"
                )
                break
        try:
            tried[form] = keep(
                replace(config, keep=form, budget=budget),
                representations.header_alone(header, form),
            )
        except BudgetError as error:
            report.note(f"{class_name}: not as {form}: {error.message}")
            continue
        measured = {}
        if trial.num_judged(tried) < representations.TRIED_LEAST:
            tried = {form: tried[form]}
            break
    if not tried:
        message = f"compress: a budget of {config.budget} bytes is too small for any form"
        raise BudgetError(message, "give more")
    if len(tried) == 1:
        measured = {}
    elif len(measured) < len(tried):
        measured = trial.measured(tried)
    best = representations.chosen_representation(measured) if measured else next(iter(tried))
    told = "".join(f"; {form} tells {value:.3f} apart" for form, value in measured.items())
    report.note(f"{class_name}: kept as {best}{told}")
    chosen = tried[best].artifact
    kept = replace(chosen, header={**chosen.header, "config": header["config"]})
    explained = replace(kept, header={**kept.header, "separations": measured})
    fits = explained.file_bytes() <= budget
    return replace(tried[best], artifact=explained if fits else kept)


@dataclass
class _Trial:
    """Measures forms of one class on training images that they do not hold."""

    samples: Sequence[Sample]
    config: CompressConfig
    header: dict[str, Any]
    seed: int
    draw: Draw
    load_encoder: Callable[[], Encoder]
    preset: PatchCorePreset

    def num_judged(self, tried: dict[Representation, Kept]) -> int:
        """How many training images are left to try these forms on."""
        return len(self._judged(tried))

    def beside_all(
        self, tried: dict[Representation, Kept]
    ) -> tuple[dict[Representation, float], bool]:
        """What `measured` says, and whether a form comes near to all other training images."""
        found = self._separations(tried, self._judged(tried), {ALL: self._all(tried)})
        reached = found.pop(ALL) - representations.NEAR
        return found, max(found.values()) >= reached

    def measured(self, tried: dict[Representation, Kept]) -> dict[Representation, float]:
        """How well banks of each form tell the same images from the same with a piece pasted in."""
        return self._separations(tried, self._judged(tried), {})

    def _judged(self, tried: dict[Representation, Kept]) -> np.ndarray:
        """Places of training images that no form holds as images."""
        held = {row for kept in tried.values() for row in kept.rows}
        rest = np.array([row for row in range(len(self.samples)) if row not in held])
        return rest[evenly_spaced(len(rest), representations.TRIED_ON)]

    def _separations(
        self, tried: dict[Representation, Kept], rows: np.ndarray, others: dict[str, Memory]
    ) -> dict[Any, float]:
        memories: dict[str, Memory] = {
            form: self._memory(form, kept) for form, kept in tried.items()
        }
        real = load_images([self.samples[row] for row in rows], self.config.image_size)
        stream = generator(self.seed, "auto")
        found = separations({**memories, **others}, real, self.load_encoder(), stream, rows)
        return {form: round(value, 4) for form, value in found.items()}

    def _memory(self, form: str, kept: Kept) -> Memory:
        """The bank that a detector has of a form."""
        size = self.config.image_size
        if kept.artifact.features is not None and kept.places is not None:
            patches = torch.from_numpy(kept.artifact.features.decoded())
            bank = patches.to(self.load_encoder().device)
            return Memory(size, bank, kept.places[: len(bank)])
        drawn = self.draw(kept.artifact, {**self.header, "key": form})
        images = np.stack([resized(image, size) for image in drawn])
        stream = generator(self.seed, "auto", form)
        return Memory.of(images, self.load_encoder(), stream, self.preset)

    def _all(self, tried: dict[Representation, Kept]) -> Memory:
        """The bank of all training images, each to be held against the patches of the others."""
        size, encoder = self.config.image_size, self.load_encoder()
        for kept in tried.values():
            if kept.bank is not None and kept.places is not None:
                return Memory(size, torch.from_numpy(kept.bank).to(encoder.device), kept.places)
        rows = evenly_spaced(len(self.samples), representations.MOST_OTHERS)
        images = load_images([self.samples[row] for row in rows], size)
        stream = generator(self.seed, "auto", ALL)
        return Memory.of(images, encoder, stream, self.preset, rows)
