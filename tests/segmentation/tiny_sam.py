"""A Sam of random weights, small enough for tests, and how to write it as a segmenter folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from segment_anything.modeling import Sam

from replaycad.segmentation.sam import build_sam_from_config

CONFIG = {
    "image_size": 64,
    "patch_size": 8,
    "encoder_embed_dim": 32,
    "encoder_depth": 2,
    "encoder_num_heads": 2,
    "global_attn_indexes": [1],
    "window_size": 4,
    "prompt_embed_dim": 32,
    "decoder_mlp_dim": 64,
    "decoder_num_heads": 4,
    "iou_head_hidden_dim": 32,
}


def tiny_sam() -> Sam:
    """The same random Sam every time, for 64 px images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_sam_from_config(CONFIG)


def constant_sam(logit: float, predicted_iou: float) -> Sam:
    """A Sam that gives every pixel the logit `64 * logit` / 16 and every mask the same quality."""
    sam = tiny_sam()
    decoder = sam.mask_decoder
    with torch.no_grad():
        for parameter in sam.parameters():
            parameter.zero_()
        for network in decoder.output_hypernetworks_mlps:
            network.layers[-1].bias.fill_(logit)
        decoder.output_upscaling[-2].bias.fill_(1.0)
        decoder.iou_prediction_head.layers[-1].bias.fill_(predicted_iou)
    return sam


def write_segmenter(folder: Path, sam: Sam) -> Path:
    """Write `config.json` and a half precision `model.safetensors`, as the bundled one has them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    tensors = {name: value.half().contiguous() for name, value in sam.state_dict().items()}
    save_file(tensors, folder / "model.safetensors")
    return folder
