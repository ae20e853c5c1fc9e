"""DNE: one Gaussian over embeddings of all classes, of which each past class leaves a Gaussian.

Li et al., ACM MM 2022. It judges images and points at nothing.

Deviation: DNE fine-tunes all of a ViT-B; here the encoder is frozen, like everywhere, two layers on
its features learn, and a piece is pasted among the features (CutPaste) rather than in the image.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from replaycad.detectors.cut_paste import windows
from replaycad.detectors.dne.preset import DNEPreset
from replaycad.detectors.interface import Detector, evaluating, make_room
from replaycad.errors import ConfigError

PASTED_AREA = (0.02, 0.15)  # of an image
PASTED_ASPECT = (0.1, 1.0)  # shorter side over longer one, before it is turned
_MEMORY = ("memory_mean", "memory_covariance", "memory_count", "memory_class")


class DNE(Detector):
    """Two layers over the frozen features, a Gaussian per class, and the one over them all.

    Args:
        channels: of the encoder's levels, from fine to coarse; together the width D.
        strides: of the encoder's levels.
        image_size: side of the input images in pixels.
        preset: what is learned and what is kept.

    Raises:
        ConfigError: if encoder and image size do not fit.

    Attributes:
        memory_mean, memory_covariance: `[T, D]` and `[T, D, D]` float32, of T classes' embeddings.
        memory_count, memory_class: `[T]` int64, images and index of each of these classes.
    """

    trained_by = "both"
    localizes = False
    memory_mean: torch.Tensor
    memory_covariance: torch.Tensor
    memory_count: torch.Tensor
    memory_class: torch.Tensor
    mean: torch.Tensor
    precision: torch.Tensor
    centre: torch.Tensor
    is_centred: torch.Tensor

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        image_size: int,
        preset: DNEPreset,
    ) -> None:
        """Draw the layers; no class is known yet."""
        super().__init__()
        if image_size <= 0 or image_size % strides[-1] or len(channels) > 2:
            raise ConfigError(
                f"DNE needs one or two encoder levels and an image size that the last stride "
                f"divides, found strides {tuple(strides)} and {image_size} px",
                "use another preset or another encoder",
            )
        self.image_size, self.preset = image_size, preset
        width = sum(channels)
        self.adapter = nn.Sequential(
            nn.Conv2d(width, preset.hidden_width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(preset.hidden_width, width, 1),
        )  # fmt: skip
        self.head = nn.Linear(width, 2)
        self.register_buffer("memory_mean", torch.zeros(0, width))
        self.register_buffer("memory_covariance", torch.zeros(0, width, width))
        for name in ("memory_count", "memory_class"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("precision", torch.eye(width))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("is_centred", torch.zeros((), dtype=torch.bool))

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Adapted features `[B, D, H, W]` of the finest level's size."""
        return [self._adapted(_joined(features))]

    def loss(self, features: Sequence[torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """Normal or spoilt (CutPaste), or how far from the centre of the class (PANDA).

        The head is learned with the first class alone. The centre is that of the first batch.
        """
        joined = _joined(features)
        normal = self._adapted(joined).mean(dim=(2, 3))
        if self.preset.task == "compactness":
            if not self.is_centred:
                self.centre.copy_(normal.detach().mean(dim=0))
                self.is_centred.fill_(True)
            return (normal - self.centre).square().mean()
        spoilt = self._adapted(cut_and_paste(joined)).mean(dim=(2, 3))
        head: list[torch.Tensor] = [self.head.weight, self.head.bias]
        if len(self.memory_mean):
            head = [values.detach() for values in head]
        labels = torch.arange(2, device=joined.device).repeat_interleave(len(joined))
        return F.cross_entropy(F.linear(torch.cat([normal, spoilt]), *head), labels)

    @torch.no_grad()
    def fit(
        self,
        features: Iterable[Sequence[torch.Tensor]],
        class_index: int,
        generator: torch.Generator,
    ) -> None:
        """Remember one class as a Gaussian; draw the others from theirs, for the one over all.

        Args:
            features: pyramids of the class's normal images, batch by batch.
            class_index: which class this is; its earlier Gaussian is replaced.
            generator: CPU random stream of what is drawn.

        Raises:
            ValueError: if there is not a single batch.
        """
        with evaluating(self):
            batches = [self._embedded(pyramid).cpu() for pyramid in features]
        if not batches:
            raise ValueError("cannot remember a class of no images")
        own = torch.cat(batches)
        others = (self.memory_class != class_index) & self.preset.keeps_past
        drawn = [
            _draw(*gaussian, generator) for gaussian in zip(
                self.memory_mean[others].cpu(), self.memory_covariance[others].cpu(),
                self.memory_count[others].tolist(), strict=True,
            )
        ]  # fmt: skip
        mean, covariance = _gaussian(own)
        new = (mean, covariance, torch.tensor(len(own)), torch.tensor(class_index))
        for name, value in zip(_MEMORY, new, strict=True):
            known = getattr(self, name)
            setattr(self, name, torch.cat([known[others], value[None].to(known)]))
        mean, covariance = _gaussian(F.normalize(torch.cat([*drawn, own]), dim=1))
        self.mean.copy_(mean)
        self.precision.copy_(torch.linalg.inv(covariance.double()))
        self.is_centred.fill_(False)

    @torch.no_grad()
    def anomaly_maps(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """The image's Mahalanobis distance at every pixel: `[B, image_size, image_size]`, >= 0.

        Raises:
            ValueError: if no class has been fitted.
        """
        if not len(self.memory_mean):
            raise ValueError("DNE knows no class yet: call fit first")
        with evaluating(self):
            off = self._embedded(features) - self.mean
        distance = (off @ self.precision * off).sum(dim=1).clamp_min(0).sqrt()
        return distance[:, None, None].expand(-1, self.image_size, self.image_size).contiguous()

    def _adapted(self, joined: torch.Tensor) -> torch.Tensor:
        return joined + self.adapter(joined)

    def _embedded(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Embeddings `[B, D]` of length 1."""
        return F.normalize(self._adapted(_joined(features)).mean(dim=(2, 3)), dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let the memory take the size it was saved with."""
        make_room(self, _MEMORY, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _joined(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """All levels `[B, C, H, W]` as one `[B, D, H, W]` float32 of the finest one's size."""
    size = features[0].shape[-2:]
    levels = [features[0].float()] + [
        F.interpolate(level.float(), size, mode="bilinear", align_corners=False)
        for level in features[1:]
    ]
    return torch.cat(levels, dim=1)


def cut_and_paste(joined: torch.Tensor) -> torch.Tensor:
    """Features `[B, D, H, W]` with a rectangle of each copied elsewhere (Li et al. 2021).

    Draws from torch's global stream on the CPU, whatever the device.
    """
    height, width = joined.shape[-2:]
    spoilt = joined.clone()
    draws = torch.rand(len(joined), 7, device="cpu").tolist()
    for row, (area, shape, turn, *places) in enumerate(draws):
        share = PASTED_AREA[0] + area * (PASTED_AREA[1] - PASTED_AREA[0])
        aspect = PASTED_ASPECT[0] ** (1 - shape)  # log-uniform
        aspect = 1 / aspect if turn < 0.5 else aspect
        source, target = windows(share, aspect, places, height, width)
        spoilt[row, :, *target] = joined[row, :, *source]
    return spoilt


def _gaussian(embeddings: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean `[D]` and Ledoit-Wolf covariance `[D, D]`, float32, of embeddings `[N, D]`."""
    from sklearn.covariance import ledoit_wolf  # noqa: PLC0415  # half a second that others save

    covariance, _ = ledoit_wolf(embeddings.double().numpy())
    return embeddings.mean(dim=0), torch.from_numpy(covariance).float()


def _draw(
    mean: torch.Tensor, covariance: torch.Tensor, count: int, generator: torch.Generator
) -> torch.Tensor:
    """So many embeddings `[count, D]` float32 of a Gaussian."""
    values, vectors = torch.linalg.eigh(covariance.double())
    noise = torch.randn(count, len(mean), generator=generator, dtype=torch.float64)
    return (mean + noise * values.clamp_min(0).sqrt() @ vectors.T).float()
