"""How near replays of a class come to its training images, and which of them are near copies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.inspection import schema_of
from replaycad.artifacts.replays import ReplaysReader
from replaycad.config.stages import AUDIT_ENCODER
from replaycad.continual.exemplars import describe
from replaycad.data.images import load_images, viewed
from replaycad.data.layouts import train_samples
from replaycad.data.views import View
from replaycad.detectors.encoders import Encoder, load_encoder
from replaycad.errors import ArtifactError, DatasetError

AUDITED_REPLAYS = 1000  # at most, the first ones
COPY_RATIO = 0.5
"""A replay is a near copy if it lies less than half as far from its nearest training image as that
lies from the one nearest to it (the ratio of Yoon et al. 2023 on memorisation, with one neighbour).
"""
_SIDE = 64  # px at which pixels are compared
_CHUNK = 64


def audit_file(path: Path, data: Path) -> dict[str, Any]:
    """Compare the replays of a class with its training images.

    Args:
        path: replays, or the conditions of a store that also holds their replays.
        data: folder of the images.

    Returns:
        `class_name`, `num_replays`, `num_images`, `num_kept_images` (real ones in the conditions,
        where these are at hand), `num_fragments` likewise and `largest_share` of one image that
        they are, 0..1, what `audit` returns and the `near_copies` of either kind.

    Raises:
        ArtifactError: another kind of artifact, or no replays of these conditions.
        DatasetError: no such class, or less than two training images.
    """
    kind = schema_of(path).format
    if kind not in ("replays", "conditions"):
        message = f"{path} is an artifact of format `{kind}`; only replays can be audited"
        raise ArtifactError(message, "give a file of replays/ or conditions/")
    beside = {name: path.parent.parent / name / path.name for name in ("replays", "conditions")}
    beside[kind] = path
    if not beside["replays"].exists():
        hint = f"run `replaycad replay --class {path.stem}`"
        raise ArtifactError(f"{beside['replays']} is not there: nothing to audit", hint)
    kept = ConditionsArtifact.load(beside["conditions"]) if beside["conditions"].exists() else None
    fragments, share = None if kept is None else kept.fragments, 0.0
    if kept is not None and fragments is not None:
        share = fragments.largest_share(kept.exemplar_size)
    replays = ReplaysReader(beside["replays"])
    class_name = replays.header["class_name"]
    drawn = replays.images(range(min(len(replays), AUDITED_REPLAYS)))
    samples = train_samples(data, class_name)
    if len(samples) < 2:
        raise DatasetError(f"{class_name} has one training image: no distance among them", "")
    view = View.from_dict(replays.header.get("view"))
    real = load_images(viewed(samples, view), drawn.shape[-1])
    distances = audit(drawn, real, load_encoder(AUDIT_ENCODER))
    return {
        "class_name": class_name, "num_replays": len(drawn), "num_images": len(samples),
        "num_kept_images": None if kept is None else len(kept.exemplars),
        "num_fragments": 0 if fragments is None else len(fragments),
        "largest_share": share,
        **distances, "near_copies": near_copies(distances),
    }  # fmt: skip


def audit(
    drawn: NDArray[np.uint8], real: NDArray[np.uint8], encoder: Encoder
) -> dict[str, dict[str, Any]]:
    """Distance of each drawn image to the nearest training image, beside that among the latter.

    Args:
        drawn: `[N, 3, S, S]` uint8.
        real: `[M, 3, S, S]` uint8, the training images; two or more.
        encoder: frozen.

    Returns:
        `pixels` (root mean square of grey levels, at 64 px) and `features` (cosine-like, of pooled
        features), each with the medians `replay_to_image` and `image_to_image`, the smallest
        `ratio` of the two and `near_copies`, the places of the replays below `COPY_RATIO`.
    """
    rows = {
        "pixels": (_pixels(drawn), _pixels(real)),
        "features": (describe(drawn, encoder), describe(real, encoder)),
    }
    return {name: _compared(*pair) for name, pair in rows.items()}


def near_copies(distances: Mapping[str, Mapping[str, Any]]) -> list[int]:
    """Replays that `audit` calls copies, in pixels or in features."""
    return sorted({index for part in distances.values() for index in part["near_copies"]})


def _compared(drawn: torch.Tensor, real: torch.Tensor) -> dict[str, Any]:
    among, _ = _nearest(real, real, skip_self=True)
    to_real, which = _nearest(drawn, real)
    ratios = to_real / among[which].clamp_min(1e-6)
    return {
        "replay_to_image": float(to_real.median()),
        "image_to_image": float(among.median()),
        "ratio": float(ratios.min()),
        "near_copies": torch.nonzero(ratios < COPY_RATIO).flatten().tolist(),
    }


def _pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """`[N, D]` whose Euclidean distances are root mean squares of grey levels."""
    small = F.interpolate(
        torch.from_numpy(images).float(), size=(_SIDE, _SIDE), mode="area"
    ).flatten(1)  # fmt: skip
    return small / small.shape[1] ** 0.5


def _nearest(
    rows: torch.Tensor, others: torch.Tensor, skip_self: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance to the nearest of the others, and which that is: `[N]` float32, `[N]` int64."""
    distances, places = [], []
    for start in range(0, len(rows), _CHUNK):
        chunk = torch.cdist(
            rows[start : start + _CHUNK], others, compute_mode="donot_use_mm_for_euclid_dist"
        )
        if skip_self:
            chunk[torch.arange(len(chunk)), torch.arange(start, start + len(chunk))] = torch.inf
        least, place = chunk.min(dim=1)
        distances.append(least)
        places.append(place)
    return torch.cat(distances), torch.cat(places)
