"""Adds new photos to what is kept of a class; neither its old photos nor a data folder is read."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.digests import DigestCache, file_digest
from replaycad.artifacts.masks import MasksArtifact
from replaycad.config.stages import (
    CompressConfig,
    MaskConfig,
    ReplayConfig,
    Representation,
    TrainConfig,
)
from replaycad.continual.budget import IMAGE_BUDGET
from replaycad.continual.growth import (
    ADDED,
    COMPRESSED,
    GROWN,
    grown_record,
    known_photos,
    num_images,
    photo_digest,
)
from replaycad.continual.representations import (
    ASKS_BACKBONE,
    FEATURES_SERVE,
    REPRESENTATIONS,
    tried_drawing,
)
from replaycad.data.images import evenly_spaced, viewed
from replaycad.data.pixels import read_picture, strange
from replaycad.data.samples import Sample
from replaycad.detectors.registry import preset_for, resolve_defaults
from replaycad.engine.banks import LIMITS_OF_REAL, bank_digest, bank_preset
from replaycad.engine.builder import Builder, Stage
from replaycad.engine.inputs import NO_SEGMENTER
from replaycad.engine.real_limits import Measuring, grown_limits, reserved_limits
from replaycad.engine.replay import drawn_apart
from replaycad.engine.settings import PER_CLASS
from replaycad.engine.staleness import Plan, check_same_backbone, digest_of, input_header
from replaycad.engine.views import stored_view
from replaycad.errors import ArtifactError, ConfigError, DatasetError

if TYPE_CHECKING:
    from replaycad.detectors.encoders import Encoder
    from replaycad.diffusion.aligner import Aligner

MOST_REPLAYS = 512  # drawn to stand for the images of before
MOST_SEARCHED = 1000  # images, replays and new photos together, that conditions are searched with
PLACES = frozenset({"backbone", "encoder"})
"""Fields that may be typed: a header keeps but the name of a folder or file."""
_MEASURED = ("separations",)
"""Fields of a header that were measured on the images of before, and say nothing of what is kept
once it has grown."""
_OF_TENSORS = ("packed_shape", "packed_as", "num_patches")  # written anew with the tensors


class GrowStage(Stage):
    """What is kept of a class, once it stands for new photos too: the same form, the same budget.

    How the class is seen and kept, and the seed, are those of the artifact. Photos that were added
    before are left out.

    Args:
        builder: of the command.
        name: of the artifact.
        photos: files of new photos.

    Raises:
        ArtifactError: there is no such artifact; it does not say how it was made; it is of another
            class; or it was made with other networks.
        ConfigError: something is typed that is settled by the artifact.
        DatasetError: a photo cannot be read, or cannot be seen as the class is.
        WeightsError: a network is not there.
    """

    stage = "compress"
    config: CompressConfig

    def __init__(self, builder: Builder, name: str, photos: Sequence[Path]) -> None:
        self._builder, self.name = builder, name
        self._path = builder.store.path("conditions", name)
        header = self._header = _header_to_grow(self._path, name)
        self._class_name, self._form = header["class_name"], _form(header)
        self.config = self._recorded()
        self.seed = self._seed = int(header.get("seed") or 0)
        self.weights = dict(header["weights"])
        self._train = self._detector()
        self._check_networks()
        self._view = stored_view(header)
        self._before = header["content_id"]
        self._samples, self._digests, repeated = self._new_photos(photos)
        self.num_images = len(self._samples)
        if repeated:
            builder.report.note(
                f"{name}: {repeated} of {len(photos)} photos left out, for they were added before "
                "or are given twice"
            )
        self.next_command = builder.settings.command("train", "NEW", past=name)

    def inputs(self) -> dict[str, str]:
        """What the artifact was made from, and the photos that are then added to it."""
        header = self._builder.header("conditions", self.name)
        inputs = dict(header.get("inputs", {}))
        if self._digests:
            added = {"before": header.get("content_id", ""), "photos": "".join(self._digests)}
            inputs[ADDED + self._class_name] = digest_of(added)
        return inputs

    def run(self, plan: Plan) -> None:
        """Make what stands for both, and put it in the place of what is there."""
        plan.check_inputs()  # another command may have replaced the artifact meanwhile
        before = ConditionsArtifact.load(self._path)
        held = [rows for rows in (before.poses, before.exemplar_poses) if rows is not None]
        count = num_images(before.header, max(map(len, held), default=0))
        header = self._grown_header(before.header, plan, count)
        samples = viewed(self._samples, self._view)
        if self._form == "features":
            grown = self._grown_features(before, samples, header, count)
        else:
            grown = replace(before, exemplars=(), exemplar_poses=None, header=header)
            if self._form in ASKS_BACKBONE:
                grown = self._grown_conditions(before, samples, header, count, plan)
            if before.exemplars:
                grown = self._grown_exemplars(before, grown, samples, count)
        if LIMITS_OF_REAL in before.header:
            grown = self._with_limits(before, grown, samples, count)
        self._builder.report.note(
            f"{self.name}: stands for {count + len(self._samples)} images now, "
            f"{len(self._samples)} of them new"
        )
        plan.check_inputs()
        grown.save(plan.path)
        self._builder.checkpoint(plan).clear()

    def _recorded(self) -> CompressConfig:
        """The config of the artifact; of what was typed, only where its networks lie."""
        settings = self._builder.settings
        typed = settings.of_class("compress", self._class_name)
        settled = (set(typed) - PLACES) | (PER_CLASS & set(settings.of_class("mask", self.name)))
        if settled:
            raise ConfigError(
                f"--add keeps how {self.name} was compressed; {', '.join(sorted(settled))} cannot "
                "be set with it",
                "leave that out, or compress the class anew from all its photos",
            )
        recorded = self._header["config"]
        places = {name: text for name, text in typed.items() if recorded.get(name)}
        known = {"config": {**recorded, **places}}
        bare = replace(settings, overrides={**settings.overrides, "compress": {}})
        return bare.config(CompressConfig, self._class_name, known)

    @property
    def _working(self) -> CompressConfig:
        """The config as its one form would have it, where that was chosen."""
        budget = self.config.budget or (IMAGE_BUDGET if self.config.keep == "auto" else 0)
        return replace(self.config, keep=self._form, budget=budget)

    def _detector(self) -> TrainConfig:
        """The training whose encoder is asked; that of the settings if features serve it."""
        train = self._builder.settings.config(TrainConfig)
        if self._form == "features" and train.detector != FEATURES_SERVE:
            train = TrainConfig(detector=FEATURES_SERVE, preset="standard")
        return resolve_defaults(train)

    def _check_networks(self) -> None:
        digests, config = self._builder.digests, self.config
        if self._form in ASKS_BACKBONE:
            own = digests.backbone(config.backbone)
            check_same_backbone(self._path, self._header, own, config.backbone)
        known = self.weights.get("encoder")
        if known and digests.encoder(config.encoder)["encoder"] != known:
            raise ArtifactError(
                f"{self._path} was made with another encoder than '{config.encoder}'",
                "name it with --set encoder=TIMM_NAME:FILE",
            )
        if self._form == "features":
            levels = list(preset_for(FEATURES_SERVE, self._train.preset).levels)
            known = self._header["features"].get("levels")
            if known != levels:
                raise ArtifactError(
                    f"{self._path} holds features of levels {known}, not {levels}",
                    "name the recipe, or train.preset, that it was made with",
                )

    def _new_photos(self, photos: Sequence[Path]) -> tuple[list[Sample], list[str], int]:
        """Photos that were not added before, their digests, and how many others there are."""
        known, samples, digests = set(known_photos(self._header)), [], []
        cache = self._builder.digests.cache
        for path in photos:
            picture = read_picture(path, self._view.white)  # or say why not
            self._view.check(*picture.size, str(path))
            digest = photo_digest(file_digest(path, cache))
            if digest in known:
                continue
            known.add(digest)
            told = strange(path, picture, self._view.colours)
            if told:
                self._builder.report.note(f"{path}: {told}")
            named, name = f"{ADDED}{digest}", self._class_name
            samples.append(Sample(path=path, image_id=named, class_name=name, kind="good"))
            digests.append(digest)
        if not photos:
            raise DatasetError("no photo was named", "name files or folders after --add")
        return samples, digests, len(photos) - len(samples)

    def _grown_header(self, before: Mapping[str, Any], plan: Plan, count: int) -> dict[str, Any]:
        left_out = {*_MEASURED, *_OF_TENSORS}
        header = {name: value for name, value in before.items() if name not in left_out}
        header |= plan.header((self._class_name,))
        if LIMITS_OF_REAL in header:  # what is kept is counted with it
            header |= reserved_limits(self._working.budget)
        return {
            **header,
            # what changed in the code since concerns this one as before
            "stage_version": before.get("stage_version"),
            # by which a command without --add finds it up to date
            COMPRESSED: before.get(COMPRESSED, before.get("key")),
            GROWN: grown_record(before, self._digests, self._working.budget),
            "num_images": count + len(self._samples),
        }

    def _encoder(self) -> "Encoder":
        return self._builder.models.encoder(self.config.encoder, bank_preset(self._train).levels)

    def _with_limits(
        self, before: ConditionsArtifact, grown: ConditionsArtifact, samples: Sequence[Sample],
        count: int,
    ) -> ConditionsArtifact:  # fmt: skip
        train = self._train
        preset = bank_preset(train)
        bank = bank_digest(self.weights, preset.levels, train.image_size)
        drawing = self._builder.settings.config(ReplayConfig, self._class_name)
        drawing = tried_drawing(drawing, self.config.backbone)
        how = Measuring(self._encoder(), preset, bank, train.image_size, drawing)
        return grown_limits(self._builder, how, before, grown, samples, count, self._seed)

    def _grown_features(
        self, before: ConditionsArtifact, samples: Sequence[Sample], header: dict[str, Any],
        count: int,
    ) -> ConditionsArtifact:  # fmt: skip
        from replaycad.stages.features import grow_features

        per_picture = round(len(samples) / len(self._samples))  # tiles, or 1
        return grow_features(
            before, samples, self._encoder(), self._train, self._working, self._seed, header,
            count * per_picture, self._builder.report,
        )  # fmt: skip

    def _grown_exemplars(
        self, before: ConditionsArtifact, empty: ConditionsArtifact, samples: Sequence[Sample],
        count: int,
    ) -> ConditionsArtifact:  # fmt: skip
        from replaycad.stages.exemplars import grow_exemplars

        return grow_exemplars(
            before, empty, samples, self._encoder(), self._working, self._seed, count,
            self._builder.report,
        )  # fmt: skip

    def _grown_conditions(
        self, before: ConditionsArtifact, samples: Sequence[Sample], header: dict[str, Any],
        count: int, plan: Plan,
    ) -> ConditionsArtifact:  # fmt: skip
        """Conditions that are searched anew with replays of themselves beside the new photos.

        What replays lack of the images of before is lost for good; every growth costs something.
        The search starts as for any class: from the tokens of before it came out worse (one
        procedural class of 40 images: image AUROC 58.8, not 68.1; pixel AP 33.2, not 32.8).
        """
        from replaycad.stages.compress import compress_class, searchable, within_budget

        builder, config = self._builder, self._working
        config = replace(config, alignment="none" if before.poses is None else "auto")
        with tempfile.TemporaryDirectory(prefix="replaycad-") as folder:
            old, old_masks, poses = self._stand_ins(before, count, Path(folder))
            new = [samples[row] for row in evenly_spaced(len(samples), MOST_SEARCHED - len(old))]
            masks = self._masks(before, old, old_masks, new)
            diffusion = builder.models.backbone(config)
            config = searchable(config, diffusion, masks)
            found = compress_class(
                [*old, *new], masks, diffusion, config, self._seed, header, builder.report,
                builder.checkpoint(plan), builder.settings.save_every_seconds, poses,
            )  # fmt: skip
        return within_budget(found, config, masks)

    def _stand_ins(
        self, before: ConditionsArtifact, count: int, folder: Path
    ) -> tuple[list[Sample], np.ndarray, "Aligner | None"]:
        """Images in place of those of before, as files, their masks, and what finds the poses."""
        from replaycad.diffusion.aligner import FrameAligner
        from replaycad.stages.replay import image_seeds, pick_rows

        builder, name = self._builder, self._class_name
        number = min(count, MOST_REPLAYS)
        drawing = builder.settings.config(ReplayConfig, name, backbone=self.config.backbone)
        drawing = replace(
            drawing, num_images=number, backbone=self.config.backbone, compile=False
        )
        bare = replace(before, exemplars=(), exemplar_poses=None)
        header = {**before.header, "key": "grown"}
        images, masks = drawn_apart(builder, drawing, self._seed, bare, header)
        builder.report.note(f"{self.name}: {number} replays stand for the images of before")
        samples = _written(images, folder, name)
        if before.poses is None:
            return samples, masks, None
        poses = pick_rows(before.poses, image_seeds(name, self._seed, number))
        return samples, masks, FrameAligner(poses)

    def _masks(
        self, before: ConditionsArtifact, old: Sequence[Sample], old_masks: np.ndarray,
        new: Sequence[Sample],
    ) -> MasksArtifact:  # fmt: skip
        """Masks of replays, and of photos if the conditions are drawn around any."""
        from replaycad.mask_ops import resize_masks
        from replaycad.stages.mask import make_masks

        side = old_masks.shape[-1]
        found = np.ones((len(new), side, side), np.bool_)
        if before.spatial_weight is not None and not self._view.tile:
            builder, rule = self._builder, before.policy["mask_rule"]
            recorded = builder.header("masks", self._class_name)
            config = builder.settings.config(MaskConfig, self._class_name, recorded)
            if rule in ("corners", "ground", "area", "frame"):
                config = replace(config, rule=rule)
            named = NO_SEGMENTER if rule == "frame" else config.segmenter
            made = make_masks(
                self._class_name, new, builder.models.segmenter(named), config, {}, builder.report
            )
            found = resize_masks(made.object_masks, side)
        both = np.concatenate([old_masks, found])
        return MasksArtifact(
            class_name=self._class_name, image_ids=[one.image_id for one in (*old, *new)],
            object_masks=both, area_fraction=both.mean((1, 2)).astype(np.float32), rule="",
            header={"policy": before.policy},
        )  # fmt: skip


def lost_photos(header: Mapping[str, Any], samples: Sequence[Sample], cache: DigestCache) -> int:
    """How many of the photos that were added to a class are not among these images.

    Args:
        header: of what is kept of it.
        samples: training images in the data folder.
        cache: of digests.
    """
    grown = header.get(GROWN)
    if not isinstance(grown, dict):
        return 0
    there = {photo_digest(file_digest(sample.path, cache)) for sample in samples}
    known = known_photos(header)
    forgotten = int(grown.get("photos", 0)) - len(known)
    return forgotten + sum(digest not in there for digest in known)


def _header_to_grow(path: Path, name: str) -> dict[str, Any]:
    """Header of an artifact, if it can grow."""
    if not path.exists():
        raise ArtifactError(
            f"{path} does not exist: there is nothing to add to",
            f"run `replaycad compress --class {name}` without --add",
        )
    header = input_header(path, "conditions")
    class_name = header["class_name"]
    if name != class_name and not name.startswith(f"{class_name}-"):
        raise ArtifactError(
            f"{path} holds conditions of {class_name}, not of {name}", "name the class itself"
        )
    if not all(isinstance(header.get(field), dict) for field in ("config", "inputs", "weights")):
        raise ArtifactError(
            f"{path} does not say how it was made", f"run `replaycad compress --class {name}`"
        )
    return header


def _form(header: Mapping[str, Any]) -> Representation:
    form = header.get("form") or header["config"].get("keep", "conditions")
    if form not in REPRESENTATIONS:  # fragments: which images give some is decided for all at once
        raise ArtifactError(f"nothing can be added to {form}", "compress the class from all photos")
    return cast(Representation, form)


def _written(images: np.ndarray, folder: Path, class_name: str) -> list[Sample]:
    """Images `[N, 3, S, S]` uint8 as files of their own, without loss."""
    samples = []
    for number, image in enumerate(images):
        path = folder / f"{number}.png"
        Image.fromarray(image.transpose(1, 2, 0)).save(path, compress_level=1)
        named = f"replay/{number}"
        samples.append(Sample(path=path, image_id=named, class_name=class_name, kind="good"))
    return samples
