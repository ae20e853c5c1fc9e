"""The stage `mask`: training images of a class -> object masks."""

from collections.abc import Mapping, Sequence

from replaycad.config.stages import MaskConfig
from replaycad.data.images import viewed
from replaycad.data.layouts import train_samples
from replaycad.data.samples import IGNORE_PICTURE, Sample
from replaycad.engine.builder import Builder, Stage
from replaycad.engine.inputs import NO_SEGMENTER
from replaycad.engine.staleness import Plan, digest_of, still_serves
from replaycad.engine.views import configured_view


class MaskStage(Stage):
    """Object masks of a class's training images.

    Args:
        builder: of the command.
        class_name: the class.
        config: of the stage; None for what the settings say.
        weights: digests of the segmenter that `config` names, if they are known.

    Raises:
        DatasetError: the class has no training images.
        WeightsError: the segmenter is not there.
    """

    stage = "mask"

    def __init__(
        self,
        builder: Builder,
        class_name: str,
        config: MaskConfig | None = None,
        weights: Mapping[str, str] | None = None,
    ) -> None:
        self._builder, self.name = builder, class_name
        self._samples = train_samples(builder.settings.data, class_name)
        self.config: MaskConfig = config or builder.settings.config(MaskConfig, class_name)
        self.weights = builder.digests.segmenter(self.config.segmenter) if weights is None else (
            weights)  # fmt: skip
        self._view = configured_view(
            builder, class_name, self._samples, self.config.tile, self.config.fit
        )
        self.num_images = len(self._samples)
        self.next_command = builder.settings.command("compress", class_name)

    def inputs(self) -> dict[str, str]:
        """The images, and what is ignored in them."""
        return _inputs(self._builder, self.name, self._samples)

    def run(self, plan: Plan) -> None:
        """Find the object in every image."""
        from replaycad.stages.mask import make_masks

        self._builder.tell_reading([self.name])
        # A tile has no object: all of it is surface.
        name = NO_SEGMENTER if self._view.tile else self.config.segmenter
        segmenter = self._builder.models.segmenter(name)
        header = {**plan.header((self.name,)), "view": self._view.as_dict()}
        samples = viewed(self._samples, self._view)
        if self._view.tile:
            self._builder.report.note(
                f"{self.name}: {len(self._samples)} pictures are seen as {len(samples)} tiles of "
                f"{self._view.tile} px"
            )
        masks = make_masks(
            self.name, samples, segmenter, self.config, header, self._builder.report
        )
        plan.check_inputs()
        masks.save(plan.path)


def prepare_masks(builder: Builder, class_name: str, samples: Sequence[Sample]) -> None:
    """Build the masks that another stage reads, unless those that are there still serve."""
    if f"masks/{class_name}" in builder.handled:
        return
    is_typed = bool(builder.settings.of_class("mask", class_name))
    header = builder.header("masks", class_name)
    config = builder.settings.config(MaskConfig, class_name, header)
    serves = not is_typed and still_serves(header, _inputs(builder, class_name, samples))
    weights = header.get("weights") if serves else None
    outcome = builder.build(MaskStage(builder, class_name, config, weights), force=False)
    if outcome.was_made:
        reason = outcome.plan.reason or "there were none"
        builder.report.note(f"made the masks of {class_name} first: {reason}")


def _inputs(builder: Builder, class_name: str, samples: Sequence[Sample]) -> dict[str, str]:
    inputs = {f"images/{class_name}": builder.digests.images(samples)}
    ignore = configured_view(builder, class_name, samples, 0, "squash").ignore
    if ignore:
        inputs[f"{IGNORE_PICTURE} of {class_name}"] = digest_of({"ignored": ignore.hex()})
    return inputs
