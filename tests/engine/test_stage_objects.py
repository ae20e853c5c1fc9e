"""What the engine hands to the stages: the right model, the right memory, the right replays."""

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
from replaycad.config.stages import CompressConfig, ReplayConfig, TrainConfig
from replaycad.continual import coverage
from replaycad.continual.kept import Kept
from replaycad.diffusion import aligner as aligners
from replaycad.engine.banks import bank_preset
from replaycad.engine.builder import Builder
from replaycad.engine.compress import CompressStage
from replaycad.engine.models import Models
from replaycad.engine.replay import draw_apart
from replaycad.engine.train import TrainStage
from replaycad.errors import ArtifactError
from replaycad.stages import choice
from tests.conftest import states
from tests.stages.stubs import SIDE, Flats, Mirror, Plain, dots, mirror_artifact, write_sample

CONFIG = CompressConfig(num_variations=0)
HEADER = {"inputs": {"images/bolt": "a"}, "class_name": "bolt"}


@pytest.fixture
def builder(tmp_path):
    return Builder.of(tmp_path / "data", tmp_path / "store", device="cpu")


@pytest.fixture
def frozen():
    return Models("cpu")


def write_class(data, name, *values):
    """A class of small pictures with one bright pixel each."""
    folder = data / name / "train" / "good"
    folder.mkdir(parents=True)
    for number, value in enumerate(values):
        write_sample(folder, str(number), dots((0, 0, value)))


def test_a_model_is_loaded_anew_for_another_kind_and_another_name_and_only_then(frozen):
    loaded = []

    def load(name, device):
        loaded.append(name)
        return f"{name} on {device}, number {len(loaded)}"

    def of(kind, name):
        return frozen.load(kind, name, load)

    assert of("segmenter", "mini") == of("segmenter", "mini") == "mini on cpu, number 1"
    assert of("encoder", "mini") == of("encoder", "mini") == "mini on cpu, number 2"
    assert of("encoder", "large") == "large on cpu, number 3"
    assert of("segmenter", "mini") == "mini on cpu, number 4"


def test_an_encoder_is_loaded_anew_for_other_levels(frozen, monkeypatch):
    monkeypatch.setattr(
        "replaycad.detectors.encoders.load_encoder", lambda name, _device, levels: (name, levels)
    )

    found = [frozen.encoder("mini", levels) for levels in ((1, 2, 3), (2, 3), (1, 2, 3))]

    assert found == [("mini", (1, 2, 3)), ("mini", (2, 3)), ("mini", (1, 2, 3))]


def test_what_is_kept_is_judged_by_the_levels_of_its_detector_but_the_picture():
    for detector, levels in (("invad", (1, 2, 3)), ("patchcore", (2, 3)), ("cdad", (1, 2, 3))):
        assert bank_preset(TrainConfig(detector=detector, preset="mini")).levels == levels


def test_a_backbone_is_loaded_anew_for_another_precision(frozen, monkeypatch):
    monkeypatch.setattr(
        "replaycad.diffusion.backbones.load_backbone",
        lambda name, _device, dtype, is_compiled: (name, dtype, is_compiled),
    )

    exact = CompressConfig(precision="fp32")
    drawing = ReplayConfig(backbone="mini", precision="bf16")

    assert frozen.backbone(exact) == ("mini", torch.float32, False)
    assert frozen.backbone(drawing) == ("mini", torch.bfloat16, False)
    compiled = replace(drawing, compile=True)
    assert frozen.backbone(compiled) == ("mini", torch.bfloat16, True)


@pytest.fixture
def searched(builder, tmp_path, monkeypatch):
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
    monkeypatch.setattr(builder.models, "backbone", lambda _: SimpleNamespace(device="cpu"))
    write_class(tmp_path / "data", "bolt", 40)
    masks = MasksArtifact(
        class_name="bolt", image_ids=[], object_masks=np.zeros((0, 8, 8), bool),
        area_fraction=np.zeros(0, np.float32), rule="corners", header={"policy": {}},
    )  # fmt: skip

    def call(config=CONFIG, seed=0, header=HEADER):
        stage = CompressStage(builder, "bolt", seed=seed)
        kept = stage._searched(masks, config, header, None)
        return int(kept.semantic_embedding[0, 0])

    return call


