"""A backbone brings its settings, and what does not fit one is refused before any work."""

import huggingface_hub
import pytest

from replaycad.config.recipes import stage_config
from replaycad.config.stages import CompressConfig, MaskConfig, ReplayConfig, TrainConfig
from replaycad.data.layouts import train_samples
from replaycad.diffusion.fitting import is_bundled_kind, shape_of
from replaycad.diffusion.presets import BACKBONES
from replaycad.engine.builder import Builder
from replaycad.engine.replay import ReplayStage
from tests.conftest import invoke
from tests.tiny import make_tiny_backbone
from tests.toy import write_toy

QUICK = (
    "mask.segmenter=none", "mask.image_size=32", "compress.num_steps=1", "compress.batch_size=2",
    "replay.num_images=2", "replay.num_inference_steps=2", "compress.real_limits=false",
)  # fmt: skip
TYPED = [part for text in QUICK for part in ("--set", text)]


@pytest.fixture
def ground(tmp_path, monkeypatch):
    """A folder with the toy data, and a hub cache with a tiny network called sd15."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    preset = BACKBONES["sd15"]
    model = cache / f"models--{preset.hub_id.replace('/', '--')}"
    make_tiny_backbone(model / "snapshots" / preset.revision)
    write_toy(tmp_path / "data")
    return tmp_path


def compress(ground, *arguments):
    return invoke(["compress", "--class", "disc", "--data", ground / "data", "--store",
                   ground / "store", "--device", "cpu", *arguments])  # fmt: skip


def test_without_a_recipe_the_backbone_brings_one(ground):
    large = Builder.of(ground / "data", ground / "store", {"compress.backbone": "sd15"})
    small = Builder.of(ground / "data", ground / "store")
    named = Builder.of(
        ground / "data", ground / "store", {"compress.backbone": "sd15"}, recipe="paper"
    )

    for kind in (MaskConfig, CompressConfig, ReplayConfig, TrainConfig):
        typed = {"backbone": "sd15"} if kind is CompressConfig else {}
        assert large.settings.config(kind) == stage_config("fast", kind.stage, typed)
        assert named.settings.config(kind) == stage_config("paper", kind.stage, typed)
        assert small.settings.config(kind) == stage_config("mini", kind.stage, {})
    assert large.settings.config(CompressConfig).batch_size == 4


def test_replays_follow_the_backbone_that_the_conditions_were_made_with(ground):
    made = compress(ground, "--backbone", "sd15", *TYPED)
    assert made.exit_code == 0, made.output

    builder = Builder.of(ground / "data", ground / "store")

    drawn = ReplayStage(builder, "disc").config
    assert (drawn.guidance_scale, drawn.num_inference_steps) == (10.0, 20)
    header = builder.header("conditions", "disc")["config"]
    assert (header["init"], header["num_tokens"], header["embedding_learning_rate"]) == (
        "random", 20, 5e-4,
    )  # fmt: skip
    assert len(train_samples(ground / "data", "disc")) == 6


@pytest.mark.parametrize(
    ("typed", "message", "hint"),
    [
        (["--recipe", "mini", "--backbone", "sd15"], "no set encoder", "--recipe fast"),
        (["--recipe", "paper", "--backbone", "mini"], "reads 64", "leave out --recipe"),
        (["--backbone", "sd15", "--set", "out_features=7"], "not a whole number", "out_features"),
        (["--backbone", "sd15", "--set", "init=word"], "copies of a word", "init=random"),
        (["--recipe", "release", "--backbone", "sd15"], "no settings for class", "--recipe paper"),
        (["--backbone", "sd15", "--set", "semantic_placement=prompt", "--set", "num_tokens=20"],
         "do not fit into a prompt of 24", "compress.num_tokens=16"),
        (["--set", "gradient_checkpointing=on"], "too small", "gradient_checkpointing off"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_any_work(ground, typed, message, hint):
    refused = compress(ground, *typed, "--set", "mask.segmenter=none")

    assert refused.exit_code == 1
    line = " ".join(refused.stderr.split())
    assert line.startswith("error: ")
    assert message in line
    assert hint in line
    assert not list((ground / "store").rglob("*.safetensors"))


def test_sizes_are_read_off_the_configs(ground):
    bundled, tiny = shape_of("mini"), shape_of("sd15")

    assert (bundled.latent_shape, bundled.cross_attention_dim) == ((24, 16, 16), 192)
    assert (bundled.num_placed_tokens, bundled.has_set_encoder) == (64, True)
    assert bundled.spatial_sizes == (256, 96)
    assert (tiny.latent_shape, tiny.cross_attention_dim, tiny.text_length) == ((4, 16, 16), 32, 24)
    assert (tiny.num_placed_tokens, tiny.has_set_encoder) == (0, False)
    assert is_bundled_kind("mini")
    assert not is_bundled_kind("sd15")
    assert not is_bundled_kind("ldm256")  # known by name, wherever its files are
    assert not is_bundled_kind(str(make_tiny_backbone(ground / "folder")))


@pytest.mark.parametrize(
    ("backbone", "command"),
    [("mini", "replaycad fetch --encoder resnet34.bt_in1k;"),
     ("sd15", "run: replaycad fetch --recipe fast --class disc --backbone sd15 --encoder")],
)  # fmt: skip
def test_a_missing_network_names_the_recipe_only_where_one_is_meant(
    ground, monkeypatch, backbone, command
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(ground / "none"))
    monkeypatch.setenv("REPLAYCAD_WEIGHTS", str(ground / "none"))

    refused = invoke(["train", "--class", "disc", "--data", ground / "data", "--store",
                      ground / "store", "--encoder", "resnet34.bt_in1k", "--set",
                      f"compress.backbone={backbone}"])  # fmt: skip

    assert refused.exit_code == 1
    assert command in " ".join(refused.stderr.split())


def test_a_run_takes_the_backbone_by_setting_and_its_recipe_with_it(ground, monkeypatch):
    place = ["--class", "disc,plate", "--data", ground / "data", "--store", ground / "store",
             "--set", "compress.backbone=sd15"]  # fmt: skip
    monkeypatch.setenv("HF_HUB_CACHE", str(ground / "none"))
    monkeypatch.setenv("REPLAYCAD_WEIGHTS", str(ground / "none"))

    refused = invoke(["run", "--strategy", "replay", *place])

    assert refused.exit_code == 1
    hint = "run: replaycad fetch --recipe fast --class disc,plate --backbone sd15)"
    assert hint in " ".join(refused.stderr.split())
    assert "vit_h" in refused.stderr, "the segmenter of the recipe `fast`"
