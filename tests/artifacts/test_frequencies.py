"""Packed tokens as frequencies: nothing is lost but by rounding, and what is smooth is little."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from replaycad.artifacts.frequencies import (
    DIRECTIONS,
    SIDE,
    WIDTH,
    from_frequencies,
    have_places,
    to_frequencies,
)
from tests.bench.directions import reading_directions


def test_tokens_come_back():
    tokens = np.random.default_rng(0).normal(size=(3, SIDE**2, WIDTH)).astype(np.float32)

    found = to_frequencies(tokens)

    assert found.shape == (3, WIDTH, SIDE**2)
    assert np.abs(from_frequencies(found.astype(np.float32)) - tokens).max() < 1e-3


def test_the_same_told_everywhere_is_one_number():
    direction = load_file(DIRECTIONS)["directions"][7].astype(np.float32)
    tokens = np.tile(direction, (1, SIDE**2, 1))

    found = to_frequencies(tokens)[0]

    assert found[7, 0] == pytest.approx(SIDE)
    found[7, 0] = 0
    assert np.abs(found).max() < 1e-6


@pytest.mark.parametrize("shape", [(20, 768), (2, 64, 96), (64,)])
def test_tokens_of_other_networks_have_no_grid(shape):
    assert not have_places(shape)
    assert have_places((2, SIDE**2, WIDTH))


def test_the_directions_are_those_of_the_bundled_network():
    kept = load_file(DIRECTIONS)["directions"].astype(np.float32)

    found = reading_directions().astype(np.float32)

    np.testing.assert_allclose(kept, found, rtol=1e-3, atol=1e-4)  # the last of 16 bits
