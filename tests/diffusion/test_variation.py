"""The directions in which a class varies, against the singular vectors of its latents."""

import torch

from replaycad.diffusion.variation import MAX_SEEN, principal_variation

SHAPE = (3, 4, 4)


def latents(augmentations=1, count=30, rank=48, seed=0):
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randn(augmentations, count, rank, generator=rng)
    return 5 + torch.tensordot(scores, torch.randn(rank, *SHAPE, generator=rng), 1)


def test_directions_are_the_principal_components_one_standard_deviation_long():
    given = latents()
    rows = given[0].flatten(1)
    _, values, vectors = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)

    found = principal_variation(given, 3)

    directions = found.directions.flatten(1)
    torch.testing.assert_close(directions.norm(dim=1), values[:3] / 30**0.5)
    cosines = (directions * vectors[:3]).sum(1) / directions.norm(dim=1)
    torch.testing.assert_close(cosines.abs(), torch.ones(3))
    torch.testing.assert_close(found.coefficients[0].mean(0), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.coefficients[0].std(0, correction=0), torch.ones(3))


def test_what_lies_in_few_directions_is_taken_out_whole():
    given = latents(augmentations=2, rank=2)

    found = principal_variation(given, 4)

    assert found.directions.shape == (2, *SHAPE)  # there are no more
    assert found.coefficients.shape == (2, 30, 2)
    left = found.taken_out(given[0])
    torch.testing.assert_close(left, left[:1].expand_as(left), atol=1e-3, rtol=0)


def test_many_latents_are_described_by_directions_of_some():
    given = latents(count=MAX_SEEN + 300, rank=2)

    found = principal_variation(given, 2)

    assert found.coefficients.shape == (1, MAX_SEEN + 300, 2)
    left = found.taken_out(given[0])
    torch.testing.assert_close(left, left[:1].expand_as(left), atol=1e-3, rtol=0)


def test_one_latent_or_equal_ones_do_not_vary():
    assert principal_variation(latents(count=1), 4) is None
    assert principal_variation(torch.ones(1, 5, *SHAPE), 4) is None
