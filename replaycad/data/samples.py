"""One image of a class, and what a folder was read as."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from replaycad.data.views import WHOLE, View, Window

IMAGE_SUFFIXES = frozenset((
    ".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm",
    ".pnm", ".pbm", ".jp2",
))  # fmt: skip
UNREAD_SUFFIXES = frozenset((  # photos that PIL does not read: of telephones, cameras, scanners
    ".heic", ".heif", ".avif", ".jxl", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf",
    ".rw2", ".raf", ".exr", ".hdr", ".dcm",
))  # fmt: skip
IGNORE_PICTURE = "ignore.png"  # in the folder of a class: white where its pictures are ignored
SHOWN = 3  # names told of each kind of files


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a class.

    Args:
        path: where it lies.
        image_id: posix path relative to the class folder.
        class_name: the product.
        kind: `good`, or the name of the defect's folder (`bad` where VisA names none).
        is_anomalous: whether it shows a defect.
        mask_paths: anomaly masks of an anomalous image; several are united, none if nobody drew
            its defect.
        view: how the networks see the pictures of the class.
        window: the part of the picture that this is; None for the whole.
    """

    path: Path
    image_id: str
    class_name: str
    kind: str
    is_anomalous: bool = False
    mask_paths: tuple[Path, ...] = ()
    view: View = WHOLE
    window: Window | None = None


@dataclass(kw_only=True)
class Reading:
    """What the folder of a class was read as.

    Attributes:
        class_name: the product.
        layout: in a few words.
        train: normal training images, by id.
        test: test images, by id.
        guesses: sentences about what no folder or table says outright.
        left_out: ids of the images that are not used, by reason.
    """

    class_name: str
    layout: str
    train: list[Sample] = field(default_factory=list)
    test: list[Sample] = field(default_factory=list)
    guesses: list[str] = field(default_factory=list)
    left_out: dict[str, list[str]] = field(default_factory=dict)

    @property
    def unmasked(self) -> list[Sample]:
        """Defective test images whose defect nobody drew."""
        return unmasked(self.test)

    def sentences(self) -> list[str]:
        """All guesses, what has no mask, and how many files are left out and why."""
        found = list(self.guesses)
        if self.unmasked:
            total = sum(sample.is_anomalous for sample in self.test)
            verb, them = ("has", "it") if len(self.unmasked) == 1 else ("have", "them")
            found.append(
                f"{len(self.unmasked)} of {counted(total, 'defective image')} {verb} no anomaly "
                f"mask: pixel figures leave {them} out"
            )
        found += [
            f"{counted(len(ids), 'file')} left out: {reason} ({listed(ids)})"
            for reason, ids in self.left_out.items()
        ]
        return found


def unmasked(samples: Sequence[Sample]) -> list[Sample]:
    """Defective images whose defect nobody drew: no pixel figure is of them."""
    return [one for one in samples if one.is_anomalous and not one.mask_paths]


def is_image_name(name: str) -> bool:
    """Whether a file is named like an image."""
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def counted(number: int, word: str = "image") -> str:
    """Such as `1 image` or `2 images`."""
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join([*names[:SHOWN], "..."] if len(names) > SHOWN else names)
