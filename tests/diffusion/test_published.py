"""The full-size backbones, as far as configs and file layouts can tell: no weights are needed."""

import json

import pytest
import torch
from diffusers import PNDMScheduler
from safetensors.torch import load_file, save_file

from replaycad.diffusion.backbones import load_backbone
from replaycad.diffusion.conditioning import SpatialEncoder
from replaycad.diffusion.presets import BACKBONES
from replaycad.errors import WeightsError
from replaycad.segmentation.presets import SEGMENTERS
from replaycad.segmentation.sam import build_sam_from_config
from tests.diffusion.published import CLIP, LDMBERT, UNETS, VAE, networks
from tests.tiny import make_tiny_backbone

CPU = torch.device("cpu")
PUBLISHED_MILLIONS = {  # as the publishers count them
    "sd15": {"unet": 859.5, "vae": 83.7, "text_encoder": 123.1},
    "ldm256": {"unet": 872.3, "vae": 83.7, "text_encoder": 582.0},  # 1.45 G without the VAE
}


@pytest.mark.parametrize("name", PUBLISHED_MILLIONS)
def test_published_configs_give_the_published_parameter_counts(name):
    built = networks(name, "meta")

    counts = {part: sum(p.numel() for p in net.parameters()) for part, net in built.items()}

    assert counts == BACKBONES[name].parameters
    assert {k: round(v / 1e6, 1) for k, v in counts.items()} == PUBLISHED_MILLIONS[name]


@pytest.mark.parametrize(
    ("name", "millions"), [("vit_b", 93.7), ("vit_l", 312.3), ("vit_h", 641.1)]
)
def test_segmenters_have_the_published_parameter_counts(name, millions):
    with torch.device("meta"):
        sam = build_sam_from_config(SEGMENTERS[name].config)

    assert round(sum(p.numel() for p in sam.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("name", UNETS)
def test_presets_say_what_the_configs_say(name):
    preset, unet = BACKBONES[name], UNETS[name]
    text = CLIP["hidden_size"] if name == "sd15" else LDMBERT["d_model"]

    assert preset.latent_shape == (VAE["latent_channels"], unet["sample_size"], unet["sample_size"])
    assert preset.cross_attention_dim == unet["cross_attention_dim"] == text
    assert preset.text_length == CLIP["max_position_embeddings"] == 77
    assert preset.image_size == preset.latent_shape[1] * 2 ** (len(VAE["block_out_channels"]) - 1)


@pytest.mark.parametrize(
    ("name", "in_features", "tokens", "num_bytes"),
    [("ldm256", 128, 82, 205_600), ("sd15", 128, 109, 160_512), ("sd15", 512, 85, 455_424)],
)
def test_sequences_and_bytes_are_those_of_the_paper(name, in_features, tokens, num_bytes):
    preset = BACKBONES[name]
    layer = SpatialEncoder(in_features, preset.out_features, preset.cross_attention_dim)

    spatial = layer(torch.zeros(1, *preset.latent_shape)).shape[1]

    assert preset.text_length + spatial == tokens
    floats = preset.num_tokens * preset.cross_attention_dim
    floats += sum(p.numel() for p in layer.parameters())
    assert 4 * floats == num_bytes


def test_a_vae_with_the_old_names_of_its_attention_is_read(tmp_path):
    folder = make_tiny_backbone(tmp_path / "mine")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    renamed = {}
    for key, value in tensors.items():
        for new, before in old.items():
            key = key.replace(new, before) if "attentions" in key else key
        renamed[key] = value
    assert set(renamed) != set(tensors)
    save_file(renamed, path, metadata={"format": "pt"})

    diffusion = load_backbone(folder, CPU)

    for key, value in diffusion.vae.state_dict().items():
        assert torch.equal(value, tensors[key]), key


def test_a_text_encoder_with_the_old_names_and_its_positions_is_read(tmp_path):
    folder = make_tiny_backbone(tmp_path / "mine")
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    plain = {key.removeprefix("text_model."): value for key, value in tensors.items()}
    old = {f"text_model.{key}": value for key, value in plain.items()}
    positions = torch.arange(CLIP["max_position_embeddings"])[None]
    save_file(old | {"text_model.embeddings.position_ids": positions}, path, {"format": "pt"})

    diffusion = load_backbone(folder, CPU)

    for key, value in diffusion.text_encoder.state_dict().items():
        if not key.endswith("position_ids"):
            assert torch.equal(value, plain[key.removeprefix("text_model.")]), key


def test_the_published_scheduler_of_another_kind_says_nothing(tmp_path, capfd):
    folder = make_tiny_backbone(tmp_path / "mine")
    PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True,
        steps_offset=1, set_alpha_to_one=False,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    capfd.readouterr()

    alphas = load_backbone(folder, CPU).alphas_cumprod

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(alphas, torch.cumprod(1 - betas, 0))
    assert capfd.readouterr() == ("", "")


def test_a_vae_config_without_a_factor_means_the_published_one(tmp_path):
    folder = make_tiny_backbone(tmp_path / "mine")
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    del config["scaling_factor"]
    path.write_text(json.dumps(config))

    assert load_backbone(folder, CPU).scaling_factor == 0.18215


@pytest.mark.parametrize("kind", ["float16", "float32"])
def test_files_of_either_precision_are_read(tmp_path, kind):
    folder = make_tiny_backbone(tmp_path / "mine")
    for path in folder.glob("*/*.safetensors"):
        tensors = {k: v.to(getattr(torch, kind)) for k, v in load_file(path).items()}
        target = path.with_suffix(".fp16.safetensors") if kind == "float16" else path
        path.unlink()
        save_file(tensors, target, metadata={"format": "pt"})

    diffusion = load_backbone(folder, CPU)

    assert diffusion.unet.dtype == diffusion.text_encoder.dtype == torch.float32
    assert diffusion.vae.dtype == torch.float32


@pytest.mark.parametrize("changes", [{"in_channels": 9}, {"num_class_embeds": 3}])
def test_a_unet_that_wants_more_than_latents_and_tokens_is_refused(tmp_path, changes):
    folder = make_tiny_backbone(tmp_path / "mine")
    unet = load_backbone(folder, CPU).unet
    type(unet).from_config({**unet.config, **changes}).save_pretrained(folder / "unet")

    with pytest.raises(WeightsError, match="no text-to-image unet of the Stable Diffusion"):
        load_backbone(folder, CPU)


def test_a_model_with_two_text_encoders_is_refused(tmp_path):
    folder = make_tiny_backbone(tmp_path / "mine")
    (folder / "text_encoder_2").mkdir()

    with pytest.raises(WeightsError, match="two text encoders"):
        load_backbone(folder, CPU)
