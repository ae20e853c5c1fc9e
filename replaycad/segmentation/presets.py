"""Which segmenters exist and where their files lie; knows nothing of torch."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from replaycad.errors import WeightsError

# The values every official SAM shares; a config names only what differs.
SAM_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "encoder_mlp_ratio": 4.0,
        "stem": "",
        "use_rel_pos": True,
        "window_size": 14,
        "prompt_embed_dim": 256,
        "mask_in_chans": 16,
        "num_multimask_outputs": 3,
        "decoder_depth": 2,
        "decoder_num_heads": 8,
        "decoder_mlp_dim": 2048,
        "iou_head_depth": 3,
        "iou_head_hidden_dim": 256,
        "pixel_mean": (123.675, 116.28, 103.53),
        "pixel_std": (58.395, 57.12, 57.375),
    }
)

OFFICIAL_ADDRESS = "https://dl.fbaipublicfiles.com/segment_anything/"
OFFICIAL_NAME = re.compile(r"sam_(vit_[bhl])_([0-9a-f]{6})\.pth")
MINI_FOLDER = Path(__file__).parent.parent / "mini" / "weights" / "sam"


@dataclass(frozen=True, kw_only=True)
class SegmenterPreset:
    """A published segmenter: its file, its sizes and the licence of its weights."""

    file_name: str
    config: Mapping[str, Any]
    num_bytes: int = 0  # of the file, about; 0: bundled
    licence: str = "Apache-2.0"


@dataclass(frozen=True, kw_only=True)
class SegmenterFiles:
    """Where a segmenter lies: safetensors with a `config.json` beside it, or an official .pth.

    `digest_tag` is what the official file name says about its bytes, empty where nothing is known.
    """

    name: str
    weights: Path
    config: Mapping[str, Any]
    config_path: Path | None
    digest_tag: str

    @property
    def paths(self) -> list[Path]:
        """Every file that determines the network."""
        return [self.weights] if self.config_path is None else [self.config_path, self.weights]


def _official(
    file_name: str, num_bytes: int, width: int, depth: int, heads: int
) -> SegmenterPreset:
    every = depth // 4  # the last block of each quarter attends to the whole image
    config = {
        "image_size": 1024,
        "patch_size": 16,
        "encoder_embed_dim": width,
        "encoder_depth": depth,
        "encoder_num_heads": heads,
        "global_attn_indexes": tuple(range(every - 1, depth, every)),
    }
    return SegmenterPreset(
        file_name=file_name, config=MappingProxyType(config), num_bytes=num_bytes
    )


SEGMENTERS: Mapping[str, SegmenterPreset] = MappingProxyType(
    {
        "mini": SegmenterPreset(file_name="model.safetensors", config=MappingProxyType({})),
        "vit_b": _official("sam_vit_b_01ec64.pth", 375_000_000, 768, 12, 12),
        "vit_l": _official("sam_vit_l_0b3195.pth", 1_250_000_000, 1024, 24, 16),
        "vit_h": _official("sam_vit_h_4b8939.pth", 2_565_000_000, 1280, 32, 16),
    }
)


def weights_folder() -> Path:
    """Where downloaded weights are looked for: `$REPLAYCAD_WEIGHTS`, else `~/.cache/replaycad`."""
    return Path(os.environ.get("REPLAYCAD_WEIGHTS") or Path.home() / ".cache" / "replaycad")


def locate(name: str) -> SegmenterFiles:
    """Find the files of a segmenter without reading its weights.

    Args:
        name: `mini`, `vit_b`, `vit_l`, `vit_h`, a folder with `config.json` and
            `model.safetensors`, or the path of an official `sam_vit_*.pth`.

    Raises:
        WeightsError: if a file is missing; the hint says which file to put where.
    """
    if name == "mini":
        return _folder(name, MINI_FOLDER)
    if name in SEGMENTERS:
        path = weights_folder() / SEGMENTERS[name].file_name
        if not path.is_file():
            raise WeightsError(
                f"segmenter '{name}' needs {path}, which is not there",
                f"run: replaycad fetch --segmenter {name}; or set the segmenter to mini",
            )
        return _checkpoint(name, path)
    path = Path(name)
    if path.is_dir():
        return _folder(name, path)
    if path.is_file():
        return _checkpoint(name, path)
    raise WeightsError(
        f"there is no segmenter and no path '{name}'",
        f"use {', '.join(SEGMENTERS)}, a folder with config.json and model.safetensors, "
        "or an official sam_vit_*.pth",
    )


def _folder(name: str, folder: Path) -> SegmenterFiles:
    config_path, weights = folder / "config.json", folder / "model.safetensors"
    missing = [path.name for path in (config_path, weights) if not path.is_file()]
    if missing:
        raise WeightsError(
            f"segmenter '{name}' lacks {' and '.join(missing)} in {folder}",
            "reinstall replaycad" if name == "mini" else "name a complete folder",
        )
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WeightsError(f"{config_path} is not JSON: {error}", "restore the file") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{config_path} holds no JSON object", "restore the file")
    return SegmenterFiles(
        name=name, weights=weights, config=config, config_path=config_path, digest_tag=""
    )


def _checkpoint(name: str, path: Path) -> SegmenterFiles:
    match = OFFICIAL_NAME.fullmatch(path.name)
    if match is None:
        raise WeightsError(
            f"{path} is neither a folder nor named like an official checkpoint",
            f"keep the published name, such as {SEGMENTERS['vit_b'].file_name}",
        )
    preset = SEGMENTERS[match[1]]
    return SegmenterFiles(
        name=name, weights=path, config=preset.config, config_path=None, digest_tag=match[2]
    )


def check_tag(path: Path, tag: str) -> None:
    """Compare a file's digest with the six digits in its published name.

    Raises:
        WeightsError: they differ.
    """
    # The publishers do not say which digest the digits are from, so either may agree.
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            sha256.update(block)
            md5.update(block)
    if tag not in (sha256.hexdigest()[:6], md5.hexdigest()[:6]):
        names = [name for name, one in SEGMENTERS.items() if f"_{tag}." in one.file_name]
        raise WeightsError(
            f"{path} is damaged or not the published file: its digest should begin with {tag}, "
            f"found sha256 {sha256.hexdigest()[:12]} and md5 {md5.hexdigest()[:12]}",
            f"run: replaycad fetch --segmenter {names[0] if names else 'NAME'}",
        )
