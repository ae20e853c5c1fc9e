"""Picks few vectors that leave none far away, and finds the nearest of them exactly."""

import torch

NUM_START_POINTS = 10
NUM_CANDIDATES = 4096  # of one round of greedy picks: 2 MB, which a processor keeps at hand
DISTANCES = 2**21
"""Distances computed at once, 8 MB: a processor has them at hand when it looks for the least. Held
against 4,000 patches of 152 numbers, 8,192 took 78 ms so and 115 ms by 16 million distances."""


def greedy_coreset(
    vectors: torch.Tensor, num_picks: int, generator: torch.Generator, projection_width: int
) -> torch.Tensor:
    """Indices of vectors that leave none far from its nearest pick (greedy k-centre).

    Distances are taken in a random projection; the start is the mean distance to a few random
    vectors.

    Args:
        vectors: `[N, D]` float.
        num_picks: at most N.
        generator: CPU random stream of projection and start.
        projection_width: width of the projection; wider vectors than this are projected.

    Returns:
        `[num_picks]` int64.
    """
    num_vectors, width = vectors.shape
    if num_picks >= num_vectors:
        return torch.arange(num_vectors, device=vectors.device)
    if width > projection_width:
        projection = torch.randn(width, projection_width, generator=generator)
        vectors = vectors @ (projection / projection_width**0.5).to(vectors)
    start = torch.randperm(num_vectors, generator=generator)[:NUM_START_POINTS]
    points = vectors[start.to(vectors.device)]
    chunks = vectors.split(DISTANCES // NUM_START_POINTS)  # of which cdist makes a copy
    nearest = torch.cat([torch.cdist(chunk, points).mean(dim=1) for chunk in chunks])
    return farthest_first(vectors, nearest, num_picks)


def farthest_first(
    vectors: torch.Tensor, nearest: torch.Tensor, num_picks: int, reach: float = -1.0
) -> torch.Tensor:
    """Indices of vectors, each the farthest from all that was picked before it.

    Args:
        vectors: `[N, D]` float.
        nearest: `[N]`, distance to what is there already; afterwards also to what was picked.
        num_picks: at most so many, and at most N.
        reach: no vector is picked that lies this near or nearer.

    Returns:
        int64, at most `num_picks`.
    """
    picks = torch.empty(0, dtype=torch.int64, device=vectors.device)
    while len(picks) < num_picks and float(nearest.max()) > reach:
        farthest = _pick_among_far(vectors, nearest, num_picks - len(picks), reach)
        _bring_up_to_date(nearest, vectors, vectors[farthest])
        picks = torch.cat([picks, farthest])
    return picks


def _pick_among_far(
    vectors: torch.Tensor, nearest: torch.Tensor, num_picks: int, reach: float
) -> torch.Tensor:
    """The next greedy picks, as long as none but the farthest vectors can be among them.

    Distances only shrink: until the farthest candidate is nearer than every other vector was at
    the start, the others need not be looked at. All of them are then brought up to date by one
    matrix product, which is what makes this an order faster than one pass per pick.

    Args:
        vectors: `[N, D]` float.
        nearest: `[N]`, distance to what has been picked.
        num_picks: at most.
        reach: below the farthest of them; none is picked that lies this near or nearer.

    Returns:
        At least one index, int64.
    """
    farthest = nearest.topk(min(NUM_CANDIDATES + 1, len(nearest)))
    limit = float(farthest.values[-1]) if len(nearest) > NUM_CANDIDATES else -1.0
    limit = max(limit, reach)
    candidates = farthest.indices[:NUM_CANDIDATES].sort().values
    near, own = nearest[candidates], vectors[candidates]
    squares = own.square().sum(dim=1)
    chosen: list[int] = []
    while len(chosen) < num_picks:
        value, place = near.max(dim=0)
        if chosen and float(value) <= limit:
            break
        chosen.append(int(place))
        distances = torch.addmv(squares + squares[place], own, own[place], alpha=-2)
        near = torch.minimum(near, distances.clamp_min_(0).sqrt_())
    return candidates[chosen]


def _bring_up_to_date(nearest: torch.Tensor, vectors: torch.Tensor, picked: torch.Tensor) -> None:
    """Lower distances `[N]` of vectors `[N, D]` to those to `[P, D]`, where these are nearer.

    All distances are computed in the same memory: with new memory for each part, what was given
    back was left in holes too small for the next, up to 2 GB for 400,000 vectors.
    """
    squares, rows = picked.square().sum(dim=1), max(1, DISTANCES // len(picked))
    memory = vectors.new_empty(min(rows, len(vectors)), len(picked))
    for chunk, near in zip(vectors.split(rows), nearest.split(rows), strict=True):
        partial = torch.addmm(squares, chunk, picked.T, alpha=-2, out=memory[: len(chunk)])
        distances = partial.amin(dim=1) + chunk.square().sum(dim=1)
        torch.minimum(near, distances.clamp_min_(0).sqrt_(), out=near)


def nearest_squared_distances(
    queries: torch.Tensor, bank: torch.Tensor, bank_squares: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared distance `[Q]` of queries to their exact nearest neighbour.

    Args:
        queries: `[Q, D]` float.
        bank: `[M, D]` float.
        bank_squares: `[M]`, squared length of each vector of the bank, infinite where a row is to
            be left out; None to compute it.
    """
    if bank_squares is None:
        bank_squares = bank.square().sum(dim=1)
    chunks = []
    for chunk in queries.split(max(1, DISTANCES // max(1, len(bank)))):
        # without the query's own square
        partial = torch.addmm(bank_squares, chunk, bank.T, alpha=-2)
        chunks.append(partial.amin(dim=1) + chunk.square().sum(dim=1))
    return torch.cat(chunks).clamp_min_(0)
