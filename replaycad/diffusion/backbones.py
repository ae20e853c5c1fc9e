"""The frozen latent diffusion model: loaded from a folder, asked for latents, images and noise."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from replaycad.diffusion.cell_unet import CellUNet
from replaycad.diffusion.conditioning import SpatialEncoder
from replaycad.diffusion.memory import codec_batch
from replaycad.diffusion.patch_codec import PatchCodec
from replaycad.diffusion.presets import (
    backbone_files,
    locate_backbone,
    scheduler_config,
    split_name,
)
from replaycad.diffusion.prompts import TEMPLATES, encode_texts, without_placeholder
from replaycad.diffusion.set_encoder import SetEncoder
from replaycad.errors import WeightsError
from replaycad.runtime import check_compiler

_TEXT_MODELS = {"clip_text_model": CLIPTextModel, "ldmbert": LDMBertModel}
_OWN_CLASSES: dict[str, type[nn.Module]] = {"PatchCodec": PatchCodec, "CellUNet": CellUNet}
_FOREIGN = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim")
PREDICTION_TYPES = ("epsilon", "v_prediction")
SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
"""What a folder's scheduler config may decide; the rest is the paper's."""
Network = TypeVar("Network", bound=nn.Module)
_LOADING_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """A frozen latent diffusion model; nothing in it takes a gradient.

    `scheduler_config` holds the noise schedule as the folder says it. `set_encoder` and
    `spatial_init` give a search its start and exist for the bundled model alone.
    """

    vae: AutoencoderKL | PatchCodec
    unet: UNet2DConditionModel | CellUNet
    text_encoder: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    scheduler_config: dict
    set_encoder: SetEncoder | None = None
    spatial_init: SpatialEncoder | None = None

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of unet and text encoder; the VAE is always float32."""
        return self.unet.dtype

    @property
    def latent_channels(self) -> int:
        """C."""
        return self.vae.config.latent_channels

    @property
    def latent_size(self) -> int:
        """Height and width of a latent."""
        return self.unet.config.sample_size

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """`(C, h, w)`."""
        return (self.latent_channels, self.latent_size, self.latent_size)

    @property
    def image_size(self) -> int:
        """Height and width of an image, pixels."""
        config = self.vae.config
        if isinstance(self.vae, PatchCodec):
            return self.latent_size * config.patch_size
        return self.latent_size * 2 ** (len(config.block_out_channels) - 1)

    @property
    def scaling_factor(self) -> float:
        """What a VAE latent is multiplied with before the unet sees it."""
        return self.vae.config.get("scaling_factor", 1.0)

    @property
    def cross_attention_dim(self) -> int:
        """D."""
        return self.unet.config.cross_attention_dim

    @property
    def num_placed_tokens(self) -> int:
        """K that the unet can read as cells of the picture; 0 where tokens have no place."""
        return self.unet.num_cells if isinstance(self.unet, CellUNet) else 0

    @cached_property
    def prompt_states(self) -> torch.Tensor:
        """The distinct training prompts without placeholder, encoded once: `[57, T, D]`."""
        return encode_texts(self.tokenizer, self.text_encoder, without_placeholder(TEMPLATES))

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """Signal power left at each timestep: `[num_train_timesteps]` float32, on the CPU."""
        known = {k: v for k, v in self.scheduler_config.items() if k in SCHEDULE}
        return DDIMScheduler(**known).alphas_cumprod

    @property
    def prediction_type(self) -> str:
        """What the unet predicts: `epsilon` (the noise) or `v_prediction` (the velocity)."""
        return self.scheduler_config.get("prediction_type", "epsilon")

    @torch.no_grad()
    def encode_images(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior of the VAE, scaled: a latent is `mean + std * noise`.

        Args:
            images: `[B, 3, H, W]` uint8 RGB at `image_size`, on any device.

        Returns:
            mean and std, each `[B, C, h, w]` float32 on the model's device.
        """
        means, stds = [], []
        for chunk, count in _full_chunks(images, codec_batch(self.image_size)):
            pixel_values = chunk.to(self.device, torch.float32) / 127.5 - 1
            posterior = self.vae.encode(pixel_values).latent_dist
            means.append(posterior.mean[:count] * self.scaling_factor)
            stds.append(posterior.std[:count] * self.scaling_factor)
        return torch.cat(means), torch.cat(stds)

    def encode_masks(self, object_masks: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """Posterior of masks seen as pictures: white objects on black, greys at resized edges.

        Args:
            object_masks: B masks `[H, W]` bool, true on the object, any size.

        Returns:
            mean and std, each `[B, C, h, w]` float32 on the model's device, scaled.
        """
        return self.encode_images(mask_images(object_masks, self.image_size))

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images of scaled latents.

        Deviation: the released code truncates to 8 bits and stores JPEG; we round and lose nothing.

        Args:
            latents: `[B, C, h, w]` float, scaled.

        Returns:
            `[B, 3, H, W]` uint8 RGB on the CPU.
        """
        images = []
        for chunk, count in _full_chunks(latents, codec_batch(self.image_size)):
            pixel_values = self.vae.decode(chunk.float() / self.scaling_factor).sample[:count]
            images.append(((pixel_values + 1) * 127.5).clamp(0, 255).round().byte().cpu())
        return torch.cat(images)


def _full_chunks(batch: torch.Tensor, rows: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Chunks of exactly `rows` rows and how many count; the last row fills up.

    The last bits of a result change with the shape of its batch, so every pass has the same shape
    and a picture's code does not depend on how many others there are.
    """
    for chunk in batch.split(rows):
        filling = chunk[-1:].expand(rows - len(chunk), *chunk.shape[1:])
        yield torch.cat([chunk, filling]), len(chunk)


def mask_images(object_masks: Sequence[np.ndarray], image_size: int) -> torch.Tensor:
    """Draw masks white on black and resize them bicubically, without thresholding again.

    Args:
        object_masks: B masks `[H, W]` bool.
        image_size: pixels.

    Returns:
        `[B, 3, image_size, image_size]` uint8, three equal channels.
    """
    size = (image_size, image_size)
    bicubic = Image.Resampling.BICUBIC
    grey = [
        np.asarray(Image.fromarray(object_mask.astype(np.uint8) * 255).resize(size, bicubic))
        for object_mask in object_masks
    ]
    return torch.from_numpy(np.stack(grey)).unsqueeze(1).expand(-1, 3, -1, -1)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def default_dtype(device: torch.device) -> torch.dtype:
    """Number format of frozen networks: bfloat16 on CUDA, float16 where that is slow, else float32.

    Deviation: the authors run the LDM in 32 bits and draw with SD 1.5 in float16.
    """
    if device.type != "cuda":
        return torch.float32
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16  # Volta and Turing
    return torch.bfloat16


def load_backbone(
    name: str | Path,
    device: torch.device,
    dtype: torch.dtype | None = None,
    is_compiled: bool = False,
) -> Diffusion:
    """Load a frozen diffusion model.

    Args:
        name: as `locate_backbone` takes it.
        device: where to.
        dtype: of unet and text encoder, by default `default_dtype(device)`. The VAE stays in
            float32, for half precision would show in 8-bit grey levels.
        is_compiled: whether the unet is compiled when it is first used. With SD 1.5 on an H200
            that took 77 s and made replays 1.34 times as fast, and a step of a search no faster.

    Raises:
        ConfigError: if it is to be compiled and cannot be.
        WeightsError: files missing, damaged, incomplete, or of a model that replaycad cannot use.
    """
    if is_compiled:
        check_compiler(device)
    folder = locate_backbone(name)
    files = backbone_files(folder, split_name(name)[1])
    dtype = dtype or default_dtype(device)
    schedule = scheduler_config(folder)
    if schedule.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise WeightsError(
            f"backbone '{name}' predicts {schedule['prediction_type']}, "
            f"not {' or '.join(PREDICTION_TYPES)}",
            "use a backbone of the Stable Diffusion 1 or 2 family",
        )
    with _quiet_libraries():
        vae = _load_network(_class_of(files["vae"][0], AutoencoderKL), files["vae"])
        unet = _load_network(_class_of(files["unet"][0], UNet2DConditionModel), files["unet"])
        text_encoder = _load_network(_text_model(files["text_encoder"][0]), files["text_encoder"])
        tokenizer = _load_tokenizer(files["tokenizer"])
    _check_family(unet, vae, name)
    if is_compiled:
        unet.compile()
    width = unet.config.cross_attention_dim
    if text_encoder.config.hidden_size != width:
        raise WeightsError(
            f"the text encoder of '{name}' is {text_encoder.config.hidden_size} wide, "
            f"but its unet attends to {width}",
            "fetch the files of one model into one folder",
        )
    return Diffusion(
        vae=_freeze(vae, device, torch.float32),
        unet=_freeze(unet, device, dtype),
        text_encoder=_freeze(text_encoder, device, dtype),
        tokenizer=tokenizer,
        scheduler_config=schedule,
        set_encoder=_load_start(SetEncoder, files.get("set_encoder"), device),
        spatial_init=_load_start(
            SpatialEncoder, files.get("spatial_encoder"), device, cross_attention_dim=width
        ),
    )


def _check_family(unet: Any, vae: Any, name: str | Path) -> None:
    """Refuse a unet that wants more than latents, a time and tokens, or that has other latents."""
    config = unet.config
    extra = [key for key in _FOREIGN if config.get(key) is not None]
    if isinstance(unet, UNet2DConditionModel) and config.in_channels != vae.config.latent_channels:
        extra.insert(0, f"in_channels {config.in_channels}")
    if extra:
        raise WeightsError(
            f"backbone '{name}' has no text-to-image unet of the Stable Diffusion 1 or 2 kind: "
            f"{', '.join(extra)}",
            "use a text-to-image model of that family",
        )


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep the libraries' bars and advice off the terminal; what matters we check ourselves."""
    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    had_bars = transformers_logging.is_progress_bar_enabled()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before[0])
        transformers_logging.set_verbosity(before[1])
        if had_bars:
            transformers_logging.enable_progress_bar()


def _freeze(network: Network, device: torch.device, dtype: torch.dtype) -> Network:
    # Module's own `to`: the libraries' versions warn about layers that these models do not have.
    return nn.Module.to(network, device, dtype).eval().requires_grad_(False)


def _unreadable(path: Path, error: Exception) -> WeightsError:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return WeightsError(f"{path} cannot be loaded: {text[0]}", "fetch the files again")


def _read_config(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _text_model(config_path: Path) -> type[nn.Module]:
    model_type = _read_config(config_path).get("model_type")
    if model_type not in _TEXT_MODELS:
        raise WeightsError(
            f"{config_path} names the text model '{model_type}'",
            f"replaycad knows: {', '.join(_TEXT_MODELS)}",
        )
    return _TEXT_MODELS[model_type]


def _class_of(config_path: Path, published: type[Network]) -> type[nn.Module]:
    """Our own class where the folder names one, else that of all published models."""
    return _OWN_CLASSES.get(_read_config(config_path).get("_class_name", ""), published)


def _load_network(network: type[Any], files: list[Path]) -> Any:
    """Load through the library's own loader, and refuse what it would fill with random numbers."""
    config_path, weights_path = files
    variant = weights_path.stem.partition(".")[2] or None
    try:
        loaded, info = network.from_pretrained(
            config_path.parent,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except _LOADING_ERRORS as error:
        raise _unreadable(weights_path, error) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise WeightsError(
            f"{weights_path} lacks {len(missing)} tensors, the first is {missing[0]}",
            "fetch the files again",
        )
    return loaded


def _load_tokenizer(files: list[Path]) -> PreTrainedTokenizerBase:
    if not files:
        raise WeightsError("the backbone's tokenizer folder is empty", "fetch the files again")
    try:
        return AutoTokenizer.from_pretrained(files[0].parent, local_files_only=True)
    except _LOADING_ERRORS as error:
        raise _unreadable(files[0].parent, error) from error


def _load_start(
    network: type[Network], files: list[Path] | None, device: torch.device, **sizes: int
) -> Network | None:
    """Load one of our own two networks that give the search its start, if the folder has it."""
    if files is None:
        return None
    config_path, weights_path = files
    try:
        built = network(**{**_read_config(config_path), **sizes})
        built.load_state_dict(load_file(weights_path))
    except _LOADING_ERRORS as error:
        raise _unreadable(weights_path, error) from error
    return _freeze(built, device, torch.float32)
