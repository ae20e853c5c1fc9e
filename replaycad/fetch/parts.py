"""Which frozen networks a recipe needs, where each is published and under which licence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from replaycad.config.paper_classes import MVTEC, TABLE_ONLY, VISA
from replaycad.config.recipes import stage_config
from replaycad.config.stages import (
    CompressConfig,
    MaskConfig,
    ReplayConfig,
    StageConfig,
    TrainConfig,
)
from replaycad.data.layouts import find_classes
from replaycad.detectors.encoder_files import ENCODER_FILE, IMAGENET, PACKAGED, PUBLISHED
from replaycad.detectors.registry import preset_for, resolve_defaults
from replaycad.diffusion.presets import BACKBONES, hub_place, needed_files, split_name
from replaycad.engine.inputs import NO_SEGMENTER
from replaycad.errors import ConfigError, DatasetError
from replaycad.segmentation.presets import OFFICIAL_ADDRESS, SEGMENTERS

KINDS = ("backbone", "segmenter", "encoder")
HUB = "https://huggingface.co"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A frozen network as an option names it, and what is known of it without a network.

    Attributes:
        kind: one of `KINDS`.
        name: as `--backbone`, `--segmenter` or `--encoder` takes it.
        hub_id: `owner/model`; empty for what comes from no hub.
        revision: commit or branch of the hub.
        files: path of each published file -> path under which it is read; a folder ends in a
            slash; empty where only the hub can say.
        num_bytes: of all files, about; 0 where only the hub can say.
        licence: of the weights.
        page: address at which the licence can be read.
    """

    kind: str
    name: str
    hub_id: str = ""
    revision: str = ""
    files: Mapping[str, str]
    num_bytes: int = 0
    licence: str = ""
    page: str = ""

    @property
    def title(self) -> str:
        """Kind and name."""
        return f"{self.kind} {self.name}"

    def address(self, path: str) -> str:
        """Where a person finds one of the files."""
        if not self.hub_id:
            return f"{OFFICIAL_ADDRESS}{path}"
        if not path or path.endswith("/"):
            return f"{HUB}/{self.hub_id}/tree/{self.revision}/{path}".rstrip("/")
        return f"{HUB}/{self.hub_id}/resolve/{self.revision}/{path}"


def part_named(kind: str, name: str) -> Part:
    """Describe the network that an option names.

    Raises:
        ConfigError: no segmenter of that name is published.
        WeightsError: no backbone can be called that.
    """
    if kind == "segmenter":
        return _segmenter(name)
    return _backbone(name) if kind == "backbone" else _encoder(name)


def _backbone(name: str) -> Part:
    place, variant = split_name(name)
    preset = BACKBONES.get(place)
    if (preset and not preset.hub_id) or (preset is None and Path(place).is_dir()):
        return Part(kind="backbone", name=name, files={})
    hub_id, revision = hub_place(place)
    page = f"{HUB}/{hub_id}"
    if preset is None:
        return Part(
            kind="backbone", name=name, hub_id=hub_id, revision=revision, files={}, page=page,
            licence=_unknown(page),
        )  # fmt: skip
    wide = 2 if variant == "fp16" else 4
    return Part(
        kind="backbone", name=name, hub_id=hub_id, revision=revision, page=page,
        files=needed_files(preset.published, variant), licence=preset.licence,
        num_bytes=wide * sum(preset.parameters.values()),
    )  # fmt: skip


def _segmenter(name: str) -> Part:
    if name not in SEGMENTERS:
        known = ", ".join(SEGMENTERS)
        raise ConfigError(f"no segmenter '{name}' is published", f"choose from: {known}")
    preset = SEGMENTERS[name]
    if not preset.num_bytes:
        return Part(kind="segmenter", name=name, files={})
    return Part(
        kind="segmenter", name=name, files={preset.file_name: preset.file_name},
        num_bytes=preset.num_bytes, licence=preset.licence,
        page="https://github.com/facebookresearch/segment-anything",
    )  # fmt: skip


def _encoder(name: str) -> Part:
    if name == "mini" or ":" in name:
        return Part(kind="encoder", name=name, files={})
    if name in PACKAGED:
        found = PACKAGED[name]
        return Part(
            kind="encoder", name=name, files={}, num_bytes=found.num_bytes, licence=IMAGENET,
            page=f"https://pypi.org/project/{found.package}",
        )  # fmt: skip
    hub_id = f"timm/{name}"
    num_bytes, licence = PUBLISHED.get(name, (0, _unknown(f"{HUB}/{hub_id}")))
    return Part(
        kind="encoder", name=name, hub_id=hub_id, revision="main", num_bytes=num_bytes,
        files={ENCODER_FILE: ENCODER_FILE}, licence=licence, page=f"{HUB}/{hub_id}",
    )  # fmt: skip


