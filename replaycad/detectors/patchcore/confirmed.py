"""Lowers anomaly maps where an image looks like photos that a person confirmed as good."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from replaycad.detectors.patchcore.coreset import nearest_squared_distances

FADE = 2.0
"""Times the spacing of a class, from where on a patch is like none that was confirmed. Up to one
spacing it counts as confirmed, for such a patch joins none that is kept: it is known already."""


class Confirmed(nn.Module):
    """Patches of good photos beside a detector that was trained by gradients.

    The weights of such a detector would have to be trained to learn a photo, and would forget. So
    they stay, and its maps change: what a map has above the typical falls, by as much as the patch
    there is like one that was confirmed. A map is the same to the bit where none is near.

    Args:
        banks: by class, patches `[M, D]` float that were confirmed; M may be 0 but for one class.
        spacings: by class, what counts as near in it, above 0.
        typical: by class, the median of the maps of normal images.
    """

    _banks: torch.Tensor
    _squares: torch.Tensor
    _spacings: torch.Tensor
    _typical: torch.Tensor

    def __init__(
        self,
        banks: Sequence[torch.Tensor],
        spacings: Sequence[float],
        typical: Sequence[float],
    ) -> None:
        super().__init__()
        squares = [bank.square().sum(dim=1) for bank in banks]
        for name, values in (
            ("_banks", pad_sequence(list(banks), batch_first=True)),
            ("_squares", pad_sequence(squares, batch_first=True, padding_value=torch.inf)),
            ("_spacings", torch.tensor(spacings)),
            ("_typical", torch.tensor(typical)),
        ):
            self.register_buffer(name, values.to(banks[0]), persistent=False)

    def forward(
        self, maps: torch.Tensor, patches: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """Maps `[B, S, S]` float32 as the photos that were confirmed ask for.

        Args:
            maps: `[B, S, S]` float32 of the detector.
            patches: `[B, P, D]` float32 of the same images, in a square.
            rows: `[B]` int64, which class each image is of.
        """
        found = []
        for place in range(len(maps)):  # as memory banks do: a batch has images of many classes
            row = rows[place : place + 1]
            bank, squares = self._banks.index_select(0, row), self._squares.index_select(0, row)
            nearest = nearest_squared_distances(patches[place], bank[0], squares[0]).sqrt()
            steps = nearest / self._spacings.index_select(0, row)
            found.append(((FADE - steps) / (FADE - 1)).clamp(0, 1))
        side = math.isqrt(int(patches.shape[1]))
        likeness = torch.stack(found).reshape(-1, 1, side, side)
        known = F.interpolate(likeness, maps.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        typical = self._typical.index_select(0, rows)[:, None, None]
        return maps - known * (maps - typical).clamp_min(0)
