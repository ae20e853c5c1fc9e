"""Segment-anything behind one small class: image in, object mask out."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from segment_anything import SamAutomaticMaskGenerator, SamPredictor
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)

from replaycad.errors import WeightsError
from replaycad.segmentation.presets import SAM_DEFAULTS, SegmenterFiles, check_tag, locate
from replaycad.segmentation.selection import (
    MaskPolicy,
    SettledRule,
    corner_points,
    select_by_area,
    surroundings,
    tidy,
    union_by_area,
)
from replaycad.segmentation.settling import most_alike, settle
from replaycad.segmentation.stem import STRIDE, PyramidStem
from replaycad.torch_files import read_tensors

BoolArray = NDArray[np.bool_]
ByteArray = NDArray[np.uint8]

# Deviation: A.3 names no settings of "segment everything". The library asks at 32 x 32 points and
# drops masks below a predicted IoU of 0.88 or a stability of 0.95; here it is 16 x 16 points, 0.8
# and 0.9, which find every object of a product photo in a quarter of the time, and 8 x 8, 0.5 and
# 0.7 for a Sam of small images.
POINTS_PER_SIDE_LARGE = 16
POINTS_PER_SIDE_SMALL = 8
SMALL_IMAGE_PX = 256


class Segmenter:
    """A Sam with the two procedures of paper A.3, corner prompts and selection by area."""

    def __init__(self, sam: Sam, name: str) -> None:
        self.name = name
        self._predictor = SamPredictor(sam)
        small = sam.image_encoder.img_size <= SMALL_IMAGE_PX
        self._looks_twice = small
        # Quality is ranked in `select_by_area`; hard thresholds would leave small models with
        # nothing, as their predicted IoU is less sure of itself. Duplicates are still merged.
        self._everything = SamAutomaticMaskGenerator(
            sam,
            points_per_side=POINTS_PER_SIDE_SMALL if small else POINTS_PER_SIDE_LARGE,
            pred_iou_thresh=0.5 if small else 0.8,
            stability_score_thresh=0.7 if small else 0.9,
        )

    def settle(
        self, images: Sequence[ByteArray], policy: MaskPolicy, as_typed: bool = False
    ) -> SettledRule:
        """Decide once per class how its masks are made: see `settling.settle`.

        Args:
            images: some images of the class, `[H, W, 3]` uint8 RGB each; 8 to 16 are enough.
            policy: what is known about the class.
            as_typed: keep the rule of `policy` even where it does not prove itself.

        Raises:
            ValueError: if the policy names no known rule.
        """
        return settle(self, images, policy, as_typed)

    def object_mask(self, image: ByteArray, policy: MaskPolicy) -> BoolArray:
        """Find the object in one image.

        Args:
            image: `[H, W, 3]` uint8 RGB.
            policy: a class policy or, better for many images of one class, what `settle` returned.

        Returns:
            `[H, W]` bool, true on the object. Where nothing was found the whole frame is the
            object, so that the mask says "anywhere" and not "nowhere".
        """
        rule = policy if isinstance(policy, SettledRule) else self.settle([image], policy, True)
        mask = np.zeros(image.shape[:2], dtype=np.bool_)
        if rule.mask_rule == "corners":
            mask = self.corner_mask(image)
        elif rule.mask_rule == "ground" and rule.ground is not None:
            mask = rule.ground.object_mask(image)
        elif rule.mask_rule == "area":
            mask = self._area_mask(image, rule)
        return mask if mask.any() else np.ones_like(mask)

    def _area_mask(self, image: ByteArray, rule: SettledRule) -> BoolArray:
        """The mask or masks of "segment everything" that fit the class, empty without any."""
        masks, qualities = self.everything(image)
        found: BoolArray | None = None
        if rule.several_objects and rule.area_range is not None:
            found = union_by_area(masks, qualities, rule.area_range)
        else:
            index = None
            if rule.reference is not None:
                index = most_alike(masks, rule.reference)
            elif rule.area_range is not None:
                index = select_by_area(masks, qualities, rule.area_range)
            found = None if index is None else masks[index]
        return np.zeros(image.shape[:2], dtype=np.bool_) if found is None else tidy(found)

    def corner_mask(self, image: ByteArray) -> BoolArray:
        """Object `[H, W]` bool of an image `[H, W, 3]` uint8: all that the corners are not.

        A Sam for small images looks twice: what it found, enlarged, shows where the outline runs.
        """
        # Deviation: the paper asks once; a Sam for small images asks again around what it found.
        mask = tidy(~self._ground(image))
        window = surroundings(mask) if self._looks_twice else None
        if window is None:
            return mask
        closer = np.zeros_like(mask)
        closer[window] = ~self._ground(np.ascontiguousarray(image[window]))
        closer = tidy(closer)
        return closer if closer.any() else mask

    def _ground(self, image: ByteArray) -> BoolArray:
        """What the corners of an image `[H, W, 3]` uint8 belong to, `[H, W]` bool."""
        self._predictor.set_image(image)
        # One mask, not three: several points leave little ambiguity, and the single-mask output
        # is the one Sam was trained to give then.
        masks, _, _ = self._predictor.predict(
            point_coords=corner_points(*image.shape[:2]),
            point_labels=np.ones(4, dtype=np.int64),
            multimask_output=False,
        )
        self._predictor.reset_image()
        return np.asarray(masks[0], dtype=np.bool_)

    def everything(self, image: ByteArray) -> tuple[list[BoolArray], list[float]]:
        """All masks `[H, W]` bool of an image `[H, W, 3]` uint8, and their predicted IoU."""
        found = self._everything.generate(image)
        return (
            [np.asarray(entry["segmentation"], dtype=np.bool_) for entry in found],
            [float(entry["predicted_iou"]) for entry in found],
        )


def load_segmenter(name: str, device: torch.device | str = "cpu") -> Segmenter:
    """Load `mini`, `vit_b`, `vit_l`, `vit_h` or a path (see `presets.locate`) onto a device.

    Raises:
        WeightsError: if files are missing, altered, or do not fit the config.
    """
    device = torch.device(device)
    if device.type == "mps":
        device = torch.device("cpu")  # segment-anything makes float64 points, which mps lacks
    return Segmenter(load_sam(name).to(device), name)


def load_sam(name: str) -> Sam:
    """The network alone, on the CPU; arguments and errors as of `load_segmenter`."""
    files = locate(name)
    state = _read_state(files)
    sam = build_sam_from_config(files.config)
    try:
        sam.load_state_dict({key: value.float() for key, value in state.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(
            f"{files.weights} does not fit its config: {reason}", "restore the original files"
        ) from None
    return sam.requires_grad_(requires_grad=False)


def _read_state(files: SegmenterFiles) -> dict[str, torch.Tensor]:
    if files.weights.suffix == ".safetensors":
        try:
            return load_file(files.weights)
        except (SafetensorError, OSError) as error:
            raise WeightsError(
                f"{files.weights} cannot be read: {error}", "restore the file"
            ) from None
    check_tag(files.weights, files.digest_tag)
    return read_tensors(files.weights)


def build_sam_from_config(config: Mapping[str, Any]) -> Sam:
    """Build an untrained Sam from segment-anything's own modules.

    Args:
        config: `image_size`, `patch_size`, `encoder_embed_dim`, `encoder_depth`,
            `encoder_num_heads`, `global_attn_indexes`, and any key of `SAM_DEFAULTS` (window size,
            widths and depths of prompt encoder and mask decoder, pixel mean and std in 0..255, and
            `stem`: a timm network to embed patches of 8 px with, in place of one convolution).

    Returns:
        Sam in evaluation mode, on the CPU. Input side `image_size` px; mask logits come at
        `4 * image_size / patch_size` px before they are enlarged.

    Raises:
        WeightsError: if a key is missing or unknown.
    """
    required = ("image_size", "patch_size", "encoder_embed_dim", "encoder_depth",
                "encoder_num_heads", "global_attn_indexes")  # fmt: skip
    missing = [key for key in required if key not in config]
    unknown = sorted(set(config) - set(required) - set(SAM_DEFAULTS))
    if missing or unknown:
        raise WeightsError(
            f"the segmenter's config lacks {missing or 'nothing'}, "
            f"and of unknown keys it has {unknown or 'none'}",
            f"valid keys: {', '.join((*required, *SAM_DEFAULTS))}",
        )
    full = {**SAM_DEFAULTS, **config}
    if full["stem"] and full["patch_size"] != STRIDE:
        raise WeightsError(
            f"a stem embeds patches of {STRIDE} px, not of {full['patch_size']}",
            f"set patch_size to {STRIDE} or leave out stem",
        )
    width = full["prompt_embed_dim"]
    grid = full["image_size"] // full["patch_size"]
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=full["image_size"],
            patch_size=full["patch_size"],
            embed_dim=full["encoder_embed_dim"],
            depth=full["encoder_depth"],
            num_heads=full["encoder_num_heads"],
            mlp_ratio=full["encoder_mlp_ratio"],
            out_chans=width,
            qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=full["use_rel_pos"],
            window_size=full["window_size"],
            global_attn_indexes=tuple(full["global_attn_indexes"]),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(grid, grid),
            input_image_size=(full["image_size"], full["image_size"]),
            mask_in_chans=full["mask_in_chans"],
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=full["num_multimask_outputs"],
            transformer=TwoWayTransformer(
                depth=full["decoder_depth"],
                embedding_dim=width,
                mlp_dim=full["decoder_mlp_dim"],
                num_heads=full["decoder_num_heads"],
            ),
            transformer_dim=width,
            iou_head_depth=full["iou_head_depth"],
            iou_head_hidden_dim=full["iou_head_hidden_dim"],
        ),
        pixel_mean=list(full["pixel_mean"]),
        pixel_std=list(full["pixel_std"]),
    )
    if full["stem"]:
        sam.image_encoder.patch_embed = PyramidStem(full["stem"], full["encoder_embed_dim"])
    return sam.eval()
