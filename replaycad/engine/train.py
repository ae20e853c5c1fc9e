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
from replaycad.data.mixture import Mixture, Source
from replaycad.data.samples import train_samples
from replaycad.data.views import view_of
from replaycad.detectors.registry import preset_for, resolve_defaults
from replaycad.distributed import ranks
from replaycad.engine.banks import KeptBanks
from replaycad.engine.builder import Builder, Stage
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
        config = resolve_defaults(
            replace(config, detector=told.pop("detector", config.detector))
        )
        self.config: TrainConfig = replace(config, init=init or config.init, **told)
        if self.config.init == name:
            raise ConfigError(f"detector '{name}' cannot go on from itself", "give another --name")
        self._samples = {
            class_name: train_samples(settings.data, class_name) for class_name in class_names
        }
        self._views = {
            class_name: wanted_view(builder, class_name, real)
            for class_name, real in self._samples.items()
        }
        self.weights = builder.digests.encoder(self.config.encoder)
        self._before: list[str] = []
        if self.config.init:
            init_header = builder.header("detectors", self.config.init)
            self._before = init_header.get("class_order", [])
        self.num_images = sum(map(len, self._samples.values()))
        known = ",".join(dict.fromkeys((*self._before, *past, *class_names)))
        self.next_command = settings.command("eval", known, name=name)

    def prepare(self) -> None:
        """Build the replays of the past classes."""
        for name in self._past:
            prepare_replays(self._builder, name)

    def inputs(self) -> dict[str, str]:
        """Images, replays, the detector to go on from, its structure, the order of the classes."""
        builder, config = self._builder, self.config
        inputs = {
            f"images/{class_name}": builder.digests.images(real)
            for class_name, real in self._samples.items()
        }
        inputs |= {f"replays/{name}": builder.content("replays", name) for name in self._past}
        for name in self._past:
            header = builder.header("replays", name)
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
        from replaycad.runtime import check_compiler
        from replaycad.stages.train import train_detector

        builder, config = self._builder, self.config
        if config.compile:
            check_compiler(builder.models.device)
        init = None
        if config.init:
            init = DetectorArtifact.load(builder.store.path("detectors", config.init))
        sources, known = self._sources(list(init.class_order) if init else [])
        header = {**plan.header(known), "views": self._seen(sources, known, init)}
        encoder = builder.models.encoder(config.encoder, config.detector, config.preset)
        is_first = ranks().rank == 0
        checkpoint = builder.checkpoint(plan) if is_first else _ReadOnly(
            builder.store.partial(plan.kind, plan.name, plan.key), plan.key)  # fmt: skip
        detector = train_detector(
            Mixture(sources, config.image_size, builder.report), known, encoder, config,
            self._seed, header, builder.report, checkpoint, init,
            builder.settings.save_every_seconds, self._kept_banks(plan),
        )  # fmt: skip
        plan.check_inputs()
        if is_first:  # all ranks have the same
            detector.save(plan.path)
            checkpoint.clear()

    def _kept_banks(self, plan: Plan) -> KeptBanks | None:
        """Banks of earlier trainings that were filled from the same images in the same way."""
        if not preset_for(self.config.detector, self.config.preset).has_memory_banks:
            return None
        builder, facts = self._builder, plan.facts
        named = [f"images/{name}" for name in self._samples]
        named += [f"replays/{name}" for name in self._past]
        class_names = [*self._samples, *(
            builder.header("replays", name)["class_name"] for name in self._past
        )]  # fmt: skip
        shared = {
            "seed": self._seed, "weights": facts["weights"], "preset": facts["inputs"]["preset"],
            "version": facts["stage_version"], "device": builder.models.device.type,
            "image_size": self.config.image_size, "batch_size": self.config.batch_size,
            "limit": shared_out(self.config.replay_budget, len(self._past)),
        }  # fmt: skip
        keys = {
            class_name: digest_of({
                **shared, "class": class_name, "from": facts["inputs"][source],
                "view": facts["inputs"][f"{VIEW_OF}{class_name}"],
            })
            for class_name, source in zip(class_names, named, strict=True)
        }  # fmt: skip
        return KeptBanks(builder.store, keys, builder.report)

    def _sources(self, before: list[str]) -> tuple[list[Source], list[str]]:
        """Where the images come from, and all classes that the detector then knows, in order."""
        replays = [_verified_replays(self._builder, name) for name in self._past]
        drawn = [reader.header["class_name"] for reader in replays]
        known = list(dict.fromkeys([*before, *drawn, *self._samples]))
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
        ]
        self._builder.report.note(f"{self.name} learns from {', '.join(counts)}")
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
