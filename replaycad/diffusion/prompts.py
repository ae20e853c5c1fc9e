"""Prompts with learned vectors in their midst or beside them, through a frozen text encoder.

Letters: N prompts, B batch, T text tokens, K semantic tokens, D cross-attention width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from replaycad.errors import ConfigError

PLACEHOLDER = "*"
_COMPLETIONS = (
    "a", "a clean", "a dirty", "my", "the cool", "the", "one", "the clean", "a nice", "the nice",
    "the small", "the weird", "the large", "a cool", "a small",
)  # fmt: skip
_HEADS = ("a photo of", "an illustration of", "a depiction of")
_FIXED = (
    "a rendering of a", "a cropped photo of the", "the photo of a", "a dark photo of the",
    "a close-up photo of a", "a bright photo of the", "a cropped photo of a", "a good photo of the",
    "a close-up photo of the", "a rendition of the", "a rendition of a", "a good photo of a",
)  # fmt: skip
TEMPLATES: tuple[str, ...] = tuple(
    f"{text} {PLACEHOLDER}"
    for text in (*(f"{head} {end}" for end in _COMPLETIONS for head in _HEADS), *_FIXED * 3)
)
"""The 81 training prompts, drawn uniformly: 45 once and 12 three times each, 57 distinct.

Deviation: section 4.2 has the one prompt "a photo of a", which is what replays are drawn with; a
search draws among the release's 81, so that no wording becomes part of a class.
"""

GENERATION_PROMPTS = {
    "prompt": f"a photo of {PLACEHOLDER}",
    "context": f"a photo of a {PLACEHOLDER}",
}
"""What replay says, by placement: the released code's text, and the paper's."""

DEFAULT_INIT_WORD = "object"


def without_placeholder(texts: Sequence[str]) -> list[str]:
    """The distinct texts, each without its placeholder."""
    return [text.replace(PLACEHOLDER, "").strip() for text in dict.fromkeys(texts)]


def tokenize(
    tokenizer: PreTrainedTokenizerBase, text_encoder: PreTrainedModel, texts: Sequence[str]
) -> torch.Tensor:
    """Token ids `[N, T]` int64, padded and cut to the text model's length, on its device."""
    length = min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)
    encoded = tokenizer(
        list(texts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    )
    return encoded["input_ids"].to(text_encoder.device)


def _last_hidden_state(text_encoder: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    return text_encoder(input_ids, return_dict=True).last_hidden_state


def insert_slots(
    input_ids: torch.Tensor, placeholder_id: int, num_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make room for K vectors where the placeholder stands; the rest moves right and is cut at T.

    Args:
        input_ids: `[N, T]` int64, each row holding the placeholder.
        placeholder_id: token id of the placeholder.
        num_tokens: K.

    Returns:
        ids `[N, T]` int64 with the placeholder's id at all K places, and slots `[N, T]` int64: the
        number 0..K-1 of the vector that stands there, -1 at ordinary tokens.

    Raises:
        ConfigError: if a row holds no placeholder or the K vectors do not all fit.
    """
    if not (input_ids == placeholder_id).any(1).all():
        raise ConfigError(
            f"a prompt holds no placeholder token '{PLACEHOLDER}'", "use the context placement"
        )
    length = input_ids.shape[1]
    start = (input_ids == placeholder_id).int().argmax(1, keepdim=True)  # [N, 1]
    if int(start.max()) + num_tokens > length:
        raise ConfigError(
            f"{num_tokens} semantic tokens do not fit into a prompt of {length} tokens",
            f"use num_tokens {length - int(start.max())} or fewer",
        )
    place = torch.arange(length, device=input_ids.device).expand_as(input_ids)
    offset = place - start
    source = torch.where(offset < num_tokens, torch.minimum(place, start), place - num_tokens + 1)
    slots = torch.where((offset >= 0) & (offset < num_tokens), offset, -1)
    return input_ids.gather(1, source), slots


@contextmanager
def _embeddings_placed(
    text_encoder: PreTrainedModel, slots: torch.Tensor, semantic_embedding: torch.Tensor
) -> Iterator[None]:
    """While open, the token embedding yields the semantic vectors at their slots.

    A hook on the embedding table is the one place that every transformers release and both text
    models share (CLIPTextModel takes no `inputs_embeds`); whatever follows, position embeddings
    first, runs as the model's own code.
    """

    def place(_module, _args, embeddings: torch.Tensor) -> torch.Tensor:
        # F.embedding, not indexing: its gradient is summed in a fixed order on every device.
        vectors = F.embedding(slots.clamp(min=0), semantic_embedding.to(embeddings.dtype))
        return torch.where((slots >= 0).unsqueeze(-1), vectors, embeddings)

    handle = text_encoder.get_input_embeddings().register_forward_hook(place)
    try:
        yield
    finally:
        handle.remove()


class Prompts:
    """A fixed list of prompts, ready to be encoded with any semantic embedding.

    Placement `prompt`: the K vectors replace the placeholder before the frozen text encoder, which
    runs at every call. Placement `context`: they stand beside the encoded prompt, which is then
    constant and encoded once. Neither text model gets an attention mask, so padding is attended.

    Deviation: `prompt` is where the released code puts the vectors, `context` where the paper's
    text does; both exist and each recipe names one.

    Args:
        tokenizer: of the backbone.
        text_encoder: frozen CLIPTextModel or LDMBertModel.
        texts: prompts, each holding the placeholder; repeats are encoded once.
        placement: `prompt` or `context`.
        num_tokens: K; with 0 the placeholder is dropped.
        encoded: `[N, T, D]`, the distinct texts without placeholder where somebody has encoded
            them; None to do so where they are needed.

    Raises:
        ConfigError: a placeholder foreign to the tokenizer, or K too large.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: PreTrainedModel,
        texts: Sequence[str],
        placement: str,
        num_tokens: int,
        encoded: torch.Tensor | None = None,
    ) -> None:
        distinct = list(dict.fromkeys(texts))
        self.text_encoder = text_encoder
        self._row = torch.tensor([distinct.index(text) for text in texts])
        self._slots: torch.Tensor | None = None
        if placement == "prompt" and num_tokens:
            ids = tokenizer(PLACEHOLDER, add_special_tokens=False)["input_ids"]
            if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
                raise ConfigError(
                    f"the placeholder '{PLACEHOLDER}' is no single token of this backbone",
                    "use the context placement",
                )
            input_ids = tokenize(tokenizer, text_encoder, distinct)
            self._input_ids, self._slots = insert_slots(input_ids, ids[0], num_tokens)
        elif encoded is not None:
            self._encoded = encoded
        else:
            self._encoded = encode_texts(tokenizer, text_encoder, without_placeholder(texts))

    def __len__(self) -> int:
        return len(self._row)

    def encode(
        self, indices: torch.Tensor, semantic_embedding: torch.Tensor | None
    ) -> torch.Tensor:
        """Encode the prompts numbered `indices`.

        Args:
            indices: `[B]` int64 on the CPU, into `texts`.
            semantic_embedding: `[K, D]` float, with `context` `[B, K, D]` too; None when K is 0.

        Returns:
            `[B, T, D]` (placement `prompt`) or `[B, T + K, D]` (`context`), text encoder's dtype.
        """
        device = self.text_encoder.device
        if self._slots is None or semantic_embedding is None:
            text = self._encoded[self._row[indices].to(device)]
            if semantic_embedding is None:
                return text
            beside = semantic_embedding.to(text.dtype).expand(len(text), -1, -1)
            return torch.cat([text, beside], dim=1)
        rows, row_of = self._row[indices].unique(return_inverse=True)  # encode each text once
        rows = rows.to(device)
        with _embeddings_placed(self.text_encoder, self._slots[rows], semantic_embedding):
            text = _last_hidden_state(self.text_encoder, self._input_ids[rows])  # [U, T, D]
        return F.embedding(row_of.to(device), text.flatten(1)).unflatten(1, text.shape[1:])


@torch.no_grad()
def encode_texts(
    tokenizer: PreTrainedTokenizerBase, text_encoder: PreTrainedModel, texts: Sequence[str]
) -> torch.Tensor:
    """Encode plain texts: `[N, T, D]`, last hidden state after the final LayerNorm, no gradient."""
    ids = tokenize(tokenizer, text_encoder, texts)
    return torch.cat([_last_hidden_state(text_encoder, chunk) for chunk in ids.split(16)])


def unconditional(empty_prompt: torch.Tensor, length: int) -> torch.Tensor:
    """Pad the encoded empty prompt with zero tokens in front to the conditional length.

    Keys and values of a zero token are zero (the projections have no bias), so each is a sink that
    draws attention and gives nothing: it dilutes the unconditional branch, as in the released code.

    Args:
        empty_prompt: `[1, T, D]` float, the encoded empty string.
        length: tokens of the conditional sequence.

    Returns:
        `[1, length, D]`.
    """
    return F.pad(empty_prompt, (0, 0, length - empty_prompt.shape[1], 0))


@torch.no_grad()
def word_embedding(
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: PreTrainedModel,
    word: str,
    num_tokens: int,
    placement: str = "prompt",
) -> torch.Tensor:
    """K copies of a word's vector, where the search starts: `[K, D]` float32.

    A word of several tokens counts as their mean. Placement `context` takes the encoded word, for
    there the vectors meet encoder outputs, not token embeddings.

    Copies stay copies where nothing tells them apart: beside the prompt every one of them gets the
    same gradient at every step. A search in `context` therefore starts from `random_embedding`.

    Deviation: the released code's CLIP start adds the embedding of position 0; we leave it out,
    because the encoder adds positions anyway.

    Raises:
        ConfigError: if the tokenizer does not know the word.
    """
    ids = tokenizer(word, add_special_tokens=False)["input_ids"]
    if not ids or tokenizer.unk_token_id in ids:
        raise ConfigError(f"this backbone does not know the word '{word}'", "use another init_word")
    if placement == "context":
        padded = tokenize(tokenizer, text_encoder, [f"a photo of a {word}"])
        where = [int((padded[0] == token).nonzero()[-1]) for token in ids]
        vectors = _last_hidden_state(text_encoder, padded)[0, where]
    else:
        vectors = text_encoder.get_input_embeddings().weight[ids]
    return vectors.float().mean(0).expand(num_tokens, -1).clone()


def random_embedding(
    among: torch.Tensor, num_tokens: int, rng: torch.Generator
) -> torch.Tensor:
    """K random vectors, where the search starts (paper section 4.2): `[K, D]` float32.

    They are normal around zero, at the scale of the vectors that they will stand among.

    Args:
        among: `[..., D]` float: the text encoder's states of the training prompts with `context`,
            its token embeddings with `prompt`.
        num_tokens: K.
        rng: on the CPU.
    """
    scale = among.detach().float().square().mean().sqrt().cpu()
    return scale * torch.randn(num_tokens, among.shape[-1], generator=rng)
