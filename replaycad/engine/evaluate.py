"""The stage `eval`: a detector and test images of some classes -> scores and metrics."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.scores import mirror_in_json
from replaycad.config.stages import EvalConfig, TrainConfig
from replaycad.data.layouts import test_samples
from replaycad.data.views import view_of
from replaycad.detectors.registry import preset_for, resolve_defaults
from replaycad.engine.builder import Builder, Stage
from replaycad.engine.staleness import Plan, check_same_encoder
from replaycad.engine.views import told


class EvalStage(Stage):
    """Scores of a detector on the test images of some classes.

    Args:
        builder: of the command.
        class_names: whose test images are scored.
        name: of the detector, and of the scores.

    Raises:
        DatasetError: a class has no test images.
        ArtifactError: there is no such detector, or it was trained with another encoder.
        WeightsError: the encoder is not there.
    """

    stage = "eval"

    def __init__(self, builder: Builder, class_names: Sequence[str], name: str) -> None:
        settings = builder.settings
        self._builder, self.name = builder, name
        self._samples = {
            class_name: test_samples(settings.data, class_name) for class_name in class_names
        }
        builder.content("detectors", name)  # or say what makes it
        header, config = builder.header("detectors", name), settings.config(EvalConfig)
        encoder = config.encoder or settings.typed("train", "encoder") or header.get("encoder")
        planned = resolve_defaults(settings.config(TrainConfig))  # of one that is yet to be made
        encoder = encoder or planned.encoder
        self.config: EvalConfig = replace(config, encoder=encoder)
        self.weights = builder.digests.detector(
            encoder, header.get("detector", planned.detector), header.get("preset", planned.preset)
        )
        path = builder.store.path("detectors", name)
        if f"detectors/{name}" not in builder.changing:
            check_same_encoder(path, header, self.weights, encoder)
        self.num_images = sum(map(len, self._samples.values()))
        scores = builder.store.path("scores", name)
        self.next_command = shlex.join(["replaycad", "inspect", str(scores)])

    def inputs(self) -> dict[str, str]:
        """The test images, the detector, the order of the classes."""
        inputs = {
            f"images/{class_name}": self._builder.digests.images(images)
            for class_name, images in self._samples.items()
        }
        inputs[f"detectors/{self.name}"] = self._builder.content("detectors", self.name)
        header = self._builder.header("detectors", self.name)
        for class_name in self._samples:
            inputs |= told(class_name, view_of(header, class_name))
        inputs["class order"] = ",".join(self._samples)
        return inputs

    def complete(self, path: Path) -> None:
        """Write the figures as JSON beside the scores."""
        mirror_in_json(path)

    def run(self, plan: Plan) -> None:
        """Score the images."""
        from replaycad.stages.eval import evaluate

        self._builder.tell_reading(self._samples)
        trained = DetectorArtifact.load(self._builder.store.path("detectors", self.name))
        levels = preset_for(trained.detector, trained.preset).levels
        encoder = self._builder.models.encoder(self.config.encoder, levels)
        header = plan.header(list(self._samples))
        scores = evaluate(
            self._samples, trained, encoder, self.config, header, self._builder.report
        )
        plan.check_inputs()
        scores.save(plan.path)
