"""Less memory, the same step: passes, checkpointing, 16 bits; and what a dry run says of it."""

import copy
import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from replaycad.config.recipes import stage_config
from replaycad.config.stages import CompressConfig, ReplayConfig
from replaycad.diffusion import search as loop
from replaycad.diffusion.cell_unet import CellUNet
from replaycad.diffusion.conditioning import Conditions, SpatialEncoder
from replaycad.diffusion.memory import (
    ALIVE,
    RESERVE_BYTES,
    Passes,
    alive_of,
    choose_passes,
    codec_batch,
    needed_bytes,
)
from replaycad.diffusion.posterior import Posterior
from replaycad.diffusion.presets import BACKBONES
from replaycad.diffusion.search import search
from replaycad.errors import WeightsError
from replaycad.progress import SilentReport
from tests.conftest import Run
from tests.tiny import IN_FEATURES, LATENT_SHAPE, OUT_FEATURES, WIDTH, make_tiny_backbone

CONFIG = CompressConfig(num_steps=1, batch_size=6, weight_decay=0.0)
GB = 10**9


@pytest.fixture(scope="module")
def latents():
    """Four images."""
    rng = torch.Generator().manual_seed(1)
    mean, std = torch.randn(2, 1, 4, *LATENT_SHAPE, generator=rng)
    return Posterior(mean, std.abs())


