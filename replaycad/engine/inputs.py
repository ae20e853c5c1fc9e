"""Digests of everything that is read but not made here: images and frozen networks."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from replaycad.artifacts.digests import DigestCache, file_digest, images_digest
from replaycad.artifacts.store import Store
from replaycad.data.samples import Sample
from replaycad.detectors.encoder_files import encoder_files
from replaycad.detectors.registry import preset_for
from replaycad.diffusion.presets import backbone_files, locate_backbone, split_name
from replaycad.engine.staleness import digest_of
from replaycad.segmentation.presets import locate as locate_segmenter

NO_SEGMENTER = "none"
_START_ONLY = ("set_encoder", "spatial_encoder")  # give a search its start; drawing needs them not


class InputDigests:
    """Digests with a cache in the store; each network is looked for without reading its weights.

    Args:
        store: that keeps the cache.
    """

    def __init__(self, store: Store) -> None:
        self.cache = DigestCache(store.root)

    def images(self, samples: Sequence[Sample]) -> str:
        """One digest over images and their masks."""
        return images_digest(samples, self.cache)

    def segmenter(self, name: str) -> dict[str, str]:
        """Network -> sha256; empty for the segmenter `none`.

        Raises:
            WeightsError: if its files are not there.
        """
        if name == NO_SEGMENTER:
            return {}
        return {"segmenter": self._digest(locate_segmenter(name).paths)}

    def backbone(self, name: str, drawing: bool = False) -> dict[str, str]:
        """Network -> sha256 of a diffusion model.

        Args:
            name: as `diffusion.presets.locate_backbone` takes it.
            drawing: leave out the networks that only a search reads.

        Raises:
            WeightsError: if its files are not there.
        """
        files = backbone_files(locate_backbone(name), split_name(name)[1])
        return {
            network: self._digest(paths)
            for network, paths in files.items()
            if not (drawing and network in _START_ONLY)
        }

    def encoder(self, name: str) -> dict[str, str]:
        """Network -> sha256 of a detector's encoder.

        Raises:
            WeightsError: if its files are not there.
        """
        return {"encoder": self._digest(encoder_files(name))}

    def detector(self, encoder: str, detector: str, preset: str) -> dict[str, str]:
        """Network -> sha256 of all that is frozen in a detector: its encoder, and what it draws by.

        Raises:
            WeightsError: if their files are not there.
            ConfigError: if the detector or its preset is unknown.
        """
        chosen = preset_for(detector, preset)
        weights = self.backbone(chosen.backbone, drawing=True) if chosen.backbone else {}
        if chosen.segmenter:
            weights |= self.segmenter(chosen.segmenter)
        if chosen.transformer and chosen.transformer != chosen.segmenter:
            weights["transformer"] = self._digest(encoder_files(chosen.transformer))
        return weights | self.encoder(encoder)

    def _digest(self, paths: Iterable[Path]) -> str:
        """One digest over files; the hub's names for the same weights do not count."""
        return digest_of({str(n): file_digest(path, self.cache) for n, path in enumerate(paths)})
