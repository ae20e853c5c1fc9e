"""Whether what is learned is told apart: rows that start equal and stay equal are one row."""

from collections.abc import Mapping

import torch


def standing_still(
    before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]
) -> list[str]:
    """Names of tensors of which no value moved."""
    return [name for name, start in before.items() if torch.equal(start, after[name])]


def tied(after: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of tensors whose rows that moved all moved alike, or are now copies of each other.

    A row is what one index of the first dimension holds: one token, one unit, one channel. Single
    numbers that start equal, as biases do, may agree by chance after a few steps of one sign; then
    two different ones are enough.
    """
    found = []
    for name, end in after.items():
        moves = (end - before[name]).flatten(1) if end.ndim > 1 else (end - before[name])[:, None]
        moved = moves.abs().sum(1) > 0
        if moved.sum() < 2:
            continue
        rows = end.reshape(len(end), -1)[moved]
        distinct = min(len(moves[moved].unique(dim=0)), len(rows.unique(dim=0)))
        wanted = 2 if end.ndim == 1 else 0.9 * int(moved.sum())
        if distinct < wanted:
            found.append(f"{name}: {distinct} of {int(moved.sum())}")
    return found


def closest_rows(rows: torch.Tensor) -> float:
    """Smallest distance of two rows `[K, D]` over the mean norm of a row."""
    apart = torch.cdist(rows, rows) + torch.diag(torch.full((len(rows),), float("inf")))
    return float(apart.min() / rows.norm(dim=1).mean())