def gradients(backbone, latents, **changes):
    """Of the first step from one start, and its loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = SpatialEncoder(IN_FEATURES, OUT_FEATURES, WIDTH)
        conditions = Conditions(torch.randn(3, WIDTH), layer, "prompt")
    losses = []

    class Listener(SilentReport):
        def step(self, _what, _done, _total, **values):
            losses.append(values["loss"])

    search(backbone, conditions, latents, latents, dataclasses.replace(CONFIG, **changes), 0,
           Listener())  # fmt: skip
    return losses[0], [p.grad.clone() for p in conditions.parameters()]


@pytest.mark.parametrize("pass_size", [1, 4, 100])
def test_gradients_of_passes_add_up_to_those_of_the_batch(diffusion, latents, pass_size):
    loss, whole = gradients(diffusion, latents)

    divided_loss, divided = gradients(diffusion, latents, pass_size=pass_size)

    assert divided_loss == pytest.approx(loss, rel=1e-5)
    for one, other in zip(whole, divided, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-4)


def test_no_pass_is_larger_than_asked_for(diffusion, latents):
    rows = []
    handle = diffusion.unet.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))

    gradients(diffusion, latents, pass_size=4)
    handle.remove()

    assert rows == [4, 2]


def test_checkpointing_computes_twice_and_changes_no_bit(diffusion, latents):
    calls = []
    block = diffusion.unet.up_blocks[-1].resnets[0]
    handle = block.register_forward_pre_hook(lambda *_: calls.append(1))
    _, plain = gradients(diffusion, latents)
    once = len(calls)

    _, again = gradients(diffusion, latents, gradient_checkpointing="on")
    handle.remove()

    assert len(calls) == once + 2 * once
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))
    assert not diffusion.unet.down_blocks[0].gradient_checkpointing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_networks_in_16_bits_give_nearly_the_same_gradients_in_32(diffusion, latents, dtype):
    half = dataclasses.replace(
        diffusion,
        unet=copy.deepcopy(diffusion.unet).to(dtype),
        text_encoder=copy.deepcopy(diffusion.text_encoder).to(dtype),
    )
    _, full = gradients(diffusion, latents)

    _, rounded = gradients(half, latents)

    for one, other in zip(full, rounded, strict=True):
        assert other.dtype == torch.float32
        similarity = torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)
        assert similarity > 0.98
        assert other.norm() == pytest.approx(float(one.norm()), rel=0.2)


def test_a_gradient_that_overflows_16_bits_leaves_everything_as_it_was():
    conditions = Conditions(torch.ones(2, WIDTH), None, "prompt")
    conditions.semantic_embedding.grad = torch.full((2, WIDTH), torch.inf)

    loop._unscale(conditions, 2.0)

    assert torch.equal(conditions.semantic_embedding.grad, torch.zeros(2, WIDTH))


SD15 = ALIVE["sd15"]
EACH = round(SD15.search * 1e6) * 2


@pytest.mark.parametrize(
    ("changes", "free", "expected"),
    [
        ({}, None, Passes(size=4, checkpointing=False)),
        ({}, 5 * EACH, Passes(size=4, checkpointing=False)),
        ({}, 3 * EACH, Passes(size=3, checkpointing=False)),
        ({}, EACH // 2, Passes(size=1, checkpointing=True)),
        ({}, 0, Passes(size=1, checkpointing=True)),
        ({"pass_size": 2}, 2 * EACH, Passes(size=2, checkpointing=False)),
        ({"pass_size": 2}, EACH, Passes(size=2, checkpointing=True)),
        ({"pass_size": 9}, None, Passes(size=4, checkpointing=False)),
        ({"gradient_checkpointing": "on"}, None, Passes(size=4, checkpointing=True)),
        ({"gradient_checkpointing": "off"}, EACH // 2, Passes(size=1, checkpointing=False)),
    ],
)
def test_a_batch_is_divided_and_checkpointed_only_where_it_must_be(changes, free, expected):
    config = CompressConfig(backbone="sd15", batch_size=4, **changes)

    assert choose_passes(config, SD15, 2, free) == expected


def test_stable_diffusion_at_512_fits_a_card_of_8_gb():
    config = stage_config("paper", "compress", {"pass_size": "1"}, "pcb1")
    drawing = stage_config("paper", "replay", {"batch_size": "1", "backbone": "sd15"}, "pcb1")

    weights = 2 * (859_520_964 + 123_060_480) + 4 * 83_653_863
    assert needed_bytes(config, True) == weights + 4 * 201_400_000 + RESERVE_BYTES
    assert needed_bytes(drawing, True) < needed_bytes(config, True) + GB < 8 * GB
    assert needed_bytes(stage_config("paper", "compress", {}, "pcb1"), True) < 8 * GB


def test_a_search_on_the_cpu_counts_in_32_bits_and_whole_batches():
    config = stage_config("paper", "compress", {}, "bottle")

    weights = 4 * sum(BACKBONES["ldm256"].parameters.values())
    assert needed_bytes(config, False) == weights + 4 * 32 * 121_400_000
    divided = dataclasses.replace(config, pass_size=8)
    assert needed_bytes(divided, False) == weights + 4 * 8 * 121_400_000


def test_guidance_doubles_the_rows_and_scale_one_does_not():
    guided = ReplayConfig(backbone="sd15", batch_size=32, guidance_scale=2.0)
    plain = dataclasses.replace(guided, guidance_scale=1.0)

    assert needed_bytes(guided, True) - needed_bytes(plain, True) == 2 * 32 * 34_200_000


def test_a_folder_is_counted_from_its_headers(tmp_path):
    folder = make_tiny_backbone(tmp_path / "mine")
    config = CompressConfig(backbone=str(folder), batch_size=2)

    found = needed_bytes(config, False)

    area = LATENT_SHAPE[1] ** 2
    busy = max(2 * alive_of(str(folder), area).search, 4 * alive_of(str(folder), area).codec)
    weights = found - round(busy * 1e6) * 4
    from replaycad.diffusion.backbones import load_backbone

    loaded = load_backbone(folder, torch.device("cpu"))
    networks = (loaded.vae, loaded.unet, loaded.text_encoder)
    assert abs(weights / 4 - sum(p.numel() for net in networks for p in net.parameters())) < 100


def test_a_header_that_is_none_is_refused(tmp_path):
    folder = make_tiny_backbone(tmp_path / "mine")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")

    with pytest.raises(WeightsError, match="cannot be read"):
        needed_bytes(CompressConfig(backbone=str(folder)), False)


def test_large_pictures_are_coded_one_by_one():
    assert [codec_batch(size) for size in (128, 256, 512, 768)] == [4, 4, 1, 1]


def test_the_bundled_unet_is_never_checkpointed_however_little_memory_is_free(monkeypatch):
    monkeypatch.setattr(loop, "free_memory_bytes", lambda _: 0)
    bundled, other = (
        SimpleNamespace(unet=unet, latent_size=16, dtype=torch.float32, device="cuda")
        for unet in (CellUNet.__new__(CellUNet), None)
    )

    assert loop._passes(bundled, CONFIG, SilentReport()) == Passes(size=1, checkpointing=False)
    assert loop._passes(other, CONFIG, SilentReport()) == Passes(size=1, checkpointing=True)


def test_memory_is_told_without_torch():
    code = (
        "import sys\nfrom replaycad.diffusion.memory import needed_bytes\n"
        "from replaycad.config.recipes import CompressConfig\n"
        "needed_bytes(CompressConfig(backbone='sd15'), True)\nsys.exit('torch' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_dry_run_says_what_memory_it_takes(run: Run):
    shown = run("compress", "--class", "disc", "--set", "pass_size=2", "--dry-run")
    document = json.loads(
        run("compress", "--class", "disc", "--set", "pass_size=2", "--dry-run", "--json").stdout
    )

    assert "memory on gpu / cpu" in shown.stdout
    (outcome,) = document["outcomes"]
    assert outcome["memory_bytes"]["gpu"] > RESERVE_BYTES
    assert 0 < outcome["memory_bytes"]["cpu"] < GB


def test_batch_size_of_the_command_line_is_a_pass_and_the_precision_is_kept(run: Run, tmp_path):
    from replaycad.artifacts.format import read_header

    made = run("compress", "--class", "disc", "--set", "pass_size=2", "--set", "precision=bf16")

    assert made.exit_code == 0, made.output
    assert "passes of 2" in made.output
    config = read_header(tmp_path / "store" / "conditions" / "disc.safetensors")["config"]
    assert (config["batch_size"], config["pass_size"], config["precision"]) == (4, 2, "bf16")
