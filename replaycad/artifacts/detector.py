"""A trained detector without its frozen encoder, which is named with its digest."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from replaycad.artifacts.format import content_id, damaged, read, write
from replaycad.artifacts.schema import Schema, TensorSpec

MODEL, PENALTY, GUARD = "model.", "penalty.", "guard."
ROUTER, CONFIRMED = "router.", "confirmed."
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NUMBERS = ("float32", "float16", "float64", "int64", "int32", "uint8", "bool")

DETECTOR = Schema(
    format="detector",
    version=1,
    tensors={
        "model.*": TensorSpec(NUMBERS, None, "trained parameters and buffers by module path"),
        "penalty.*": TensorSpec(
            NUMBERS, None, "what ewc or mas remember, if trained with them", optional=True
        ),
        "guard.*": TensorSpec(
            NUMBERS, None, "matrices by layer that hold steps of later classes, if trained so",
            optional=True,
        ),
        "router.*": TensorSpec(
            NUMBERS, None, "banks that tell classes apart, of other detectors than banks",
            optional=True,
        ),
        "confirmed.*": TensorSpec(
            NUMBERS, None, "patches that people confirmed as good, of other detectors than banks",
            optional=True,
        ),
    },
    command="replaycad train",
    fields={
        "detector": str,
        "preset": str,
        "encoder": str,
        "image_size": int,
        "class_order": list,
        "thresholds": dict,
        "mean": list,
        "std": list,
    },
)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class DetectorArtifact:
    """A detector for some classes.

    Attributes:
        detector: its name in the table of detectors.
        preset: which of its sizes.
        encoder: name of the frozen encoder; the digest stands in `header["weights"]`.
        image_size: side in pixels of what it sees.
        class_order: the classes in the order in which they were learned.
        state: trained parameters and buffers by module path, without the encoder's.
        thresholds: `image` and `pixel`, which a normal score exceeds at `false_alarm_rate`, and the
            medians `typical_image` and `typical_pixel` of normal scores; under `by_class` the same
            of each class. One that was calibrated also has `photos`, `promised` and `trained`, as
            `detectors.limits.calibrated` gives them.
        header: further header fields; after loading, all of them. `feedback` lists what people said
            of photos, as `continual.feedback` writes it.
        mean, std: of the channels R, G, B in 0 to 1, as the encoder expects them.
        penalty: what ewc or mas need to go on, by name.
        guard: what holds the steps of later classes, by layer, as `continual.guard` keeps it.
        router: parameters of the memory banks that tell classes apart where the detector does not.
        confirmed: patches of photos that people confirmed as good, as `continual.confirmed` keeps
            them beside a detector that has no memory bank.
    """

    detector: str
    preset: str
    encoder: str
    image_size: int
    class_order: list[str]
    state: Arrays
    thresholds: dict[str, Any]
    header: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    penalty: Arrays = field(default_factory=dict)
    guard: Arrays = field(default_factory=dict)
    router: Arrays = field(default_factory=dict)
    confirmed: Arrays = field(default_factory=dict)

    @property
    def content_id(self) -> str:
        """The content id that a file of it has."""
        return content_id(self._tensors)

    @property
    def _tensors(self) -> Arrays:
        groups = (
            (MODEL, self.state), (PENALTY, self.penalty), (GUARD, self.guard),
            (ROUTER, self.router), (CONFIRMED, self.confirmed),
        )  # fmt: skip
        return {
            start + name: values for start, group in groups for name, values in group.items()
        }

    def save(self, path: str | Path) -> str:
        """Write the file and return its content id.

        Raises:
            ArtifactError: it cannot be written, or a parameter is NaN or infinite.
        """
        own = {
            "detector": self.detector,
            "preset": self.preset,
            "encoder": self.encoder,
            "image_size": self.image_size,
            "class_order": list(self.class_order),
            "thresholds": self.thresholds,
            "mean": list(self.mean),
            "std": list(self.std),
        }
        return write(path, DETECTOR, self._tensors, {**self.header, **own})

    @classmethod
    def load(cls, path: str | Path) -> "DetectorArtifact":
        """Read and check the file.

        Raises:
            ArtifactError: it is missing, damaged, foreign or newer.
        """
        tensors, header = read(path, DETECTOR)
        state = _under(MODEL, tensors)
        if not state:
            damaged(Path(path), DETECTOR, "expected tensors `model.*`, found none")
        return cls(
            detector=header["detector"],
            preset=header["preset"],
            encoder=header["encoder"],
            image_size=header["image_size"],
            class_order=header["class_order"],
            state=state,
            thresholds=header["thresholds"],
            header=header,
            mean=tuple(header["mean"]),
            std=tuple(header["std"]),
            penalty=_under(PENALTY, tensors),
            guard=_under(GUARD, tensors),
            router=_under(ROUTER, tensors),
            confirmed=_under(CONFIRMED, tensors),
        )


def _under(prefix: str, tensors: Arrays) -> Arrays:
    """The tensors whose names start with `prefix`, without it."""
    return {
        name.removeprefix(prefix): values
        for name, values in tensors.items()
        if name.startswith(prefix)
    }
