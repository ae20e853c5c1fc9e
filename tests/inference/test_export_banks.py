"""Exported memory banks: the file, too, holds an image against the bank of its own class."""

import numpy as np
import pytest
import torch

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.patchcore.looks import DIRECTIONS, WIDTH, Look
from replaycad.detectors.registry import build_detector
from replaycad.inference.export import FORMATS
from replaycad.inference.predict import DetectorGraph

ENCODER, SIZE = "efficientnet-lite0", 64


def images_of(mean, seed):
    """One image `[1, 3, SIZE, SIZE]` uint8 of noise around a grey."""
    noise = np.random.default_rng(seed).normal(mean, 12, (1, 3, SIZE, SIZE))
    return noise.clip(0, 255).astype(np.uint8)


def limits(scale):
    """Limits of a class, a different one of each kind."""
    return {"typical_image": scale, "image": 3 * scale, "typical_pixel": scale / 2,
            "pixel": 2 * scale, "product": 5 * scale}  # fmt: skip


@pytest.mark.parametrize("form", [
    "torch", "onnx", pytest.param("openvino", marks=pytest.mark.long),
])  # fmt: skip
def test_a_file_routes_each_image_as_the_detector_does(form, tmp_path):
    encoder = load_encoder(ENCODER, levels=(2, 3))
    detector = build_detector("patchcore", "standard", encoder.channels, encoder.strides, SIZE)
    for index, (mean, count) in enumerate(((60, 6), (190, 2))):  # banks of two sizes
        shown = [images_of(mean, seed) for seed in range(count)]
        levels = [encoder.encode_images(torch.from_numpy(one)) for one in shown]
        detector.fit(levels, index, torch.Generator().manual_seed(0))
    far = Look(np.zeros((1 + DIRECTIONS, WIDTH), np.float32), 1.0, 1.0)
    detector.looks.set(1, far, 500.0)
    trained = DetectorArtifact(
        detector="patchcore", preset="standard", encoder=ENCODER, image_size=SIZE,
        class_order=["dark", "light"], header={},
        state={name: value.numpy() for name, value in detector.state_dict().items()},
        thresholds={**limits(1.0), "by_class": {"dark": limits(2.0), "light": limits(4.0)}},
    )  # fmt: skip
    graph = DetectorGraph(trained, encoder)
    suffix, _, write, run = FORMATS[form]
    path = tmp_path / f"banks{suffix}"

    with torch.no_grad():
        write(graph, torch.from_numpy(images_of(60, 100)), path, "{}")
        for mean in (60, 190):
            image = images_of(mean, 101)
            wanted = graph(torch.from_numpy(image))
            scores, maps, row, distance = run(path, image)
            assert row.item() == (mean == 190)
            own = detector.looks(detector.patches(encoder.encode_images(torch.from_numpy(image))))
            assert wanted[3] >= own[0, row] / limits(4.0)["product"] * 0.999
            assert own[0, 1] > own[0, 0] == 0
            for found, expected in zip(
                (scores, maps, distance), (wanted[0], wanted[1], wanted[3]), strict=True
            ):
                assert np.abs(found - expected.numpy()).max() < 1e-3 * expected.abs().max()
