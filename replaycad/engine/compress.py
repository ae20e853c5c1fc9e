"""The stage `compress`: training images and masks of a class -> what is kept of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from replaycad.artifacts.checkpoints import Checkpoint
from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.format import canonical_json
from replaycad.artifacts.masks import MasksArtifact
from replaycad.config.stages import CompressConfig, ReplayConfig, TrainConfig
from replaycad.continual.kept import Kept
from replaycad.continual.representations import (
    ASKS_BACKBONE,
    DETECTOR,
    DRAWING,
    FEATURES_SERVE,
    SIZED,
    forms_for,
    tried_drawing,
)
from replaycad.data.images import viewed
from replaycad.data.layouts import train_samples
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.detectors.registry import resolve_defaults
from replaycad.diffusion.fitting import check_fits, shape_of
from replaycad.engine.banks import KeptBanks, bank_digest, bank_key, bank_preset
from replaycad.engine.builder import Builder, Stage
from replaycad.engine.grow import lost_photos
from replaycad.engine.mask import prepare_masks
from replaycad.engine.real_limits import Measuring, reserved_limits, with_real_limits
from replaycad.engine.replay import draw_apart
from replaycad.engine.staleness import Plan, digest_of, portable
from replaycad.engine.views import VIEW_OF, stored_view, told
from replaycad.errors import ArtifactError, ConfigError

if TYPE_CHECKING:
    from replaycad.detectors.encoders import Encoder

REMEMBERED_SEARCHES = 32  # conditions of one command, some hundred kB each


class CompressStage(Stage):
    """What is kept of a class: conditions, real images, or both.

    Args:
        builder: of the command.
        class_name: the class.
        name: of the artifact; empty for the class's.
        seed: None for the command's.
        changes: fields of the config and what a strategy wants of them.
        detectors: that it is kept for, the first of which says how; none for that of the settings.

    Raises:
        DatasetError: the class has no training images.
        WeightsError: a network is not there.
        ConfigError: the backbone cannot do what the config asks, or the detector has no use for
            features.
    """

    stage = "compress"
    config: CompressConfig

    def __init__(
        self,
        builder: Builder,
        class_name: str,
        name: str = "",
        seed: int | None = None,
        changes: Mapping[str, Any] = MappingProxyType({}),
        detectors: Sequence[str] = (),
    ) -> None:
        settings = builder.settings
        self._builder, self._class_name, self.name = builder, class_name, name or class_name
        self._seed = settings.seed if seed is None else seed
        self.seed = self._seed
        self._samples = train_samples(settings.data, class_name)
        self._seen = self._samples  # as the view of the masks shows them
        config: CompressConfig = replace(
            settings.config(CompressConfig, class_name), **changes
        )
        train = settings.config(TrainConfig)
        served = [replace(train, detector=one or train.detector) for one in detectors] or [train]
        self._train = resolve_defaults(served[0])
        others = [one.detector for one in served if one.detector != FEATURES_SERVE]
        self._forms = forms_for(*(one.detector for one in served))
        if config.keep in SIZED or config.real_limits:
            config = replace(config, encoder=config.encoder or self._train.encoder)
        if config.keep in SIZED:  # conditions alone are drawn as large as their generator
            size = config.image_size or self._train.image_size
            config = replace(config, image_size=size)
        self.config = config
        if config.keep == "features" and others:
            raise ConfigError(
                f"compress: features serve memory banks alone, and {others[0]} has none",
                "keep exemplars, or use --set train.detector=patchcore",
            )
        builder.forms[self.name] = config.keep
        if self.config.keep in ASKS_BACKBONE:
            check_fits(self.config, self.config.backbone, shape_of(self.config.backbone))
        self.weights = self._weights()
        self._drawing = tried_drawing(
            settings.config(ReplayConfig, class_name), self.config.backbone
        )
        self.num_images = len(self._samples)
        known = builder.header("conditions", self.name).get("form", config.keep)
        self._tell_next(known if config.keep == "auto" else config.keep)

    def _weights(self) -> dict[str, str]:
        """Digests of the networks that it asks; to pick real images takes no diffusion model."""
        weights: dict[str, str] = {}
        if self.config.keep in ASKS_BACKBONE:
            weights |= self._builder.digests.backbone(self.config.backbone)
        if self._asks_encoder:
            weights |= self._builder.digests.encoder(self.config.encoder)
        return weights

    @property
    def _asks_encoder(self) -> bool:
        return self.config.keep in SIZED or self.config.real_limits

    @property
    def _measures(self) -> bool:
        """Whether real images are held against replays, or forms are by them."""
        return self.config.keep == "auto" or (
            self.config.real_limits and self.config.keep != "features"
        )

    @property
    def _preset(self) -> PatchCorePreset:
        """Of the memory banks that are kept, or that judge what is kept for other detectors."""
        return bank_preset(self._train)

    def _encoder(self) -> "Encoder":
        """The detector's, with the levels that a memory bank reads."""
        return self._builder.models.encoder(self.config.encoder, self._preset.levels)

    def _tell_next(self, form: str) -> None:
        """Name the command that follows: features are not drawn from."""
        settings = self._builder.settings
        self.next_command = settings.command("replay", self.name)
        if form == "features":
            self.next_command = settings.command("train", "NEW", past=self.name)

    def prepare(self) -> None:
        """Build the masks of the class."""
        prepare_masks(self._builder, self._class_name, self._samples)

    def inputs(self) -> dict[str, str]:
        """The images, their masks, how the class moves, and how a choice would draw replays."""
        builder, class_name = self._builder, self._class_name
        policy = builder.header("masks", class_name).get("policy")
        inputs = {
            f"images/{class_name}": builder.digests.images(self._samples),
            f"masks/{class_name}": builder.content("masks", class_name),
            "policy": digest_of({"policy": policy}),
            **told(class_name, stored_view(builder.header("masks", class_name))),
        }
        judged = {
            "name": self._train.detector, "preset": asdict(self._preset),
            "image_size": self._train.image_size,
        }  # fmt: skip
        if self._asks_encoder:
            inputs[DETECTOR] = digest_of(judged)
        if self._measures:
            inputs[DRAWING] = digest_of(portable(self._drawing))
        return inputs

    def refuse(self, plan: Plan) -> None:
        """Keep what a class has grown by, unless the data folder has these photos too.

        Raises:
            ArtifactError: it has not, and they would be lost.
        """
        header = self._builder.header("conditions", self.name)
        lost = lost_photos(header, self._samples, self._builder.digests.cache)
        if lost:
            raise ArtifactError(
                f"{plan.path} stands for {lost} photos that were added to it and are not in the "
                f"folder of {self._class_name}; made anew ({plan.reason}) it would lose them",
                "put them into that folder first, or use --force to do without them",
            )

    def run(self, plan: Plan) -> None:
        """Make of the class what is kept."""
        path = self._builder.store.path("masks", self._class_name)
        masks = MasksArtifact.load(path)
        view = stored_view(masks.header)
        self._seen = viewed(self._samples, view)
        if masks.image_ids != [sample.image_id for sample in self._seen]:
            hint = "run `replaycad mask --force`"
            raise ArtifactError(f"{path} holds the masks of other images", hint)
        checkpoint = self._builder.checkpoint(plan)
        header = plan.header((self._class_name,))
        header |= {"view": view.as_dict()} if view.as_dict() else {}
        header["num_images"] = len(self._samples)
        if view.tile:  # cut from a surface anywhere, tiles have no pose
            self.config = replace(self.config, alignment="none")
        if self.config.keep == "auto":
            kept = self._chosen(masks, header, checkpoint)
        else:
            kept = self._kept(masks, self.config, header, checkpoint)
        artifact = self._with_limits(kept)
        plan.check_inputs()
        artifact.save(plan.path)
        self._tell_next(str(artifact.header["form"]))
        checkpoint.clear()

    def _kept_bank(self) -> KeptBanks:
        """The whole bank of the class, from a training on these images or for the next."""
        builder, name, inputs = self._builder, self._class_name, self.inputs()
        train = replace(self._train, image_size=self.config.image_size)
        key = bank_key(
            name, inputs[f"images/{name}"], inputs[VIEW_OF + name], train, self._seed,
            builder.digests.encoder(self.config.encoder), builder.models.device.type,
        )  # fmt: skip
        return KeptBanks(builder.store, {name: key}, builder.report)

    def _chosen(
        self, masks: MasksArtifact, header: dict[str, Any], checkpoint: Checkpoint
    ) -> Kept:
        """The class in the representation that tells images apart best."""
        from replaycad.stages.choice import choose_representation

        def keep(config: CompressConfig, header: dict[str, Any]) -> Kept:
            own = Checkpoint(checkpoint.path, f"{checkpoint.key} {config.keep}", checkpoint.check)
            return self._kept(masks, config, header, own)

        return choose_representation(
            self._seen, masks.class_name, self.config, header, self._seed,
            self._forms, keep,
            partial(draw_apart, self._builder, self._drawing, self._seed),
            self._encoder, self._preset, self._builder.report,
        )  # fmt: skip

    def _kept(
        self,
        masks: MasksArtifact,
        config: CompressConfig,
        header: dict[str, Any],
        checkpoint: Checkpoint,
    ) -> Kept:
        """Features, conditions, real images, or the last two in one."""
        header = {**header, "form": config.keep}
        if config.keep == "features":
            from replaycad.stages.features import keep_features

            return keep_features(
                self._seen, masks.class_name, masks.header["policy"], self._encoder(),
                self._train, config, self._seed, header, self._kept_bank(), self._builder.report,
            )  # fmt: skip
        from replaycad.stages.compress import within_budget  # brings diffusers
        from replaycad.stages.exemplars import keep_exemplars

        header |= reserved_limits(config.budget) if config.real_limits else {}
        if config.keep == "fragments":
            from replaycad.stages.fragments import keep_fragments

            return Kept(*keep_fragments(
                self._seen, masks, self._encoder(), self._preset, config, self._seed, header,
                self._builder.report, self._builder.aligner,
            ))  # fmt: skip
        kept, rows = None, list[int]()
        if config.keep != "exemplars":
            searched = self._searched(masks, config, header, checkpoint)
            kept = within_budget(searched, config, masks)
        if kept is None or config.keep == "hybrid":
            kept, rows = keep_exemplars(
                self._seen, masks, self._encoder(), self._preset, config, self._seed, header,
                self._builder.report, kept, self._builder.aligner,
            )  # fmt: skip
        return Kept(kept, rows)

    def _bank(self) -> str:
        """How the memory bank measures that real images are held against."""
        return bank_digest(self.weights, self._preset.levels, self._train.image_size)

    def _with_limits(self, kept: Kept) -> ConditionsArtifact:
        """What is kept, with the limits that real images have where its replays are learned."""
        if kept.artifact.features is not None or not self.config.real_limits:
            return kept.artifact
        measuring = Measuring(
            self._encoder(), self._preset, self._bank(), self._train.image_size, self._drawing
        )
        return with_real_limits(self._builder, measuring, kept, self._seen, self._seed)

    def _searched(
        self,
        masks: MasksArtifact,
        config: CompressConfig,
        header: dict[str, Any],
        checkpoint: Checkpoint,
    ) -> ConditionsArtifact:
        """Conditions as searched, before they are fitted into a budget: the same for many of them.

        The last few are remembered: every budget and representation that is tried asks for them.
        """
        from replaycad.stages.compress import compress_class, searchable

        builder, known = self._builder, self._builder.searches
        diffusion = builder.models.backbone(config)
        config = searchable(config, diffusion, masks)
        bare = replace(config, keep="conditions", budget=0)
        key = (canonical_json(header["inputs"]), bare, self._seed, diffusion.device)
        if key not in known:
            while len(known) >= REMEMBERED_SEARCHES:
                known.pop(next(iter(known)))
            known[key] = compress_class(
                self._seen, masks, diffusion, config, self._seed, header, builder.report,
                checkpoint, builder.settings.save_every_seconds, builder.aligner,
            )  # fmt: skip
        searched = known[key]
        return replace(searched, header={**header, "placement": searched.header["placement"]})
