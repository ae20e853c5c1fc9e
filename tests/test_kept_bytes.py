"""What a class weighs: exact bytes without masks, under 0.3 MB with ten of them."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.replays import ReplaysReader, ReplaysWriter
from replaycad.config.stages import CompressConfig, ReplayConfig
from replaycad.data.classes import POLICIES
from replaycad.data.layouts import train_samples
from replaycad.diffusion.presets import BACKBONES
from replaycad.mask_ops import resize_masks
from replaycad.stages import compress as stage
from replaycad.stages.replay import replay_class
from tests.tiny import IN_FEATURES, OUT_FEATURES, tiny_diffusion


def ellipses(count, side):
    """Smooth objects `[N, side, side]` bool of different places."""
    masks = []
    for index in range(count):
        picture = Image.new("1", (side, side))
        box = np.array([0.2, 0.3, 0.7, 0.8]) + 0.01 * index
        ImageDraw.Draw(picture).ellipse((box * side).tolist(), fill=1)
        masks.append(np.asarray(picture))
    return np.array(masks)


def conditions(name, in_features=0, **changes):
    """Conditions of a full-size backbone in the paper's setting, with ten masks."""
    preset = BACKBONES[name]
    rng = np.random.default_rng(0)
    side = min(preset.image_size, stage.MAX_MASK_SIZE)
    shape = (preset.out_features, in_features or preset.in_features)
    values = {
        "class_name": "pcb4",
        "semantic_embedding": rng.standard_normal((preset.num_tokens, preset.cross_attention_dim)),
        "spatial_weight": rng.standard_normal(shape).astype(np.float32),
        "spatial_bias": np.zeros(preset.out_features, np.float32),
        "object_masks": resize_masks(ellipses(10, preset.image_size), side),
        "policy": POLICIES["pcb4"].as_dict(),
        "header": {"placement": "prompt", "key": "k", "inputs": {}, "weights": {}},
    }
    return ConditionsArtifact(**{**values, **changes})


@pytest.mark.parametrize(
    ("name", "in_features", "without_masks"),
    [("ldm256", 128, 205_600), ("sd15", 128, 160_512), ("sd15", 512, 455_424)],
)
def test_bytes_are_the_papers_and_masks_add_little(tmp_path, name, in_features, without_masks):
    kept = conditions(name, in_features)
    path = tmp_path / "one.safetensors"

    kept.save(path)

    assert kept.num_bytes_without_masks == without_masks
    assert kept.num_bytes == without_masks + 10 * 256 * 256 // 8
    assert kept.num_bytes <= path.stat().st_size <= kept.num_bytes + 4096, "a header, no more"
    if in_features == 128:
        assert path.stat().st_size < 300_000
    assert ConditionsArtifact.load(path).num_bytes == kept.num_bytes


def test_a_halved_mask_comes_back_nearly_whole():
    masks = ellipses(3, 512)

    back = resize_masks(resize_masks(masks, 256), 512)

    overlap = (masks & back).sum() / (masks | back).sum()
    assert overlap > 0.99


def test_no_masks_stay_no_masks():
    assert resize_masks(np.zeros((0, 512, 512), bool), 256).shape == (0, 256, 256)


def test_stored_masks_are_small_and_replays_have_masks_of_their_size(
    tmp_path, data, monkeypatch
):
    monkeypatch.setattr(stage, "MAX_MASK_SIZE", 16)
    diffusion = tiny_diffusion(tmp_path / "backbone")
    samples = train_samples(data, "disc")
    header = {"policy": {**POLICIES["pill"].as_dict(), "class_name": "disc"}, "key": "k"}
    masks = MasksArtifact(
        class_name="disc", image_ids=[sample.image_id for sample in samples],
        object_masks=ellipses(6, 64), area_fraction=np.full(6, 0.2, np.float32), rule="corners",
        header=header,
    )  # fmt: skip
    config = CompressConfig(
        init="random", num_tokens=2, in_features=IN_FEATURES,
        out_features=OUT_FEATURES, num_steps=1, batch_size=2, num_masks=4, alignment="none",
    )  # fmt: skip

    kept = stage.compress_class(samples, masks, diffusion, config, 0, {"key": "k"})
    target = tmp_path / "replays.safetensors"
    drawing = ReplayConfig(num_images=3, num_inference_steps=2, batch_size=2)
    writer = ReplaysWriter(target, {"class_name": "disc", "key": "k"}, 3, 32)
    replay_class(kept, diffusion, drawing, 0, writer)
    writer.close()

    assert kept.object_masks.shape == (4, 16, 16)
    drawn = ReplaysReader(target).object_masks([0, 1, 2])
    large = resize_masks(kept.object_masks, 32)
    assert drawn.shape == (3, 32, 32)
    assert all(any(np.array_equal(one, mask) for mask in large) for one in drawn)
