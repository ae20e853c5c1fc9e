"""How a class varies: the few directions in which its latents differ most, and where each lies."""

from typing import NamedTuple

import torch

MAX_SEEN = 512  # latents at most that the directions are found from: every n-th of the class


class Variation(NamedTuple):
    """Principal components of a class's latents.

    Attributes:
        directions: `[R, C, h, w]` float32, one standard deviation long.
        coefficients: `[A, N, R]` float32, of every latent; variance about 1, mean about 0.
    """

    directions: torch.Tensor
    coefficients: torch.Tensor

    def taken_out(self, latents: torch.Tensor) -> torch.Tensor:
        """What is left of the first augmentation's latents `[N, C, h, w]` at coefficients of 0."""
        return latents - torch.tensordot(self.coefficients[0], self.directions, 1)


def principal_variation(latents: torch.Tensor, count: int) -> Variation | None:
    """Find the directions of largest variance.

    Args:
        latents: `[A, N, C, h, w]` float, the class under every augmentation.
        count: R, at least 1; fewer come out where the latents span fewer.

    Returns:
        None where none come out: one latent alone does not vary.
    """
    rows = latents.flatten(0, 1)
    seen = rows[:: -(-len(rows) // MAX_SEEN)].flatten(1).float()
    mean = seen.mean(0)
    seen = seen - mean
    # The small matrix of products between latents has the same spectrum as their covariance.
    values, vectors = torch.linalg.eigh(seen @ seen.T / len(seen))
    largest = float(values[-1])
    count = min(count, int((values > 1e-6 * largest).sum())) if largest > 0 else 0
    if not count:
        return None
    values, vectors = values[-count:].flip(0), vectors[:, -count:].flip(1)
    directions = vectors.T @ seen / len(seen) ** 0.5  # length: the standard deviation
    coefficients = torch.cat([
        (part.flatten(1).float() - mean) @ directions.T / values for part in rows.split(MAX_SEEN)
    ])  # fmt: skip
    return Variation(
        directions.view(count, *latents.shape[2:]), coefficients.view(*latents.shape[:2], count)
    )
