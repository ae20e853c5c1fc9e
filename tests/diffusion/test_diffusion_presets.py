"""Where the files of a backbone lie, and what is said when they do not."""

import json
import shlex
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from replaycad.diffusion.conditioning import num_spatial_tokens
from replaycad.diffusion.presets import (
    BACKBONES,
    VARIANTS,
    backbone_files,
    backbone_sizes,
    locate_backbone,
    needed_files,
    scheduler_config,
    split_name,
)
from replaycad.errors import WeightsError
from tests.conftest import invoke
from tests.tiny import make_tiny_backbone


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A Hugging Face cache without a model in it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", BACKBONES)
def test_default_sizes_give_whole_tokens(name):
    preset = BACKBONES[name]

    assert preset.name == name
    assert preset.image_size == 8 * preset.latent_shape[1]
    assert num_spatial_tokens(
        preset.latent_shape, preset.in_features, preset.out_features, preset.cross_attention_dim
    )


def test_presets_do_not_import_torch():
    code = "import sys, replaycad.diffusion.presets; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_is_its_own_place(tmp_path):
    folder = make_tiny_backbone(tmp_path / "mine")

    assert locate_backbone(folder) == locate_backbone(str(folder)) == folder


@pytest.mark.parametrize("text", ["clip", "ldmbert"])
def test_files_of_every_network_are_listed_for_digests(tmp_path, text):
    folder = make_tiny_backbone(tmp_path / "mine", text)

    files = backbone_files(folder)

    assert list(files) == ["vae", "unet", "text_encoder", "tokenizer", "scheduler"]
    assert all(path.is_file() for paths in files.values() for path in paths)
    assert [path.name for path in files["unet"]] == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert files["vae"][0].parent.name == ("vae" if text == "clip" else "vqvae")
    assert files["text_encoder"][0].parent.name == ("text_encoder" if text == "clip" else "bert")
    assert "tokenizer_config.json" in [path.name for path in files["tokenizer"]]


