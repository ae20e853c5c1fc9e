"""Whether what is replayed of a class gives its training images away."""

from pathlib import Path
from typing import Any

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.inspection import schema_of
from replaycad.artifacts.replays import ReplaysReader
from replaycad.config.recipes import EXEMPLAR_ENCODER
from replaycad.data.samples import train_samples
from replaycad.errors import ArtifactError, DatasetError

AUDITED_REPLAYS = 1000  # at most, the first ones


def audit_file(path: Path, data: Path) -> dict[str, Any]:
    """Hold the replays of a class against its training images.

    Args:
        path: replays, or the conditions of a store that also holds their replays.
        data: folder of the images.

    Returns:
        `class_name`, `num_replays`, `num_images`, `num_kept_images` (real ones in the conditions,
        where these are at hand), what `continual.audit` finds and the `near_copies` of either kind.

    Raises:
        ArtifactError: another kind of artifact, or no replays of these conditions.
        DatasetError: no such class, or less than two training images.
    """
    kind = schema_of(path).format
    if kind not in ("replays", "conditions"):
        message = f"{path} is an artifact of format `{kind}`; only replays can be audited"
        raise ArtifactError(message, "give a file of replays/ or conditions/")
    beside = {one: path.parent.parent / one / path.name for one in ("replays", "conditions")}
    beside[kind] = path
    if not beside["replays"].exists():
        hint = f"run `replaycad replay --class {path.stem}`"
        raise ArtifactError(f"{beside['replays']} is not there: nothing to audit", hint)
    kept = ConditionsArtifact.load(beside["conditions"]) if beside["conditions"].exists() else None

    # The encoder and its torch are not needed to refuse a file.
    from replaycad.continual.audit import audit, near_copies  # noqa: PLC0415
    from replaycad.data.images import load_images  # noqa: PLC0415
    from replaycad.detectors.encoders import load_encoder  # noqa: PLC0415

    replays = ReplaysReader(beside["replays"])
    class_name = replays.header["class_name"]
    drawn = replays.images(range(min(len(replays), AUDITED_REPLAYS)))
    samples = train_samples(data, class_name)
    if len(samples) < 2:
        raise DatasetError(f"{class_name} has one training image: no distance among them", "")
    found = audit(drawn, load_images(samples, drawn.shape[-1]), load_encoder(EXEMPLAR_ENCODER))
    return {
        "class_name": class_name, "num_replays": len(drawn), "num_images": len(samples),
        "num_kept_images": None if kept is None else len(kept.exemplars),
        **found, "near_copies": near_copies(found),
    }  # fmt: skip
