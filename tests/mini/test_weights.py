"""The models that come with the package: they load, they fit together, they do something."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

import replaycad.mini
from replaycad.detectors.encoders import load_encoder
from replaycad.diffusion.backbones import load_backbone
from replaycad.diffusion.conditioning import num_spatial_tokens
from replaycad.diffusion.presets import BACKBONES
from replaycad.mini.world.pictures import HELD_OUT_SEED, draw, draw_class
from replaycad.segmentation.sam import load_segmenter

WEIGHTS = Path(replaycad.mini.__file__).parent / "weights"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("mini", CPU)


def test_all_weights_together_stay_within_forty_megabytes():
    total = sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file())

    assert total < 40e6


def test_no_file_names_a_place_of_the_machine_that_made_it():
    for path in WEIGHTS.rglob("*.json"):
        assert "/" not in path.read_text().replace("</w>", "").replace('"/"', ""), path


def test_the_card_names_the_digest_of_every_file():
    card = (WEIGHTS / "README.md").read_text()

    for path in WEIGHTS.rglob("*.safetensors"):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert f"| `{path.relative_to(WEIGHTS).as_posix()}` | `{digest}` |" in card


def test_the_backbone_is_what_its_preset_says(backbone):
    preset = BACKBONES["mini"]

    assert backbone.latent_shape == preset.latent_shape
    assert backbone.image_size == preset.image_size
    assert backbone.cross_attention_dim == preset.cross_attention_dim
    start = backbone.spatial_init
    assert (start.in_features, start.out_features) == (preset.in_features, preset.out_features)
    sizes = (start.in_features, start.out_features, backbone.cross_attention_dim)
    assert num_spatial_tokens(preset.latent_shape, *sizes) == 12


def test_the_autoencoder_keeps_a_picture_it_has_not_seen(backbone):
    image = draw(draw_class(HELD_OUT_SEED + 1020), 0).image
    images = torch.from_numpy(image).permute(2, 0, 1)[None]

    again = backbone.decode(backbone.encode_images(images)[0])

    error = (again.float() - images.float()).pow(2).mean()
    assert 10 * torch.log10(255**2 / error) > 26


def test_the_set_encoder_tells_classes_apart(backbone):
    tokens = []
    for number in (1000, 1020):
        images = np.stack([draw(draw_class(HELD_OUT_SEED + number), i).image for i in range(8)])
        latents = backbone.encode_images(torch.from_numpy(images).permute(0, 3, 1, 2))[0]
        with torch.no_grad():
            tokens += [backbone.set_encoder(half[None]) for half in latents.split(4)]
    first, first_again, second, _ = tokens

    assert (first - first_again).pow(2).mean() < 0.5 * (first - second).pow(2).mean()


def test_the_segmenter_finds_a_part_on_a_plain_ground():
    picture = draw(draw_class(HELD_OUT_SEED + 1000), 0)

    found = load_segmenter("mini").corner_mask(picture.image)

    overlap = (found & picture.object_mask).sum() / (found | picture.object_mask).sum()
    assert overlap > 0.75


def test_the_encoder_gives_three_levels_and_notices_a_scratch():
    encoder = load_encoder("mini", CPU)
    spec = draw_class(HELD_OUT_SEED + 1020)
    good = draw(spec, 0)
    bad = draw(spec, 0, defect="any")
    images = torch.from_numpy(np.stack([good.image, bad.image])).permute(0, 3, 1, 2)

    levels = encoder.encode_images(images)

    assert [level.shape[-1] for level in levels] == [32, 16, 8]
    change = (levels[0][0] - levels[0][1]).pow(2).mean(0)
    y, x = divmod(int(change.argmax()), 32)
    near = bad.anomaly_mask[max(0, 4 * y - 8) : 4 * y + 12, max(0, 4 * x - 8) : 4 * x + 12]
    assert near.any()
