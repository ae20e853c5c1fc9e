"""Warm latency of `predict` beside anomalib's PatchCore: `python -m tests.bench.latency FILE`.

Both read the same ResNet-18 features and search the same bank; anomalib (2.7) is no dependency of
this program and has to be installed beside it. Its pre- and post-processing are left out, but for
the normalisation; ours begin with the bytes of a decoded image and end with a verdict.
"""

import argparse
import json
import sys
from collections.abc import Callable

import numpy as np
import torch

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.registry import build_detector
from replaycad.inference.predict import DetectorGraph, Predictor
from tests.bench.pairs import paired

SIZE, LEVELS = 256, (2, 3)


def ours(encoder_name: str, bank: torch.Tensor) -> Predictor:
    """A predictor over a bank `[M, 384]`."""
    encoder = load_encoder(encoder_name, "cpu", LEVELS)
    detector = build_detector("patchcore", "lite", encoder.channels, encoder.strides, SIZE)
    state = {**detector.state_dict(), "bank": bank, "bank_class_index": torch.zeros(len(bank))}
    trained = DetectorArtifact(
        detector="patchcore", preset="lite", encoder=encoder_name, image_size=SIZE,
        class_order=["one"], state={name: values.numpy() for name, values in state.items()},
        thresholds={"image": 1.0, "pixel": 1.0, "typical_image": 0.0, "typical_pixel": 0.0},
        header={},
    )  # fmt: skip
    return Predictor(DetectorGraph(trained, encoder), SIZE, torch.device("cpu"))


def theirs(encoder_name: str, bank: torch.Tensor) -> Callable[[np.ndarray], object]:
    """Anomalib's model with the same weights and bank."""
    from anomalib.models import Patchcore
    from safetensors.torch import load_file

    model = Patchcore("resnet18", layers=("layer2", "layer3"), pre_trained=False).model.eval()
    known = load_file(encoder_name.partition(":")[2])
    # Its levels are those of timm's feature extractor; what lies beyond them has no use here.
    model.feature_extractor.feature_extractor.load_state_dict(known, strict=False)
    model.memory_bank = bank
    mean, std = (torch.tensor(values)[:, None, None] for values in (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip

    @torch.inference_mode()
    def judge(images: np.ndarray) -> object:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return model((pixels - mean) / std)

    return judge


def main() -> None:
    """Print a row for one image at a time, and one for batches of eight."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", help="safetensors file of a timm ResNet-18")
    parser.add_argument("--bank", type=int, default=8_000)
    parser.add_argument("--threads", type=int, default=2)
    typed = parser.parse_args()
    torch.set_num_threads(typed.threads)
    name = f"resnet18:{typed.weights}"
    images = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), np.uint8)
    encoder = load_encoder(name, "cpu", LEVELS)
    stream = torch.Generator().manual_seed(0)
    bank = torch.rand(typed.bank, sum(encoder.channels), generator=stream)
    mine, other = ours(name, bank), theirs(name, bank)
    for count in (1, 8):
        batch = images[:count]
        for judge in (mine, other):  # warm
            judge(batch)
        row = paired(
            f"predict, {count} images of {SIZE} px, bank of {typed.bank}",
            lambda batch=batch: other(batch), lambda batch=batch: mine(batch), 1.0, repeats=15,
        )  # fmt: skip
        sys.stdout.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
