"""The paper's and the release's settings, class by class, against sums that stand elsewhere."""

import json
import math
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.replays import ReplaysReader
from replaycad.config.paper_classes import CLASS_SETTINGS, MVTEC, VISA
from replaycad.config.recipes import RECIPES, stage_config
from replaycad.config.stages import STAGES, CompressConfig, ReplayConfig
from replaycad.data.classes import POLICIES
from replaycad.diffusion.conditioning import num_spatial_tokens
from replaycad.diffusion.presets import BACKBONES
from replaycad.errors import ConfigError
from replaycad.stages.replay import through_jpeg
from tests.conftest import invoke
from tests.tiny import make_tiny_backbone
from tests.toy import write_toy

ROOT = Path(__file__).parents[2]
REAL = ("zipper", "pipe_fryum")  # never compressed by the authors
SD_classes = set(VISA) - {"macaroni1", "macaroni2", "candle"}


def compress(recipe: str, name: str) -> CompressConfig:
    config = stage_config(recipe, "compress", {}, name)
    assert isinstance(config, CompressConfig)
    return config


def replay(recipe: str, name: str) -> ReplayConfig:
    config = stage_config(recipe, "replay", {}, name)
    assert isinstance(config, ReplayConfig)
    return config


def num_bytes(config: CompressConfig) -> int:
    """Bytes of conditions without masks, in 32 bits."""
    preset = BACKBONES[config.backbone]
    values = config.num_tokens * preset.cross_attention_dim
    if config.conditioning == "both":
        rows = config.in_features or preset.in_features
        values += (rows + 1) * (config.out_features or preset.out_features)
    return 4 * values


def test_the_tables_name_all_27_classes():
    assert sorted(MVTEC + VISA) == sorted(POLICIES)
    assert set(CLASS_SETTINGS["release"]) == set(POLICIES)
    assert set(CLASS_SETTINGS["paper"]) == set(POLICIES)
    assert (len(MVTEC), len(VISA)) == (15, 12)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", [*MVTEC, *VISA, ""])
def test_every_recipe_is_a_valid_config_for_every_class(recipe, stage, name):
    assert stage_config(recipe, stage, {}, name).stage == stage


@pytest.mark.parametrize("stage", STAGES)
def test_only_the_release_is_a_table_of_its_classes(stage):
    for recipe in ("mini", "paper", "fast"):
        assert stage_config(recipe, stage, {}, "a_new_product") == stage_config(recipe, stage, {})
    with pytest.raises(ConfigError, match="'release' has no settings for class 'a_new_product'"):
        stage_config("release", stage, {}, "a_new_product")


@pytest.mark.parametrize("recipe", ["paper", "release"])
@pytest.mark.parametrize("name", [*MVTEC, *VISA])
def test_spatial_tokens_come_out_whole_and_prompts_have_room(recipe, name):
    config = compress(recipe, name)
    preset = BACKBONES[config.backbone]
    if config.conditioning == "both":
        assert num_spatial_tokens(
            preset.latent_shape, config.in_features or preset.in_features,
            config.out_features or preset.out_features, preset.cross_attention_dim,
        ) in (5, 8, 32)  # fmt: skip
    longest = 8  # start token and "a close-up photo of the"
    assert config.num_tokens + longest < preset.text_length


@pytest.mark.parametrize("name", [*MVTEC, *VISA])
def test_the_paper_is_one_setting_per_data_set(name):
    found, drawn = compress("paper", name), replay("paper", name)

    # 5e-4 keeps an embedding behind the text encoder at the scale of the text's states.
    expected = ("sd15", 4, 2e-4, 5e-4) if name in VISA else ("ldm256", 32, 1.6e-3, 5e-4)
    assert (
        found.backbone, found.batch_size, found.learning_rate, found.embedding_learning_rate
    ) == expected  # fmt: skip
    assert (found.num_tokens, found.conditioning, found.timestep_law) == (20, "both", "uniform")
    assert (found.semantic_placement, found.init) == ("context", "random")
    assert (found.augmentation, drawn.mask_moves) == ("none", "small")
    assert num_bytes(found) == (160_512 if name in VISA else 205_600)
    assert (drawn.num_images, drawn.guidance_scale) == (800, 10.0)
    assert (drawn.sampler, drawn.num_inference_steps, drawn.jpeg_quality) == ("ddim", 50, 0)


