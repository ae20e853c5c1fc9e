"""Conditions in few bytes: what goes first, how finely the rest is rounded, what does not fit."""

from dataclasses import replace

import numpy as np
import pytest

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.config.stages import CompressConfig
from replaycad.continual.budget import COARSEST, FINE, affordable, fitted

SIZES = {"tokens": 64 * 192, "spatial": 96 * 257, "mask_bytes": 128 * 16, "num_images": 300}


@pytest.mark.parametrize(
    ("room", "form"),
    [(300_000, ("both", 8, 10)), (150_000, ("semantic", 8, 0)), (8_000, ("semantic", 8, 0))],
)
def test_the_spatial_layer_goes_first_where_bytes_are_few(room, form):
    config = affordable(CompressConfig(), room, **SIZES)

    assert (config.conditioning, config.num_variations, config.num_masks) == form


def test_what_is_certain_not_to_fit_is_known_before_the_search():
    assert affordable(CompressConfig(), 3_000, **SIZES) is None
    assert affordable(CompressConfig(conditioning="spatial"), 30_000, **SIZES) is None


def kept(scale: float = 1.0) -> ConditionsArtifact:
    rng = np.random.default_rng(0)
    return ConditionsArtifact(
        class_name="a",
        semantic_embedding=(scale * rng.normal(size=(64, 96))).astype(np.float32),
        spatial_weight=None, spatial_bias=None, object_masks=np.zeros((0, 128, 128), np.bool_),
        policy={}, half=True, poses=rng.normal(size=(200, 3)).astype(np.float32),
        semantic_variations=(0.1 * scale * rng.normal(size=(4, 64, 96))).astype(np.float32),
        coefficients=rng.normal(size=(200, 4)).astype(np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("scale", [1.0, 0.01, 300.0])
def test_the_more_room_the_finer_the_step_and_the_more_poses(scale):
    found = []
    for room in (40_000, 25_000, 15_000, 8_000):
        one = fitted(kept(scale), room)
        assert one.file_bytes() <= room
        assert len(one.poses) == len(one.coefficients)
        found.append((one.step / scale, len(one.poses)))

    steps, poses = zip(*found, strict=True)
    assert list(steps) == sorted(steps)
    assert list(poses) == sorted(poses, reverse=True)
    assert 0 < steps[0] <= FINE < 0.1 < steps[-1] <= 1.01 * COARSEST
    assert (poses[0], poses[-1]) == (200, 64)


def test_what_fits_stays_as_it_is_and_what_never_fits_is_none():
    whole = fitted(kept(), 1_000_000)
    assert (whole.step, len(whole.poses)) == (0.0, 200)
    assert fitted(kept(), 2_000) is None
    spatial_alone = replace(kept(), semantic_embedding=np.zeros((0, 96), np.float32),
                            semantic_variations=None, coefficients=None)  # fmt: skip
    assert fitted(spatial_alone, 500) is None


def test_a_budget_that_holds_no_tokens_is_refused(run):
    result = run("compress", "--class", "disc", "--budget", "1kB")

    assert result.exit_code == 1
    assert "1000 bytes do not hold the tokens of disc" in result.stderr


def test_conditions_in_a_small_budget_are_drawn_from_like_others(run, tmp_path):
    assert run("compress", "--class", "disc", "--budget", "4kB").exit_code == 0

    path = tmp_path / "store" / "conditions" / "disc.safetensors"
    assert path.stat().st_size <= 4_000
    assert run("replay", "--class", "disc").exit_code == 0
