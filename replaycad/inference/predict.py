"""A trained detector at work: scores and heat maps of images that nobody has labelled."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from replaycad.artifacts.atomic import replacing
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.store import Store
from replaycad.data.pixels import read_picture, strange
from replaycad.data.stitching import stitched_maps
from replaycad.data.views import WHOLE, View, shared_view, view_of
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.products import Windows
from replaycad.detectors.registry import preset_for
from replaycad.engine.inputs import InputDigests
from replaycad.engine.staleness import check_same_encoder, input_header
from replaycad.errors import ArtifactError, ConfigError, DatasetError
from replaycad.inference.graph import DetectorGraph
from replaycad.inference.overlay import overlay
from replaycad.inference.photos import Found
from replaycad.inference.regions import find_regions
from replaycad.stages.eval import picture_score

UNKNOWN = "unknown product"
TILES_AT_ONCE = 16  # at least, also of a single picture


class Judged(NamedTuple):
    """What a detector says of one picture.

    Attributes:
        score: 0 is typical of normal images, 1 the threshold.
        anomaly_map: `[h, w]` float32 on the same scale, minus infinity where it is ignored.
        class_name: the class that the picture is of, or the nearest; empty where that is not told.
        distance: to that class, above 1 for a picture of no class that is known; None likewise.
        alarm: what the limit of image scores is on the scale of the map.
    """

    score: float
    anomaly_map: np.ndarray
    alarm: float
    class_name: str = ""
    distance: float | None = None

    @property
    def verdict(self) -> str:
        """`normal`, `anomalous` or `unknown product`."""
        if self.distance is not None and self.distance > 1:
            return UNKNOWN
        return "anomalous" if self.score > 1 else "normal"


@dataclass(frozen=True)
class Predictor:
    """A detector ready for images.

    Attributes:
        graph: that judges.
        image_size: side in pixels of what it sees.
        device: where it runs.
        view: how pictures are seen; None where that depends on the class.
        header: of the detector.
    """

    graph: DetectorGraph
    image_size: int
    device: torch.device
    view: View | None = WHOLE
    header: Mapping[str, Any] = field(default_factory=dict)

    def of_class(self, name: str) -> "Predictor":
        """The same for pictures of one class: its view, and its thresholds if it has any."""
        known = name in self.graph.thresholds.get("by_class", {})
        graph = self.graph.of_class(name) if known else self.graph
        return replace(self, graph=graph, view=view_of(self.header, name))

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Judge `[B, S, S, 3]` uint8 RGB: scores `[B]` and maps `[B, S, S]` as of `graph`."""
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        scores, maps, *_ = self.graph(batch.to(self.device))
        return scores.cpu().numpy(), maps.cpu().numpy()

    def one_view(self) -> View:
        """How pictures are seen.

        Raises:
            ConfigError: if that depends on the class.
        """
        if self.view is None:
            names = ", ".join(
                f"{name}: {view_of(self.header, name)}" for name in self.header["class_order"]
            )
            message = f"the detector sees its classes in different ways ({names})"
            raise ConfigError(message, "name the class with --class")
        return self.view

    @torch.inference_mode()
    def judge(
        self, pictures: Iterable[tuple[str, Image.Image]], batch_size: int
    ) -> Iterator[Judged]:
        """Judge RGB pictures of any size, by name.

        The map of a picture that is squashed is square; any other has the picture's shape.

        Raises:
            ConfigError: if it depends on the class how pictures are seen.
            DatasetError: if a picture has another size than the view demands.
        """
        view = self.one_view()
        windows = Windows()  # of pictures that are not yet told

        def maps_of(images: np.ndarray) -> np.ndarray:
            batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
            maps, near = self.graph.raw_maps(batch.to(self.device))
            if near is not None:
                windows.extend(near)
            return maps.cpu().numpy()

        named = ((name, view.blanked(picture, name)) for name, picture in pictures)
        at_once = max(batch_size, TILES_AT_ONCE) if view.tile else batch_size
        for _, stitched in stitched_maps(named, view, self.image_size, at_once, maps_of):
            class_name, distance = self._class_of(windows, len(stitched.windows))
            whole = stitched.whole()
            score = torch.tensor(picture_score(self.graph.detector, stitched, whole))
            shown = self.graph.normalized(torch.from_numpy(whole), "pixel", class_name).numpy()
            if stitched.counted is not None:
                shown = np.where(stitched.counted, shown, np.float32(-np.inf))
            judged = float(self.graph.normalized(score, "image", class_name))
            yield Judged(judged, shown, self.graph.alarm(class_name), class_name, distance)

    def _class_of(self, windows: Windows, num_windows: int) -> tuple[str, float | None]:
        """As `Windows.told`; where a class was named it is that one."""
        classes = self.graph.classes
        if not classes:
            return "", None
        named = classes.index(self.graph.named) if self.graph.named else None
        row, distance = windows.told(num_windows, named)
        return classes[row], distance


