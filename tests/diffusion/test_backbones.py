"""Loading frozen models, and what they do with images and masks."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from replaycad.diffusion.backbones import default_dtype, load_backbone, mask_images
from replaycad.diffusion.conditioning import SpatialEncoder
from replaycad.diffusion.set_encoder import SetEncoder
from replaycad.errors import WeightsError
from tests.tiny import IN_FEATURES, LATENT_SHAPE, OUT_FEATURES, WIDTH, make_tiny_backbone

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A backbone's folder, never written to."""
    return make_tiny_backbone(tmp_path_factory.mktemp("original") / "backbone")


@pytest.fixture
def folder(original, tmp_path):
    """A copy to damage."""
    return shutil.copytree(original, tmp_path / "backbone")


def edit(path, **changes):
    """Change values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", ["diffusion", "ldm"])
def test_networks_are_frozen_and_sizes_known(request, kind):
    diffusion = request.getfixturevalue(kind)

    for network in (diffusion.vae, diffusion.unet, diffusion.text_encoder):
        assert not network.training
        assert not any(p.requires_grad for p in network.parameters())
    assert diffusion.latent_shape == LATENT_SHAPE
    assert diffusion.image_size == 32
    assert diffusion.cross_attention_dim == WIDTH
    assert diffusion.scaling_factor == 0.5
    assert diffusion.alphas_cumprod.shape == (1000,)
    assert (diffusion.device, diffusion.dtype) == (CPU, torch.float32)


def test_loading_says_nothing_on_the_terminal(original, capfd):
    load_backbone(original, CPU)

    assert capfd.readouterr() == ("", "")


def test_half_precision_leaves_the_vae_alone(original):
    diffusion = load_backbone(original, CPU, torch.bfloat16)

    assert diffusion.unet.dtype == diffusion.text_encoder.dtype == torch.bfloat16
    assert diffusion.vae.dtype == torch.float32
    assert default_dtype(CPU) == torch.float32
    assert default_dtype(torch.device("cuda")) == torch.bfloat16


def test_encoding_gives_the_scaled_posterior(diffusion):
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)

    mean, std = diffusion.encode_images(images)

    with torch.no_grad():
        expected = diffusion.vae.encode(images / 127.5 - 1).latent_dist
    assert torch.equal(mean, expected.mean * 0.5)
    assert torch.equal(std, expected.std * 0.5)
    assert not mean.requires_grad


def test_a_code_does_not_depend_on_how_many_there_are(diffusion):
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8)

    many, one = diffusion.encode_images(images)[0], diffusion.encode_images(images[5:])[0]

    assert torch.equal(many[5:], one)
    assert torch.equal(diffusion.decode(many)[5:], diffusion.decode(one))


def test_decoding_gives_rounded_bytes_in_batches(diffusion):
    latents = torch.randn(5, *LATENT_SHAPE) * 0.5

    images = diffusion.decode(latents)

    with torch.no_grad():
        pixel_values = diffusion.vae.decode(latents / 0.5).sample
    difference = images - ((pixel_values + 1) * 127.5).clamp(0, 255)
    assert images.dtype == torch.uint8
    assert images.shape == (5, 3, 32, 32)
    assert difference.abs().max() <= 0.5 + 1e-3


def test_masks_are_drawn_white_on_black_with_grey_edges():
    object_masks = np.zeros((2, 100, 60), bool)
    object_masks[0, 33:70, 20:41] = True

    images = mask_images(object_masks, 32)

    assert images.shape == (2, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert torch.equal(images[:, 0], images[:, 2])
    assert images[0, 0, 16, 16] == 255
    assert images[1].max() == images[0, 0, 0, 0] == 0
    assert ((images[0] > 20) & (images[0] < 235)).any()


def test_a_mask_of_the_right_size_is_kept_exactly():
    object_mask = np.random.default_rng(0).random((1, 32, 32)) > 0.5

    images = mask_images(object_mask, 32)

    assert np.array_equal(images[0, 1].numpy(), object_mask[0] * np.uint8(255))


def test_encode_masks_is_encode_images_of_the_drawing(diffusion):
    object_masks = np.zeros((2, 40, 40), bool)
    object_masks[1, 10:30] = True

    mean, _ = diffusion.encode_masks(list(object_masks))

    assert torch.equal(mean, diffusion.encode_images(mask_images(object_masks, 32))[0])


def test_the_two_networks_of_the_start_are_loaded_where_present(folder):
    set_encoder = SetEncoder(4, 16, WIDTH, width=12, depth=1)
    parts = {
        "set_encoder": (set_encoder, set_encoder.config),
        "spatial_encoder": (
            SpatialEncoder(IN_FEATURES, OUT_FEATURES, WIDTH),
            {"in_features": IN_FEATURES, "out_features": OUT_FEATURES},
        ),
    }
    for name, (network, config) in parts.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        save_file(
            {key: value.half() for key, value in network.state_dict().items()},
            folder / name / "model.safetensors",
        )

    diffusion = load_backbone(folder, CPU)

    assert diffusion.set_encoder(torch.zeros(1, 2, *LATENT_SHAPE)).shape == (1, 64, WIDTH)
    assert diffusion.spatial_init.weight.dtype == torch.float32
    torch.testing.assert_close(
        diffusion.spatial_init.weight, parts["spatial_encoder"][0].weight.half().float()
    )
    assert not any(p.requires_grad for p in diffusion.set_encoder.parameters())


def test_unet_weights_without_ema_win(folder):
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(plain)
    tensors["conv_out.bias"] += 1
    save_file(tensors, folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")

    diffusion = load_backbone(folder, CPU)

    assert torch.equal(diffusion.unet.conv_out.bias, tensors["conv_out.bias"])


@pytest.mark.parametrize("network", ["vae", "unet", "text_encoder"])
def test_damaged_weights_are_named(folder, network):
    (path,) = (folder / network).glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:200])

    with pytest.raises(WeightsError, match=f"{network}.*cannot be loaded"):
        load_backbone(folder, CPU)


@pytest.mark.parametrize("network", ["vae", "unet", "text_encoder"])
def test_weights_with_a_tensor_missing_are_not_filled_with_noise(folder, network):
    (path,) = (folder / network).glob("*.safetensors")
    tensors = load_file(path)
    name = sorted(tensors)[-1]
    del tensors[name]
    save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(WeightsError, match="lacks 1 tensors"):
        load_backbone(folder, CPU)


def test_weights_of_another_size_are_refused(folder):
    edit(folder / "unet" / "config.json", cross_attention_dim=WIDTH // 2)

    with pytest.raises(WeightsError, match="cannot be loaded"):
        load_backbone(folder, CPU)


def test_parts_of_two_models_are_refused(folder):
    diffusion = load_backbone(folder, CPU)
    narrow = type(diffusion.unet).from_config({**diffusion.unet.config, "cross_attention_dim": 16})
    narrow.save_pretrained(folder / "unet")

    with pytest.raises(WeightsError, match="32 wide, but its unet attends to 16"):
        load_backbone(folder, CPU)


def test_a_model_that_predicts_something_else_is_refused(folder):
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")

    with pytest.raises(WeightsError, match="predicts sample, not epsilon or v_prediction"):
        load_backbone(folder, CPU)


def test_an_unknown_text_model_is_refused(folder):
    edit(folder / "text_encoder" / "config.json", model_type="t5")

    with pytest.raises(WeightsError, match="text model 't5'"):
        load_backbone(folder, CPU)


def test_an_empty_tokenizer_folder_is_refused(folder):
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()

    with pytest.raises(WeightsError, match="tokenizer"):
        load_backbone(folder, CPU)


def test_a_backbone_cannot_be_changed(diffusion):
    with pytest.raises(dataclasses.FrozenInstanceError):
        diffusion.unet = None
