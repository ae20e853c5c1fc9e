"""The stage `replay`: conditions of a class -> images, without any of the user's data."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.format import read_header
from replaycad.artifacts.replays import ReplaysReader, ReplaysWriter
from replaycad.config.stages import CompressConfig, ReplayConfig
from replaycad.engine.banks import LIMITS_OF_REAL
from replaycad.engine.builder import Builder, Stage
from replaycad.engine.staleness import (
    Plan,
    check_same_backbone,
    digest_of,
    input_header,
    still_serves,
)
from replaycad.engine.views import stored_view, told
from replaycad.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np


class ReplayStage(Stage):
    """Images from the conditions of a class.

    Args:
        builder: of the command.
        name: of the conditions, and of the replays.
        seed: None for the command's.
        class_name: of the conditions, for a dry run that would make them first.
        config: of the stage; None for what the settings say.

    Raises:
        ArtifactError: there are no such conditions, or they were made with another backbone.
        WeightsError: the backbone is not there.
    """

    stage = "replay"

    def __init__(
        self,
        builder: Builder,
        name: str,
        seed: int | None = None,
        class_name: str = "",
        config: ReplayConfig | None = None,
    ) -> None:
        self._builder, self.name = builder, name
        self._seed = builder.settings.seed if seed is None else seed
        self.seed = self._seed
        self.inputs()  # or say what makes them
        header = builder.header("conditions", name)
        class_name = header.get("class_name") or class_name or name
        self.config: ReplayConfig = config or _config(builder, name, class_name)
        form = header.get("form") or builder.settings.config(CompressConfig, class_name).keep
        if form == "features":
            raise ArtifactError(
                f"features are kept of {class_name}: there is nothing to draw",
                f"`replaycad train --class NEW --past {name}` uses them as they are",
            )
        if form not in ("exemplars", "fragments"):
            self._use_backbone(header, class_name)
        self.num_images = self.config.num_images
        self.next_command = builder.settings.command("train", "NEW", past=name)

    def _use_backbone(self, header: dict[str, Any], class_name: str) -> None:
        builder, settings = self._builder, self._builder.settings
        # What was typed comes first: a folder is more than the name that a header keeps of it.
        backbone = self.config.backbone or settings.typed("compress", "backbone")
        backbone = backbone or header.get("config", {}).get("backbone")
        backbone = backbone or settings.config(CompressConfig, class_name).backbone
        self.config = replace(self.config, backbone=backbone)
        self.weights = builder.digests.backbone(backbone, drawing=True)
        if f"conditions/{self.name}" not in builder.changing:
            path = builder.store.path("conditions", self.name)
            check_same_backbone(path, header, self.weights, backbone)

    def inputs(self) -> dict[str, str]:
        """The conditions, and how their masks are posed."""
        return _inputs(self._builder, self.name)

    def run(self, plan: Plan) -> None:
        """Draw the images that are not on disk yet."""
        conditions = ConditionsArtifact.load(self._builder.store.path("conditions", self.name))
        header = plan.header((conditions.class_name,))
        seen = stored_view(conditions.header).as_dict()
        header |= {"view": seen} if seen else {}
        if LIMITS_OF_REAL in conditions.header:
            header[LIMITS_OF_REAL] = conditions.header[LIMITS_OF_REAL]
        _draw(
            self._builder, conditions, plan.path, header, self.config, self._seed,
            plan.check_inputs,
        )  # fmt: skip


def prepare_replays(builder: Builder, name: str) -> None:
    """Build the replays that another stage reads, unless those that are there still serve."""
    if f"replays/{name}" in builder.handled:
        return
    is_typed = bool(builder.settings.overrides.get("replay"))
    header = {} if is_typed else builder.header("replays", name)
    path = builder.store.path("replays", name)
    if not is_typed and path.exists() and not builder.store.path("conditions", name).exists():
        input_header(path, "replays")
        return  # drawn elsewhere and copied: nothing here to hold them against
    if header and still_serves(header, _inputs(builder, name)):
        return
    class_name = builder.header("conditions", name).get("class_name") or name
    recorded = {} if is_typed else _recorded(builder, name)
    config = _config(builder, name, class_name, recorded)
    typed = builder.settings.typed("compress", "backbone")
    if recorded and typed:  # of a folder, a header keeps but the name
        config = replace(config, backbone=typed)
    seed = recorded.get("seed", builder.settings.seed)
    outcome = builder.build(ReplayStage(builder, name, seed, class_name, config), force=False)
    if outcome.was_made:
        reason = outcome.plan.reason or "there were none"
        builder.report.note(f"drew the replays of {name} first: {reason}")


def draw_apart(
    builder: Builder,
    config: ReplayConfig,
    seed: int,
    conditions: ConditionsArtifact,
    header: dict[str, Any],
) -> "np.ndarray":
    """Replays `[N, 3, S, S]` uint8 of conditions that are not in the store."""
    return drawn_apart(builder, config, seed, conditions, header)[0]


def drawn_apart(
    builder: Builder,
    config: ReplayConfig,
    seed: int,
    conditions: ConditionsArtifact,
    header: dict[str, Any],
) -> "tuple[np.ndarray, np.ndarray]":
    """The same with the objects' masks `[N, S, S]` bool."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "replays.safetensors"
        _draw(builder, conditions, path, header, config, seed)
        replays = ReplaysReader(path)
        rows = range(len(replays))
        return replays.images(rows), replays.object_masks(rows)


def _config(
    builder: Builder, name: str, class_name: str, recorded: dict[str, Any] | None = None
) -> ReplayConfig:
    backbone = builder.header("conditions", name).get("config", {}).get("backbone", "")
    return builder.settings.config(ReplayConfig, class_name, recorded or {}, backbone)


def _recorded(builder: Builder, name: str) -> dict[str, Any]:
    """What replays say of how they were drawn, also where they cannot be used any more."""
    try:
        return read_header(builder.store.path("replays", name))
    except ArtifactError:
        return {}


def _inputs(builder: Builder, name: str) -> dict[str, str]:
    content = builder.content("conditions", name)
    header = builder.header("conditions", name)
    used = {field: header.get(field) for field in ("policy", "placement")}
    view = told(header.get("class_name", name), stored_view(header))
    inputs = {f"conditions/{name}": content, "policy": digest_of(used), **view}
    if LIMITS_OF_REAL in header:
        inputs["limits"] = digest_of({"limits": header[LIMITS_OF_REAL]})
    return inputs


def _draw(
    builder: Builder,
    conditions: ConditionsArtifact,
    path: Path,
    header: dict[str, Any],
    config: ReplayConfig,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> None:
    from replaycad.stages.replay import replay_class, replay_kept

    diffusion = builder.models.backbone(config) if conditions.is_drawn else None
    size = conditions.exemplar_size
    if diffusion:  # nothing that is drawn, or kept beside, is made smaller
        wanted = conditions.header.get("config", {}).get("image_size", 0)
        size = max(diffusion.image_size, wanted, size if conditions.exemplars else 0)
    writer = ReplaysWriter(path, header, config.num_images, size)
    if writer.rows_done:
        builder.report.note(f"going on from image {writer.rows_done} of {config.num_images}")
    if diffusion:
        replay_class(conditions, diffusion, config, seed, writer, builder.report)
    else:
        replay_kept(conditions, config, seed, writer, builder.report)
    check()
    writer.close()
