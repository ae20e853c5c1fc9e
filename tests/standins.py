"""Stand-ins of the published networks: their files, keys and shapes of tokens, narrow and random.

What a recipe says of sizes (K, I, O, D, T, latents, pixels) fits them unchanged; inside they are
thin. The files are those at the pinned revisions: SD 1.5 as safetensors with the old names of
attention layers and a `text_model.` before every name, the LDM as pickles alone.
"""

import json
from pathlib import Path

import timm
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from replaycad.config.paper_classes import MVTEC, VISA
from replaycad.diffusion.presets import BACKBONES
from tests.diffusion.published import CLIP, LDMBERT, UNETS, VAE
from tests.hub import Hub
from tests.tiny import vocabulary_size, write_tokenizer
from tests.toy import draw_object

ENCODER, ENCODER_COMMIT = "wide_resnet50_2.racm_in1k", "0123456789" * 4
SAM_FILE, SAM_BYTES = "sam_vit_h_4b8939.pth", b"stand-in of sam_vit_h 24706186"
"""Bytes whose MD5 begins with the digits in the published name; nothing that could be loaded."""

_OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
_THIN = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1}
_VAE = {
    **VAE, "block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 8,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
_SCHEDULE = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "clip_sample": False,
}  # fmt: skip


def write_sd15(folder: Path) -> Path:
    """Write SD 1.5's files: safetensors, the UNet with and without EMA."""
    text = {**CLIP, "num_hidden_layers": 1, "intermediate_size": 64,
            "vocab_size": vocabulary_size("clip")}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(15)
        vae, unet, other = _vae(), _unet("sd15"), _unet("sd15")
        text_encoder = CLIPTextModel(CLIPTextConfig(**text))
    _configs(folder, vae="vae", unet="sd15", text=("text_encoder", "clip_text_model", text))
    _tensors(_old_vae(vae), folder / "vae/diffusion_pytorch_model.safetensors")
    _tensors(unet.state_dict(), folder / "unet/diffusion_pytorch_model.non_ema.safetensors")
    _tensors(other.state_dict(), folder / "unet/diffusion_pytorch_model.safetensors")
    named = {
        name if name.startswith("text_model.") else f"text_model.{name}": value
        for name, value in text_encoder.state_dict().items()
    }
    named["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    _tensors(named, folder / "text_encoder/model.safetensors")
    write_tokenizer(folder / "tokenizer", "clip", 77)
    return folder


def write_ldm256(folder: Path) -> Path:
    """Write the LDM's files: pickles alone, an autoencoder in `vqvae`, a text model in `bert`."""
    text = {**LDMBERT, "encoder_layers": 1, "encoder_ffn_dim": 64,
            "vocab_size": vocabulary_size("ldmbert")}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(256)
        vae, unet, text_encoder = _vae(), _unet("ldm256"), LDMBertModel(LDMBertConfig(**text))
    _configs(folder, vae="vqvae", unet="ldm256", text=("bert", "ldmbert", text))
    torch.save(_old_vae(vae), folder / "vqvae/diffusion_pytorch_model.bin")
    torch.save(unet.state_dict(), folder / "unet/diffusion_pytorch_model.bin")
    torch.save(text_encoder.state_dict(), folder / "bert/pytorch_model.bin")
    write_tokenizer(folder / "tokenizer", "ldmbert")
    return folder


def publish(hub: Hub, folder: Path) -> None:
    """Put all that the recipes `paper` and `release` read onto a hub, written below `folder`."""
    for name, write in (("sd15", write_sd15), ("ldm256", write_ldm256)):
        preset = BACKBONES[name]
        hub.publish(preset.hub_id, preset.revision, write(folder / name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(50)
        encoder = timm.create_model("wide_resnet50_2", pretrained=False)
    _tensors(encoder.state_dict(), folder / "encoder/model.safetensors")
    hub.publish(f"timm/{ENCODER}", ENCODER_COMMIT, folder / "encoder")
    hub.checkpoints[SAM_FILE] = SAM_BYTES


def write_mvtec(folder: Path) -> Path:
    """Write pictures under the names and in the layout of MVTec AD, a few of each class."""
    for name in MVTEC:
        for index in range(2):
            _picture(folder / name / "train/good" / f"{index:03}.png", index)
            _picture(folder / name / "test/good" / f"{index:03}.png", index + 2)
            _picture(folder / name / "test/bad" / f"{index:03}.png", index, defective=True)
            _mask(folder / name / "ground_truth/bad" / f"{index:03}_mask.png", 255)
    return folder


def write_visa(folder: Path) -> Path:
    """Write pictures under the names and in the published layout of VisA."""
    rows = ["object,split,label,image,mask"]
    for name in VISA:
        images, masks = f"{name}/Data/Images", f"{name}/Data/Masks/Anomaly"
        for index in range(4):
            split = "train" if index < 2 else "test"
            path = f"{images}/Normal/{index:04}.JPG"
            _picture(folder / path, index)
            rows.append(f"{name},{split},normal,{path},")
        for index in range(2):
            path, mask = f"{images}/Anomaly/{index:03}.JPG", f"{masks}/{index:03}.png"
            _picture(folder / path, index, defective=True)
            _mask(folder / mask, index + 1)  # numbered defects, as VisA has them
            rows.append(f"{name},test,anomaly,{path},{mask}")
    (folder / "split_csv").mkdir(parents=True)
    (folder / "split_csv/1cls.csv").write_text("\n".join([*rows, ""]))
    return folder


def _vae() -> AutoencoderKL:
    return AutoencoderKL(**_VAE)


def _unet(name: str) -> UNet2DConditionModel:
    return UNet2DConditionModel(**{**UNETS[name], **_THIN})


def _old_vae(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """The autoencoder's state with its attention layers named as they were published."""
    found = {}
    for name, value in vae.state_dict().items():
        if "mid_block.attentions" in name:
            for new, old in _OLD_NAMES.items():
                name = name.replace(new, old)
        found[name] = value
    return found


def _configs(folder: Path, vae: str, unet: str, text: tuple[str, str, dict]) -> None:
    """Config files as published: the LDM's leaves out the width of a token, which is diffusers'."""
    sizes = {k: v for k, v in {**UNETS[unet], **_THIN}.items()
             if unet != "ldm256" or k != "cross_attention_dim"}  # fmt: skip
    place, kind, text_sizes = text
    for name, config in {
        vae: {"_class_name": "AutoencoderKL", **_VAE},
        "unet": {"_class_name": "UNet2DConditionModel", **sizes},
        place: {"model_type": kind, **text_sizes},
    }.items():  # fmt: skip
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(_SCHEDULE))


def _tensors(state: dict[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, path,
              metadata={"format": "pt"})  # fmt: skip


def _picture(path: Path, index: int, defective: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_object("disc", index, defective).resize((96, 96), Image.Resampling.NEAREST).save(path)


def _mask(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("L", (96, 96), 0)
    picture.paste(value, (36, 36, 51, 51))
    picture.save(path)
