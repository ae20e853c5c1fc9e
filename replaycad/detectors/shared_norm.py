"""Batch norm whose statistics are those of the batch of all processes, on a CPU too.

torch's own does it on GPUs alone. Each process holds an equal part of the batch.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class _Sum(torch.autograd.Function):
    """Sum over processes; so is its gradient, for each of them has a part of the loss."""

    @staticmethod
    def forward(context: Any, values: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: torch.Tensor) -> torch.Tensor:  # noqa: ARG004
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _forward(norm: nn.modules.batchnorm._BatchNorm, values: torch.Tensor) -> torch.Tensor:
    """As of `norm` in train mode, `[B, C, ...]`, over the batches of all processes."""
    count = values.numel() // values.shape[1] * dist.get_world_size()
    places = [0, *range(2, values.dim())]
    mean = _Sum.apply(values.sum(places)) / count
    shape = [1, -1] + [1] * (values.dim() - 2)
    centred = values - mean.view(shape)
    variance = _Sum.apply(centred.square().sum(places)) / count
    if norm.running_mean is not None and norm.running_var is not None:
        with torch.no_grad():
            rate = norm.momentum or 0.0
            norm.running_mean.lerp_(mean, rate)
            norm.running_var.lerp_(variance * count / (count - 1), rate)
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked += 1
    scaled = centred * torch.rsqrt(variance + norm.eps).view(shape)
    if norm.affine:
        scaled = scaled * norm.weight.view(shape) + norm.bias.view(shape)
    return scaled


class _Shared1d(nn.BatchNorm1d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _forward(self, input) if self.training else super().forward(input)


class _Shared2d(nn.BatchNorm2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _forward(self, input) if self.training else super().forward(input)


_SHARED: dict[type, type] = {nn.BatchNorm1d: _Shared1d, nn.BatchNorm2d: _Shared2d}


def share(network: nn.Module) -> None:
    """Have every batch norm of a network count the batches of all processes.

    Parameters and buffers stay where they are, under the names that they have.
    """
    for module in network.modules():
        module.__class__ = _SHARED.get(type(module), type(module))
