"""What a detector says of every test image, with the metrics beside it as plain JSON."""

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replaycad.artifacts.atomic import write_text
from replaycad.artifacts.format import damaged, plain, read, read_header, write
from replaycad.artifacts.schema import Schema, TensorSpec

SCORES = Schema(
    format="scores",
    version=1,
    tensors={
        "image_scores": TensorSpec("float32", ("N",), "higher is more anomalous"),
        "image_labels": TensorSpec("uint8", ("N",), "0 normal, 1 anomalous"),
        "class_index": TensorSpec("int64", ("N",), "place of the image's class in `classes`"),
        "told_index": TensorSpec(
            "int64", ("N",), "place in `told_classes` of the class it is most like", optional=True
        ),
        "product_distances": TensorSpec(
            "float32", ("N",), "to that class; only where classes are told apart", optional=True
        ),
        "anomaly_maps": TensorSpec(
            "float16", ("N", "H", "W"), "higher is more anomalous; only if asked for", optional=True
        ),
    },
    command="replaycad eval",
    fields={"classes": list, "image_ids": list, "metrics": dict},
)


@dataclass(frozen=True)
class ScoresArtifact:
    """Scores of N test images.

    Attributes:
        classes: their names.
        image_scores: [N] float32, higher is more anomalous.
        image_labels: [N] uint8, 0 normal, 1 anomalous.
        class_index: [N] int64, place in `classes`.
        image_ids: N ids.
        metrics: numbers by name, per class and mean, fractions from 0 to 1; what is undefined (NaN)
            becomes null in the file.
        anomaly_maps: [N, H, W] float16, higher is more anomalous, or None.
        told_classes: the classes that the detector tells apart; none where it does not.
        told_index: [N] int64, place in `told_classes` of the class that an image is most like; None
            where classes are not told apart, and in files of an earlier version.
        product_distances: [N] float32, how far an image is from that class, as it comes: limits of
            a detector may be set anew, and scores know none. None likewise.
        header: further header fields; after loading, all of them.
    """

    classes: list[str]
    image_scores: NDArray[np.float32]
    image_labels: NDArray[np.uint8]
    class_index: NDArray[np.int64]
    image_ids: list[str]
    metrics: dict[str, Any]
    anomaly_maps: NDArray[np.float16] | None = None
    told_classes: list[str] = field(default_factory=list)
    told_index: NDArray[np.int64] | None = None
    product_distances: NDArray[np.float32] | None = None
    header: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> str:
        """Write the file and the `.json` beside it; return the content id.

        Raises:
            ArtifactError: one of them cannot be written.
        """
        path = Path(path)
        tensors: dict[str, NDArray[Any]] = {
            "image_scores": np.asarray(self.image_scores, dtype=np.float32),
            "image_labels": np.asarray(self.image_labels, dtype=np.uint8),
            "class_index": np.asarray(self.class_index, dtype=np.int64),
        }
        if self.anomaly_maps is not None:
            tensors["anomaly_maps"] = np.asarray(self.anomaly_maps, dtype=np.float16)
        if self.told_index is not None and self.product_distances is not None:
            tensors["told_index"] = np.asarray(self.told_index, dtype=np.int64)
            tensors["product_distances"] = np.asarray(self.product_distances, dtype=np.float32)
        metrics = plain(self.metrics)
        own = {
            "classes": list(self.classes),
            "image_ids": list(self.image_ids),
            "metrics": metrics,
            "told_classes": list(self.told_classes),
        }
        written = write(path, SCORES, tensors, {**self.header, **own})
        mirror_in_json(path)
        return written

    @classmethod
    def load(cls, path: str | Path) -> "ScoresArtifact":
        """Read and check the file.

        Raises:
            ArtifactError: it is missing, damaged, foreign or newer.
        """
        tensors, header = read(path, SCORES)
        scores, index = tensors["image_scores"], tensors["class_index"]
        classes, image_ids = header["classes"], header["image_ids"]
        told_classes, told = header.get("told_classes", []), tensors.get("told_index")
        if len(image_ids) != len(scores):
            found = f"found {len(image_ids)}"
            damaged(Path(path), SCORES, f"expected image ids of {len(scores)} scores, {found}")
        places = (("class_index", index, classes), ("told_index", told, told_classes))
        for name, values, known in places:
            if values is None or not len(values):
                continue
            if not (values.min() >= 0 and values.max() < len(known)):
                found = f"found {values.min()} to {values.max()}"
                damaged(Path(path), SCORES, f"expected `{name}` below {len(known)}, {found}")
        if (told is None) != ("product_distances" not in tensors):
            damaged(Path(path), SCORES, "expected `told_index` with `product_distances`, found one")
        return cls(
            classes=classes,
            image_scores=scores,
            image_labels=tensors["image_labels"],
            class_index=index,
            image_ids=image_ids,
            metrics=header["metrics"],
            anomaly_maps=tensors.get("anomaly_maps"),
            told_classes=told_classes,
            told_index=told,
            product_distances=tensors.get("product_distances"),
            header=header,
        )


def mirror_in_json(path: str | Path) -> None:
    """Write what scores came to as JSON beside them, unless that is there already.

    Args:
        path: of the scores.

    Raises:
        ArtifactError: they cannot be read, or the JSON cannot be written.
    """
    path = Path(path)
    header = read_header(path, SCORES)
    fields = ("classes", "metrics", "content_id")
    document = {**{name: header[name] for name in fields}, "key": header.get("key", "")}
    text, target = json.dumps(document, indent=1, sort_keys=True) + "\n", path.with_suffix(".json")
    with contextlib.suppress(OSError, ValueError):
        if target.read_text() == text:
            return
    write_text(target, text)
