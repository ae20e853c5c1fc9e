"""What every stage can be told, as frozen dataclasses; a recipe is one such set with a name.

A value of 0 or "" means "as the model or the class policy says": the number that was used in the
end is written into the artifact, so a file never depends on a default that changes later.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from replaycad.config.paper_classes import (
    BESIDE_PROMPT_RATE,
    LDM,
    backbone_settings,
    class_settings,
)
from replaycad.errors import ConfigError

STAGES = ("mask", "compress", "replay", "train", "eval")

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Of unet and text encoder; `auto` is 16 bits on a GPU. What is trained is always fp32."""

Representation = Literal["conditions", "exemplars", "hybrid"]
"""What is kept of a class: conditions, real images, or both in one budget."""

EXEMPLAR_ENCODER = "mini"
"""Whose features say which real images cover a class; bundled, so that a choice is reproducible."""

FOLDERS = {"--data": ("REPLAYCAD_DATA", "data"), "--store": ("REPLAYCAD_STORE", "artifacts")}
"""Option -> the environment's name for its folder, and the folder where neither names one."""

STAGE_VERSIONS = {"mask": 3, "compress": 6, "replay": 3, "train": 6, "eval": 2}
"""Raised when the code of a stage changes what it writes: files made before become stale."""


def _check(config: Any) -> None:
    """Refuse values outside the choices and bounds that the fields declare."""
    stage = config.stage
    hints = get_type_hints(type(config))
    for entry in fields(config):
        value, kind = getattr(config, entry.name), hints[entry.name]
        if get_origin(kind) is Literal and value not in get_args(kind):
            choices = ", ".join(str(choice) for choice in get_args(kind))
            raise ConfigError(f"{stage}: {entry.name} is '{value}'", f"choose from: {choices}")
        minimum = entry.metadata.get("minimum")
        if minimum is not None and not value >= minimum:
            raise ConfigError(f"{stage}: {entry.name} is {value}", f"use {minimum} or more")