def test_weights_without_ema_are_the_ones_listed(tmp_path):
    folder = make_tiny_backbone(tmp_path / "mine")
    raw = folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors"
    raw.write_bytes((folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes())

    assert backbone_files(folder)["unet"][1] == raw


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("name", ["sd15", "ldm256"])
def test_missing_downloads_come_with_the_exact_command(name):
    with pytest.raises(WeightsError, match=f"'{name}'.*not in the Hugging Face cache") as caught:
        locate_backbone(name)

    preset = BACKBONES[name]
    assert f"run: replaycad fetch --backbone {name};" in caught.value.hint
    assert "--backbone" in caught.value.hint
    assert f"{preset.hub_id}@REVISION" in caught.value.hint


PUBLISHED = {  # what the folders hold, as far as it matters here
    "sd15": [
        "model_index.json", "v1-5-pruned.safetensors", "v1-5-pruned-emaonly.safetensors",
        "scheduler/scheduler_config.json", "safety_checker/model.safetensors",
        "tokenizer/merges.txt", "tokenizer/vocab.json",
        *(f"{net}/config.json" for net in ("vae", "unet", "text_encoder")),
        "text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors",
        *(f"{net}/diffusion_pytorch_model{end}" for net in ("vae", "unet")
          for end in (".safetensors", ".fp16.safetensors", ".bin")),
        "unet/diffusion_pytorch_model.non_ema.safetensors",
    ],
    "ldm256": [
        "model_index.json", "bert/pytorch_model.bin", "tokenizer/vocab.txt",
        "scheduler/scheduler_config.json", "unet/diffusion_pytorch_model.bin",
        "vqvae/diffusion_pytorch_model.bin", "unet/config.json", "vqvae/config.json",
        "bert/config.json",
    ],
}  # fmt: skip
NEEDED = {
    "sd15": {
        "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json",
        *(f"{net}/config.json" for net in ("vae", "unet", "text_encoder")),
        "text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
    },
    "ldm256": set(PUBLISHED["ldm256"]) - {"model_index.json"},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_fetched_is_what_is_read_and_the_preset_knows_it(name):
    needed = needed_files(PUBLISHED[name])

    assert set(needed) == NEEDED[name]
    assert len(BACKBONES[name].revision) == 40  # a commit, which cannot move as a branch does
    known = needed_files(BACKBONES[name].published)
    in_folders = {"tokenizer/"} | {path for path in needed if not path.startswith("tokenizer/")}
    assert set(known) == in_folders


def test_a_variant_is_fetched_by_itself():
    unet = "unet/diffusion_pytorch_model"

    assert f"{unet}.safetensors" in needed_files(PUBLISHED["sd15"], "ema")
    small = needed_files(PUBLISHED["sd15"], "fp16")
    assert {f"{unet}.fp16.safetensors", "text_encoder/model.fp16.safetensors"} <= set(small)
    with pytest.raises(WeightsError, match=r"unet has no .*non_ema"):
        needed_files(PUBLISHED["ldm256"], "non_ema")


@pytest.mark.parametrize(("config", "width"), [({}, 1280), ({"cross_attention_dim": 48}, 48)])
def test_a_width_that_the_unet_does_not_state_is_that_of_diffusers(tmp_path, config, width):
    folder = make_tiny_backbone(tmp_path / "mine")
    path = folder / "unet" / "config.json"
    stated = json.loads(path.read_text())
    del stated["cross_attention_dim"]
    path.write_text(json.dumps(stated | config))

    assert backbone_sizes(folder) == (width, 32)


@pytest.mark.usefixtures("empty_cache")
def test_a_hub_id_is_looked_up_in_the_cache_alone():
    with pytest.raises(WeightsError, match="somebody/something") as caught:
        locate_backbone("somebody/something")

    assert "replaycad fetch --backbone somebody/something;" in caught.value.hint


@pytest.mark.parametrize("name", ["sd15", "ldm256"])
def test_a_cached_snapshot_is_found_and_no_other_revision_is_taken_for_it(empty_cache, name):
    preset = BACKBONES[name]
    model = empty_cache / f"models--{preset.hub_id.replace('/', '--')}"
    other = make_tiny_backbone(model / "snapshots" / ("0123456789" * 4))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(other.name)

    with pytest.raises(WeightsError, match="not in the Hugging Face cache"):
        locate_backbone(name)
    assert locate_backbone(f"{preset.hub_id}@main") == other

    other.rename(other.with_name(preset.revision))
    assert locate_backbone(name).name == preset.revision


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("name", ["sd16", "a/b/c", "./nowhere", "/no/where", "a b/c"])
def test_names_that_mean_nothing_are_refused(name):
    with pytest.raises(WeightsError) as caught:
        locate_backbone(name)

    assert name in caught.value.message


@pytest.mark.parametrize("network", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_folder_without_a_network_is_refused(tmp_path, network):
    folder = make_tiny_backbone(tmp_path / "mine")
    (folder / network).rename(folder / "elsewhere")

    with pytest.raises(WeightsError, match=f"no folder {network} in"):
        locate_backbone(folder)


@pytest.mark.parametrize("name", ["config.json", "diffusion_pytorch_model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = make_tiny_backbone(tmp_path / "mine")
    (folder / "unet" / name).unlink()

    with pytest.raises(WeightsError, match=f"lacks .*unet/{name}"):
        locate_backbone(folder)


@pytest.mark.parametrize("text", ["clip", "ldmbert"])
@pytest.mark.parametrize("network", ["vae", "text_encoder"])
def test_pickled_weights_are_refused_and_the_command_that_converts_them_works(
    tmp_path, text, network
):
    folder = make_tiny_backbone(tmp_path / "mine", text)
    published = {"text_encoder": "pytorch_model.bin"}
    weights = backbone_files(folder)[network][1]
    tensors = load_file(weights)
    torch.save(tensors, weights.with_name(published.get(network, f"{weights.stem}.bin")))
    weights.unlink()

    with pytest.raises(WeightsError, match="safetensors only") as caught:
        locate_backbone(folder)
    command = caught.value.hint.removeprefix("run: replaycad ").partition(", which")[0]
    assert invoke(shlex.split(command)).exit_code == 0

    assert locate_backbone(folder) == folder
    converted = load_file(weights)
    assert set(converted) == set(tensors)
    assert all(torch.equal(value, tensors[key]) for key, value in converted.items())


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("sd15", ("sd15", "")),
        ("sd15:ema", ("sd15", "ema")),
        ("owner/model@abc:fp16", ("owner/model@abc", "fp16")),
        ("c:/models/one", ("c:/models/one", "")),
        (":ema", (":ema", "")),
    ],
)
def test_a_variant_stands_behind_a_colon(name, split):
    assert split_name(name) == split


def test_a_variant_is_chosen_by_name(tmp_path):
    folder = make_tiny_backbone(tmp_path / "mine")
    plain = folder / "unet" / "diffusion_pytorch_model.safetensors"
    other = {v: plain.with_name(f"{plain.stem}.{v}.safetensors") for v in ("non_ema", "fp16")}
    for path in other.values():
        path.write_bytes(plain.read_bytes())

    chosen = {v: backbone_files(folder, v)["unet"][1] for v in VARIANTS}

    assert chosen == {"": other["non_ema"], "ema": plain, **other}
    assert locate_backbone(f"{folder}:non_ema") == folder
    other["non_ema"].unlink()
    with pytest.raises(WeightsError, match=r"lacks .*model\.non_ema\.safetensors"):
        locate_backbone(f"{folder}:non_ema")


def test_a_revision_is_looked_up_by_its_commit(empty_cache):
    commit = "0123456789abcdef" * 2 + "01234567"
    snapshots = empty_cache / "models--somebody--something" / "snapshots"
    make_tiny_backbone(snapshots / commit)

    assert locate_backbone(f"somebody/something@{commit}") == snapshots / commit
    with pytest.raises(WeightsError) as caught:
        locate_backbone("somebody/something@" + "f" * 40)
    assert f"replaycad fetch --backbone somebody/something@{'f' * 40};" in caught.value.hint


def test_the_scheduler_is_read_as_written(tmp_path):
    folder = make_tiny_backbone(tmp_path / "mine")

    assert scheduler_config(folder)["beta_schedule"] == "scaled_linear"


@pytest.mark.parametrize("text", [None, "{", json.dumps([1])])
def test_an_unreadable_scheduler_is_refused(tmp_path, text):
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.parent.mkdir()
    if text is not None:
        path.write_text(text)

    with pytest.raises(WeightsError, match=r"scheduler_config\.json"):
        scheduler_config(tmp_path)
