"""The bundled text side: a CLIP tokenizer over the world's words, a small CLIP text model."""

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from replaycad.diffusion.conditioning import TEMPLATES
from replaycad.mini.world.pictures import VOCABULARY

TEXT_LENGTH = 24
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write a CLIP tokenizer in which every word of the world and of the prompts is one token.

    Other words fall apart into letters, so any init word is accepted.
    """
    words = sorted({*VOCABULARY, *" ".join(TEMPLATES).split(), "object", "surface"})
    model = Tokenizer(BPE(end_of_word_suffix="</w>"))
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=10_000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    # Repeated, because the trainer leaves pairs alone that it has seen only once.
    model.train_from_iterator(words * 4, trainer)
    merges = json.loads(model.to_str())["model"]["merges"]
    letters = alphabet + [letter + "</w>" for letter in alphabet]
    entries = list(dict.fromkeys([*letters, *("".join(pair) for pair in merges), START, END]))
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "CLIPTokenizer",
                "model_max_length": TEXT_LENGTH,
                "bos_token": START,
                "eos_token": END,
                "pad_token": END,
                "unk_token": END,
            },
            indent=1,
        )
    )
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModel:
    """The bundled CLIP text model, untrained: 3 layers of `width`."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=6,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
