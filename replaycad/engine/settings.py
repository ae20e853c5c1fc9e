"""What a user asked of a command, beyond the classes."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast

from replaycad.config.recipes import DEFAULT, stage_config
from replaycad.config.stages import (
    FOLDERS,
    STAGES,
    CompressConfig,
    EvalConfig,
    MaskConfig,
    ReplayConfig,
    TrainConfig,
)
from replaycad.diffusion.fitting import is_bundled_kind
from replaycad.errors import ConfigError

PER_CLASS = frozenset({"tile", "fit"})
"""Fields of `mask` that may be typed class by class, as plate=256,board=512."""

Config = TypeVar("Config", MaskConfig, CompressConfig, ReplayConfig, TrainConfig, EvalConfig)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The options of a command that are the same for every class and stage.

    Args:
        data: folder of the images.
        root: folder of the artifacts.
        overrides: stage -> field -> text, over the recipe.
        device: `auto`, `cpu`, `cuda` or `mps`.
        seed: of every random stream, unless a stage is given its own.
        recipe: key of `recipes.RECIPES`; empty for the one that the backbone brings.
        force: build what is asked for even if it is up to date.
        dry_run: build nothing.
        save_every_seconds: time between two checkpoints.
    """

    data: Path
    root: str | Path
    overrides: Mapping[str, Mapping[str, str]]
    device: str = "auto"
    seed: int = 0
    recipe: str = ""
    force: bool = False
    dry_run: bool = False
    save_every_seconds: float = 60.0

    def typed(self, stage: str, field: str) -> str:
        """What the user typed for a field of a stage, as text; empty if nothing."""
        return self.overrides.get(stage, {}).get(field, "")

    def of_class(self, stage: str, class_name: str) -> dict[str, str]:
        """What the user typed for a stage of one class: tiles may differ from class to class."""
        values = dict(self.overrides.get(stage, {}))
        for name in PER_CLASS & set(values):
            text = split_per_class(values.pop(name)).get(class_name)
            if text is not None:
                values[name] = text
        return values

    def config(
        self,
        kind: type[Config],
        class_name: str = "",
        recorded: Mapping[str, Any] = MappingProxyType({}),
        backbone: str = "",
    ) -> Config:
        """The config of a stage: what was typed, over what is recorded, over the recipe.

        Args:
            kind: of the config.
            class_name: whose own values in the recipe count.
            recorded: header of an artifact, whose config counts where nothing was typed for the
                stage.
            backbone: that the conditions were made with, if there are any; it brings the recipe
                where neither a recipe nor another backbone was typed.

        Raises:
            ConfigError: as `recipes.stage_config`.
        """
        values = self.of_class(kind.stage, class_name)
        known = {entry.name for entry in fields(kind)}  # an older version may have had others
        before = {
            name: str(value) for name, value in recorded.get("config", {}).items()
            if name in known
        }  # fmt: skip
        if not values:
            values = before
        elif kind.stage == "mask":  # how a class is seen stays until that itself is typed
            values = {name: before[name] for name in PER_CLASS & set(before)} | values
        recipe = self.recipe or self._recipe_of(
            self.typed("compress", "backbone") or self.typed("replay", "backbone") or backbone
        )
        return cast(Config, stage_config(recipe, kind.stage, dict(values), class_name))

    @staticmethod
    def _recipe_of(backbone: str) -> str:
        if backbone and not is_bundled_kind(backbone):
            return "fast"
        variable, default = DEFAULT
        return os.environ.get(variable) or default

    def command(self, stage: str, class_names: str, past: str = "", name: str = "") -> str:
        """What a user types next, as a shell reads it, about the same two folders."""
        typed = {"--class": class_names, "--past": past, "--name": name}
        folders = {"--data": str(self.data), "--store": str(self.root)}
        if stage == "replay":
            del folders["--data"]
        for option, folder in folders.items():
            variable, default = FOLDERS[option]
            if folder != os.environ.get(variable, default):
                typed[option] = folder
        parts = [part for option, text in typed.items() if text for part in (option, text)]
        return shlex.join(["replaycad", stage, *parts])


class _Default(dict[str, str]):
    """Answers for classes that are not named with what stands under the empty name, if anything."""

    def get(self, name: str, default: str | None = None) -> str | None:  # type: ignore[override]
        return dict.get(self, name, dict.get(self, "", default))


def split_per_class(text: str) -> "_Default":
    """Read `256`, or `plate=256,board=512`: class -> text; a bare one counts for all others."""
    parts = (part.strip().rpartition("=") for part in text.split(","))
    return _Default({name.strip(): value.strip() for name, _, value in parts})


def split_settings(texts: Sequence[str], stage: str | None) -> dict[str, dict[str, str]]:
    """Turn `field=value` and `stage.field=value` into overrides per stage.

    Args:
        texts: as typed after `--set`.
        stage: to which a bare field belongs; None where every field needs its stage.

    Raises:
        ConfigError: if a text is not of that form or names no stage.
    """
    overrides: dict[str, dict[str, str]] = {name: {} for name in STAGES}
    for text in texts:
        field, equals, value = text.partition("=")
        owner, dot, rest = field.partition(".")
        owner, field = (owner, rest) if dot else (stage or "", field)
        if not equals or owner not in overrides:
            example = f"{stage or 'compress'}.num_steps=100"
            raise ConfigError(f"cannot read --set {text}", f"write it like --set {example}")
        overrides[owner][field.replace("-", "_")] = value
    return overrides