def test_a_search_is_remembered_for_its_seed_its_settings_and_its_inputs(searched):
    other = {**HEADER, "inputs": {"images/bolt": "b"}}

    assert [searched(), searched(seed=1), searched(seed=0), searched(seed=1)] == [1, 2, 1, 2]
    assert [searched(replace(CONFIG, num_steps=9)), searched(header=other), searched()] == [3, 4, 1]


def test_a_search_is_the_same_for_every_budget_and_form(searched):
    assert searched() == searched(replace(CONFIG, budget=90_000)) == 1
    assert searched(replace(CONFIG, keep="hybrid")) == 1


def test_the_oldest_search_is_forgotten_first(searched, monkeypatch):
    monkeypatch.setattr("replaycad.engine.compress.REMEMBERED_SEARCHES", 2)

    assert [searched(seed=seed) for seed in (0, 1, 2)] == [1, 2, 3]
    assert [searched(seed=1), searched(seed=2), searched(seed=0)] == [2, 3, 4]


def test_poses_are_remembered_for_the_images_and_the_seed(monkeypatch):
    asked = []

    def align(images, seed):
        asked.append(int(images.sum()))
        return asked[-1], seed.initial_seed()

    monkeypatch.setattr(aligners, "align", align)
    dark, bright = np.zeros((1, 3, 4, 4), np.uint8), np.ones((1, 3, 4, 4), np.uint8)

    aligner = aligners.Aligner()
    first = aligner(dark, 0)

    assert aligner(dark, 0) == first
    assert aligner(dark, 1)[1] != first[1]
    assert [aligner(bright, 0), aligner(dark, 0)] == [(48, first[1]), first]
    assert asked == [0, 0, 48]


def test_the_oldest_poses_are_forgotten_first(monkeypatch):
    asked = []
    monkeypatch.setattr(aligners, "MAX_KNOWN", 2)
    monkeypatch.setattr(aligners, "align", lambda images, _: asked.append(int(images[0, 0, 0, 0])))
    aligner = aligners.Aligner()

    for value in (1, 2, 3, 2, 1):
        aligner(np.full((1, 3, 4, 4), value, np.uint8), 0)

    assert asked == [1, 2, 3, 1]


def test_a_checkpoint_of_another_seed_is_not_gone_on_from(builder, tmp_path):
    def plan(key):
        return SimpleNamespace(
            kind="conditions", name="bolt", key=key, check_inputs=lambda: None
        )  # fmt: skip

    (tmp_path / "store").mkdir()
    builder.checkpoint(plan("seed 0")).save(3, {"one": np.ones(1)})

    assert builder.checkpoint(plan("seed 0")).load()[0] == 3
    assert builder.checkpoint(plan("seed 1")).load() is None


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


BARE = ConditionsArtifact(
    class_name="bolt", spatial_weight=None, spatial_bias=None, policy={},
    semantic_embedding=np.zeros((0, 0), np.float32), object_masks=np.zeros((0, 8, 8), bool),
)  # fmt: skip


