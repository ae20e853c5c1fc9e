"""Bases of what layers were given, as CDAD's program finds them: the control of `continual.guard`.

Singular values are dropped from image to image, so that a later image outweighs all before it, and
of a new class the first columns of what is left are appended, which are neither orthogonal nor of
length 1. It is here to be measured beside the exact form.

Deviation: 24 images of a class make its bases; the program takes every tenth. Each projection of an
attention has a basis of what it is given, where the program gives all three the query's.
"""

from collections.abc import Iterable, Mapping

import torch

NEW_SHARE = 0.5  # of the columns of a new class that its appended ones must cover


def released_bases(
    images: Iterable[Mapping[str, torch.Tensor]],
    before: Mapping[str, torch.Tensor],
    energy: float,
) -> dict[str, torch.Tensor]:
    """Go on from the bases of earlier classes by the images of one more.

    Args:
        images: of each image, by layer, the moment `[in, in]` float64 of what it gave the layer.
        before: bases `[in, r]` of the classes before, by layer; empty for the first.
        energy: share of the squared singular values that an image's vectors must cover.

    Returns:
        `[in, r']` float16 by layer.
    """
    bases: dict[str, torch.Tensor] = {}
    for moments in images:
        for name, moment in moments.items():
            bases[name] = with_image(bases.get(name), moment, energy)
    return {
        name: (merged(before[name], basis) if name in before else basis).half()
        for name, basis in bases.items()
    }


def with_image(
    basis: torch.Tensor | None, moment: torch.Tensor, energy: float
) -> torch.Tensor:
    """Left singular vectors of a basis `[in, r]` beside the columns of one more image.

    They are eigenvectors of the sum of both moments. The basis' columns have length 1, whatever
    they stood for.

    Returns:
        `[in, r']` float64, as many as stay below `energy` of the sum, at least one.
    """
    whole = moment if basis is None else moment + basis @ basis.T
    values, vectors = torch.linalg.eigh(whole)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    kept = int((values.cumsum(0) < energy * values.sum()).sum())
    return vectors[:, : max(kept, 1)]


def merged(before: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Append to a basis `[in, r]` the first columns of what it leaves of another `[in, q]`."""
    before = before.to(basis)
    left = basis - before @ (before.T @ basis)
    known = float((before.T @ basis).square().sum())
    gained = left.square().sum(0).cumsum(0)
    wanted = NEW_SHARE * basis.shape[1] - known
    many = int((gained < wanted).sum()) + 1 if wanted > 0 else 0
    return torch.cat([before, left[:, :many]], dim=1)
