"""A detector behind its encoder as one network: from the bytes of images to verdicts."""

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import nn

from replaycad.anomaly import normalized_scores
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.continual.confirmed import confirmed_beside
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.products import Nearness, routed_maps
from replaycad.errors import ConfigError
from replaycad.stages.eval import rebuild_detector, rebuild_router

OUTPUTS = ("image_scores", "anomaly_maps")
TOLD = ("class_index", "product_distances")  # by a detector that tells classes apart


class DetectorGraph(nn.Module):
    """A detector behind its encoder as one network.

    Where classes are told apart, by the detector or a router beside it, each image is judged by the
    thresholds of its class; else by those over all classes. `of_class` has one class's thresholds
    for all images, and holds them against its bank where banks are apart. Where people confirmed
    photos of a class as good, its maps are lowered.

    Args:
        trained: the detector.
        encoder: the frozen one that it was trained with.
    """

    _limits: torch.Tensor
    _products: torch.Tensor

    def __init__(self, trained: DetectorArtifact, encoder: Encoder) -> None:
        super().__init__()
        self.detector, self._encoder = rebuild_detector(trained, encoder), encoder
        self.thresholds: Mapping[str, Any] = trained.thresholds
        self.named = ""
        self.classes: list[str] = []  # that it tells apart, in the order of `Nearness`
        by_class = trained.thresholds.get("by_class", {})
        self._router = rebuild_router(trained, encoder, self.detector)
        self._confirmed = confirmed_beside(trained, self._router)
        self._rows: dict[str, int] = {}  # class -> its place among those of the router
        if self._router is not None:
            names = [trained.class_order[index] for index in self._router.known_classes()]
            self._rows = {name: row for row, name in enumerate(names)}
            self.classes = names if all(name in by_class for name in names) else []
        limits = [
            [by_class[name][kind] for kind in ("typical_image", "image", "typical_pixel", "pixel")]
            for name in self.classes
        ]
        products = [by_class[name].get("product", torch.inf) for name in self.classes]
        for name, values in (("_limits", limits), ("_products", products)):
            tensor = torch.tensor(values, dtype=torch.float32, device=encoder.device)
            self.register_buffer(name, tensor, persistent=False)
        self.eval()

    @property
    def has_banks(self) -> bool:
        """Whether it is a memory bank or has one beside it, to tell classes apart."""
        return self._router is not None

    @property
    def outputs(self) -> tuple[str, ...]:
        """What `forward` gives."""
        return (*OUTPUTS, *TOLD) if self.classes else OUTPUTS

    def of_class(self, name: str) -> "DetectorGraph":
        """The same with the thresholds of one class.

        Raises:
            ConfigError: if it has none of that class.
        """
        by_class = self.thresholds.get("by_class", {})
        if name not in by_class:
            hint = f"it has thresholds for: {', '.join(by_class)}" if by_class else "train it again"
            raise ConfigError(f"the detector has no threshold for class '{name}'", hint)
        own = copy(self)  # shares the networks
        own.thresholds, own.named = by_class[name], name
        return own

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Judge `[B, 3, S, S]` uint8 RGB.

        Returns:
            image scores `[B]` and anomaly maps `[B, S, S]`, float32 on the scale where 0 is typical
            of normal images and 1 the threshold. Where `classes` are told apart also the row of the
            class of each image among them, `[B]` int64, and how far the image is from it, `[B]`
            float32: above 1 it is of no class that is known.
        """
        maps, near = self.raw_maps(images)
        scores = self.detector.image_scores(maps)
        if near is None:
            return self.normalized(scores), self.normalized(maps, "pixel")
        row = self._row(near.means)
        own = self._limits.index_select(0, row)
        low, low_pixel = own[:, 0], own[:, 2, None, None]
        spread = (own[:, 1] - low).clamp_min(1e-12)
        pixel_spread = (own[:, 3, None, None] - low_pixel).clamp_min(1e-12)
        distances = near.lows.gather(1, row[:, None])[:, 0]
        return (scores - low) / spread, (maps - low_pixel) / pixel_spread, row, distances

    def raw_maps(self, images: torch.Tensor) -> tuple[torch.Tensor, Nearness | None]:
        """Anomaly maps `[B, S, S]` float32 of `[B, 3, S, S]` uint8 RGB as they come.

        With them how far images are from classes, None where these are not told apart; `lows` in
        parts of what images of a class may have: above 1 an image is of no such product.
        """
        router = self._router if self.classes or self._confirmed else None
        row = self._rows.get(self.named)
        features = self._encoder.encode_images(images)
        maps, near = routed_maps(self.detector, router, features, row, self._confirmed)
        if near is None or not self.classes:
            return maps, None
        return maps, near._replace(lows=near.lows / self._products)

    def patches(self, images: torch.Tensor) -> torch.Tensor:
        """What its banks compare, `[B, P, D]` float32, of `[B, 3, S, S]` uint8 RGB."""
        assert self._router is not None
        return self._router.patches(self._encoder.encode_images(images))

    def normalized(
        self, values: torch.Tensor, kind: str = "image", class_name: str = ""
    ) -> torch.Tensor:
        """Scores `[B]` or maps `[B, H, W]` on the scale where 1 is the threshold.

        That of the class of `of_class`, of the class named here, or over all classes.
        """
        return normalized_scores(values, self._own(class_name), kind)

    def alarm(self, class_name: str = "") -> float:
        """What the limit of image scores is on the scale of `normalized` maps."""
        limit = torch.tensor(self._own(class_name)["image"], dtype=torch.float64)
        return float(normalized_scores(limit, self._own(class_name), "pixel"))

    def _row(self, means: torch.Tensor) -> torch.Tensor:
        """Places `[B]` of the classes of images: as named, or those least far of `[B, K]`."""
        row = means.argmin(dim=1)
        return torch.full_like(row, self._rows[self.named]) if self.named else row

    def _own(self, class_name: str) -> Mapping[str, float]:
        named = class_name and not self.named
        return self.thresholds["by_class"][class_name] if named else self.thresholds
