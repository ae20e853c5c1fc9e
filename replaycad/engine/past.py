"""What a detector has of a past class: replays, or the features that were kept of it."""

from typing import Any

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.config.stages import TrainConfig
from replaycad.continual.representations import FEATURES_SERVE
from replaycad.detectors.registry import preset_for
from replaycad.engine.builder import Builder
from replaycad.engine.staleness import input_header
from replaycad.errors import ArtifactError


def keeps_features(builder: Builder, name: str) -> bool:
    """Whether features are what is kept under a name, or will be once a dry run is none."""
    if f"conditions/{name}" in builder.changing:
        return builder.forms.get(name) == "features"
    return builder.header("conditions", name).get("form") == "features"


def check_serves(builder: Builder, name: str, config: TrainConfig, weights: dict[str, str]) -> None:
    """Refuse features that a detector cannot use.

    Args:
        builder: of the command.
        name: of conditions that are features.
        config: of the training, with no default left open.
        weights: digest of its encoder.

    Raises:
        ArtifactError: it is another detector, encoder or image size, or reads other levels.
    """
    if f"conditions/{name}" in builder.changing:
        return
    path = builder.store.path("conditions", name)
    header = input_header(path, "conditions")
    served: dict[str, Any] = header.get("features", {})
    wanted: dict[str, tuple[Any, Any]] = {
        "detector": (served.get("detector"), config.detector),
        "encoder": (header.get("weights", {}).get("encoder"), weights.get("encoder")),
        "image_size": (served.get("image_size"), config.image_size),
    }
    if config.detector == FEATURES_SERVE:
        levels = list(preset_for(config.detector, config.preset).levels)
        wanted["levels"] = (served.get("levels"), levels)
    for what, (known, asked) in wanted.items():
        if known != asked:
            if what == "encoder":
                known, asked = header.get("config", {}).get("encoder"), config.encoder
            raise ArtifactError(
                f"{path} holds features for another {what}: {known}, not {asked}",
                f"train with that {what}, or compress {name} again with this one or "
                "--keep exemplars",
            )


def read_features(builder: Builder, name: str) -> ConditionsArtifact:
    """Conditions that are features, with a bank and the limits of its scores.

    Raises:
        ArtifactError: they are missing, damaged, or hold no features after all.
    """
    path = builder.store.path("conditions", name)
    kept = ConditionsArtifact.load(path)
    limits = kept.header.get("features", {}).get("limits")
    if kept.features is None or not isinstance(limits, dict):
        raise ArtifactError(f"{path} says that it holds features, but does not", "compress again")
    return kept
