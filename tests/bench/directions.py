"""How packed tokens got the directions that they lie along: `python -m tests.bench.directions OUT`.

They belong to the file format and are not written anew when the bundled models are: files that
were packed along them have to come back. A better set would be another format with another name.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from replaycad.diffusion.backbones import load_backbone

OTHER_MAPS = 0.1
"""What maps that are no picture count, in parts of the mean channel of one. Replays of six held-out
classes in 20,000 bytes lie 44.5 dB from those of unrounded tokens, and with 0.05 or 0.2 44.5 or
43.9; without the cosines 44.8, but the worst class 37.8 for 39.0; rounded as tokens 35.7."""


def reading(other_maps: float = OTHER_MAPS) -> np.ndarray:
    """What a token does to the maps of the bundled network, `[maps, D]` float64, in pictures."""
    diffusion = load_backbone("mini", torch.device("cpu"), torch.float32)
    matrix = diffusion.unet.cells.weight.detach().double().numpy()
    scale = diffusion.vae.scale.detach().double().numpy()  # of each channel of a picture
    weights = np.full(len(matrix), other_maps * scale.mean())
    weights[: 4 * len(scale)] = np.repeat(scale, 4)  # the mean's maps come first, 4 for a channel
    return np.asarray(weights[:, None] * matrix)


def reading_directions() -> np.ndarray:
    """Directions `[D, D]` float16 of the bundled network, as `artifacts.token_coding` has them."""
    _, values, rows = np.linalg.svd(reading(), full_matrices=False)
    largest = np.abs(rows).argmax(1)
    rows *= np.sign(rows[np.arange(len(rows)), largest])[:, None]
    return (rows / values[:, None]).astype(np.float16)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, help="the file to write")
    save_file({"directions": reading_directions()}, parser.parse_args().out)