def load_predictor(
    store: Store, name: str, encoder: str, device: torch.device, class_name: str = ""
) -> Predictor:
    """Open a detector of the store.

    Args:
        store: that holds it.
        name: of the detector; empty where the store holds one alone.
        encoder: as `eval` takes it; empty for the one that it was trained with.
        device: where it shall run.
        class_name: whose threshold and view count; empty for the threshold over all classes, and
            the view that they share.

    Raises:
        ConfigError: no name, and not exactly one detector; or a class that it does not know.
        ArtifactError: no such detector, or another encoder than its own.
        WeightsError: if the encoder's files are missing.
    """
    trained, encoder = open_detector(store, detector_name(store, name), encoder)
    return predictor_of(trained, encoder, device, class_name)


def detector_name(store: Store, name: str) -> str:
    """The name that was given, or that of the only detector of a store.

    Raises:
        ConfigError: no name, and not exactly one detector.
    """
    found = [name] if name else store.list("detectors")
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"{store.root} holds no detector", "run `replaycad train`")
    message = f"{store.root} holds several detectors: {', '.join(found)}"
    raise ConfigError(message, "choose one with --name")


def open_detector(store: Store, name: str, encoder: str) -> tuple[DetectorArtifact, str]:
    """A detector of the store and the encoder that it is to be used with.

    Raises:
        ArtifactError: as `load_predictor`, like the rest.
    """
    path = store.path("detectors", name)
    input_header(path, "detectors")  # or say which detectors there are
    trained = DetectorArtifact.load(path)
    encoder = encoder or trained.encoder
    weights = InputDigests(store).detector(encoder, trained.detector, trained.preset)
    check_same_encoder(path, trained.header, weights, encoder)
    return trained, encoder


def predictor_of(
    trained: DetectorArtifact, encoder: str, device: torch.device, class_name: str = ""
) -> Predictor:
    """A detector behind its encoder; arguments as of `load_predictor`."""
    levels = preset_for(trained.detector, trained.preset).levels
    graph = DetectorGraph(trained, load_encoder(encoder, device, levels))
    graph = graph.of_class(class_name) if class_name else graph
    header = trained.header
    view = view_of(header, class_name) if class_name else shared_view(header)
    return Predictor(graph, trained.image_size, device, view, header)


