"""What a search has learned, looked at: as many different tokens as were asked for, and a layer."""

import dataclasses

import pytest
import torch

from replaycad.config.recipes import stage_config
from replaycad.config.stages import CompressConfig
from replaycad.diffusion.posterior import Posterior
from replaycad.diffusion.search import search
from replaycad.diffusion.start import start_conditions
from replaycad.diffusion.variation import principal_variation
from tests.learned import closest_rows, standing_still, tied
from tests.tiny import IN_FEATURES, LATENT_SHAPE, OUT_FEATURES, WIDTH

STEPS = 4


def posterior(seed):
    shape = (1, 6, *LATENT_SHAPE)
    mean = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return Posterior(mean, torch.full(shape, 0.1))


def config_of(recipe, **changes):
    config = stage_config(recipe, "compress", {}, "bottle")
    assert isinstance(config, CompressConfig)
    small = {"in_features": IN_FEATURES, "out_features": OUT_FEATURES, "num_steps": STEPS,
             "batch_size": 2, "init_word": "screw", "stop_window": 0}  # fmt: skip
    return dataclasses.replace(config, **{**small, **changes})


def learned(diffusion, config, num_directions=0):
    """Parameters by name, before and after a search."""
    images = posterior(1)
    variation = principal_variation(images.mean, num_directions) if num_directions else None
    conditions = start_conditions(diffusion, images, config, 0, variation=variation)
    before = {name: p.detach().clone() for name, p in conditions.named_parameters()}
    coefficients = None if variation is None else variation.coefficients
    search(diffusion, conditions, images, posterior(2), config, 0, coefficients=coefficients)
    return before, {name: p.detach().clone() for name, p in conditions.named_parameters()}


@pytest.mark.parametrize("num_tokens", [1, 5, 20, 40])
@pytest.mark.parametrize("recipe", ["paper", "fast"])
@pytest.mark.parametrize("kind", ["diffusion", "ldm"])
def test_a_recipe_learns_as_many_tokens_as_it_stores(request, kind, recipe, num_tokens):
    diffusion = request.getfixturevalue(kind)

    before, after = learned(diffusion, config_of(recipe, num_tokens=num_tokens))

    embedding = after["semantic_embedding"]
    assert embedding.shape == (num_tokens, WIDTH)
    assert torch.linalg.matrix_rank(embedding) == min(num_tokens, WIDTH)
    assert num_tokens == 1 or closest_rows(embedding) > 0.1
    assert standing_still(before, after) == []
    assert tied(after, before) == []


@pytest.mark.parametrize("kind", ["diffusion", "ldm"])
def test_copies_of_a_word_inside_the_prompt_are_told_apart_by_their_positions(request, kind):
    diffusion = request.getfixturevalue(kind)

    before, after = learned(diffusion, config_of("release", num_tokens=5))

    assert torch.equal(before["semantic_embedding"][0], before["semantic_embedding"][4])
    assert torch.linalg.matrix_rank(after["semantic_embedding"]) == 5
    assert tied(after, before) == []


def test_variations_that_start_at_zero_part_by_their_coefficients(diffusion):
    before, after = learned(diffusion, config_of("paper", num_tokens=5), num_directions=3)

    assert not before["semantic_variations"].any()
    assert standing_still(before, after) == []
    assert tied(after, before) == []
    directions = after["semantic_variations"]
    assert torch.linalg.matrix_rank(directions.flatten(1)) == 3
    assert all(torch.linalg.matrix_rank(one) == 5 for one in directions)


def test_the_measure_itself_finds_tied_rows():
    start = {"embedding": torch.zeros(4, 3), "free": torch.zeros(4, 3), "bias": torch.zeros(4)}
    end = {"embedding": torch.ones(4, 3), "free": torch.arange(12.0).view(4, 3) + 1,
           "bias": torch.zeros(4)}  # fmt: skip

    assert tied(end, start) == ["embedding: 1 of 4"]
    assert standing_still(start, end) == ["bias"]
    assert closest_rows(torch.tensor([[3.0, 0], [0, 3], [3, 4]])) == pytest.approx(
        10**0.5 / (11 / 3)  # of the last two, over the mean of 3, 3 and 5
    )
