"""Measures a detector on test images, class by class."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.scores import ScoresArtifact
from replaycad.config.stages import EvalConfig
from replaycad.continual.confirmed import confirmed_beside
from replaycad.continual.router import empty_bank
from replaycad.data.images import Reader, load_anomaly_mask, load_images, picture_size, viewed
from replaycad.data.levels import Cut
from replaycad.data.look import MaskLook, look_at_masks
from replaycad.data.samples import Sample, unmasked
from replaycad.data.stitching import FloatArray, MapFile, Stitched, stitched_maps
from replaycad.data.views import View, view_of
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.interface import Detector
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.products import Windows, routed_maps
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

    The maps of one class are held at a time: in memory, or where pictures are seen as tiles, padded
    or partly ignored, in a temporary file.

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
    judge = _Judge(trained, encoder, detector)
    figures: dict[str, dict[str, float]] = {}
    scores, labels, class_index, kept, ids = [], [], [], [], []
    for index, (class_name, images) in enumerate(samples.items()):
        # Deviation: section 5.1 leaves open what makes an image anomalous; here its folder or its
        # row in the table says so, also where a mask is missing or empty. Pixel figures are of the
        # normal images and of those whose defect somebody drew.
        image_labels = np.array([sample.is_anomalous for sample in images], np.uint8)
        cut = _cut(class_name, images, report)
        view = view_of(trained.header, class_name)
        if all(view.is_plain(*picture_size(sample.path)) for sample in images):
            images = viewed(images, view)
            maps, masks = _class_maps(class_name, images, cut, judge, trained, config, report)
            class_scores = detector.image_scores(torch.from_numpy(maps)).numpy()
            seen: Any = _drawn(images, maps, masks)
        else:
            found = _stitched(class_name, images, cut, view, judge, trained, config, report)
            class_scores, maps, seen = found
        seen = seen if detector.localizes else ()
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
    told_index, distances = zip(*judge.told, strict=True) if judge.told else (None, None)
    return ScoresArtifact(
        classes=list(samples),
        image_scores=np.concatenate(scores),
        image_labels=np.concatenate(labels),
        class_index=np.concatenate(class_index),
        image_ids=ids,
        metrics={"classes": figures, "mean": mean},
        anomaly_maps=np.concatenate(kept) if kept else None,
        told_classes=judge.classes,
        told_index=np.array(told_index, np.int64) if judge.told else None,
        product_distances=np.array(distances, np.float32) if judge.told else None,
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


def rebuild_router(
    trained: DetectorArtifact, encoder: Encoder, detector: Detector
) -> PatchCore | None:
    """What tells the classes apart: the detector itself if it is a memory bank, or one beside it.

    Returns:
        None where nothing does.

    Raises:
        ArtifactError: if the stored parameters do not fit.
    """
    if isinstance(detector, PatchCore):
        return detector
    bank = empty_bank(encoder, trained.image_size) if trained.router else None
    if bank is None:
        return None
    try:
        bank.load_state_dict({k: torch.from_numpy(v) for k, v in trained.router.items()})
    except RuntimeError:
        message = "the banks that tell the detector's classes apart do not fit its encoder"
        raise ArtifactError(message, "train it again with this version") from None
    return bank.to(encoder.device).eval()


def picture_score(detector: Detector, stitched: Stitched, whole: FloatArray) -> float:
    """Score of a picture with the map `[h, w]` float32: of its highest tile, if it has any.

    Neither padding nor ignored pixels count.
    """
    parts = (torch.from_numpy(part.copy())[None] for part in stitched.parts(whole))
    return max(float(detector.image_scores(part)) for part in parts)


class _Judge:
    """The detector behind its encoder, which also tells classes apart where it can.

    Attributes:
        detector: the network.
        classes: that it tells apart.
        told: of every picture so far the row of its class among them, and how far it is from that.
    """

    def __init__(self, trained: DetectorArtifact, encoder: Encoder, detector: Detector) -> None:
        self.detector, self._encoder = detector, encoder
        router = rebuild_router(trained, encoder, detector)
        known = router.known_classes() if router is not None else []
        self._router = router if known else None
        self._confirmed = confirmed_beside(trained, self._router)
        self.classes = [trained.class_order[index] for index in known]
        self.told: list[tuple[int, float]] = []
        self._windows = Windows()

    def __call__(self, images: torch.Tensor) -> np.ndarray:
        """Maps `[B, S, S]` float32 of `[B, 3, S, S]` uint8."""
        features, confirmed = self._encoder.encode_images(images), self._confirmed
        maps, near = routed_maps(self.detector, self._router, features, confirmed=confirmed)
        if near is not None:
            self._windows.extend(near)
        return maps.cpu().numpy()

    def tell(self, num_windows: int = 1) -> None:
        """Say which class the next picture, of so many images, is of."""
        if self.classes:
            self.told.append(self._windows.told(num_windows))


def _stitched(
    class_name: str,
    samples: Sequence[Sample],
    cut: Cut,
    view: View,
    judge: _Judge,
    trained: DetectorArtifact,
    config: EvalConfig,
    report: Report,
) -> tuple[np.ndarray, np.ndarray, tuple[MapFile, MapFile, list[np.ndarray | None]]]:
    """Image scores `[N]`, maps to be kept, and maps, masks and what counts for the figures.

    The maps have the pictures' shape, those to be kept `[N, S, S]` are brought to the square that
    the detector sees, and there are none unless they are asked for.
    """
    size, reader = trained.image_size, Reader()
    whole = viewed(samples, replace(view, tile=0))
    pictures = ((number, reader.picture(sample)) for number, sample in enumerate(whole))

    def maps_of(images: np.ndarray) -> np.ndarray:
        return judge(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))

    maps, masks, inside, scores, kept = MapFile(), MapFile(), [], [], []
    for number, stitched in stitched_maps(pictures, view, size, config.batch_size, maps_of):
        one_map, sample = stitched.whole(), samples[number]
        scores.append(picture_score(judge.detector, stitched, one_map))
        judge.tell(len(stitched.windows))
        if not unmasked([sample]):
            maps.append(one_map)
            masks.append(load_anomaly_mask(sample, stitched.shape, cut))
            inside.append(stitched.counted)
        if config.keep_maps:
            square = Image.fromarray(one_map).resize((size, size), Image.Resampling.BILINEAR)
            kept.append(np.asarray(square))
        report.step(f"eval {class_name}", number + 1, len(samples))
    stacked = np.stack(kept) if kept else np.zeros((0, size, size), np.float32)
    return np.array(scores, np.float32), stacked, (maps, masks, inside)


def _class_maps(
    class_name: str,
    samples: Sequence[Sample],
    cut: Cut,
    judge: _Judge,
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
        maps[rows] = judge(images)
        for row, sample in zip(range(rows.start, rows.stop), batch, strict=True):
            judge.tell()
            if sample.mask_paths:
                masks[row] = load_anomaly_mask(sample, size, cut)
        report.step(f"eval {class_name}", rows.stop, len(samples))
    return maps, masks


def _cut(class_name: str, samples: Sequence[Sample], report: Report) -> Cut:
    """Which levels of a class's masks are defective; says which where that is not plain."""
    stamps = tuple(path.stat().st_mtime_ns for one in samples for path in one.mask_paths)
    found = _looked_at(tuple(samples), stamps)  # what is of no use is an error when it is read
    for sentence in found.implausible:
        report.note(f"{class_name}: {sentence}")
    if found.cut.reason:
        report.note(f"{class_name}: anomaly masks have {found.cut.reason}")
    return found.cut


@lru_cache(maxsize=64)
def _looked_at(samples: tuple[Sample, ...], _stamps: tuple[int, ...]) -> MaskLook:
    """Remembered, for a run measures a class after every step."""
    return look_at_masks(samples)


def _drawn(
    samples: Sequence[Sample], maps: np.ndarray, masks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Maps and masks `[N, H, W]` of the images of which every pixel is known to be good or not."""
    if not unmasked(samples):
        return maps, masks
    kept = [not unmasked([sample]) for sample in samples]
    return maps[kept], masks[kept]


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
