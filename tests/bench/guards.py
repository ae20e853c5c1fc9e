"""At which rate later classes are learned: `python -m tests.bench.guards --held-out 3`.

A first class is learned once, as the preset says; then the others one after another, under each
guard and at each rate. Told are image AUROC and pixel AP of past classes, and of each class when it
was the newest; images are scored by the one detector there is, and compared within their class.

`--held-out N` draws procedural classes that pre-training did not see, to choose on.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.config.stages import TrainConfig
from replaycad.data.images import load_images
from replaycad.data.layouts import find_classes, test_samples, train_samples
from replaycad.data.mixture import Mixture, Source
from replaycad.detectors.encoders import Encoder, load_encoder
from replaycad.detectors.registry import build_detector, preset_for, resolve_defaults
from replaycad.metrics import class_metrics
from replaycad.mini.world.pictures import write_dataset
from replaycad.stages.train import train_detector
from tests.bench.encoders import truth
from tests.bench.replays import FIGURES, FIRST_SEED, HELD_OUT

BATCH = 8


class Line:
    """A factory line: its classes in their order, and the encoder of one detector.

    Args:
        data: folder of classes.
        classes: in the order of learning.
        detector: name of the detector.
        preset: of it.
    """

    def __init__(self, data: Path, classes: Sequence[str], detector: str, preset: str) -> None:
        self.classes, self._names = list(classes), {"detector": detector, "preset": preset}
        chosen = preset_for(detector, preset)
        self._encoder: Encoder = load_encoder(chosen.encoder, levels=chosen.levels)
        self._size, self._data = chosen.image_size, data
        self._tested = {}
        for name in classes:
            tested = test_samples(data, name)
            self._tested[name] = (load_images(tested, self._size), *truth(tested, self._size))

    def learn(
        self, number: int, seed: int, before: DetectorArtifact | None, **settings: Any
    ) -> DetectorArtifact:
        """Learn the class of this number."""
        config = resolve_defaults(
            TrainConfig(**self._names, init="before" if before else "", **settings)
        )
        known = self.classes[: number + 1]
        source = Source(class_index=number, samples=train_samples(self._data, known[-1]))
        header = {"config": {"encoder": config.encoder, "guard": config.guard}, "weights": {}}
        if before is not None:
            before = replace(before, header=header)
        return train_detector(
            Mixture([source], self._size), known, self._encoder, config, seed, header, init=before
        )

    def figures(self, trained: DetectorArtifact) -> dict[str, dict[str, float]]:
        """Of every class that it has learned."""
        encoder = self._encoder
        detector = build_detector(
            trained.detector, trained.preset, encoder.channels, encoder.strides, self._size
        )
        detector.load_state_dict({k: torch.from_numpy(v) for k, v in trained.state.items()})
        detector.eval()
        found = {}
        for name in trained.class_order:
            images, masks, labels = self._tested[name]
            chunks = np.array_split(images, -(-len(images) // BATCH))
            parts = [
                detector.anomaly_maps(encoder.encode_images(torch.from_numpy(one)))
                for one in chunks
            ]
            maps = torch.cat(parts)
            scores = detector.image_scores(maps).numpy()
            told = class_metrics(scores, labels, maps.numpy(), masks)
            found[name] = {figure: told[figure] for figure in FIGURES}
        return found


def walk(line: Line, first: DetectorArtifact, seed: int, **settings: Any) -> dict[str, Any]:
    """Learn all classes after the first; figures of past and newest classes, in percent."""
    trained, started = first, time.perf_counter()
    newest = [line.figures(first)]
    for number in range(1, len(line.classes)):
        trained = line.learn(number, seed, trained, **settings)
        newest.append(line.figures(trained))
    seconds = (time.perf_counter() - started) / (len(line.classes) - 1)
    past, last = line.classes[:-1], newest[-1]
    return {
        **{f"past_{one}": 100 * fmean(last[name][one] for name in past) for one in FIGURES},
        **{f"new_{one}": 100 * fmean(
            step[name][one] for name, step in zip(line.classes[1:], newest[1:], strict=True)
        ) for one in FIGURES},
        **{f"forgotten_{one}": 100 * fmean(
            newest[number][name][one] - last[name][one] for number, name in enumerate(past)
        ) for one in FIGURES},
        "guard_bytes": sum(values.nbytes for values in trained.guard.values()),
        "seconds_a_class": seconds,
    }  # fmt: skip


def main() -> None:
    """Measure and print a row of JSON for each guard, rate and seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, help="folder of classes")
    parser.add_argument("--class", dest="classes", nargs="+")
    parser.add_argument("--held-out", type=int, default=0, help="procedural classes instead")
    parser.add_argument("--detector", default="iuf")
    parser.add_argument("--preset", default="standard")
    parser.add_argument("--guard", nargs="+", default=[])
    parser.add_argument("--rate", type=float, nargs="+", default=[0.0])
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    typed = parser.parse_args()
    guards = typed.guard or [typed.detector]
    with tempfile.TemporaryDirectory() as folder:
        data, classes = typed.data or Path(folder), typed.classes
        if typed.held_out:
            seeds = {f"p{n:02d}": FIRST_SEED + n for n in range(typed.held_out)}
            size = preset_for(typed.detector, typed.preset).image_size
            write_dataset(data, seeds, *HELD_OUT, seed=0, size=size)
        line = Line(data, classes or find_classes(data), typed.detector, typed.preset)
        for seed in typed.seed:
            for guard in guards:
                # Each guard remembers in its own way; the weights of the first class are the same.
                first = line.learn(0, seed, None, guard=guard)
                for rate in typed.rate:
                    told = walk(line, first, seed, guard=guard, learning_rate=rate)
                    told = {"guard": guard, "rate": rate, "seed": seed, **told}
                    sys.stdout.write(json.dumps(told) + "\n")
                    sys.stdout.flush()


if __name__ == "__main__":
    main()
