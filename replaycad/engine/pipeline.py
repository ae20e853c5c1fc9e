"""What one stage invocation reads and depends on; what is not up to date, `making` has made."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, TypeVar, cast

from replaycad.artifacts.scores import mirror_in_json
from replaycad.artifacts.store import Store
from replaycad.config.recipes import (
    EXEMPLAR_ENCODER,
    CompressConfig,
    EvalConfig,
    MaskConfig,
    ReplayConfig,
    TrainConfig,
    stage_config,
)
from replaycad.continual.representations import ASKS_BACKBONE, ASKS_ENCODER, DRAWING, tried_drawing
from replaycad.data.samples import Sample, find_classes, test_samples, train_samples
from replaycad.detectors.registry import preset_for, resolve_defaults
from replaycad.diffusion.fitting import check_fits, is_bundled_kind, shape_of
from replaycad.engine import staleness as plans
from replaycad.engine.builder import Builder, RunSettings
from replaycad.engine.inputs import FrozenInputs
from replaycad.engine.staleness import Outcome
from replaycad.errors import ConfigError
from replaycad.progress import Report, silent

Config = TypeVar("Config", MaskConfig, CompressConfig, ReplayConfig, TrainConfig, EvalConfig)


class Pipeline:
    """Stages on one data folder and one store; a context manager.

    Args:
        wishes: of the user.
        report: hears of progress.
    """

    def __init__(self, wishes: RunSettings, report: Report) -> None:
        self.wishes, self.report = wishes, report
        self.store = Store(wishes.root)
        self.frozen = FrozenInputs(self.store)
        self.builder = Builder(wishes, self.store, report)

    @classmethod
    def of(
        cls,
        data: str | Path,
        store: str | Path,
        settings: Mapping[str, Any] = MappingProxyType({}),
        recipe: str = "",
        seed: int = 0,
        device: str = "auto",
    ) -> "Pipeline":
        """A pipeline as a notebook opens it; `replaycad help python` has examples.

        Args:
            data: folder of the images.
            store: folder of the artifacts.
            settings: `stage.field` -> value, as `--set` takes them.
            recipe: as of `RunSettings`, like the rest.
            seed: of every random stream.
            device: `auto`, `cpu`, `cuda` or `mps`.

        Raises:
            ConfigError: if a setting is unknown or has no such value.
        """
        typed = [f"{name}={value}" for name, value in settings.items()]
        wishes = RunSettings(
            data=Path(data), root=Path(store), overrides=plans.split_settings(typed, None),
            recipe=recipe, seed=seed, device=device,
        )  # fmt: skip
        return cls(wishes, silent)

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.frozen.cache.save()

    def class_names(self, wanted: Sequence[str], stored: bool = False) -> list[str]:
        """The classes that were asked for; `all` stands for every one there is.

        Args:
            wanted: names as typed.
            stored: whether `all` means the classes in the store, not those in the data folder.

        Raises:
            ConfigError: if nothing was asked for, or `all` finds nothing stored.
            DatasetError: if `all` finds no class in the data folder.
        """
        if list(wanted) == ["all"]:
            found = self.store.list("conditions") if stored else find_classes(self.wishes.data)
            if not found:
                hint = "run `replaycad compress --class NAME`"
                raise ConfigError(f"{self.store.root} holds no conditions", hint)
            return found
        if not wanted or "all" in wanted:
            raise ConfigError("no class is named", "use --class NAME[,NAME...] or --class all")
        return list(wanted)

    def config(
        self,
        kind: type[Config],
        class_name: str = "",
        recorded: Mapping[str, Any] | None = None,
        conditions: str = "",
    ) -> Config:
        """Config of a stage for a class: what was typed over the recipe, or a header recorded.

        Where no recipe is named, the backbone brings one: the one that was typed, or the one that
        the artifact `conditions` was made with.
        """
        values = self.wishes.overrides.get(kind.stage, {})
        if recorded and not values:
            values = plans.recorded_values(recorded)
        recipe = self.wishes.recipe or self._recipe_of_backbone(conditions)
        return cast(Config, stage_config(recipe, kind.stage, values, class_name))

    def _recipe_of_backbone(self, conditions: str) -> str:
        backbone = self._typed("compress", "backbone") or self._typed("replay", "backbone")
        if not backbone and conditions:
            header = self.builder.header("conditions", conditions)
            backbone = header.get("config", {}).get("backbone", "")
        return "fast" if backbone and not is_bundled_kind(backbone) else "mini"

    def mask(self, class_name: str) -> Outcome:
        """Object masks of a class's training images."""
        samples = train_samples(self.wishes.data, class_name)
        config = self.config(MaskConfig, class_name)
        weights = self.frozen.segmenter(config.segmenter)
        return self._mask(class_name, samples, config, weights, self.wishes.force)

    def _mask(
        self,
        class_name: str,
        samples: Sequence[Sample],
        config: MaskConfig,
        weights: Mapping[str, str],
        force: bool,
    ) -> Outcome:
        def inputs() -> dict[str, str]:
            return {f"images/{class_name}": self.frozen.images(samples)}

        plan = self.builder.plan("mask", class_name, config, None, inputs, weights)
        return self.builder.finish(
            plan, len(samples), self.builder.next_command("compress", class_name), force,
            lambda workshop: workshop.mask(plan, class_name, samples, config),
        )  # fmt: skip

    def compress(
        self,
        class_name: str,
        name: str = "",
        seed: int | None = None,
        changes: Mapping[str, Any] = MappingProxyType({}),
    ) -> Outcome:
        """Conditions of a class; makes its masks first where they are missing or stale."""
        name, seed = name or class_name, self.wishes.seed if seed is None else seed
        samples = train_samples(self.wishes.data, class_name)
        config = replace(self.config(CompressConfig, class_name), **changes)
        weights = self.weights_of_compress(config)
        self.check_fits(config)
        self._prepare_masks(class_name, samples)
        drawing = tried_drawing(self.config(ReplayConfig, class_name), config.backbone)

        def inputs() -> dict[str, str]:
            policy = self.builder.header("masks", class_name).get("policy")
            found = {
                f"images/{class_name}": self.frozen.images(samples),
                f"masks/{class_name}": self.builder.content("masks", class_name),
                "policy": plans.digest_of({"policy": policy}),
            }
            if config.keep == "auto":
                found[DRAWING] = plans.digest_of(plans.portable(drawing))
            return found

        plan = self.builder.plan("compress", name, config, seed, inputs, weights)
        masks = self.store.path("masks", class_name)
        return self.builder.finish(
            plan, len(samples), self.builder.next_command("replay", name), self.wishes.force,
            lambda workshop: workshop.compress(
                plan, class_name, samples, masks, config, drawing, seed
            ),
            config,
        )  # fmt: skip

    def weights_of_compress(self, config: CompressConfig) -> dict[str, str]:
        """Digests of the networks that it asks; to pick real images takes no diffusion model."""
        weights: dict[str, str] = {}
        if config.keep in ASKS_BACKBONE:
            weights |= self.frozen.backbone(config.backbone)
        if config.keep in ASKS_ENCODER:
            weights |= self.frozen.encoder(EXEMPLAR_ENCODER)
        return weights

    def check_fits(self, config: CompressConfig) -> None:
        """Refuse what the backbone cannot do before anything is made for it.

        Raises:
            ConfigError: what does not fit, and what to type instead.
        """
        if config.keep in ASKS_BACKBONE:
            check_fits(config, config.backbone, shape_of(config.backbone))

    def _prepare_masks(self, class_name: str, samples: Sequence[Sample]) -> None:
        if f"masks/{class_name}" in self.builder.handled:
            return
        # The masks that are there count while their images are the same, however they were made.
        header = {} if self._is_typed("mask") else self.builder.header("masks", class_name)
        config, weights = self.config(MaskConfig, class_name, header), header.get("weights")
        if weights is None or header.get("inputs") != {
            f"images/{class_name}": self.frozen.images(samples)
        }:
            weights = self.frozen.segmenter(config.segmenter)
        outcome = self._mask(class_name, samples, config, weights, force=False)
        if outcome.was_made:
            reason = outcome.plan.reason or "there were none"
            self.report.note(f"made the masks of {class_name} first: {reason}")

    def replay(self, name: str, seed: int | None = None, class_name: str = "") -> Outcome:
        """Images from conditions; reads nothing but the conditions and the frozen model."""
        seed = self.wishes.seed if seed is None else seed
        class_name = self._class_of(name, class_name)
        config = self.config(ReplayConfig, class_name, conditions=name)
        return self._replay(name, class_name, config, seed, self.wishes.force)

    def _class_of(self, name: str, otherwise: str = "") -> str:
        """Whose conditions `name` are; a dry run has none yet to say so."""
        return self.builder.header("conditions", name).get("class_name") or otherwise or name

    def _replay(
        self, name: str, class_name: str, config: ReplayConfig, seed: int, force: bool
    ) -> Outcome:
        self._replay_inputs(name)  # or say what makes them
        path, header = self.store.path("conditions", name), self.builder.header("conditions", name)
        form = header.get("form") or self.config(CompressConfig, class_name).keep
        if form == "exemplars":
            return self._drawn(name, path, config, seed, force, {})
        # What was typed comes first: a folder is more than the name that a header keeps of it.
        backbone = config.backbone or self._typed("compress", "backbone")
        backbone = backbone or header.get("config", {}).get("backbone")
        backbone = backbone or self.config(CompressConfig, class_name).backbone
        config = replace(config, backbone=backbone)
        weights = self.frozen.backbone(backbone, drawing=True)
        if f"conditions/{name}" not in self.builder.changing:
            plans.check_same_backbone(path, header, weights, backbone)
        return self._drawn(name, path, config, seed, force, weights)

    def _drawn(
        self,
        name: str,
        path: Path,
        config: ReplayConfig,
        seed: int,
        force: bool,
        weights: Mapping[str, str],
    ) -> Outcome:
        inputs = partial(self._replay_inputs, name)
        plan = self.builder.plan("replay", name, config, seed, inputs, weights)
        return self.builder.finish(
            plan, config.num_images, self.builder.next_command("train", "NEW", past=name), force,
            lambda workshop: workshop.replay(plan, path, config, seed),
            config,
        )  # fmt: skip

    def _replay_inputs(self, name: str) -> dict[str, str]:
        """What replays are drawn from: the conditions and how to pose their masks."""
        content = self.builder.content("conditions", name)
        header = self.builder.header("conditions", name)
        used = {field: header.get(field) for field in ("policy", "placement")}
        return {f"conditions/{name}": content, "policy": plans.digest_of(used)}

    def _prepare_replays(self, name: str) -> None:
        if f"replays/{name}" in self.builder.handled:
            return
        header = {} if self._is_typed("replay") else self.builder.header("replays", name)
        if header and not self.store.path("conditions", name).exists():
            return  # drawn elsewhere and copied: nothing here to hold them against
        if header and header.get("inputs") == self._replay_inputs(name):
            return  # drawn from these conditions, however that was done
        seed = header.get("seed", self.wishes.seed)
        class_name = self._class_of(name)
        config = self.config(ReplayConfig, class_name, header, conditions=name)
        outcome = self._replay(name, class_name, config, seed, force=False)
        if outcome.was_made:
            reason = outcome.plan.reason or "there were none"
            self.report.note(f"drew the replays of {name} first: {reason}")

    def train(
        self,
        class_names: Sequence[str],
        past: Sequence[str],
        name: str,
        seed: int | None = None,
        init: str = "",
        changes: Mapping[str, Any] = MappingProxyType({}),
    ) -> Outcome:
        """A detector from real images of `class_names` and the replays called `past`."""
        seed = self.wishes.seed if seed is None else seed
        config, told = self.config(TrainConfig), dict(changes)
        config = resolve_defaults(replace(config, detector=told.pop("detector", config.detector)))
        config = replace(config, init=init or config.init, **told)
        if config.init == name:
            raise ConfigError(f"detector '{name}' cannot go on from itself", "give another --name")
        samples = {one: train_samples(self.wishes.data, one) for one in class_names}
        weights = self.frozen.encoder(config.encoder)
        for one in past:
            self._prepare_replays(one)
        structure = asdict(preset_for(config.detector, config.preset))
        before: list[str] = []
        if config.init:
            before = self.builder.header("detectors", config.init).get("class_order", [])

        def inputs() -> dict[str, str]:
            found = {f"images/{one}": self.frozen.images(real) for one, real in samples.items()}
            found |= {f"replays/{one}": self.builder.content("replays", one) for one in past}
            found["preset"] = plans.digest_of({"preset": structure})
            if config.init:
                found[f"detectors/{config.init}"] = self.builder.content("detectors", config.init)
            order = (before, past, class_names)
            found["class order"] = " + ".join(",".join(part) for part in order)
            return found

        plan = self.builder.plan("train", name, config, seed, inputs, weights)
        known = ",".join(dict.fromkeys((*before, *past, *class_names)))
        return self.builder.finish(
            plan, sum(map(len, samples.values())),
            self.builder.next_command("eval", known, name=name), self.wishes.force,
            lambda workshop: workshop.train(plan, samples, past, config, seed),
        )  # fmt: skip

    def evaluate(self, class_names: Sequence[str], name: str) -> Outcome:
        """Scores of a detector on the test images of some classes."""
        samples = {one: test_samples(self.wishes.data, one) for one in class_names}
        self.builder.content("detectors", name)  # or say what makes it
        header, config = self.builder.header("detectors", name), self.config(EvalConfig)
        encoder = config.encoder or self._typed("train", "encoder") or header.get("encoder")
        encoder = encoder or resolve_defaults(self.config(TrainConfig)).encoder
        config = replace(config, encoder=encoder)
        weights = self.frozen.encoder(encoder)
        path = self.store.path("detectors", name)
        if f"detectors/{name}" not in self.builder.changing:
            plans.check_same_encoder(path, header, weights, encoder)

        def inputs() -> dict[str, str]:
            found = {f"images/{one}": self.frozen.images(real) for one, real in samples.items()}
            content = self.builder.content("detectors", name)
            return {**found, f"detectors/{name}": content, "class order": ",".join(class_names)}

        plan = self.builder.plan("eval", name, config, None, inputs, weights)
        outcome = self.builder.finish(
            plan, sum(map(len, samples.values())),
            shlex.join(["replaycad", "inspect", str(plan.path)]), self.wishes.force,
            lambda workshop: workshop.evaluate(plan, path, samples, config),
        )  # fmt: skip
        if plan.state == "hit" and not self.wishes.dry_run:
            mirror_in_json(plan.path)  # a run may have been killed between the two files
        return outcome

    def _typed(self, stage: str, field: str) -> str:
        return self.wishes.overrides.get(stage, {}).get(field, "")

    def _is_typed(self, stage: str) -> bool:
        return bool(self.wishes.overrides.get(stage))
