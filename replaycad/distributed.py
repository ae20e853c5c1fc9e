"""Processes that torchrun started together: which of them this is, and what they exchange.

Alone, a process is rank 0 of 1 and nothing is exchanged. On a CPU they talk through gloo, on GPUs
through nccl.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replaycad.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Ranks:
    """This process among those of one command.

    Attributes:
        rank: its number, from 0.
        count: of processes.
        local: its number on this machine, which is that of its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0


def ranks() -> Ranks:
    """What torchrun's environment says.

    Raises:
        ConfigError: if it makes no sense.
    """
    try:
        found = Ranks(*(int(os.environ.get(name, default)) for name, default in (
            ("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))))  # fmt: skip
    except ValueError:
        found = Ranks(count=0)
    if not 0 <= found.rank < found.count:
        message = "RANK and WORLD_SIZE of the environment do not fit together"
        raise ConfigError(message, "start with torchrun, or unset both")
    return found


def join(device: "torch.device") -> None:
    """Meet the other processes, once; alone, do nothing."""
    if ranks().count == 1:
        return
    import torch.distributed as dist  # noqa: PLC0415

    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def wait() -> None:
    """Go on when all have come here; alone, at once."""
    if ranks().count == 1:
        return
    import torch.distributed as dist  # noqa: PLC0415

    dist.barrier()


def leave() -> None:
    """Part from the others when all have come here; alone, do nothing."""
    if ranks().count == 1:
        return
    import torch.distributed as dist  # noqa: PLC0415

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def average_gradients(parameters: Iterable["torch.nn.Parameter"]) -> None:
    """Replace gradients of any shape, `[...]`, by their mean over all processes."""
    count = ranks().count
    if count == 1:
        return
    import torch  # noqa: PLC0415
    import torch.distributed as dist  # noqa: PLC0415

    known = [one for one in parameters if one.requires_grad]
    for one in known:  # what no rank has used is zero in all of them
        one.grad = torch.zeros_like(one) if one.grad is None else one.grad
    gradients = [one.grad for one in known if one.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= count
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))  # in its own memory order, which optimisers assume
