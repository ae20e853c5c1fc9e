"""The configs that the full-size backbones are published with: what their hub folders say."""

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

_UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
}
UNETS = {
    "sd15": _UNET | {"sample_size": 64, "cross_attention_dim": 768},
    "ldm256": _UNET | {"sample_size": 32, "cross_attention_dim": 1280},
}
VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": 512,
}
CLIP = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
LDMBERT = {
    "vocab_size": 30522,
    "max_position_embeddings": 77,
    "encoder_layers": 32,
    "encoder_ffn_dim": 5120,
    "encoder_attention_heads": 8,
    "head_dim": 64,
    "d_model": 1280,
}


def networks(name: str, device: str = "cpu") -> dict[str, nn.Module]:
    """`vae`, `unet` and `text_encoder` of `sd15` or `ldm256` with random weights."""
    with torch.device(device):
        return {
            "vae": AutoencoderKL(**VAE),
            "unet": UNet2DConditionModel(**UNETS[name]),
            "text_encoder": (
                CLIPTextModel(CLIPTextConfig(**CLIP))
                if name == "sd15"
                else LDMBertModel(LDMBertConfig(**LDMBERT))
            ),
        }
