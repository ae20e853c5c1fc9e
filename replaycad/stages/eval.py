"""Measures a detector on test images, class by class."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.scores import ScoresArtifact
from replaycad.config.stages import EvalConfig
from replaycad.data.images import load_anomaly_mask, load_images
from replaycad.data.samples import Sample
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.interface import Detector
from replaycad.detectors.registry import build_detector
from replaycad.errors import ArtifactError
from replaycad.metrics import class_metrics, mean_over_classes
from replaycad.progress import Report, silent


def evaluate(
    samples: Mapping[str, Sequence[Sample]],
    trained: DetectorArtifact,
    encoder: Encoder,
    config: EvalConfig,
    header: dict[str, Any],
    report: Report = silent,
) -> ScoresArtifact:
    """Score the test images of every class and compute its figures.

    The maps of one class are held at a time.

    Args:
        samples: class -> test images.
        trained: the detector.
        encoder: the frozen encoder that it was trained with.
        config: of the stage.
        header: common part of the artifact's header.
        report: hears of the images done.

    Returns:
        scores, with `metrics` as `{"classes": {class: {figure: value}}, "mean": {figure: value}}`,
        fractions 0..1; a figure that a class does not define is NaN.

    Raises:
        DatasetError: if an image or a mask cannot be read.
        ArtifactError: if the detector does not fit the encoder.
    """
    detector = rebuild_detector(trained, encoder)
    figures: dict[str, dict[str, float]] = {}
    scores, labels, class_index, kept, ids = [], [], [], [], []
    for index, (class_name, images) in enumerate(samples.items()):
        maps, masks = _class_maps(class_name, images, detector, encoder, trained, config, report)
        # Deviation: section 5.1 leaves open what makes an image anomalous; here its folder or its
        # row in the table says so, also where a mask is missing or empty.
        image_labels = np.array([sample.is_anomalous for sample in images], np.uint8)
        class_scores = detector.image_scores(torch.from_numpy(maps)).numpy()
        seen = (maps, masks) if detector.localizes else ()
        figures[class_name] = class_metrics(class_scores, image_labels, *seen)
        scores.append(class_scores)
        labels.append(image_labels)
        class_index.append(np.full(len(images), index, np.int64))
        ids += [sample.image_id for sample in images]
        if config.keep_maps:
            kept.append(maps.astype(np.float16))
    mean, left_out = mean_over_classes(figures)
    for metric, classes in left_out.items():
        report.note(f"{metric} is not defined for {', '.join(classes)}; the mean leaves them out")
    return ScoresArtifact(
        classes=list(samples),
        image_scores=np.concatenate(scores),
        image_labels=np.concatenate(labels),
        class_index=np.concatenate(class_index),
        image_ids=ids,
        metrics={"classes": figures, "mean": mean},
        anomaly_maps=np.concatenate(kept) if kept else None,
        header=header,
    )


def rebuild_detector(trained: DetectorArtifact, encoder: Encoder) -> Detector:
    """The network that was trained, on the encoder's device, in evaluation mode.

    Raises:
        ArtifactError: if the stored parameters do not fit.
    """
    detector = build_detector(
        trained.detector, trained.preset, encoder.channels, encoder.strides, trained.image_size
    )
    state = {name: torch.from_numpy(value) for name, value in trained.state.items()}
    try:
        detector.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(
            f"the detector's parameters do not fit {trained.detector} ({trained.preset}): {reason}",
            "train it again with this version",
        ) from None
    return detector.to(encoder.device).eval()


def _class_maps(
    class_name: str,
    samples: Sequence[Sample],
    detector: Detector,
    encoder: Encoder,
    trained: DetectorArtifact,
    config: EvalConfig,
    report: Report,
) -> tuple[np.ndarray, np.ndarray]:
    """Anomaly maps `[N, H, W]` float32 and anomaly masks `[N, H, W]` bool of one class."""
    size = trained.image_size
    maps = np.empty((len(samples), size, size), np.float32)
    masks = np.zeros((len(samples), size, size), np.bool_)
    for rows in _chunks(len(samples), config.batch_size):
        batch = samples[rows]
        images = torch.from_numpy(load_images(batch, size))
        maps[rows] = detector.anomaly_maps(encoder.encode_images(images)).cpu().numpy()
        for row, sample in zip(range(rows.start, rows.stop), batch, strict=True):
            if sample.mask_path is not None:
                masks[row] = load_anomaly_mask(sample.mask_path, size)
        report.step(f"eval {class_name}", rows.stop, len(samples))
    return maps, masks


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
