"""What every stage can be told, as frozen dataclasses.

A value of 0 or "" means "as the model or the class policy says": the number that was used in the
end is written into the artifact, so a file never depends on a default that changes later.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from replaycad.errors import ConfigError

STAGES = ("mask", "compress", "replay", "train", "eval")

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""Of unet and text encoder; `auto` is 16 bits on a GPU. What is trained is always fp32."""

Representation = Literal["conditions", "fragments", "exemplars", "hybrid", "features"]
"""What is kept of a class: conditions, squares of many images, real images, these beside conditions
in one budget, or a bank's patches."""

AUDIT_ENCODER = "mini"
"""Whose features say how near replays come to training images; bundled, so any machine has it."""

FOLDERS = {"--data": ("REPLAYCAD_DATA", "data"), "--store": ("REPLAYCAD_STORE", "artifacts")}
"""Option -> the environment's name for its folder, and the folder where neither names one."""

LEAST_TILE = 32
"""Pixels of the smallest tile: of fewer, an encoder has a few places all of which are border."""

STAGE_VERSIONS = {"mask": 3, "compress": 9, "replay": 6, "train": 9, "eval": 3}
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
    tile: int = _at_least(0, 0)  # px of a picture that become one image; 0: the whole picture
    fit: Literal["pad", "squash"] = "pad"  # what becomes of a picture that is not square
    stage = "mask"

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        _check(self)
        if 0 < self.tile < LEAST_TILE:
            raise ConfigError(
                f"mask: a tile of {self.tile} px shows too little",
                f"use {LEAST_TILE} or more, or 0 for whole pictures",
            )


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """Class -> conditions of a frozen diffusion model (paper section 4.2)."""

    keep: Literal[Representation, "auto"] = "conditions"  # auto: what covers other images best
    budget: int = _at_least(0, 0)  # bytes of the file; 0: as it comes, else 200,000
    image_size: int = _at_least(0, 0)  # px of what is kept and drawn; 0: what the detector sees
    encoder: str = ""  # that says what covers a class; empty: the detector's
    exemplar_size: int = _at_least(0, 0)  # px at which images are stored; 0: chosen for the class
    exemplar_quality: int = _at_least(0, 0)  # of AVIF, up to 100; 0: chosen for the class
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
    real_limits: bool = True  # find what limits real images have by replays: asks the encoder
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
                f"compress: exemplar_quality is {self.exemplar_quality}", "use 1 to 100, or 0"
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


Guard = Literal[
    "none", "iuf", "iuf-adam", "iuf-nopull", "iuf-noproject", "iuf-plain", "cdad", "cdad-gradient",
    "cdad-released", "cdad-plain",
]  # fmt: skip


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
    guard: Guard = "none"  # limits steps by what classes of `init` need
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


def as_dict(config: StageConfig) -> dict[str, Any]:
    """The config as it is written into an artifact's header."""
    return asdict(config)
