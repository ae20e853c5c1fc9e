"""What the workshop hands to the stages: the right model, the right memory, the right replays."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from replaycad.artifacts.checkpoints import Checkpoint
from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.replays import ReplaysWriter
from replaycad.artifacts.store import Store
from replaycad.config.recipes import CompressConfig, ReplayConfig, TrainConfig
from replaycad.continual import coverage
from replaycad.diffusion import alignment
from replaycad.engine.workshop import Workshop
from replaycad.errors import ArtifactError
from replaycad.progress import silent
from tests.conftest import states
from tests.stages.stubs import SIDE, Flats, Mirror, Plain, dots, mirror_artifact, write_sample

CONFIG = CompressConfig(num_variations=0)
HEADER = {"inputs": {"images/bolt": "a"}, "class_name": "bolt"}


@pytest.fixture
def workshop(tmp_path):
    return Workshop(Store(tmp_path / "store"), "cpu", silent, 60.0)


def test_a_model_is_loaded_anew_for_another_kind_and_another_name_and_only_then(workshop):
    loaded = []

    def load(name, device):
        loaded.append(name)
        return f"{name} on {device}, number {len(loaded)}"

    def of(kind, name):
        return workshop._load(kind, name, load)

    assert of("segmenter", "mini") == of("segmenter", "mini") == "mini on cpu, number 1"
    assert of("encoder", "mini") == of("encoder", "mini") == "mini on cpu, number 2"
    assert of("encoder", "large") == "large on cpu, number 3"
    assert of("segmenter", "mini") == "mini on cpu, number 4"


def test_an_encoder_is_asked_for_the_levels_of_its_detector(workshop, monkeypatch):
    monkeypatch.setattr(
        "replaycad.detectors.encoders.load_encoder", lambda name, _device, levels: (name, levels)
    )
    levels = {"invad": (1, 2, 3), "patchcore": (2, 3)}
    monkeypatch.setattr(
        "replaycad.detectors.presets.preset_for",
        lambda detector, _preset: SimpleNamespace(levels=levels[detector]),
    )

    found = [workshop._encoder("mini", one, "mini") for one in ("invad", "patchcore", "invad")]

    assert found == [("mini", (1, 2, 3)), ("mini", (2, 3)), ("mini", (1, 2, 3))]


def test_a_backbone_is_loaded_anew_for_another_precision(workshop, monkeypatch):
    monkeypatch.setattr(
        "replaycad.diffusion.backbones.load_backbone",
        lambda name, _device, dtype, is_compiled: (name, dtype, is_compiled),
    )

    exact = CompressConfig(precision="fp32")
    drawing = ReplayConfig(backbone="mini", precision="bf16")

    assert workshop._load_backbone(exact) == ("mini", torch.float32, False)
    assert workshop._load_backbone(drawing) == ("mini", torch.bfloat16, False)
    compiled = replace(drawing, compile=True)
    assert workshop._load_backbone(compiled) == ("mini", torch.bfloat16, True)


@pytest.fixture
def searched(workshop, monkeypatch):
    """Conditions of a search whose only number says which search it was, counted from 1."""
    calls = []

    def search(_samples, masks, _diffusion, config, seed, header, *_others):
        calls.append((config, seed))
        return ConditionsArtifact(
            class_name=masks.class_name, spatial_weight=None, spatial_bias=None, policy={},
            semantic_embedding=np.full((1, 1), len(calls), np.float32),
            object_masks=np.zeros((0, 8, 8), bool), header={**header, "placement": "context"},
        )  # fmt: skip

    monkeypatch.setattr("replaycad.stages.compress.compress_class", search)
    monkeypatch.setattr("replaycad.stages.compress.searchable", lambda config, *_: config)
    monkeypatch.setattr(workshop, "_load_backbone", lambda _: SimpleNamespace(device="cpu"))
    masks = MasksArtifact(
        class_name="bolt", image_ids=[], object_masks=np.zeros((0, 8, 8), bool),
        area_fraction=np.zeros(0, np.float32), rule="corners", header={"policy": {}},
    )  # fmt: skip

    def call(config=CONFIG, seed=0, header=HEADER):
        found = workshop._searched([], masks, config, header, seed, None)
        return int(found.semantic_embedding[0, 0])

    return call


def test_a_search_is_remembered_for_its_seed_its_settings_and_its_inputs(searched):
    other = {**HEADER, "inputs": {"images/bolt": "b"}}

    assert [searched(), searched(seed=1), searched(seed=0), searched(seed=1)] == [1, 2, 1, 2]
    assert [searched(replace(CONFIG, num_steps=9)), searched(header=other), searched()] == [3, 4, 1]


def test_a_search_is_the_same_for_every_budget_and_form(searched):
    assert searched() == searched(replace(CONFIG, budget=90_000)) == 1
    assert searched(replace(CONFIG, keep="hybrid")) == 1


def test_the_oldest_search_is_forgotten_first(searched, monkeypatch):
    monkeypatch.setattr("replaycad.engine.workshop.REMEMBERED", 2)

    assert [searched(seed=seed) for seed in (0, 1, 2)] == [1, 2, 3]
    assert [searched(seed=1), searched(seed=2), searched(seed=0)] == [2, 3, 4]


def test_poses_are_remembered_for_the_images_and_the_seed(monkeypatch):
    monkeypatch.setattr(alignment, "_KNOWN", {})
    monkeypatch.setattr(
        alignment, "align", lambda images, seed: (int(images.sum()), seed.initial_seed())
    )
    dark, bright = np.zeros((1, 3, 4, 4), np.uint8), np.ones((1, 3, 4, 4), np.uint8)

    first = alignment.align_once(dark, 0)

    assert alignment.align_once(dark, 0) == first
    assert alignment.align_once(dark, 1)[1] != first[1]
    assert [alignment.align_once(bright, 0), alignment.align_once(dark, 0)] == [(48, first[1]),
                                                                                first]  # fmt: skip


def test_a_checkpoint_of_another_seed_is_not_gone_on_from(workshop, tmp_path):
    def plan(key):
        return SimpleNamespace(
            kind="conditions", name="bolt", key=key, check_inputs=lambda: None
        )  # fmt: skip

    (tmp_path / "store").mkdir()
    workshop._checkpoint(plan("seed 0")).save(3, {"one": np.ones(1)})

    assert workshop._checkpoint(plan("seed 0")).load()[0] == 3
    assert workshop._checkpoint(plan("seed 1")).load() is None


@pytest.mark.parametrize(("stage", "options"), [
    ("compress", ("--class", "disc")), ("replay", ("--class", "disc")),
    ("train", ("--class", "plate", "--past", "disc")),
])  # fmt: skip
def test_what_is_drawn_at_random_is_stale_for_another_seed(stage, options, run, chain, tmp_path):
    for kind in ("masks", "conditions", "replays", "detectors"):
        shutil.copytree(chain / kind, tmp_path / "store" / kind)

    assert states(run, stage, *options, "--seed", "0") == [("hit", "")]
    ((state, reason),) = states(run, stage, *options, "--seed", "1")
    assert state == "stale"
    assert "seed 0 -> 1" in reason


def test_forms_are_tried_on_images_that_none_of_them_holds(workshop, monkeypatch):
    holds = {"exemplars": [0, 3], "hybrid": [3], "conditions": []}
    bare = ConditionsArtifact(
        class_name="bolt", spatial_weight=None, spatial_bias=None, policy={},
        semantic_embedding=np.zeros((0, 0), np.float32), object_masks=np.zeros((0, 8, 8), bool),
    )  # fmt: skip
    asked, shown = [], []

    def keep(_samples, _masks, config, header, _seed, checkpoint):
        asked.append((config.keep, config.budget, checkpoint.key))
        return replace(bare, header={**header, "form": config.keep}), holds[config.keep]

    def separations(_tried, samples, *_others):
        shown.extend(samples)
        return {"exemplars": 0.6, "hybrid": 0.7, "conditions": 0.72}

    monkeypatch.setattr("replaycad.continual.representations.TRIED_LEAST", 2)
    monkeypatch.setattr("replaycad.continual.representations.TRIED_ON", 3)
    monkeypatch.setattr(workshop, "_keep", keep)
    monkeypatch.setattr(workshop, "_separations", separations)
    header = {"config": {"keep": "auto"}, "inputs": {}, "weights": {}}
    config = replace(CONFIG, keep="auto", budget=50_000)

    kept = workshop._choose(
        list("abcdefg"), SimpleNamespace(class_name="bolt"), config, None, header, 0,
        Checkpoint("none", "k"),
    )  # fmt: skip

    assert asked == [(form, 50_000, f"k {form}") for form in holds]
    # Left are b, c, e, f and g, of these three, evenly_spaced.
    assert shown == ["b", "e", "g"]
    assert kept.header["form"] == "hybrid", "conditions are not better by a margin"
    assert kept.header["separations"] == {"exemplars": 0.6, "hybrid": 0.7, "conditions": 0.72}
    assert kept.header["config"] == {"keep": "auto"}


def test_each_form_is_judged_by_all_its_replays_and_by_the_real_images(
    workshop, tmp_path, monkeypatch
):
    values = {"exemplars": [1, 2, 3], "conditions": [7]}
    found = {}

    def draw(kept, path, header, _config, seed):
        found[kept] = (header["key"], seed)
        images = Flats(values[kept]).images(range(len(values[kept])))
        writer = ReplaysWriter(path, {"class_name": "bolt", **header}, len(images), SIDE)
        writer.append(images, np.ones((len(images), SIDE, SIDE), bool), np.arange(len(images)))
        writer.close()

    def judge(drawn, real, *_others):
        found["drawn"] = {form: images[:, 0, 0, 0].tolist() for form, images in drawn.items()}
        found["real"] = real[:, 0, 0, 0].tolist()
        return dict.fromkeys(drawn, 0.123456)

    monkeypatch.setattr(workshop, "_draw", draw)
    monkeypatch.setattr(workshop, "_judge", lambda: None)
    monkeypatch.setattr(coverage, "separations", judge)
    real = [write_sample(tmp_path, str(one), dots((0, 0, one))) for one in (40, 50)]

    told = workshop._separations({form: form for form in values}, real, None, {}, 3)

    assert told == {"exemplars": 0.1235, "conditions": 0.1235}
    assert found == {
        "drawn": values, "real": [40, 50], "exemplars": ("exemplars", 3),
        "conditions": ("conditions", 3),
    }  # fmt: skip


def test_masks_of_other_images_are_refused(workshop, tmp_path):
    masks = MasksArtifact(
        class_name="bolt", image_ids=["one", "two"], object_masks=np.ones((2, 8, 8), bool),
        area_fraction=np.ones(2, np.float32), rule="frame", header={"policy": {}},
    )  # fmt: skip
    masks.save(tmp_path / "masks.safetensors")
    samples = [SimpleNamespace(image_id=name) for name in ("two", "one")]

    with pytest.raises(ArtifactError, match="holds the masks of other images"):
        workshop.compress(
            None, "bolt", samples, tmp_path / "masks.safetensors", CONFIG, ReplayConfig(), 0
        )


def test_forms_are_judged_by_images_and_pixels_alike(monkeypatch):
    def paste(images, _generator):
        spoilt, masks = images.copy(), np.zeros((len(images), SIDE, SIDE), bool)
        spoilt[:, :, 0, 0], masks[:, 0, 0] = 9, True
        return spoilt, masks

    class Blind(Mirror):
        def anomaly_maps(self, features):
            return super().anomaly_maps(features).flip(1, 2)

    memories = {1: Mirror(), 2: Blind()}
    monkeypatch.setattr(coverage, "cut_and_paste", paste)
    monkeypatch.setattr(coverage, "_memory", lambda drawn, *_: memories[len(drawn)])
    monkeypatch.setattr(coverage, "PASTINGS", 3)
    real = np.zeros((1, 3, SIDE, SIDE), np.uint8)

    found = coverage.separations(
        {"exemplars": real, "conditions": np.concatenate([real, real])}, real, Plain(), None
    )

    # The blind one sees that an image is spoilt and not where: its pixels that count are as those
    # of the ground, so all 64 of the four maps are called defective and three of them are.
    assert found == {"exemplars": 1.0, "conditions": (1 + 3 / 64) / 2}


def write_replays(store, name, class_name, value):
    """Two replays of one value all over."""
    header = {"class_name": class_name, "key": name}
    writer = ReplaysWriter(store.path("replays", name), header, 2, SIDE)
    flat = np.full((2, 3, SIDE, SIDE), value, np.uint8)
    writer.append(flat, np.ones((2, SIDE, SIDE), bool), np.arange(2))
    writer.close()


def test_replays_and_images_are_learned_as_the_class_that_they_show(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    write_replays(store, "nut-25kB", "nut", 10)
    write_replays(store, "bolt", "bolt", 20)
    start = mirror_artifact(class_order=["bolt", "cap"])
    start.save(store.path("detectors", "before"))
    found = {}

    def train(mixture, known, *_others):
        found["order"] = known
        images = mixture.images(range(len(mixture)))[:, 0, 0, 0].tolist()
        found["shown"] = [(known[one], value) for one, value in
                          zip(mixture.class_index, images, strict=True)]  # fmt: skip
        return SimpleNamespace(save=lambda _path: None)

    monkeypatch.setattr("replaycad.stages.train.train_detector", train)
    workshop = Workshop(store, "cpu", silent, 60.0)
    monkeypatch.setattr(workshop, "_encoder", lambda *_: None)
    plan = SimpleNamespace(
        kind="detectors", name="after", key="k", path=tmp_path / "after", header=lambda _: {},
        check_inputs=lambda: None,
    )  # fmt: skip
    real = {"pin": [write_sample(tmp_path / "pin", "one", dots((0, 0, 30)))]}

    config = TrainConfig(init="before", image_size=SIDE)
    workshop.train(plan, real, ["nut-25kB", "bolt"], config, 0)
    assert found["order"] == ["bolt", "cap", "nut", "pin"], "those of before come first"
    shown = [("nut", 10), ("nut", 10), ("bolt", 20), ("bolt", 20), ("pin", 30)]
    assert found["shown"] == shown

    workshop.train(plan, real, ["nut-25kB", "bolt"], replace(config, init=""), 0)
    assert found["order"] == ["nut", "bolt", "pin"]
    assert found["shown"] == shown