def test_forms_are_tried_on_images_that_none_of_them_holds(tmp_path, monkeypatch):
    holds = {"exemplars": [0, 3], "hybrid": [3], "conditions": []}
    asked, found = [], {}

    def keep(config, header):
        asked.append((config.keep, config.budget))
        return Kept(replace(BARE, header={**header, "form": config.keep}), holds[config.keep])

    def draw(kept, header):
        found[kept.header["form"]] = header["key"]
        return np.zeros((1, 3, SIDE, SIDE), np.uint8)

    def separations(memories, real, *_others):
        found["shown"], found["drawn"] = real[:, 0, 0, 0].tolist(), list(memories)
        told = {"exemplars": 0.6, "hybrid": 0.7, "conditions": 0.72, "all": 0.9}
        return {name: told[name] for name in memories}

    monkeypatch.setattr("replaycad.continual.representations.TRIED_LEAST", 2)
    monkeypatch.setattr("replaycad.continual.representations.TRIED_ON", 3)
    monkeypatch.setattr(choice, "separations", separations)
    monkeypatch.setattr(choice, "Memory", SimpleNamespace(of=lambda *_: None))
    header = {"config": {"keep": "auto"}, "inputs": {}, "weights": {}}
    config = replace(CONFIG, keep="auto", budget=50_000, image_size=SIDE)
    values = range(10, 80, 10)
    samples = [write_sample(tmp_path, str(value), dots((0, 0, value))) for value in values]

    kept = choice.choose_representation(
        samples, "bolt", config, header, 0, tuple(holds), keep, draw, lambda: None, None
    ).artifact

    assert asked == [(form, 50_000) for form in holds]
    # Left are 20, 30, 50, 60 and 70, of these three, evenly spaced.
    assert found == {
        "shown": [20, 50, 70], "drawn": list(holds), **{form: form for form in holds}
    }  # fmt: skip
    assert kept.header["form"] == "hybrid", "conditions are not better by a margin"
    assert kept.header["separations"] == {"exemplars": 0.6, "hybrid": 0.7, "conditions": 0.72}
    assert kept.header["config"] == {"keep": "auto"}


def test_each_form_of_a_choice_has_a_checkpoint_of_its_own(builder, tmp_path, monkeypatch):
    write_class(tmp_path / "data", "bolt", 40)
    stage, keys = CompressStage(builder, "bolt"), []

    def choose(_samples, _name, config, header, _seed, _forms, keep, *_others):
        return [keep(replace(config, keep=form), header) for form in ("hybrid", "conditions")]

    monkeypatch.setattr(choice, "choose_representation", choose)
    monkeypatch.setattr(stage, "_kept", lambda *arguments: keys.append(arguments[-1].key))

    stage._chosen(SimpleNamespace(class_name="bolt"), {}, Checkpoint("none", "k"))

    assert keys == ["k hybrid", "k conditions"]


def test_a_form_is_judged_by_all_the_replays_that_are_drawn_of_it(builder, monkeypatch):
    drawn = Flats([1, 2, 3]).images(range(3))
    found = {}

    def vary(_conditions, config, seed, writer, *_others):
        found["seed"], found["num_images"] = seed, config.num_images
        whole = np.ones((3, SIDE, SIDE), bool)
        writer.append(drawn, whole, np.arange(3))

    monkeypatch.setattr("replaycad.stages.replay.replay_kept", vary)
    monkeypatch.setattr(ConditionsArtifact, "is_drawn", False)
    monkeypatch.setattr(ConditionsArtifact, "exemplar_size", SIDE)
    header = {"class_name": "bolt", "key": "exemplars"}

    images = draw_apart(builder, ReplayConfig(num_images=3), 7, BARE, header)

    assert images[:, 0, 0, 0].tolist() == [1, 2, 3]
    assert found == {"seed": 7, "num_images": 3}


def test_masks_of_other_images_are_refused(builder, tmp_path):
    write_class(tmp_path / "data", "bolt", 40, 50)
    masks = MasksArtifact(
        class_name="bolt", image_ids=["1", "0"], object_masks=np.ones((2, 8, 8), bool),
        area_fraction=np.ones(2, np.float32), rule="frame", header={"policy": {}},
    )  # fmt: skip
    masks.save(builder.store.path("masks", "bolt"))

    with pytest.raises(ArtifactError, match="holds the masks of other images"):
        CompressStage(builder, "bolt").run(None)


def test_forms_are_judged_by_images_and_pixels_alike(monkeypatch):
    def paste(images, _generator):
        spoilt, masks = images.copy(), np.zeros((len(images), SIDE, SIDE), bool)
        spoilt[:, :, 0, 0], masks[:, 0, 0] = 9, True
        return spoilt, masks

    class Blind(Mirror):
        def anomaly_maps(self, features):
            return super().anomaly_maps(features).flip(1, 2)

    def memory(detector):
        return SimpleNamespace(maps=lambda patches, _places: detector.anomaly_maps([patches]))

    memories = {"exemplars": memory(Mirror()), "conditions": memory(Blind())}
    monkeypatch.setattr(coverage, "cut_and_paste", paste)
    monkeypatch.setattr(coverage, "patches_of", lambda pyramid: pyramid[0])
    monkeypatch.setattr(coverage, "PASTINGS", 3)
    real = np.zeros((1, 3, SIDE, SIDE), np.uint8)

    found = coverage.separations(memories, real, Plain(), None)

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


