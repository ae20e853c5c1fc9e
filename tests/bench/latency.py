"""Warm latency of `predict` beside anomalib's PatchCore: `python -m tests.bench.latency`.

Both read the same features of the default encoder and search the same bank; anomalib (2.7) is no
dependency of this program and has to be installed beside it. Its pre- and post-processing are left
out, but for the normalisation; ours begin with the bytes of a decoded image and end with a verdict.
The last row is the encoder alone, which both have to pay.
"""

import argparse
import json
import sys
from collections.abc import Callable

import numpy as np
import torch

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.detectors.encoder_files import locate_encoder
from replaycad.detectors.encoders import _load_weights, load_encoder
from replaycad.detectors.registry import DETECTORS, build_detector
from replaycad.inference.predict import DetectorGraph, Predictor
from tests.bench.pairs import paired

SIZE = 256
ENCODER, LAYERS = "efficientnet-lite0", ("blocks.2", "blocks.4")  # strides 8 and 16


def ours(bank: torch.Tensor) -> Predictor:
    """A predictor over a bank `[M, 152]`."""
    preset = DETECTORS["patchcore"]["standard"]
    encoder = load_encoder(ENCODER, "cpu", preset.levels)
    detector = build_detector("patchcore", "standard", encoder.channels, encoder.strides, SIZE)
    state = {**detector.state_dict(), "bank": bank, "bank_class_index": torch.zeros(len(bank))}
    trained = DetectorArtifact(
        detector="patchcore", preset="standard", encoder=ENCODER, image_size=SIZE,
        class_order=["one"], state={name: values.numpy() for name, values in state.items()},
        thresholds={"image": 1.0, "pixel": 1.0, "typical_image": 0.0, "typical_pixel": 0.0},
        header={},
    )  # fmt: skip
    return Predictor(DetectorGraph(trained, encoder), SIZE, torch.device("cpu"))


def theirs(bank: torch.Tensor) -> tuple[Callable[[np.ndarray], object], Callable[[], object]]:
    """Anomalib's model with the same weights and bank, and its encoder alone on one image."""
    from anomalib.models import Patchcore

    location = locate_encoder(ENCODER)
    model = Patchcore(location.timm_name, layers=LAYERS, pre_trained=False).model.eval()
    _load_weights(model.feature_extractor.feature_extractor, location)
    model.memory_bank = bank

    @torch.inference_mode()
    def judge(images: np.ndarray) -> object:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return model((pixels - 0.5) / 0.5)

    @torch.inference_mode()
    def encode() -> object:
        return model.feature_extractor(torch.zeros(1, 3, SIZE, SIZE))

    return judge, encode


def main() -> None:
    """Print a row for one image at a time, one for batches of eight, one for the encoder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bank", type=int, default=4_000)
    parser.add_argument("--threads", type=int, default=2)
    typed = parser.parse_args()
    torch.set_num_threads(typed.threads)
    images = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    stream = torch.Generator().manual_seed(0)
    bank = torch.rand(typed.bank, 152, generator=stream)
    mine, (other, encode) = ours(bank), theirs(bank)
    pixels = torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8)
    encoder = mine.graph._encoder
    pairs = [
        (f"predict, {count} images of {SIZE} px, bank of {typed.bank}",
         lambda batch=images[:count]: other(batch), lambda batch=images[:count]: mine(batch))
        for count in (1, 8)
    ]  # fmt: skip
    pairs.append(("encoder alone, 1 image", encode, lambda: encoder.encode_images(pixels)))
    for name, one, two in pairs:
        for judge in (one, two):  # warm
            judge()
        row = paired(name, one, two, 1.0, repeats=15)
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