def _unknown(page: str) -> str:
    return f"licence not known, see {page}"


def asked_for(
    recipe: str,
    classes: Sequence[str],
    data: Path,
    named: Mapping[str, Sequence[str]],
    detectors: Sequence[str],
) -> tuple[list[Part], str]:
    """The parts that a command asks for.

    Args:
        recipe: whose parts; empty for those that are named alone.
        classes: of the recipe, as `which_classes` takes them.
        data: folder of images.
        named: kind -> names, which stand in place of the recipe's.
        detectors: in place of the recipe's.

    Returns:
        the parts, each once, and a sentence on the classes that were taken; empty without recipe.

    Raises:
        ConfigError, WeightsError: nothing is asked for, or a name is unknown.
    """
    found = [part_named(kind, name) for kind, names in named.items() for name in names]
    if not recipe:
        if detectors:
            raise ConfigError(
                "--detector says nothing without a recipe",
                "add --recipe, or name its --encoder",
            )
        if not found:
            raise ConfigError(
                "nothing is named to be fetched",
                "use --recipe NAME, or --backbone, --segmenter or --encoder NAME",
            )
        return found, ""
    names, meant = which_classes(recipe, classes, data)
    found += [
        part for part in parts_of_recipe(recipe, names, detectors) if not named.get(part.kind)
    ]
    return found, f"recipe {recipe}, {meant}"


def which_classes(recipe: str, wanted: Sequence[str], data: Path) -> tuple[list[str], str]:
    """The classes that are meant, and a sentence that says so; "" stands for any other class.

    Args:
        recipe: that they are for.
        wanted: names as typed; `all` or nothing for every one of `data`, else of the papers.
        data: folder of images, which need not be there.

    Returns:
        the names, and a part of a sentence that names them.
    """
    if wanted and list(wanted) != ["all"]:
        return list(wanted), f"for the classes {', '.join(wanted)}"
    try:
        found = find_classes(data)
    except DatasetError:
        if recipe in TABLE_ONLY:
            return [*MVTEC, *VISA], "for the classes of MVTec AD and VisA"
        return ["", *MVTEC, *VISA], "for the classes of MVTec AD and VisA, and any other"
    return found, f"for the {len(found)} classes in {data}"


def parts_of_recipe(
    recipe: str, classes: Sequence[str], detectors: Sequence[str] = ()
) -> list[Part]:
    """The networks that the stages of a recipe read for these classes, each once.

    Args:
        recipe: a key of `RECIPES`.
        classes: names, or "" for a class that the recipe does not treat apart.
        detectors: in place of the recipe's own, as `--detector` takes them.

    Raises:
        ConfigError: the recipe, one of the classes in it, or a detector is unknown.
    """
    found: dict[tuple[str, str], None] = {}
    for name in classes:
        for stage in ("compress", "replay", "mask"):
            for part in _named_in(stage_config(recipe, stage, {}, name)):
                found[part] = None
    for detector in detectors or [""]:
        typed = {"detector": detector} if detector else {}
        for part in _named_in(stage_config(recipe, "train", typed)):
            found[part] = None
    return [
        part_named(kind, name)
        for kind, name in sorted(found, key=lambda one: KINDS.index(one[0]))
    ]


def _named_in(config: StageConfig) -> list[tuple[str, str]]:
    """Kind and name of what one stage reads."""
    if isinstance(config, MaskConfig):
        is_read = config.segmenter != NO_SEGMENTER
        return [("segmenter", config.segmenter)] if is_read else []
    if isinstance(config, CompressConfig | ReplayConfig):
        return [("backbone", config.backbone)] if config.backbone else []
    if isinstance(config, TrainConfig):
        preset = preset_for(config.detector, config.preset)
        own = [("backbone", preset.backbone), ("segmenter", preset.segmenter)]
        if preset.transformer != preset.segmenter:  # the bundled Sam's own
            own.append(("encoder", preset.transformer))
        return [*(part for part in own if part[1]), ("encoder", resolve_defaults(config).encoder)]
    return []


def as_dict(part: Part) -> dict[str, Any]:
    """What a part is, for JSON, without its files."""
    return {
        entry.name: getattr(part, entry.name) for entry in fields(part) if entry.name != "files"
    }
