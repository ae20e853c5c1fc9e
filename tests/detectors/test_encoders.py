"""Where encoders come from, what loading refuses, and what a frozen encoder promises."""

import json
import subprocess
import sys

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from replaycad.detectors import encoder_files as files
from replaycad.detectors.encoder_files import encoder_files, locate_encoder
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.registry import DETECTORS, preset_for
from replaycad.errors import ConfigError, WeightsError

NAME = "resnet10t"


@pytest.fixture
def weights(tmp_path):
    model = timm.create_model(NAME, pretrained=False, features_only=True, out_indices=(1, 2, 3))
    path = tmp_path / "encoder.safetensors"
    save_file(model.state_dict(), path)
    return path


def test_a_local_file_loads_with_its_levels(weights):
    encoder = load_encoder(f"{NAME}:{weights}")

    features = encoder.encode_images(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))

    assert encoder.channels == (64, 128, 256)
    assert encoder.strides == (4, 8, 16)
    assert [level.shape[-1] for level in features] == [16, 8, 4]
    assert encoder_files(f"{NAME}:{weights}") == [weights]


def test_a_whole_classifier_in_the_hub_cache_loads(tmp_path, monkeypatch):
    folder = tmp_path / f"models--timm--{NAME}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    model = timm.create_model(NAME, pretrained=False)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    encoder = load_encoder(NAME)

    assert torch.equal(encoder.model.layer1[0].conv1.weight, model.layer1[0].conv1.weight)
    assert encoder_files(NAME) == [snapshot / "model.safetensors"]


def test_the_levels_that_are_asked_for_are_read(weights):
    encoder = load_encoder(f"{NAME}:{weights}", levels=(0, 2))

    assert encoder.channels == (64, 128)
    assert encoder.strides == (2, 8)


def test_a_transformer_gives_its_patch_tokens_as_maps(tmp_path):
    model = timm.create_model("test_vit", pretrained=False)
    path = tmp_path / "vit.safetensors"
    save_file(model.state_dict(), path)

    encoder = load_encoder(f"test_vit:{path}", levels=(1, 3))
    features = encoder.encode_images(torch.zeros(2, 3, 48, 48, dtype=torch.uint8))

    assert encoder.channels == (64, 64)
    assert encoder.strides == (16, 16)
    assert [level.shape for level in features] == [(2, 64, 3, 3)] * 2
    assert torch.equal(encoder.model.model.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)
    with pytest.raises(ConfigError, match="patches of 16 px"):
        encoder.encode_images(torch.zeros(1, 3, 40, 40, dtype=torch.uint8))


def test_levels_that_a_network_lacks_are_refused_in_one_line(weights):
    with pytest.raises(WeightsError, match=r"with levels \(2, 9\)") as caught:
        load_encoder(f"{NAME}:{weights}", levels=(2, 9))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnet34.bt_in1k", "no such name", "a/b/c", ".."])
def test_what_the_hub_s_cache_lacks_is_fetched_by_the_command_in_the_hint(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    with pytest.raises(WeightsError, match=str(tmp_path / "hub")) as caught:
        locate_encoder(name)

    assert f"replaycad fetch --encoder {name};" in caught.value.hint


def bundled(folder, weights, **changes):
    folder.mkdir()
    config = {"timm_name": NAME, "out_indices": [1, 2, 3], "mean": [0.5] * 3, "std": [0.25] * 3}
    config.update(changes)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v}))
    (folder / "model.safetensors").write_bytes(weights.read_bytes())


def test_the_bundled_folder_gives_its_own_normalisation(tmp_path, weights, monkeypatch):
    bundled(tmp_path / "mini", weights)
    monkeypatch.setattr(files, "MINI_ENCODER", tmp_path / "mini")

    encoder = load_encoder("mini")

    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    torch.testing.assert_close(encoder.normalize(white), torch.full((1, 3, 2, 2), 2.0))
    assert [file.name for file in encoder_files("mini")] == ["config.json", "model.safetensors"]


def test_half_precision_weights_are_computed_in_float32(tmp_path):
    model = timm.create_model(NAME, pretrained=False, features_only=True, out_indices=(1, 2, 3))
    path = tmp_path / "half.safetensors"
    save_file(model.half().state_dict(), path)

    encoder = load_encoder(f"{NAME}:{path}")

    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_missing_or_broken_bundled_files_are_named(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(files, "MINI_ENCODER", tmp_path / "mini")
    with pytest.raises(WeightsError, match=r"config\.json"):
        locate_encoder("mini")

    bundled(tmp_path / "mini", weights, timm_name=None)
    with pytest.raises(WeightsError, match="timm_name"):
        locate_encoder("mini")


def test_unusable_files_are_refused(tmp_path, weights):
    with pytest.raises(WeightsError, match="no file"):
        load_encoder(f"{NAME}:{tmp_path / 'absent.safetensors'}")
    with pytest.raises(WeightsError, match="does not fit 'resnet18'"):
        load_encoder(f"resnet18:{weights}")
    weights.write_bytes(b"not tensors")
    with pytest.raises(WeightsError, match="no readable safetensors"):
        load_encoder(f"{NAME}:{weights}")
    with pytest.raises(WeightsError, match="makes no encoder"):
        load_encoder(f"no_such_network:{weights}")


def test_a_frozen_encoder_never_trains(tiny_encoder):
    tiny_encoder.train()
    features = tiny_encoder.encode_images(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))

    assert not any(module.training for module in tiny_encoder.modules())
    assert not any(parameter.requires_grad for parameter in tiny_encoder.parameters())
    assert not any(level.requires_grad for level in features)


def test_a_processor_encodes_a_few_images_at_once_and_gives_all(tiny_encoder, monkeypatch):
    images = torch.randint(0, 256, (7, 3, 32, 64), dtype=torch.uint8)
    whole = tiny_encoder(tiny_encoder.normalize(images))
    forward, sizes = tiny_encoder.forward, []
    monkeypatch.setattr(tiny_encoder, "forward", lambda x: sizes.append(len(x)) or forward(x))
    monkeypatch.setattr("replaycad.detectors.encoders.CPU_PIXELS", 3 * 32 * 64)

    found = tiny_encoder.encode_images(images)

    assert sizes == [3, 3, 1]
    for level, expected in zip(found, whole, strict=True):
        torch.testing.assert_close(level, expected)


def test_normalisation_is_that_of_the_images_in_zero_to_one(tiny_encoder):
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)

    mean, std = (torch.tensor(x)[:, None, None] for x in (tiny_encoder.mean, tiny_encoder.std))
    torch.testing.assert_close(tiny_encoder.normalize(images), (images / 255 - mean) / std)


def test_unknown_detectors_and_presets_list_the_known_ones():
    with pytest.raises(ConfigError, match="unknown detector 'invadd'") as caught:
        preset_for("invadd", "full")
    assert caught.value.hint == f"use one of {', '.join(DETECTORS)}"
    with pytest.raises(ConfigError, match="no preset 'huge'") as caught:
        preset_for("invad", "huge")
    assert "full, lite, standard, mini" in caught.value.hint


def test_presets_and_files_are_told_without_torch():
    code = (
        "import sys, replaycad.detectors.registry, replaycad.detectors.encoder_files; "
        "sys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
