"""A latent diffusion model of random weights, a few hundred kB, in the layout of the real ones."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
    LDMBertConfig,
    LDMBertModel,
)
from transformers import CLIPTextConfig, CLIPTextModel

from replaycad.diffusion.backbones import Diffusion, load_backbone
from replaycad.diffusion.prompts import TEMPLATES

IMAGE_SIZE = 32
LATENT_SHAPE = (4, 16, 16)
WIDTH = 32  # D
TEXT_LENGTH = 24  # T
IN_FEATURES, OUT_FEATURES, NUM_SPATIAL = 64, 8, 4  # I, O, S = 4*16*16 * 8 / (64*32)
SINGLE = ("screw", "nice", "small", "object")  # surely one token each: their merges come first
_KNOWN = {word for text in TEMPLATES for word in text.split()} | {"candle"}  # an init word
WORDS = [*SINGLE, *sorted(_KNOWN - {*SINGLE})]


def make_tiny_backbone(folder: Path, text: str = "clip") -> Path:
    """Write a whole backbone of random weights: 32 px images, 4x16x16 latents, tokens of width 32.

    Args:
        folder: written to; made if missing.
        text: `clip` (folders as sd15 has them) or `ldmbert` (folders as ldm256 has them).

    Returns:
        `folder`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            latent_channels=4,
            sample_size=IMAGE_SIZE,
            scaling_factor=0.5,
        )
        unet = UNet2DConditionModel(
            sample_size=LATENT_SHAPE[1],
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=2,
            cross_attention_dim=WIDTH,
        )
        text_encoder = _clip() if text == "clip" else _ldmbert()
    vae.save_pretrained(folder / ("vae" if text == "clip" else "vqvae"))
    unet.save_pretrained(folder / "unet")
    text_encoder.save_pretrained(folder / ("text_encoder" if text == "clip" else "bert"))
    write_tokenizer(folder / "tokenizer", text)
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    ).save_pretrained(folder / "scheduler")
    return folder


def write_tokenizer(folder: Path, text: str, length: int = TEXT_LENGTH) -> Path:
    """Write a `clip` (of so many tokens) or `ldmbert` tokenizer that knows the templates' words."""
    if text == "clip":
        _write_clip_tokenizer(folder, length)
    else:
        _write_bert_tokenizer(folder)
    return folder


def vocabulary_size(text: str) -> int:
    """Token ids of the `clip` or `ldmbert` tokenizer."""
    return len(_clip_vocabulary()[0] if text == "clip" else _bert_vocabulary())


def tiny_diffusion(folder: Path, text: str = "clip") -> Diffusion:
    """A loaded tiny backbone on the CPU; `folder` is a fresh temporary folder."""
    return load_backbone(make_tiny_backbone(folder, text), torch.device("cpu"))


def _clip() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(_clip_vocabulary()[0]),
            hidden_size=WIDTH,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=len(_clip_vocabulary()[0]) - 2,
            eos_token_id=len(_clip_vocabulary()[0]) - 1,
        )
    )


def _ldmbert() -> LDMBertModel:
    return LDMBertModel(
        LDMBertConfig(
            vocab_size=len(_bert_vocabulary()),
            max_position_embeddings=TEXT_LENGTH,
            encoder_layers=2,
            encoder_ffn_dim=64,
            encoder_attention_heads=2,
            head_dim=16,
            d_model=WIDTH,
        )
    )


def _clip_vocabulary() -> tuple[list[str], list[str]]:
    """Byte-pair vocabulary and merges under which every word of the templates is few tokens."""
    characters = [chr(code) for code in range(33, 127)]
    vocabulary = characters + [f"{character}</w>" for character in characters]
    merges = []
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        left = pieces[0]
        for piece in pieces[1:]:
            if f"{left} {piece}" not in merges:
                merges.append(f"{left} {piece}")
                vocabulary.append(left + piece)
            left += piece
    return [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"], merges


def _bert_vocabulary() -> list[str]:
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "*", "-", "close", "up", *WORDS]


def _write_clip_tokenizer(folder: Path, length: int) -> None:
    vocabulary, merges = _clip_vocabulary()
    folder.mkdir(parents=True)
    numbered = {token: index for index, token in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(numbered))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _write_bert_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join([*_bert_vocabulary(), ""]))
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 512, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
