"""Copies of training images are found; new images of the class are not called copies."""

import json
import shutil

import numpy as np
import pytest

from replaycad.audit import audit, near_copies
from replaycad.detectors.encoders import load_encoder
from tests.conftest import invoke

SIZE = 64


def pictures(seed: int, count: int) -> np.ndarray:
    """Squares of other places and colours on noise, `[N, 3, S, S]` uint8."""
    rng = np.random.default_rng(seed)
    images = rng.integers(90, 110, (count, 3, SIZE, SIZE), dtype=np.uint8)
    for image in images:
        top, left = rng.integers(0, SIZE - 24, 2)
        image[:, top : top + 24, left : left + 24] = rng.integers(0, 256, (3, 1, 1))
    return images


def test_copies_are_found_and_new_images_are_not():
    real, new = pictures(0, 40), pictures(1, 10)
    copied = real[[3, 17]].astype(np.int16) + 3  # a little brighter than the originals
    drawn = np.concatenate([new, np.clip(copied, 0, 255).astype(np.uint8)])

    found = audit(drawn, real, load_encoder("mini"))

    assert near_copies(found) == [10, 11]
    assert found["pixels"]["ratio"] < 0.2
    assert found["pixels"]["replay_to_image"] == pytest.approx(
        found["pixels"]["image_to_image"], rel=0.5
    )


def test_distances_of_pixels_are_in_grey_levels():
    real = np.stack([np.full((3, SIZE, SIZE), value, np.uint8) for value in (0, 100, 140)])
    drawn = np.full((1, 3, SIZE, SIZE), 110, np.uint8)

    found = audit(drawn, real, load_encoder("mini"))["pixels"]

    assert found["replay_to_image"] == pytest.approx(10, rel=1e-3)
    assert found["image_to_image"] == pytest.approx(40, rel=1e-3)  # of 100, 40 and 40
    assert found["ratio"] == pytest.approx(0.25, rel=1e-3)


def test_inspect_audits_replays_and_the_conditions_they_were_drawn_from(chain, data, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(chain, store)
    told = []
    for kind in ("replays", "conditions"):
        file = store / kind / "disc.safetensors"
        result = invoke(["inspect", file, "--audit", "--data", data, "--json"])
        assert result.exit_code == 0, result.output
        told.append(json.loads(result.stdout))

    assert told[0] == told[1]
    assert (told[0]["num_images"], told[0]["num_kept_images"]) == (6, 0)
    table = invoke(["inspect", store / "replays" / "disc.safetensors", "--audit", "--data", data])
    assert "replays are near copies of one of the 6 training images" in table.stdout
    refused = invoke(["inspect", store / "masks" / "disc.safetensors", "--audit", "--data", data])
    assert "only replays can be audited" in refused.stderr
    shutil.rmtree(store / "replays")
    missing = invoke(
        ["inspect", store / "conditions" / "disc.safetensors", "--audit", "--data", data]
    )
    assert "replaycad replay --class disc" in missing.stderr
