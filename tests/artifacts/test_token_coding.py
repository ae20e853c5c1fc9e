"""Packed tokens: nothing is lost but by rounding, and what is smooth is little."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from replaycad.artifacts.token_coding import (
    DIRECTIONS,
    LARGEST,
    SIDE,
    WIDTH,
    finest_step,
    inverse_transform,
    is_transformed,
    pack,
    transform,
    unpack,
)
from tests.bench.directions import reading_directions


def test_tokens_come_back():
    tokens = np.random.default_rng(0).normal(size=(3, SIDE**2, WIDTH)).astype(np.float32)

    found = transform(tokens)

    assert found.shape == (3, WIDTH, SIDE**2)
    back = inverse_transform(found.astype(np.float32), tokens.shape)
    assert np.abs(back - tokens).max() < 1e-3


def test_the_same_told_everywhere_is_one_number():
    direction = load_file(DIRECTIONS)["directions"][7].astype(np.float32)
    tokens = np.tile(direction, (1, SIDE**2, 1))

    found = transform(tokens)[0]

    assert found[7, 0] == pytest.approx(SIDE)
    found[7, 0] = 0
    assert np.abs(found).max() < 1e-6


@pytest.mark.parametrize("shape", [(20, 768), (2, 64, 96), (64,)])
def test_tokens_of_other_networks_stay_as_they_are(shape):
    tokens = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    assert not is_transformed(shape)
    assert is_transformed((2, SIDE**2, WIDTH))
    np.testing.assert_array_equal(transform(tokens), tokens)
    np.testing.assert_array_equal(inverse_transform(tokens.ravel(), shape), tokens)


def test_numbers_come_back_as_the_nearest_multiple_of_the_step():
    values = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)

    found = unpack(pack(values, 0.25), values.size, 0.25)

    np.testing.assert_array_equal(found, np.rint(values / 0.25).ravel() * 0.25)


def test_the_finest_step_keeps_the_largest_number_of_either_sign():
    values = np.array([-3.0, 0.5, 3.0], np.float32)
    step = finest_step(values)

    assert step == pytest.approx(3 / LARGEST)
    assert unpack(pack(values, step), 3, step) == pytest.approx(values, abs=step)
    assert finest_step(np.zeros((0, 3))) == finest_step(np.zeros(3)) == 0


def test_smooth_tokens_take_a_tenth_of_the_bytes():
    rng = np.random.default_rng(0)
    smooth = np.tile(rng.normal(size=(1, 1, WIDTH)), (4, SIDE**2, 1)).astype(np.float32)
    rough = rng.normal(size=(4, SIDE**2, WIDTH)).astype(np.float32)

    assert 10 * len(pack(transform(smooth), 0.1)) < len(pack(transform(rough), 0.1))


def test_the_directions_are_those_of_the_bundled_network():
    kept = load_file(DIRECTIONS)["directions"].astype(np.float32)

    found = reading_directions().astype(np.float32)

    np.testing.assert_allclose(kept, found, rtol=1e-3, atol=1e-4)  # the last of 16 bits
