"""Which frozen diffusion models there are and where their files lie; imports no torch."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from replaycad.errors import WeightsError

_BUNDLED = Path(__file__).resolve().parent.parent / "mini" / "weights" / "diffusion"

_FOLDERS = {
    "vae": ("vae", "vqvae"),
    "unet": ("unet",),
    "text_encoder": ("text_encoder", "bert"),
    "tokenizer": ("tokenizer",),
    "scheduler": ("scheduler",),
    "set_encoder": ("set_encoder",),
    "spatial_encoder": ("spatial_encoder",),
}
"""Network -> folder names it goes by; ldm256 calls its autoencoder vqvae, its text model bert."""

_WEIGHTS = {
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
    "text_encoder": "model",
    "set_encoder": "model",
    "spatial_encoder": "model",
}
"""Network -> first part of the name of its weights file; what may follow is in `VARIANTS`."""

VARIANTS = {
    # The authors train on the weights without EMA, so those win where both are present.
    "": (".non_ema", "", ".fp16"),
    "ema": ("", ".fp16"),
    "non_ema": (".non_ema",),
    "fp16": (".fp16",),
}
"""What may follow a backbone's name after a colon -> which files of its unet it means, best first;
of the other networks `fp16` means the small files, where there are any."""
_OPTIONAL = ("set_encoder", "spatial_encoder")
_SMALL = (".json", ".txt")
_DIFFUSERS_WIDTH = 1280  # of a token, where unet/config.json does not say


@dataclass(frozen=True, kw_only=True)
class BackbonePreset:
    """A frozen latent diffusion model that replaycad knows by name.

    Sizes describe the model; K, I and O are what the paper (or, for `mini`, its pre-training)
    uses with it.
    """

    name: str
    image_size: int  # pixels
    latent_shape: tuple[int, int, int]  # C, h, w
    cross_attention_dim: int  # D
    text_length: int  # T
    num_tokens: int  # K
    in_features: int  # I
    out_features: int  # O
    parameters: dict[str, int] = field(default_factory=dict)  # as the published configs give them
    hub_id: str = ""  # empty: bundled with the package
    revision: str = "main"  # a commit of the hub; the same files for everybody, or none
    published: tuple[str, ...] = ()  # files of that revision that `needed_files` chooses from
    licence: str = "Apache-2.0"  # of the weights


BACKBONES: dict[str, BackbonePreset] = {
    "mini": BackbonePreset(
        name="mini", image_size=128, latent_shape=(24, 16, 16), cross_attention_dim=192,
        text_length=24, num_tokens=64, in_features=256, out_features=96,
    ),
    "sd15": BackbonePreset(
        name="sd15", image_size=512, latent_shape=(4, 64, 64), cross_attention_dim=768,
        text_length=77, num_tokens=20, in_features=128, out_features=192,
        parameters={"vae": 83_653_863, "unet": 859_520_964, "text_encoder": 123_060_480},
        hub_id="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        published=(
            "scheduler/scheduler_config.json", "tokenizer/",
            *(f"{network}/config.json" for network in ("vae", "unet", "text_encoder")),
            *(f"{network}/{stem}{ending}.safetensors"
              for network, stem in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model"),
                                    ("unet", "diffusion_pytorch_model"))
              for ending in ("", ".fp16")),
            "unet/diffusion_pytorch_model.non_ema.safetensors",
        ),
        licence="CreativeML OpenRAIL-M",
    ),
    "ldm256": BackbonePreset(
        name="ldm256", image_size=256, latent_shape=(4, 32, 32), cross_attention_dim=1280,
        text_length=77, num_tokens=20, in_features=128, out_features=200,
        parameters={"vae": 83_653_863, "unet": 872_300_484, "text_encoder": 581_994_042},
        hub_id="CompVis/ldm-text2im-large-256",
        revision="30de525ca11a880baea4962827fb6cb0bb268955",
        published=(  # pickles alone, of which safetensors are made
            "scheduler/scheduler_config.json", "tokenizer/",
            *(f"{network}/config.json" for network in ("vqvae", "unet", "bert")),
            *(f"{network}/diffusion_pytorch_model.bin" for network in ("vqvae", "unet")),
            "bert/pytorch_model.bin",
        ),
    ),
}  # fmt: skip


def split_name(name: str | Path) -> tuple[str, str]:
    """`sd15:non_ema` -> `sd15`, `non_ema`; a colon that names no variant belongs to the name."""
    before, _, variant = str(name).rpartition(":")
    return (before, variant) if before and variant in VARIANTS and variant else (str(name), "")


def locate_backbone(name: str | Path) -> Path:
    """Find the folder of a backbone, without touching the network.

    Args:
        name: a key of `BACKBONES`, a folder in diffusers layout, or a hub id `owner/model` or
            `owner/model@REVISION` whose files are in the Hugging Face cache; with `:VARIANT`
            behind it where one of `VARIANTS` is wanted.

    Returns:
        the folder, with every network's folder, config and safetensors present.

    Raises:
        WeightsError: not there or not complete; the hint is the command that fetches it.
    """
    place, variant = split_name(name)
    preset = BACKBONES.get(place)
    if preset is not None and not preset.hub_id:
        folder, hint = _BUNDLED, "install replaycad again with its weights"
    elif preset is None and Path(place).is_dir():
        folder, hint = Path(place), "the folder needs vae, unet, text_encoder, tokenizer, scheduler"
    else:
        folder, hint = _cached_snapshot(str(name), place, preset)
    if (folder / "text_encoder_2").is_dir():
        raise WeightsError(
            f"backbone '{name}' has two text encoders",
            "use one of the Stable Diffusion 1 or 2 kind",
        )
    _check_complete(folder, str(name), variant, hint)
    return folder


def hub_place(name: str) -> tuple[str, str]:
    """Hub id and revision of a backbone without its variant.

    Raises:
        WeightsError: it is no known name of the hub and no hub id.
    """
    preset = BACKBONES.get(name)
    hub_id, _, revision = (preset.hub_id, "", preset.revision) if preset else name.partition("@")
    if hub_id.count("/") != 1 or hub_id.startswith((".", "/")):
        known = ", ".join(BACKBONES)
        raise WeightsError(
            f"no backbone '{name}': it is no known name ({known}), no folder and no hub id",
            "give a known name, a folder in diffusers layout or owner/model",
        )
    return hub_id, revision or "main"


def fetch_command(name: str | Path) -> str:
    """What a user types to get a backbone."""
    return shlex.join(["replaycad", "fetch", "--backbone", str(name)])


def _cached_snapshot(name: str, place: str, preset: BackbonePreset | None) -> tuple[Path, str]:
    """Folder of a hub model in the local cache, and the hint for what it may lack."""
    hub_id, revision = hub_place(place)
    # The import costs half a second, which the bundled model need not pay.
    from huggingface_hub import snapshot_download  # noqa: PLC0415
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError  # noqa: PLC0415

    hint = f"run: {fetch_command(name)}; or set the backbone to a folder that holds the files"
    if preset:
        hint += f", or {hub_id}@REVISION for another revision"
    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True)), hint
    except (LocalEntryNotFoundError, HFValidationError):
        message = f"the weights of backbone '{name}' ({hub_id}) are not in the Hugging Face cache"
        raise WeightsError(message, hint) from None


def needed_files(names: Iterable[str], variant: str = "") -> dict[str, str]:
    """Choose what is read of a model that somebody published in diffusers layout.

    Args:
        names: paths of its files; a folder with a slash behind stands for its small files.
        variant: of `VARIANTS`, as `split_name` finds it.

    Returns:
        path of a file -> path under which `locate_backbone` looks for it: the same, but for a
        pickle, which is chosen only where the weights come in no other form.

    Raises:
        WeightsError: a network is missing, or there are two text encoders.
    """
    inside: dict[str, set[str]] = {}
    for path in names:
        folder, _, name = path.partition("/")
        if "/" not in name:
            inside.setdefault(folder, set()).add(name)
    if "text_encoder_2" in inside:
        raise WeightsError(
            "it has two text encoders", "use one of the Stable Diffusion 1 or 2 kind"
        )
    found: dict[str, str] = {}
    for network, folders in _FOLDERS.items():
        folder = next((folder for folder in folders if folder in inside), "")
        if not folder:
            if network in _OPTIONAL:
                continue
            raise WeightsError(f"it has no folder {network}", "use a model in diffusers layout")
        if network in _WEIGHTS:
            chosen = _chosen_weights(network, variant, inside[folder])
        else:
            chosen = {n: n for n in inside[folder] if n.endswith(_SMALL) or not n}
        found |= {f"{folder}/{name}": f"{folder}/{read}" for name, read in chosen.items()}
    return found


def _chosen_weights(network: str, variant: str, names: set[str]) -> dict[str, str]:
    stems = [f"{_WEIGHTS[network]}{ending}" for ending in _endings(network, variant)]
    pairs = [(f"{stem}.safetensors", f"{stem}.safetensors") for stem in stems]
    pairs += [
        (f"{before}{stem}.bin", f"{stem}.safetensors") for stem in stems
        for before in ("", "pytorch_")
    ]  # fmt: skip
    if "config.json" not in names:
        raise WeightsError(f"its {network} has no config.json", "use a model in diffusers layout")
    for name, read in pairs:
        if name in names:
            return {"config.json": "config.json", name: read}
    raise WeightsError(f"its {network} has no {pairs[0][0]}", "use another model or variant")


def _network_folder(folder: Path, network: str) -> Path | None:
    for name in _FOLDERS[network]:
        if (folder / name).is_dir():
            return folder / name
    return None


def _check_complete(folder: Path, name: str, variant: str, hint: str) -> None:
    for network in _FOLDERS:
        place = _network_folder(folder, network)
        if place is None:
            if network in _OPTIONAL:
                continue
            raise WeightsError(f"backbone '{name}' has no folder {network} in {folder}", hint)
        if network not in _WEIGHTS:
            continue
        if not (place / "config.json").is_file():
            raise WeightsError(f"backbone '{name}' lacks {place / 'config.json'}", hint)
        if _weights_file(place, network, variant) is None:
            raise _no_safetensors(name, place, network, variant, hint)


def _no_safetensors(
    name: str, place: Path, network: str, variant: str, hint: str
) -> WeightsError:
    """Say which file is missing; name the way out where only a pickle is there."""
    ending = f".{variant}" if network == "unet" and variant in ("non_ema", "fp16") else ""
    wanted = place / f"{_WEIGHTS[network]}{ending}.safetensors"
    pickled = sorted(place.glob(f"*model{ending}.bin"))
    if not pickled:
        return WeightsError(f"backbone '{name}' lacks {wanted}", hint)
    return WeightsError(
        f"backbone '{name}' has only {pickled[0].name} in {place}, and replaycad reads safetensors "
        "only",
        f"run: {fetch_command(name)}, which converts it",
    )


def _endings(network: str, variant: str) -> tuple[str, ...]:
    """What may stand behind the name of a weights file, best first."""
    if network == "unet":
        return VARIANTS[variant]
    return (".fp16", "") if variant == "fp16" else ("", ".fp16")


def _weights_file(place: Path, network: str, variant: str) -> Path | None:
    for ending in _endings(network, variant):
        path = place / f"{_WEIGHTS[network]}{ending}.safetensors"
        if path.is_file():
            return path
    return None


def backbone_files(folder: Path, variant: str = "") -> dict[str, list[Path]]:
    """The files that determine what a backbone computes, per network, for digests.

    Args:
        folder: as `locate_backbone` returns it.
        variant: of `VARIANTS`, as `split_name` finds it.

    Returns:
        network -> sorted files: weights with config, all small files of tokenizer and scheduler.
        The networks `set_encoder` and `spatial_encoder` appear where the folder holds them. The
        unet's weights are those without EMA where the folder has both and no variant is named.
    """
    found: dict[str, list[Path]] = {}
    for network in _FOLDERS:
        place = _network_folder(folder, network)
        if place is None:
            continue
        weights = _weights_file(place, network, variant) if network in _WEIGHTS else None
        if weights is not None:
            found[network] = [place / "config.json", weights]
        else:
            found[network] = sorted(
                path for path in place.iterdir() if path.suffix in _SMALL
            )
    return found


def backbone_sizes(name: str | Path) -> tuple[int, int]:
    """D and the image size in pixels, read off the configs.

    Raises:
        WeightsError: as `locate_backbone`, or a config cannot be read.
    """
    preset = BACKBONES.get(split_name(name)[0])
    if preset is not None:
        return preset.cross_attention_dim, preset.image_size
    files = backbone_files(locate_backbone(name), split_name(name)[1])
    unet, vae = (read_json(files[network][0]) for network in ("unet", "vae"))
    halvings = len(vae.get("block_out_channels", (0,))) - 1
    width = unet.get("cross_attention_dim", _DIFFUSERS_WIDTH)
    return int(width), int(unet.get("sample_size", 0)) * 2**halvings


def read_json(path: Path) -> dict:
    """A JSON object of a file.

    Raises:
        WeightsError: if it cannot be read or is none.
    """
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}", "fetch the file again") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{path} holds no JSON object", "fetch the file again")
    return config


def scheduler_config(folder: Path) -> dict:
    """The noise schedule of a backbone as its scheduler_config.json says it.

    Raises:
        WeightsError: if the file is missing or no JSON object.
    """
    return read_json(folder / "scheduler" / "scheduler_config.json")
