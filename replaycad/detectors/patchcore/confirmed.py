"""Lowers anomaly maps where an image looks like photos that a person confirmed as good."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from replaycad.anomaly import apply_both_axes, bilinear_matrix
from replaycad.detectors.patchcore.coreset import nearest_squared_distances

REACH = 2.0  # times the spacing of a class, from where on a patch is like none that was confirmed


class Confirmed(nn.Module):
    """Patches of good photos beside a detector that was trained by gradients.

    The weights of such a detector would have to be trained to learn a photo, and forget. So it is
    told at work: what its map has above the typical falls, by as much as the patch there is like
    one that was confirmed. A map is the same to the bit where none is near.

    Args:
        banks: by class, patches `[M, D]` float that were confirmed; M may be 0 but for one class.
        spacings: by class, what counts as near in it, above 0.
        typical: by class, the median of the maps of normal images.
        image_size: side of the maps in pixels.
    """

    _banks: torch.Tensor
    _squares: torch.Tensor
    _reach: torch.Tensor
    _typical: torch.Tensor

    def __init__(
        self,
        banks: Sequence[torch.Tensor],
        spacings: Sequence[float],
        typical: Sequence[float],
        image_size: int,
    ) -> None:
        super().__init__()
        self._image_size = image_size
        squares = [bank.square().sum(dim=1) for bank in banks]
        for name, values in (
            ("_banks", pad_sequence(list(banks), batch_first=True)),
            ("_squares", pad_sequence(squares, batch_first=True, padding_value=torch.inf)),
            ("_reach", REACH * torch.tensor(spacings)),
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
            found.append((1 - nearest / self._reach.index_select(0, row)).clamp_min(0))
        likeness = torch.stack(found)
        side = round(likeness.shape[1] ** 0.5)
        to_image = bilinear_matrix(self._image_size, side, align_corners=False).to(maps)
        known = apply_both_axes(likeness.reshape(-1, side, side), to_image)
        typical = self._typical.index_select(0, rows)[:, None, None]
        return maps - known * (maps - typical).clamp_min(0)
