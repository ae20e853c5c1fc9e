"""Neighbourhoods and jitter of tokens against their definitions."""

import torch

from replaycad.detectors.tokens import jitter, neighbours, to_maps, to_tokens


def test_tokens_and_maps_are_two_views_of_the_same():
    maps = torch.randn(2, 5, 4, 4)

    tokens = to_tokens(maps)

    assert torch.equal(tokens[1, 4 * 2 + 3], maps[1, :, 2, 3])
    assert torch.equal(to_maps(tokens, 4), maps)


def test_neighbours_are_those_within_reach_along_both_axes():
    near = neighbours(5, 1)

    for place in range(25):
        row, column = divmod(place, 5)
        expected = torch.zeros(5, 5, dtype=torch.bool)
        expected[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2] = True
        assert torch.equal(near[place].reshape(5, 5), expected)


def test_jitter_is_as_large_as_the_token_and_the_scale_say():
    torch.manual_seed(0)
    tokens = torch.zeros(1, 2, 10_000)
    tokens[0, 0, 0], tokens[0, 1, 0] = 30.0, 60.0

    noise = jitter(tokens, 20.0) - tokens

    expected = torch.tensor([30.0, 60.0]) / 10_000 * 20
    torch.testing.assert_close(noise[0].std(dim=1), expected, rtol=0.03, atol=0.0)
