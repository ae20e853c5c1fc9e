"""The strategies of a comparison: how each brings a detector from class to class.

A new strategy is an entry of `STRATEGIES`; what it does at each step follows from its fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from replaycad.errors import ConfigError

Changes = tuple[tuple[str, Any], ...]
"""Fields of a stage's config and the values that they get."""


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """How a detector is brought from class to class, in the end to one for all of them.

    Attributes:
        description: one sentence, for help and documents.
        compress: what `compress` is told, where something is kept of each class and replayed; None
            where nothing is kept.
        train: what every training is told.
        later: what every training but the first is told beside.
        goes_on: whether a step goes on from the detector of the step before; else it starts from
            scratch.
        uses_all_images: whether it trains on the real images of all classes seen so far.
        last_step_only: whether the steps before the last are left out; the newest class is then
            real and nothing is kept of it.
        needs: what the detector must have; empty for any detector.
        detector: the one that it runs with, whatever others are compared; empty for any.
        named_as: strategy whose artifacts it shares; empty for its own.
    """

    description: str
    compress: Changes | None = None
    train: Changes = ()
    later: Changes = ()
    goes_on: bool = False
    uses_all_images: bool = False
    last_step_only: bool = False
    needs: Literal["", "loss", "memory banks"] = ""
    detector: str = ""
    named_as: str = ""

    @property
    def keeps_classes(self) -> bool:
        """Whether something is kept of each class, to be replayed."""
        return self.compress is not None

    @property
    def shares_first_step(self) -> bool:
        """Whether its first training is the one of all strategies that want nothing special."""
        return not (self.train or self.detector)


