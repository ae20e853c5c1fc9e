"""Grows a memory bank by patches of photos that it found anomalous and a person calls good."""

import torch

from replaycad.detectors.patchcore.coreset import farthest_first, nearest_squared_distances

ROWS_AT_ONCE = 512  # of a bank that are held against all of it


def spacing(bank: torch.Tensor) -> float:
    """Median distance of the patches of a bank to the nearest other patch of it.

    Args:
        bank: `[M, D]` float.

    Returns:
        0 if there is no other.
    """
    if len(bank) < 2:
        return 0.0
    squares, found = bank.square().sum(dim=1), []
    for start in range(0, len(bank), ROWS_AT_ONCE):
        rows = bank[start : start + ROWS_AT_ONCE]
        distances = torch.addmm(squares, rows, bank.T, alpha=-2) + rows.square().sum(1)[:, None]
        places = torch.arange(len(rows), device=bank.device)
        distances[places, places + start] = torch.inf  # a patch is not its own neighbour
        found.append(distances.amin(dim=1))
    return float(torch.cat(found).clamp_min_(0).median().sqrt())


def new_patches(
    bank: torch.Tensor, patches: torch.Tensor, room: int, reach: float
) -> tuple[torch.Tensor, int]:
    """Patches that a bank does not hold yet, farthest first.

    Args:
        bank: `[M, D]` float; M may be 0.
        patches: `[P, D]` float.
        room: how many may be added.
        reach: each lies farther than this from the bank and from those before it.

    Returns:
        rows of `patches`, int64; and how many are left that lie farther.
    """
    if not len(patches):
        return torch.empty(0, dtype=torch.int64, device=patches.device), 0
    nearest = torch.full_like(patches[:, 0], torch.inf)
    if len(bank):
        nearest = nearest_squared_distances(patches, bank).sqrt()
    picks = farthest_first(patches, nearest, min(room, len(patches)), reach)
    return picks, int((nearest > reach).sum())