def test_replays_and_images_are_learned_as_the_class_that_they_show(
    builder, tmp_path, monkeypatch
):
    store = builder.store
    write_replays(store, "nut-25kB", "nut", 10)
    write_replays(store, "bolt", "bolt", 20)
    mirror_artifact(class_order=["bolt", "cap"]).save(store.path("detectors", "before"))
    write_class(tmp_path / "data", "pin", 30)
    found = {}

    def train(mixture, known, *_others):
        found["order"] = known
        images = mixture.images(range(len(mixture)))[:, 0, 0, 0].tolist()
        found["shown"] = [(known[one], value) for one, value in
                          zip(mixture.class_index, images, strict=True)]  # fmt: skip
        return SimpleNamespace(save=lambda _path: None)

    monkeypatch.setattr("replaycad.stages.train.train_detector", train)
    monkeypatch.setattr(builder.models, "encoder", lambda *_: None)
    plan = SimpleNamespace(
        kind="detectors", name="after", key="k", path=tmp_path / "after", header=lambda _: {},
        check_inputs=lambda: None,
    )  # fmt: skip

    def learn(init):
        changes = {"image_size": SIDE}
        past = ["nut-25kB", "bolt"]
        TrainStage(builder, ["pin"], past, "after", init=init, changes=changes).run(plan)

    learn("before")
    assert found["order"] == ["bolt", "cap", "nut", "pin"], "those of before come first"
    shown = [("nut", 10), ("nut", 10), ("bolt", 20), ("bolt", 20), ("pin", 30)]
    assert found["shown"] == shown

    learn("")
    assert found["order"] == ["nut", "bolt", "pin"]
    assert found["shown"] == shown


def bank_keys(builder, **changes):
    """Keys under which the banks of the past class `nut` and the new class `pin` are kept."""
    seed = changes.pop("seed", 0)
    changes = {"detector": "patchcore", "image_size": SIDE, **changes}
    stage = TrainStage(builder, ["pin"], ["nut"], "after", seed, changes=changes)
    return stage._kept_banks(builder.plan(stage))._keys


def test_a_bank_is_kept_by_all_that_it_depends_on_and_by_nothing_else(builder, tmp_path):
    write_replays(builder.store, "nut", "nut", 10)
    write_replays(builder.store, "bolt", "bolt", 20)
    write_class(tmp_path / "data", "pin", 30)
    keys = bank_keys(builder)

    for change in (
        {"seed": 1}, {"image_size": 2 * SIDE}, {"batch_size": 3}, {"replay_budget": 5},
        {"preset": "ucad"},
    ):  # fmt: skip
        changed = bank_keys(builder, **change)
        assert changed["nut"] != keys["nut"], change
    assert bank_keys(builder) == keys
    stage = TrainStage(builder, ["pin"], ["bolt", "nut"], "other", changes={
        "detector": "patchcore", "image_size": SIDE})  # fmt: skip
    others = stage._kept_banks(builder.plan(stage))._keys
    assert (others["nut"], others["pin"]) == (keys["nut"], keys["pin"]), "beside other classes"
    write_replays(builder.store, "nut", "nut", 11)
    redrawn = bank_keys(Builder.of(tmp_path / "data", tmp_path / "store", device="cpu"))
    assert redrawn["nut"] != keys["nut"]
    assert redrawn["pin"] == keys["pin"]


def test_only_memory_banks_are_kept(builder, tmp_path):
    write_class(tmp_path / "data", "pin", 30)
    stage = TrainStage(builder, ["pin"], [], "after", changes={"detector": "invad"})

    assert stage._kept_banks(builder.plan(stage)) is None
