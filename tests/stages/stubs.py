"""Networks whose answers are known: what they see is what they say."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.data.samples import Sample
from replaycad.detectors.interface import Detector

SIDE = 4  # pixels of every picture and map


def dots(*placed: tuple[int, int, int], side: int = SIDE) -> np.ndarray:
    """A black picture `[side, side]` uint8 with some pixels (row, column, value)."""
    picture = np.zeros((side, side), np.uint8)
    for row, column, value in placed:
        picture[row, column] = value
    return picture


def write_sample(
    folder: Path, name: str, picture: np.ndarray, mask: np.ndarray | None = None, **facts: Any
) -> Sample:
    """A grey picture as PNG, and its anomaly mask if it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    path, masks = folder / f"{name}.png", []
    Image.fromarray(picture).save(path)
    if mask is not None:
        masks.append(folder / f"{name}_mask.png")
        Image.fromarray(mask).save(masks[0])
    known = {"kind": "good", "is_anomalous": mask is not None, **facts}
    return Sample(
        path=path, image_id=name, class_name=folder.name, mask_paths=tuple(masks), **known
    )


class Plain(nn.Module):
    """An encoder whose only level is the image's red channel, 0 to 255."""

    channels, strides, device = (1,), (1,), torch.device("cpu")
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)

    def encode_images(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Levels of `[B, 3, H, W]` uint8."""
        return [images[:, :1].float()]


class Mirror(Detector):
    """A detector whose map is the picture it sees, times `gain`; it remembers what it was shown.

    Attributes:
        shown: values at the upper left corner of each image, for every batch of `loss`.
        progress: share of the training that was done at each of them.
        noise: a number drawn at each of them.
        fitted: likewise for every class that `fit` was given.
        streams: seed of the random stream that came with each.
        shrunk: how often it was asked to shrink.
        asked: of every image that `fitted_maps` was asked for: this value, class and place.
    """

    def __init__(self, trained_by: str = "loss") -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.trained_by = trained_by
        self.shown: list[list[int]] = []
        self.progress: list[float] = []
        self.noise: list[float] = []
        self.fitted: dict[int, list[int]] = {}
        self.streams: dict[int, int] = {}
        self.shrunk = 0
        self.asked: list[tuple[int, int, int]] = []

    def loss(self, features: Sequence[torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """No number that could move the gain."""
        self.shown.append(corners(features))
        self.progress.append(progress)
        self.noise.append(float(torch.rand(())))
        return 0 * self.gain.sum()

    def fit(
        self, features: Iterable[Sequence[torch.Tensor]], class_index: int,
        generator: torch.Generator,
    ) -> None:  # fmt: skip
        """Remember which images these are."""
        self.streams[class_index] = generator.initial_seed()
        self.fitted[class_index] = [value for levels in features for value in corners(levels)]

    def shrink(self) -> None:
        """Count how often that is asked."""
        self.shrunk += 1

    def anomaly_maps(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """The picture, `[B, H, W]`."""
        return (features[0][:, 0] * self.gain).detach()

    def fitted_maps(
        self, features: Sequence[torch.Tensor], class_index: Sequence[int], places: Sequence[int]
    ) -> torch.Tensor:
        """The picture; who was asked for is remembered."""
        self.asked += zip(corners(features), class_index, places, strict=True)
        return self.anomaly_maps(features)


def corners(features: Sequence[torch.Tensor]) -> list[int]:
    """Value of each image at its upper left corner."""
    return features[0][:, 0, 0, 0].int().tolist()


def mirror_artifact(gain: float = 1.0, **others: Any) -> DetectorArtifact:
    """A trained `Mirror` of pictures of `SIDE` px."""
    values = {
        "detector": "invad", "preset": "mini", "encoder": "plain", "image_size": SIDE,
        "class_order": ["bolt"], "state": {"gain": np.array([gain], np.float32)}, "thresholds": {},
    }  # fmt: skip
    return DetectorArtifact(**{**values, **others})


class Flats:
    """Stored replays, each of one value all over.

    Args:
        values: of the images, 0 to 255.
    """

    def __init__(self, values: Sequence[int]) -> None:
        grown = np.array(values, np.uint8)[:, None, None, None]
        self._images = np.broadcast_to(grown, (len(values), 3, SIDE, SIDE)).copy()
        self.image_size = SIDE

    def __len__(self) -> int:
        return len(self._images)

    def images(self, indices: Sequence[int]) -> np.ndarray:
        """Images at these places."""
        return self._images[list(indices)]