def test_the_papers_table_of_bytes_is_met():
    assert sum(num_bytes(compress("paper", name)) for name in MVTEC) == 15 * 205_600  # 3.0 MB
    assert sum(num_bytes(compress("paper", name)) for name in VISA) == 12 * 160_512  # 1.9 MB


def test_the_release_adds_up_to_its_published_sums():
    mvtec = [name for name in MVTEC if name not in REAL]
    visa = [name for name in VISA if name not in REAL]

    assert sum(compress("release", name).num_steps for name in mvtec) == 141_000
    assert sum(compress("release", name).num_steps for name in visa) == 294_693
    assert sum(replay("release", name).num_images for name in mvtec) == 5_400
    assert sum(replay("release", name).num_images for name in visa) == 5_200
    assert sum(num_bytes(compress("release", name)) for name in visa) == (
        5 * 160_512 + 2 * 455_424 + 2 * 205_600 + 204_800 + 122_880
    )


def test_the_release_mixes_backbones_laws_guidance_and_masks():
    found = {name: compress("release", name) for name in POLICIES}
    scales = {name: replay("release", name).guidance_scale for name in POLICIES}

    assert {n for n, c in found.items() if c.backbone == "sd15"} == SD_classes
    assert {n for n, c in found.items() if c.timestep_law == "cubic"} == {
        "pcb1", "pcb2", "pcb3", "pcb4", "fryum",
    }  # fmt: skip
    assert {n for n, c in found.items() if c.conditioning == "semantic"} == {
        "macaroni2", "capsules",
    }  # fmt: skip
    assert {n for n, c in found.items() if c.num_tokens == 40} == {"macaroni2", "capsules"}
    assert {n for n, c in found.items() if c.in_features == 512} == {"pcb4", "fryum"}
    assert {n for n, s in scales.items() if s == 1} == {"carpet", "leather", "wood"}
    assert {n for n, s in scales.items() if s == 5} == {"grid"}
    assert {c.init_word for c in found.values()} == {"screw", "candle", "process"}
    for name, config in found.items():
        rates = (2e-4, 0.02, 4) if name in SD_classes else (1.6e-3, 0.16, 32)
        assert (
            config.learning_rate, config.embedding_learning_rate, config.batch_size
        ) == rates  # fmt: skip
        assert math.isclose(config.embedding_learning_rate, 100 * config.learning_rate)
        assert (config.semantic_placement, config.init) == ("prompt", "word")
        assert replay("release", name).jpeg_quality == 75


@pytest.mark.parametrize("recipe", ["paper", "fast"])
@pytest.mark.parametrize("name", ["pcb1", "bottle", "a_new_product"])
def test_a_backbone_that_is_typed_brings_its_batch_and_rates(recipe, name):
    sd, ldm, other = (
        stage_config(recipe, "compress", {"backbone": typed}, name)
        for typed in ("sd15:ema", "ldm256", "owner/model")
    )

    assert (sd.batch_size, sd.learning_rate, sd.backbone) == (4, 2e-4, "sd15:ema")
    assert (ldm.batch_size, ldm.learning_rate) == (32, 1.6e-3)
    assert (other.batch_size, other.learning_rate) == (4, 2e-4)
    assert {one.embedding_learning_rate for one in (sd, ldm, other)} == {5e-4}
    assert (sd.num_steps, ldm.num_steps) == {"paper": (30_000, 20_000), "fast": (3_000, 3_000)}[
        recipe
    ]


def test_what_is_typed_wins_over_what_the_table_says():
    config = stage_config("release", "compress", {"backbone": "mini", "num_steps": "7"}, "pcb4")

    assert (config.backbone, config.num_steps, config.in_features) == ("mini", 7, 512)