STRATEGIES: Mapping[str, Strategy] = MappingProxyType(
    {
        "finetune": Strategy(
            description="Goes on from the last detector with the images of the new class alone.",
            goes_on=True,
        ),
        "ewc": Strategy(
            description="Fine-tunes with EWC's penalty on weights that earlier classes need.",
            train=(("penalty", "ewc"),),
            goes_on=True,
            needs="loss",
        ),
        "mas": Strategy(
            description="Fine-tunes with MAS's penalty on weights that earlier classes need.",
            train=(("penalty", "mas"),),
            goes_on=True,
            needs="loss",
        ),
        "features": Strategy(
            description=(
                "Keeps the memory banks of earlier classes as a coreset of fixed "
                "size (after CADIC)."
            ),
            later=(("banks", "extend"),),
            goes_on=True,
            needs="memory banks",
        ),
        # Liu et al. 2024, without its prompts, with routing by image and no choice on test sets.
        "ucad": Strategy(
            description=(
                "Keeps 196 patches of each class and routes each image to one "
                "class (UCAD, no prompts)."
            ),
            train=(("banks", "extend"), ("preset", "ucad")),
            goes_on=True,
            needs="memory banks",
        ),
        "ucad-prompt": Strategy(
            description="Runs the detector UCAD: a bank and a learned prompt of each class.",
            goes_on=True,
            detector="ucad",
        ),
        "ucad-untrained": Strategy(
            description="Runs UCAD with prompts as they are drawn, nothing learned.",
            train=(("preset", "untrained"),),
            goes_on=True,
            detector="ucad",
        ),
        "dne": Strategy(
            description=(
                "Runs the detector DNE, which keeps a Gaussian of each past class "
                "and scores images."
            ),
            goes_on=True,
            detector="dne",
        ),
        "dne-panda": Strategy(
            description="Runs DNE with compactness as its task, as PANDA, in place of CutPaste.",
            train=(("preset", "panda"),),
            goes_on=True,
            detector="dne",
        ),
        "dne-cutpaste": Strategy(
            description="Runs DNE without any memory of past classes.",
            train=(("preset", "cutpaste"),),
            goes_on=True,
            detector="dne",
        ),
        # Tang et al. 2024, with its projection made from moments, not from a row of each image.
        "iuf": Strategy(
            description=(
                "Runs the detector IUF, whose steps change least what past classes use most."
            ),
            train=(("guard", "iuf"),),
            goes_on=True,
            detector="iuf",
        ),
        "iuf-adam": Strategy(
            description="Runs IUF with AdamW in place of plain gradient steps for later classes.",
            train=(("guard", "iuf-adam"),),
            goes_on=True,
            detector="iuf",
        ),
        "iuf-nopull": Strategy(
            description="Runs IUF without the pull back to the weights of the class before.",
            train=(("guard", "iuf-nopull"),),
            goes_on=True,
            detector="iuf",
        ),
        "iuf-noproject": Strategy(
            description="Runs IUF without weighing directions of a step, by the pull alone.",
            train=(("guard", "iuf-noproject"),),
            goes_on=True,
            detector="iuf",
        ),
        "iuf-plain": Strategy(
            description="Runs IUF by the rates of its later classes, with nothing held.",
            train=(("guard", "iuf-plain"),),
            goes_on=True,
            detector="iuf",
        ),
        # Li et al. 2025, with exact bases and held steps; one holds gradients as released.
        "cdad": Strategy(
            description="Runs the detector CDAD, whose steps change nothing for past inputs.",
            train=(("guard", "cdad"),),
            goes_on=True,
            detector="cdad",
        ),
        "cdad-gradient": Strategy(
            description="Runs CDAD with gradients held in place of steps.",
            train=(("guard", "cdad-gradient"),),
            goes_on=True,
            detector="cdad",
        ),
        "cdad-released": Strategy(
            description="Runs CDAD as its program does: held gradients, inexact bases.",
            train=(("guard", "cdad-released"),),
            goes_on=True,
            detector="cdad",
        ),
        "cdad-one-loss": Strategy(
            description=(
                "Runs CDAD without the loss under which it comes to be told nothing of the picture."
            ),
            train=(("guard", "cdad"), ("preset", "one-loss")),
            goes_on=True,
            detector="cdad",
        ),
        "cdad-plain": Strategy(
            description="Runs CDAD by the rates of its later classes, with nothing held.",
            train=(("guard", "cdad-plain"),),
            goes_on=True,
            detector="cdad",
        ),
        "replay": Strategy(
            description="Trains on the images of the new class and replays of all earlier ones.",
            compress=(),
        ),
        "semantic": Strategy(
            description="Replays from the semantic condition alone (paper, Table 3).",
            compress=(("conditioning", "semantic"),),
        ),
        "spatial": Strategy(
            description="Replays from the spatial condition alone (paper, Table 3).",
            compress=(("conditioning", "spatial"),),
        ),
        "none": Strategy(
            description="Replays from the class's word in a prompt, nothing learned (Table 3).",
            compress=(("conditioning", "semantic"), ("init", "word"), ("num_steps", 0)),
        ),
        "noisy": Strategy(
            description="Replays with noisy object masks (paper, Table 5).",
            compress=(("spoil_masks", "noisy"),),
        ),
        "box": Strategy(
            description="Replays with bounding boxes as object masks (paper, Table 5).",
            compress=(("spoil_masks", "box"),),
        ),
        "exemplars": Strategy(
            description="Keeps as many real images of each class as the byte budget holds.",
            compress=(("keep", "exemplars"),),
        ),
        "fragments": Strategy(
            description="Keeps squares of many images of each class and puts replays together.",
            compress=(("keep", "fragments"),),
        ),
        "coded": Strategy(
            description="Keeps the memory bank of each class as coded features in the byte budget.",
            compress=(("keep", "features"),),
            needs="memory banks",
        ),
        "hybrid": Strategy(
            description="Keeps conditions and real images of each class in one byte budget.",
            compress=(("keep", "hybrid"),),
        ),
        "auto": Strategy(
            description="Chooses for each class between all forms that the detector can use.",
            compress=(("keep", "auto"),),
        ),
        # Steps before the last would cost N - 1 trainings that no reported figure needs.
        "joint": Strategy(
            description="Trains once on the real images of all classes: the upper bound.",
            uses_all_images=True,
            last_step_only=True,
        ),
        "final": Strategy(
            description="Runs only the last step of replay, as the paper's authors did.",
            compress=(),
            last_step_only=True,
            named_as="replay",
        ),
    }
)


def check_strategies(names: Sequence[str]) -> tuple[str, ...]:
    """The strategies in the order typed, without repeats.

    Raises:
        ConfigError: if one is unknown.
    """
    for name in names:
        if name not in STRATEGIES:
            raise ConfigError(f"unknown strategy '{name}'", f"choose from: {', '.join(STRATEGIES)}")
    return tuple(dict.fromkeys(names))
