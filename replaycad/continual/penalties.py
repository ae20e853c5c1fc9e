"""EWC and MAS: hold those weights still that earlier classes need."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from replaycad.detectors.interface import Detector

Tensors = dict[str, torch.Tensor]
Pyramids = Iterable[Sequence[torch.Tensor]]


def fisher_information(detector: Detector, pyramids: Pyramids) -> Tensors:
    """EWC's importances: the mean over images of (d loss / d weight)^2 (Kirkpatrick et al. 2017).

    The gradient of each image is squared alone: the square of a batch's mean gradient is smaller
    by about the size of the batch.

    Args:
        detector: trained; its loss is taken in eval mode at the end of training.
        pyramids: of normal images, one or more at a time, levels `[B, C, H, W]`.

    Returns:
        One tensor of each trained parameter's shape, by its name.
    """
    return _mean_over_images(
        detector, pyramids, lambda image: detector.loss(image, progress=1.0), torch.square
    )


def output_sensitivity(detector: Detector, pyramids: Pyramids) -> Tensors:
    """MAS's importances: the mean over images of |d ||f||^2 / d weight| (Aljundi et al. 2018).

    f is what the detector makes of the features. Arguments and result are those of
    `fisher_information`.
    """
    return _mean_over_images(
        detector, pyramids, lambda image: sum(level.square().sum() for level in detector(image)),
        torch.abs,
    )  # fmt: skip


IMPORTANCES: Mapping[str, Callable[[Detector, Pyramids], Tensors]] = {
    "ewc": fisher_information,
    "mas": output_sensitivity,
}


def _mean_over_images(
    detector: Detector,
    pyramids: Pyramids,
    scalar: Callable[[Sequence[torch.Tensor]], torch.Tensor],
    size: Callable[[torch.Tensor], torch.Tensor],
) -> Tensors:
    named = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(parameter) for name, parameter in named.items()}
    count, was_training = 0, detector.training
    detector.eval()
    for pyramid in pyramids:
        for index in range(len(pyramid[0])):
            image = [level[index : index + 1] for level in pyramid]
            gradients = torch.autograd.grad(scalar(image), list(named.values()), allow_unused=True)
            for kept, gradient in zip(total.values(), gradients, strict=True):
                if gradient is not None:
                    kept += size(gradient)
            count += 1
    detector.train(was_training)
    return {name: kept / count for name, kept in total.items()}


def normalized(importances: Tensors) -> Tensors:
    """Scaled to a mean of 1 over all weights, so that a penalty's weight fits any detector."""
    count = sum(values.numel() for values in importances.values())
    mean = torch.stack([values.sum() for values in importances.values()]).sum() / count
    return {name: values / mean.clamp_min(1e-30) for name, values in importances.items()}


def added(importances: Tensors, other: Tensors) -> Tensors:
    """Importances of several steps, which count alike (online EWC with a decay of 1)."""
    return {name: values + as_large(other[name], values) for name, values in importances.items()}


def as_large(values: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Importances `[n, ...]` with zeros for what the parameter `[m, ...]` has grown by since.

    A head that has a row for each class grows; nothing of the past needs the new rows.
    """
    whole = torch.zeros_like(other)
    whole[tuple(slice(size) for size in values.shape)] = values.to(whole)
    return whole


class Penalty:
    """weight / 2 * sum of importance * (parameter - anchor)^2, a scalar with gradient.

    Args:
        detector: whose parameters are held, as they are now.
        importances: of its parameters, by name.
        weight: of the whole.
    """

    def __init__(self, detector: Detector, importances: Tensors, weight: float) -> None:
        named = dict(detector.named_parameters())
        self._weight = weight
        self._held = [
            (named[name], named[name].detach().clone(), as_large(values, named[name]))
            for name, values in importances.items()
        ]

    def __call__(self) -> torch.Tensor:
        """Of the parameters as they are at this moment."""
        parts = [(own * (now - anchor).square()).sum() for now, anchor, own in self._held]
        return self._weight / 2 * torch.stack(parts).sum()
