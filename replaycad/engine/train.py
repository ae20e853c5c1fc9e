"""The stage `train`: real images of new classes and replays of past ones -> a detector."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from types import MappingProxyType
from typing import Any

from replaycad.artifacts.checkpoints import Checkpoint
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.replays import ReplaysReader
from replaycad.config.stages import TrainConfig
from replaycad.data.images import viewed
from replaycad.data.layouts import train_samples
from replaycad.data.mixture import Mixture, Source
from replaycad.data.views import view_of
from replaycad.detectors.registry import preset_for, resolve_defaults, variant_of
from replaycad.distributed import ranks
from replaycad.engine.banks import LIMITS_OF_REAL, KeptBanks, bank_digest, bank_key
from replaycad.engine.builder import Builder, Stage
from replaycad.engine.past import check_serves, keeps_features, read_features
from replaycad.engine.replay import prepare_replays
from replaycad.engine.staleness import Plan, digest_of
from replaycad.engine.views import VIEW_OF, stored_view, told, wanted_view
from replaycad.errors import ConfigError


class TrainStage(Stage):
    """A detector from real images of some classes and replays of others.

    Args:
        builder: of the command.
        class_names: whose real images it learns from.
        past: names of the replays that it learns from.
        name: of the detector.
        seed: None for the command's.
        init: detector to go on from; empty for what the settings say.
        changes: fields of the config and what a strategy wants of them.

    Raises:
        DatasetError: a class has no training images.
        WeightsError: the encoder is not there.
        ConfigError: the detector is unknown, or would go on from itself.
    """

    stage = "train"

    def __init__(
        self,
        builder: Builder,
        class_names: Sequence[str],
        past: Sequence[str],
        name: str,
        seed: int | None = None,
        init: str = "",
        changes: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        settings = builder.settings
        self._builder, self.name, self._past = builder, name, tuple(past)
        self._seed = settings.seed if seed is None else seed
        self.seed = self._seed
        config, told = settings.config(TrainConfig), dict(changes)
        told |= {"init": init or config.init}
        first = {name: told.pop(name) for name in ("detector", "init", "guard") if name in told}
        # A preset that a strategy wants changes the structure; sizes and steps stay as they are.
        resolved = resolve_defaults(replace(config, **first))
        if "preset" in told:
            told["preset"] = variant_of(resolved.detector, resolved.preset, told["preset"])
        self.config: TrainConfig = replace(resolved, **told)
        if self.config.init == name:
            raise ConfigError(f"detector '{name}' cannot go on from itself", "give another --name")
        self._samples = {
            class_name: train_samples(settings.data, class_name) for class_name in class_names
        }
        self._views = {
            class_name: wanted_view(builder, class_name, real)
            for class_name, real in self._samples.items()
        }
        self.weights = builder.digests.detector(
            self.config.encoder, self.config.detector, self.config.preset
        )
        self._before: list[str] = []
        if self.config.init:
            init_header = builder.header("detectors", self.config.init)
            self._before = init_header.get("class_order", [])
        self.num_images = sum(map(len, self._samples.values()))
        known = ",".join(dict.fromkeys((*self._before, *past, *class_names)))
        self.next_command = settings.command("eval", known, name=name)

    def prepare(self) -> None:
        """Build the replays of the past classes, where there are not features of them."""
        for name in self._past:
            if not keeps_features(self._builder, name):
                prepare_replays(self._builder, name)

    def inputs(self) -> dict[str, str]:
        """Images, replays, the detector to go on from, its structure, the order of the classes."""
        builder, config = self._builder, self.config
        inputs = {
            f"images/{class_name}": builder.digests.images(real)
            for class_name, real in self._samples.items()
        }
        for name in self._past:
            header, kind = builder.header("replays", name), "replays"
            if keeps_features(builder, name):
                check_serves(builder, name, config, dict(self.weights))
                header, kind = builder.header("conditions", name), "conditions"
            inputs[f"{kind}/{name}"] = builder.content(kind, name)
            if LIMITS_OF_REAL in header:
                inputs[f"limits/{name}"] = digest_of({"limits": header[LIMITS_OF_REAL]})
            inputs |= told(header.get("class_name", name), stored_view(header))
        for class_name, view in self._views.items():
            inputs |= told(class_name, view)
        structure = asdict(preset_for(config.detector, config.preset))
        inputs["preset"] = digest_of({"preset": structure})
        if config.init:
            inputs[f"detectors/{config.init}"] = builder.content("detectors", config.init)
        order = (self._before, self._past, self._samples)
        inputs["class order"] = " + ".join(",".join(part) for part in order)
        return inputs

    def run(self, plan: Plan) -> None:
        """Train the detector."""
        from replaycad.continual.banks import KeptBank
        from replaycad.continual.real_limits import RealLimits
        from replaycad.runtime import check_compiler
        from replaycad.stages.train import train_detector

        builder, config = self._builder, self.config
        builder.tell_reading(self._views)
        if config.compile:
            check_compiler(builder.models.device)
        init = None
        if config.init:
            init = DetectorArtifact.load(builder.store.path("detectors", config.init))
        kept = [
            read_features(builder, name) for name in self._past if keeps_features(builder, name)
        ]
        banks = {
            one.class_name: KeptBank(one.features.decoded(), one.header["features"]["limits"])
            for one in kept if one.features is not None
        }  # fmt: skip
        levels = preset_for(config.detector, config.preset).levels
        bank = bank_digest(self.weights, levels, config.image_size)
        drawn = [builder.header("replays", name) for name in self._past]
        real = {
            header["class_name"]: RealLimits.of(header.get(LIMITS_OF_REAL), bank)
            for name, header in zip(self._past, drawn, strict=True)
            if not keeps_features(builder, name)
        }
        sources, known = self._sources(list(init.class_order) if init else [], list(banks))
        views = self._seen(sources, known, init)
        views |= {one.class_name: stored_view(one.header).as_dict() for one in kept}
        header = {**plan.header(known), "views": views}
        encoder = builder.models.encoder(
            config.encoder, preset_for(config.detector, config.preset).levels
        )
        is_first = ranks().rank == 0
        checkpoint = builder.checkpoint(plan) if is_first else _ReadOnly(
            builder.store.partial(plan.kind, plan.name, plan.key), plan.key)  # fmt: skip
        detector = train_detector(
            Mixture(sources, config.image_size, builder.report), known, encoder, config,
            self._seed, header, builder.report, checkpoint, init,
            builder.settings.save_every_seconds, self._kept_banks(plan), banks, real,
        )  # fmt: skip
        plan.check_inputs()
        if is_first:  # all ranks have the same
            detector.save(plan.path)
            checkpoint.clear()

    def _kept_banks(self, plan: Plan) -> KeptBanks | None:
        """Banks of earlier trainings that were filled from the same images in the same way."""
        if not preset_for(self.config.detector, self.config.preset).has_memory_banks:
            return None
        builder, inputs = self._builder, plan.facts["inputs"]
        limit = shared_out(self.config.replay_budget, len(self._past))
        sources = {name: (f"images/{name}", 0) for name in self._samples} | {
            builder.header("replays", name)["class_name"]: (f"replays/{name}", limit)
            for name in self._past if not keeps_features(builder, name)
        }  # fmt: skip
        keys = {
            name: bank_key(
                name, inputs[source], inputs[VIEW_OF + name], self.config, self._seed,
                self.weights, builder.models.device.type, of_these,
            )
            for name, (source, of_these) in sources.items()
        }  # fmt: skip
        return KeptBanks(builder.store, keys, builder.report)

    def _sources(
        self, before: list[str], banks: Sequence[str]
    ) -> tuple[list[Source], list[str]]:
        """Where the images come from, and all classes that the detector then knows, in order.

        Args:
            before: classes of the detector to go on from.
            banks: past classes of which features are at hand.
        """
        builder = self._builder
        replays = [
            _verified_replays(builder, name) for name in self._past
            if not keeps_features(builder, name)
        ]  # fmt: skip
        drawn = [reader.header["class_name"] for reader in replays]
        past = [
            builder.header("conditions" if keeps_features(builder, name) else "replays", name)
            for name in self._past
        ]
        known = list(
            dict.fromkeys([*before, *(one["class_name"] for one in past), *self._samples])
        )
        limit = shared_out(self.config.replay_budget, len(replays))
        sources = [
            Source(class_index=known.index(name), replays=reader, limit=limit,
                   view=stored_view(reader.header))
            for name, reader in zip(drawn, replays, strict=True)
        ]
        sources += [
            Source(class_index=known.index(name), samples=viewed(real, self._views[name]))
            for name, real in self._samples.items()
        ]
        counts = [
            f"{len(source)} {_what(source)} of "
            f"{known[source.class_index]}"
            for source in sources
        ] + [f"the features of {name}" for name in banks]
        builder.report.note(f"{self.name} learns from {', '.join(counts)}")
        return sources, known


    @staticmethod
    def _seen(
        sources: Sequence[Source], known: Sequence[str], init: DetectorArtifact | None
    ) -> dict[str, Any]:
        """How each class is seen, for the header: those of now as now, the others as before."""
        views = {name: view_of(init.header, name) for name in init.class_order} if init else {}
        for source in sources:
            view = source.samples[0].view if source.samples else source.view
            views[known[source.class_index]] = view
        return {name: view.as_dict() for name, view in views.items()}


def _what(source: Source) -> str:
    if source.replays:
        return "replays"
    return "tiles" if source.samples[0].view.tile else "images"


def shared_out(budget: int, num_classes: int) -> int:
    """Replays of each past class where all together may be `budget`; 0 where any number may.

    Raises:
        ConfigError: if that is not one of each.
    """
    if not budget or not num_classes:
        return 0
    if budget < num_classes:
        raise ConfigError(
            f"train: replay_budget {budget} is below the number of past classes ({num_classes})",
            f"set replay_budget to {num_classes} or more",
        )
    return budget // num_classes


def _verified_replays(builder: Builder, name: str) -> ReplaysReader:
    """Open replays; every byte of them is verified, once as long as the file is the same."""
    path = builder.store.path("replays", name)
    reader = ReplaysReader(path)
    content = reader.header["content_id"]
    if builder.sound.get(path) != content:
        reader.verify()
        builder.sound[path] = content
    return reader


class _ReadOnly(Checkpoint):
    """A checkpoint as those see it who share a training and do not keep it."""

    def save(self, step: int, tensors: Mapping[str, Any]) -> None:
        """Leave it to rank 0."""