@pytest.mark.parametrize(
    ("stage", "wrong"),
    [("compress", {"num_masks": "0"}), ("replay", {"jpeg_quality": "96"})],
)
def test_contradictions_are_refused(stage, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        stage_config("paper", stage, wrong)


def test_jpeg_costs_detail_and_keeps_the_picture():
    rng = np.random.default_rng(0)
    smooth = np.repeat(np.repeat(rng.integers(0, 256, (2, 3, 4, 4), np.uint8), 8, 2), 8, 3)

    read = through_jpeg(smooth, 75)

    assert (read.shape, read.dtype) == (smooth.shape, np.uint8)
    difference = np.abs(read.astype(int) - smooth)
    assert 0 < difference.mean() < 12
    assert np.array_equal(read[1:], through_jpeg(smooth[1:], 75))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hugging Face cache that holds tiny models under the names of the large ones."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    for name, text in (("sd15", "clip"), ("ldm256", "ldmbert")):
        model = cache / f"models--{BACKBONES[name].hub_id.replace('/', '--')}"
        make_tiny_backbone(model / "snapshots" / BACKBONES[name].revision, text)
    return cache


def toy_called(folder: Path, *names: str) -> Path:
    """The toy data set under other names."""
    write_toy(folder)
    for before, name in zip(("disc", "plate"), names, strict=False):
        (folder / before).rename(folder / name)
    return folder


SMALL = [
    part
    for text in (
        "mask.segmenter=none", "mask.image_size=32", "compress.num_steps=1",
        "compress.num_tokens=3", "compress.init_word=screw", "compress.real_limits=false",
        "compress.batch_size=2", "replay.num_images=2", "replay.num_inference_steps=2",
    )
    for part in ("--set", text)
]  # fmt: skip


@pytest.mark.usefixtures("hub")
def test_release_mixes_backbones_in_one_sequence(tmp_path, models):
    classes = ("capsules", "macaroni2")
    data = toy_called(tmp_path / "data", *classes)
    common = ["--recipe", "release", "--store", tmp_path / "store", "--device", "cpu", *SMALL]
    for name in classes:
        # The same commands for every class: what they do is up to the table.
        made = invoke(["compress", "--data", data, "--class", name, "--json", *common])
        assert made.exit_code == 0, made.output
        drawn = invoke(["replay", "--class", name, *common])
        assert drawn.exit_code == 0, drawn.output

    kept = {
        name: ConditionsArtifact.load(tmp_path / f"store/conditions/{name}.safetensors")
        for name in classes
    }
    assert [kept[name].header["config"]["backbone"] for name in classes] == ["sd15", "ldm256"]
    assert all(one.spatial_weight is None for one in kept.values())
    assert all(one.object_masks.shape[0] == 0 for one in kept.values())
    replays = ReplaysReader(tmp_path / "store/replays/capsules.safetensors")
    config = replays.header["config"]
    images, masks = replays.images([0, 1]), replays.object_masks([0, 1])
    assert (config["guidance_scale"], config["jpeg_quality"]) == (10.0, 75)
    assert images.shape == (2, 3, 32, 32)
    assert masks.all()

    typed = ["run", "--data", data, "--class", ",".join(classes), "--strategy", "final,joint",
             "--set", f"train.encoder={models.encoder}", "--set", "train.image_size=32",
             "--dry-run", "--json"]  # fmt: skip
    looked = invoke([*typed, *common])
    assert looked.exit_code == 0, looked.output
    states = [(o["stage"], o["name"], o["state"]) for o in json.loads(looked.stdout)["outcomes"]]
    assert [s for s in states if s[0] in ("compress", "replay")] == [
        ("compress", "capsules", "hit"), ("replay", "capsules", "hit"),
    ]


@pytest.mark.usefixtures("hub")
def test_a_sequence_misses_a_network_before_it_works(tmp_path, monkeypatch):
    monkeypatch.setenv("REPLAYCAD_WEIGHTS", str(tmp_path / "none"))
    data = toy_called(tmp_path / "data", "pill", "screw")

    result = invoke(["run", "--data", data, "--class", "pill,screw", "--recipe", "paper",
                     "--strategy", "final", "--store", tmp_path / "store"])  # fmt: skip

    assert result.exit_code == 1
    # One command for all that the recipe reads of these classes, whichever was missed first.
    assert "run: replaycad fetch --recipe paper --class pill,screw)" in " ".join(
        result.output.split()
    )
    assert not (tmp_path / "store" / "masks").exists()


@pytest.mark.parametrize(("target", "classes"), [("mvtec", MVTEC), ("visa", VISA)])
def test_make_runs_the_paper_end_to_end(target, classes):
    done = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", target, "DATA=somewhere", "RECIPE=release",
         f"BIN={Path(sys.executable).parent}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    line = done.stdout.strip().splitlines()[-1]
    assert f"run --recipe release --store artifacts/release --class {','.join(classes)} " in line
    assert "--strategy final,joint" in line
