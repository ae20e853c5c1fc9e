"""What every detector is to the rest of the program: features in; a loss or a fit, and maps out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from replaycad import anomaly


class Detector(nn.Module):
    """The trainable part of a detector; the frozen encoder stays outside and is not in the state.

    `features` is always the encoder's pyramid: a list from fine to coarse of `[B, C, H, W]` float,
    as the levels named by the detector's preset. Random numbers come from torch's global stream,
    which the caller seeds for each step.

    Args:
        channels: of the encoder's levels, from fine to coarse.
        strides: of the encoder's levels.
        image_size: side of the input images in pixels.
        preset: of the detector.

    Raises:
        ConfigError: if these do not fit together.

    Attributes:
        trained_by: `loss` for gradient steps on `loss`, `fit` for one call of `fit` per class,
            `both` for the steps and then the calls.
        localizes: whether a map says more than the score of its image.
        is_graph: whether it does the same with every image, so that it can be exported.
    """

    trained_by: Literal["loss", "fit", "both"] = "loss"
    localizes: bool = True
    is_graph: bool = True

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the detector makes of the features, levels `[B, C, H, W]`: differentiable."""
        raise NotImplementedError

    def loss(self, features: Sequence[torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """Scalar to be minimised for levels `[B, C, H, W]`, in train mode.

        Args:
            features: of one batch of normal images.
            progress: share of the training that is done, 0..1.
        """
        raise NotImplementedError

    def labelled_loss(
        self, features: Sequence[torch.Tensor], class_index: torch.Tensor, progress: float = 0.0
    ) -> torch.Tensor:
        """What training minimises: `loss`, for all that do not learn which class an image is of.

        Args:
            features: of one batch of normal images.
            class_index: `[B]` int64, of the images, in the order in which classes were learned.
            progress: share of the training that is done, 0..1.
        """
        return self.loss(features, progress)

    def begin(self, num_classes: int, is_first: bool) -> None:
        """Make ready for a training after which it knows so many classes.

        Args:
            num_classes: the new ones too.
            is_first: whether it starts from scratch.
        """

    def guarded(self) -> list[str]:
        """Names of the linear layers and convolutions whose steps a guard can hold."""
        return []

    def fit(
        self,
        features: Iterable[Sequence[torch.Tensor]],
        class_index: int,
        generator: torch.Generator,
    ) -> None:
        """Learn one class from its pyramids, batch by batch, levels `[B, C, H, W]`.

        Args:
            features: of the class's normal images.
            class_index: which class this is; what was learnt of it before is replaced.
            generator: CPU random stream.
        """
        raise NotImplementedError

    def shrink(self) -> None:
        """Keep of all fitted classes, each alike, no more than `fit` may keep of one."""
        raise NotImplementedError

    def anomaly_maps(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps `[B, image_size, image_size]` float32 without gradient, computed in eval mode."""
        raise NotImplementedError

    def fitted_maps(
        self, features: Sequence[torch.Tensor], class_index: Sequence[int], places: Sequence[int]
    ) -> torch.Tensor:
        """Maps as `anomaly_maps`, of images that `fit` was given, as if each had not been.

        A threshold over images that a memory knows by heart would raise an alarm at any other.

        Args:
            features: pyramids of these images, levels `[B, C, H, W]`.
            class_index: `[B]`, the class that each was fitted to.
            places: `[B]`, where it stood among the images of its class.
        """
        return self.anomaly_maps(features)

    def image_scores(self, anomaly_maps: torch.Tensor) -> torch.Tensor:
        """Scores `[B]` of images with maps `[B, H, W]`; the maximum unless the paper says else."""
        return anomaly.image_scores(anomaly_maps)


def make_room(
    module: nn.Module, names: Iterable[str], state: Mapping[str, torch.Tensor], prefix: str
) -> None:
    """Let buffers take the shape `[...]` that they were saved with, before they are loaded.

    Args:
        module: that loads.
        names: of its buffers.
        state: what is loaded, in which the names stand behind `prefix`.
        prefix: likewise.
    """
    for name in names:
        if prefix + name in state:
            setattr(module, name, getattr(module, name).new_empty(state[prefix + name].shape))


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Keep a module in eval mode and without gradients while the block runs."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)