@dataclass
class Tally:
    """What a prediction came to: counts, and seconds of each image from file to verdict."""

    alarms: int = 0
    unknown: int = 0
    failures: int = 0
    seconds: list[float] = field(default_factory=list)
    start: float = field(default_factory=time.monotonic)

    @property
    def worst(self) -> int:
        """0 if all images were normal, 3 if one was anomalous, 4 if one was of no known class."""
        return 4 if self.unknown else 3 if self.alarms else 0

    def summary(self) -> str:
        """One sentence."""
        count = len(self.seconds)
        spent = time.monotonic() - self.start
        rate = f"{count / spent:.1f} images/s" if spent > 0 else ""
        latency = f", {1000 * median(self.seconds):.0f} ms per image" if count else ""
        broken = f", {self.failures} could not be read" if self.failures else ""
        images = f"{count} image{'s' * (count != 1)}"
        alarms = f"{self.alarms} alarm{'s' * (self.alarms != 1)}"
        unknown = f", {self.unknown} of an unknown product" if self.unknown else ""
        return f"{images}, {alarms}{unknown}{broken}{latency}, {rate}"


def predict(
    predictor: Predictor,
    images: Iterator[Found],
    out: Path | None,
    batch_size: int,
    tally: Tally,
    outlined: bool = False,
) -> Iterator[dict[str, Any]]:
    """Judge images one after another.

    Args:
        predictor: that judges.
        images: to be judged; read no further than the batch at hand.
        out: folder for overlays; None for none.
        batch_size: images at once; 1 where each verdict is awaited.
        tally: counts.
        outlined: whether regions come with their outlines.

    Yields:
        Per image `image` (its path), `score` (1 is the threshold), `verdict` (`normal`, `anomalous`
        or `unknown product`), of an anomalous one its `regions` as `find_regions` gives them,
        `class` and `class_distance` (above 1 for an unknown product) where the detector tells
        classes apart, `note` if it has other channels or levels than its class and, with `out`,
        `overlay`; or `image` and `error` if it cannot be read.

    Raises:
        DatasetError: as `find_images`.
        ConfigError: as `Predictor.one_view`.
        ArtifactError: if an overlay cannot be written, or would replace an image that is judged.
    """
    taken: set[Path] = set()
    view = predictor.one_view()
    at_once = 1 if view.tile else batch_size  # of a picture of many tiles, one is held
    while batch := list(islice(images, at_once)):
        start, read = time.monotonic(), []
        for found in batch:
            try:
                picture = read_picture(found.path, view.white)
                view.check(*picture.size, str(found.path))
                read.append((found, picture))
            except DatasetError as error:
                tally.failures += 1
                yield {"image": str(found.path), "error": str(error)}
        if not read:
            continue
        judged = list(
            predictor.judge([(str(found.path), one) for found, one in read], batch_size)
        )
        spent = (time.monotonic() - start) / len(read)
        for (found, picture), one in zip(read, judged, strict=True):
            tally.seconds.append(spent)
            tally.alarms += one.verdict == "anomalous"
            tally.unknown += one.verdict == UNKNOWN
            told: dict[str, Any] = {
                "image": str(found.path), "score": round(one.score, 4), "verdict": one.verdict,
            }  # fmt: skip
            if one.verdict == "anomalous":
                marked = find_regions(one.anomaly_map, one.alarm, *picture.size, outlined)
                told["regions"] = [region.facts() for region in marked]
            if one.distance is not None:
                told |= {"class": one.class_name, "class_distance": round(one.distance, 4)}
            note = strange(found.path, picture, view.colours)
            told |= {"note": note} if note else {}
            if out is not None:
                target = _unused(out / found.target, taken)
                _save(overlay(picture, one.anomaly_map), target, found.path)
                told["overlay"] = str(target)
            yield told


def _unused(target: Path, taken: set[Path]) -> Path:
    """A PNG of this name that this run has not written; numbered where it has."""
    names = chain([target.name], (f"{target.name}-{number}" for number in range(2, sys.maxsize)))
    path = next(p for name in names if (p := target.with_name(f"{name}.png")) not in taken)
    taken.add(path)
    return path


def _save(picture: Image.Image, target: Path, image: Path) -> None:
    if target.resolve() == image.resolve():
        message = f"the heat map would overwrite the image {target}"
        raise ArtifactError(message, "choose another folder with --out")
    with replacing(target) as file:
        picture.save(file, format="PNG")