def _at_least(minimum: float, default: Any) -> Any:
    return field(default=default, metadata={"minimum": minimum})


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """Where is the object in each training image (paper A.3)."""

    segmenter: str = "mini"
    rule: Literal["policy", "auto", "corners", "ground", "area", "frame"] = "policy"
    image_size: int = _at_least(8, 128)  # pixels at which the object is looked for and kept
    stage = "mask"

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        _check(self)


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """Class -> conditions of a frozen diffusion model (paper section 4.2)."""

    keep: Literal[Representation, "auto"] = "conditions"  # auto: what covers other images best
    budget: int = _at_least(0, 0)  # bytes of the file; 0: as it comes, else 200,000
    exemplar_quality: int = _at_least(1, 60)  # of AVIF, up to 100
    backbone: str = "mini"
    conditioning: Literal["both", "semantic", "spatial"] = "both"
    num_tokens: int = _at_least(0, 0)  # K; 0: what the set encoder gives, else 20
    in_features: int = _at_least(0, 0)  # I, 0: the backbone's
    out_features: int = _at_least(0, 0)  # O, 0: the backbone's
    semantic_placement: Literal["prompt", "context"] = "context"
    init: Literal["random", "word", "set_encoder"] = "set_encoder"
    init_word: str = ""  # empty: the class policy's word
    num_steps: int = _at_least(0, 50)
    stop_window: int = _at_least(0, 0)  # looks at a fixed loss that must stand still; 0: never stop
    batch_size: int = _at_least(1, 8)  # images of one optimiser step, however many passes it takes
    pass_size: int = _at_least(0, 0)  # images at once; 0: as many as fit on a GPU, else the batch
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"  # auto: where memory needs it
    precision: Precision = "auto"
    learning_rate: float = _at_least(0.0, 1e-3)  # of the spatial encoder
    embedding_learning_rate: float = _at_least(0.0, 5e-2)
    weight_decay: float = _at_least(0.0, 0.01)
    augmentation: Literal["policy", "none"] = "policy"  # of the images that are learned from
    timestep_law: Literal["uniform", "cubic"] = "uniform"
    num_variations: int = _at_least(0, 8)  # R, ways in which context tokens vary
    spoil_masks: Literal["none", "noisy", "box"] = "none"  # for the paper's Table 5
    num_masks: int = _at_least(0, 10)  # M; 0 only without a spatial encoder
    alignment: Literal["auto", "none"] = "auto"  # find the poses of the images before the search
    half: bool = True  # stored in 16 bits
    stage = "compress"

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        _check(self)
        if self.num_masks == 0 and self.conditioning != "semantic":
            raise ConfigError(
                "compress: num_masks is 0, but the conditions are drawn around masks",
                "use 1 or more, or conditioning semantic",
            )
        if self.exemplar_quality > 100:
            raise ConfigError(
                f"compress: exemplar_quality is {self.exemplar_quality}", "use 1 to 100"
            )


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Conditions -> images (paper section 4.3)."""

    num_images: int = _at_least(1, 120)
    sampler: Literal["ddim", "dpm++", "unipc"] = "dpm++"
    num_inference_steps: int = _at_least(1, 10)
    guidance_scale: float = _at_least(0.0, 1.0)
    strength: float = _at_least(0.0, 0.5)  # of the noise on real images to start from, up to 1
    mask_moves: Literal["policy", "small", "at_least_small"] = "policy"  # see stages/replay.py
    zero_padding: bool = True  # of the unconditional branch to the length of the conditional one
    spread: float = _at_least(0.01, 0.25)  # of the bundled unet's guess; others have none
    batch_size: int = _at_least(1, 16)
    backbone: str = ""  # empty: the one that the conditions were made with
    precision: Precision = "auto"
    compile: bool = False  # the unet, on a GPU: pays from about a thousand full-size images on
    jpeg_quality: int = _at_least(0, 0)  # images pass through a JPEG of this quality; 0: lossless
    stage = "replay"

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        _check(self)
        if self.strength > 1:
            raise ConfigError(f"replay: strength is {self.strength}", "use 0 to 1")
        if self.jpeg_quality > 95:
            raise ConfigError(
                f"replay: jpeg_quality is {self.jpeg_quality}", "use 1 to 95, or 0 for lossless"
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Real images of the new class + replays of the old ones -> detector."""

    detector: str = "invad"  # invad-lite: with that preset, whatever `preset` says
    preset: str = "mini"
    encoder: str = ""  # this and what follows, if empty or 0: as the detector's preset says
    image_size: int = _at_least(0, 0)
    num_steps: int = _at_least(0, 0)  # optimiser steps; 0: count in epochs
    epochs: int = _at_least(0, 0)
    batch_size: int = _at_least(0, 0)
    learning_rate: float = _at_least(0.0, 0.0)  # of the first optimiser; others keep their ratio
    replay_budget: int = _at_least(0, 0)  # replays of all past classes together; 0: all there are
    compile: bool = False  # the detector, on a GPU: pays from some thousand full-size steps on
    balance: bool = True  # show each class equally often, however many images there are of it
    init: str = ""  # name of the detector to go on from; empty: from scratch
    banks: Literal["replace", "extend"] = "replace"  # of patchcore: what becomes of those of `init`
    penalty: Literal["none", "ewc", "mas"] = "none"  # on leaving the weights of `init`
    penalty_weight: float = _at_least(0.0, 1.0)  # of importances whose mean is 1
    stage = "train"

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        _check(self)
        detector, _, preset = self.detector.partition("-")
        if preset:  # so that one comparison can hold presets of one detector beside each other
            object.__setattr__(self, "detector", detector)
            object.__setattr__(self, "preset", preset)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Detector + test images -> scores."""

    batch_size: int = _at_least(1, 16)
    keep_maps: bool = False
    encoder: str = ""  # empty: the one that the detector was trained with
    stage = "eval"

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        _check(self)


StageConfig = MaskConfig | CompressConfig | ReplayConfig | TrainConfig | EvalConfig

# I and O of 0 are the backbone's own: the paper's 128 -> 200 (ldm256) and 128 -> 192 (sd15). What
# differs between the paper's data sets, and between the release's classes, is in paper_classes.py.
_PAPER_COMPRESS = CompressConfig(
    **{**LDM, "embedding_learning_rate": BESIDE_PROMPT_RATE},
    num_tokens=20, semantic_placement="context", init="random", num_steps=20_000,
    augmentation="none", alignment="none", num_variations=0, half=False,
)  # fmt: skip
# Deviation: section 5.1 names no guidance; 10 is the release's for most classes, and `paper` has it
# for all. The release draws carpet, leather and wood without guidance and grid with 5.
_PAPER_REPLAY = ReplayConfig(
    num_images=800, sampler="ddim", num_inference_steps=50, guidance_scale=10.0, batch_size=8,
    mask_moves="small",
)
_PAPER: dict[str, StageConfig] = {
    "mask": MaskConfig(segmenter="vit_h", image_size=512),
    "compress": _PAPER_COMPRESS,
    "replay": _PAPER_REPLAY,
    "train": TrainConfig(preset="full", balance=False),
    "eval": EvalConfig(batch_size=32),
}

RECIPES: dict[str, dict[str, StageConfig]] = {
    "mini": {
        "mask": MaskConfig(),
        "compress": CompressConfig(),
        "replay": ReplayConfig(),
        "train": TrainConfig(),
        "eval": EvalConfig(),
    },
    "paper": _PAPER,
    "release": {
        **_PAPER,
        "compress": replace(
            _PAPER_COMPRESS, **LDM, semantic_placement="prompt", init="word",
            augmentation="policy", in_features=128, out_features=200,
        ),
        "replay": replace(
            _PAPER_REPLAY, num_images=200, jpeg_quality=75, mask_moves="policy"
        ),
    },
    "fast": {
        **_PAPER,
        "compress": replace(
            _PAPER_COMPRESS, num_steps=3_000, stop_window=30, augmentation="policy"
        ),
        "replay": replace(
            _PAPER_REPLAY, num_images=200, sampler="dpm++", num_inference_steps=20,
            mask_moves="at_least_small",
        ),
        "train": TrainConfig(preset="lite", epochs=30, batch_size=16, learning_rate=2e-3),
    },
}


def stage_config(
    recipe: str, stage: str, overrides: dict[str, str], class_name: str = ""
) -> StageConfig:
    """The config of one stage: the recipe's, with the fields in `overrides` replaced.

    Args:
        recipe: a key of `RECIPES`.
        stage: one of `STAGES`.
        overrides: field name -> text as typed by a user, parsed by the field's type.
        class_name: whose own values in the recipe count; empty for none.

    Raises:
        ConfigError: unknown recipe, a class that the recipe's table lacks, unknown field or a text
            that is not of the field's type.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"unknown recipe '{recipe}'", f"choose from: {', '.join(RECIPES)}")
    config = replace(RECIPES[recipe][stage], **class_settings(recipe, class_name, stage))
    if stage == "compress":
        config = replace(config, **backbone_settings(recipe, str(overrides.get("backbone", ""))))
    hints = get_type_hints(type(config))
    valid = [entry.name for entry in fields(config)]
    values: dict[str, Any] = {}
    for name, text in overrides.items():
        if name not in valid:
            raise ConfigError(f"{stage} has no setting '{name}'", f"it has: {', '.join(valid)}")
        values[name] = _parse(stage, name, str(text), hints[name])
    return replace(config, **values)


def as_dict(config: StageConfig) -> dict[str, Any]:
    """The config as it is written into an artifact's header."""
    return asdict(config)


def _parse(stage: str, name: str, text: str, kind: Any) -> Any:
    if kind is bool:
        lowered = text.lower()
        if lowered in ("true", "yes", "1", "on"):
            return True
        if lowered in ("false", "no", "0", "off"):
            return False
        raise ConfigError(f"{stage}: {name} is '{text}'", "use true or false")
    if kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise ConfigError(f"{stage}: {name} is '{text}'", f"use {wanted}") from None
        return value
    return text
