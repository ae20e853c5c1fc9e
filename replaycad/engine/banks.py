"""Keeps the memory banks of classes beside the artifacts, by what they were made from."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from numpy.typing import NDArray

from replaycad.artifacts.checkpoints import Checkpoint
from replaycad.artifacts.store import Store
from replaycad.config.stages import STAGE_VERSIONS, TrainConfig
from replaycad.detectors.patchcore.preset import PRESETS, PatchCorePreset
from replaycad.detectors.registry import preset_for
from replaycad.detectors.settings import PICTURE
from replaycad.engine.staleness import digest_of
from replaycad.errors import ArtifactError
from replaycad.progress import Report, silent

LIMIT_BYTES = 2**30  # of all banks that are kept; those not asked for longest go first


LIMITS_OF_REAL = "limits_of_real"
"""Field of the headers of conditions and replays: see `continual.real_limits`."""


def bank_preset(train: TrainConfig) -> PatchCorePreset:
    """Of the memory banks of a detector, or of those that judge what is kept for it.

    Args:
        train: of the detector, with no default left open.
    """
    own = preset_for(train.detector, train.preset)
    judging = PRESETS["standard"]
    assert isinstance(judging, PatchCorePreset)
    if isinstance(own, PatchCorePreset):
        return own
    return replace(judging, levels=tuple(level for level in own.levels if level != PICTURE))


def bank_digest(weights: Mapping[str, str], levels: Sequence[int], image_size: int) -> str:
    """Says how a memory bank measures: by the last two levels of an encoder at a size."""
    facts = {"encoder": weights["encoder"], "levels": list(levels[-2:]), "size": image_size}
    return digest_of(facts)[:16]


def bank_key(
    class_name: str,
    images: str,
    view: str,
    config: TrainConfig,
    seed: int,
    weights: Mapping[str, str],
    device: str,
    limit: int = 0,
) -> str:
    """Digest of all that the bank of a class depends on.

    Args:
        class_name: the class.
        images: digest of its images, or content id of its replays.
        view: how they are seen, in words.
        config: of the detector, with no default left open.
        seed: of the coreset.
        weights: digest of the encoder.
        device: kind of device that encodes.
        limit: replays that are used, from the first; 0 for all.
    """
    return digest_of({
        "class": class_name, "from": images, "view": view, "seed": seed, "device": device,
        "weights": dict(weights), "version": STAGE_VERSIONS["train"], "limit": limit,
        "preset": asdict(preset_for(config.detector, config.preset)),
        "image_size": config.image_size, "batch_size": config.batch_size,
    })  # fmt: skip


class KeptBanks:
    """Banks by class, as `continual.banks` asks for them; a missing one costs time and no more.

    Args:
        store: whose folder `.banks` holds them.
        keys: class -> digest of all that its bank depends on.
        report: hears of a folder that cannot be written.
    """

    def __init__(self, store: Store, keys: Mapping[str, str], report: Report = silent) -> None:
        self._folder, self._keys, self._report = store.root / ".banks", keys, report

    def load(self, class_name: str) -> Mapping[str, NDArray[Any]] | None:
        """The tensors that were kept under the key of a class; None if there are none."""
        file = self._file(class_name)
        found = file.load()
        if found is None:
            return None
        with suppress(OSError):  # of a store that may only be read
            os.utime(file.path)
        return found[1]

    def save(self, class_name: str, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Keep the tensors of a class, and make room for them."""
        file = self._file(class_name)
        try:
            file.save(0, dict(tensors))
            kept = sorted(
                (path.stat().st_mtime, path.stat().st_size, path)
                for path in self._folder.glob("*.safetensors")
            )
            excess = sum(size for _, size, _ in kept) - LIMIT_BYTES
            for _, size, path in kept:
                if excess <= 0 or path == file.path:
                    break
                path.unlink(missing_ok=True)
                excess -= size
        except (ArtifactError, OSError) as error:
            self._report.note(f"the bank of {class_name} is not kept for the next step: {error}")

    def _file(self, class_name: str) -> Checkpoint:
        key = self._keys[class_name]
        return Checkpoint(self._folder / f"{key[:32]}.safetensors", key)
