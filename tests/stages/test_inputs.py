"""What a stage reads stands among its inputs, and nothing that it reads may change unseen."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.format import read_header
from replaycad.engine import train
from replaycad.engine.builder import Builder
from replaycad.engine.replay import prepare_replays
from replaycad.engine.settings import RunSettings
from replaycad.progress import silent
from tests.conftest import invoke, states
from tests.toy import draw_object


@pytest.fixture
def header_of(chain):
    return lambda name, store=chain: read_header(store / f"{name}.safetensors")


def test_each_stage_names_all_that_it_reads(header_of):
    content = {
        name: header_of(name)["content_id"]
        for name in ("masks/disc", "conditions/disc", "replays/disc", "detectors/plate")
    }
    inputs = {
        name: header_of(name)["inputs"] for name in (*content, "scores/plate")
    }
    disc = inputs["masks/disc"]["images/disc"]
    plate = inputs["detectors/plate"]["images/plate"]

    assert inputs["masks/disc"] == {"images/disc": disc}
    assert inputs["conditions/disc"] == {
        "images/disc": disc, "masks/disc": content["masks/disc"],
        "policy": inputs["conditions/disc"]["policy"], "view of disc": "whole, padded",
        **{name: inputs["conditions/disc"][name] for name in ("detector", "drawing of replays")},
    }  # fmt: skip
    assert inputs["replays/disc"] == {
        "conditions/disc": content["conditions/disc"], "policy": inputs["replays/disc"]["policy"],
        "view of disc": "whole, padded", "limits": inputs["replays/disc"]["limits"],
    }  # fmt: skip
    assert inputs["detectors/plate"] == {
        "images/plate": plate, "replays/disc": content["replays/disc"],
        "limits/disc": inputs["detectors/plate"]["limits/disc"],
        "preset": inputs["detectors/plate"]["preset"], "class order": " + disc + plate",
        "view of disc": "whole, padded", "view of plate": "whole, padded",
    }  # fmt: skip
    assert inputs["scores/plate"] == {
        "images/disc": inputs["scores/plate"]["images/disc"],
        "images/plate": inputs["scores/plate"]["images/plate"],
        "detectors/plate": content["detectors/plate"], "class order": "disc,plate",
        "view of disc": "whole, padded", "view of plate": "whole, padded",
    }  # fmt: skip
    seen = [disc, plate, inputs["scores/plate"]["images/disc"],
            inputs["scores/plate"]["images/plate"]]  # fmt: skip
    assert len(set(seen)) == 4, "training and test images of two classes"


def test_a_detector_names_the_one_that_it_goes_on_from(run, header_of, tmp_path):
    store = tmp_path / "store"
    assert run("train", "--class", "disc").exit_code == 0

    assert run("train", "--class", "plate", "--set", "init=disc").exit_code == 0

    inputs = header_of("detectors/plate", store)["inputs"]
    assert inputs["detectors/disc"] == header_of("detectors/disc", store)["content_id"]
    assert inputs["class order"] == "disc +  + plate"


@pytest.mark.parametrize(("part", "stage", "reason"), [
    ("train", "train", "images/plate changed"), ("test", "eval", "images/plate changed"),
])  # fmt: skip
def test_a_changed_image_makes_stale_what_was_made_from_it(
    part, stage, reason, run, chain, data, tmp_path
):
    own = shutil.copytree(data, tmp_path / "own")
    shutil.copytree(chain, tmp_path / "store")
    commands = {
        "train": ("train", "--class", "plate", "--past", "disc"),
        "eval": ("eval", "--class", "disc,plate"),
    }
    draw_object("plate", 5).save(own / "plate" / part / "good" / "000.png")

    for command in commands.values():
        found = states(run, *command, data=own)
        assert found == [("stale", reason) if command[0] == stage else ("hit", "")]


def other_conditions(store):
    """Put other conditions in the place of those that are there."""
    path = store / "conditions" / "disc.safetensors"
    conditions = ConditionsArtifact.load(path)
    conditions.semantic_embedding[:] = np.flip(conditions.semantic_embedding, 0)
    conditions.save(path)


def test_training_waits_for_the_replays_of_conditions_that_changed(run, chain, tmp_path):
    store = shutil.copytree(chain, tmp_path / "store")
    command = ("train", "--class", "plate", "--past", "disc")
    assert states(run, *command) == [("hit", "")]

    other_conditions(store)

    ((state, reason),) = states(run, *command)
    assert state == "stale"
    assert "replays/disc will be made anew" in reason


def test_replays_of_other_conditions_are_drawn_anew_as_they_were_before(chain, models, tmp_path):
    store, drawn = shutil.copytree(chain, tmp_path / "store"), []

    def prepared():
        settings = RunSettings(
            data=tmp_path, root=store, overrides={"compress": {"backbone": models.backbone}},
            recipe="mini", seed=5,
        )  # fmt: skip
        with Builder(settings, silent) as builder:
            builder.build = lambda stage, **_: (
                drawn.append((stage.name, stage.config.num_images, stage.seed))
                or SimpleNamespace(was_made=False)
            )
            prepare_replays(builder, "disc")
        return drawn

    assert prepared() == []
    other_conditions(store)
    assert prepared() == [("disc", 6, 0)]

    drawn.clear()
    shard = next((store / "replays" / "disc.shards").glob("*.safetensors"))
    shard.unlink()
    assert prepared() == [("disc", 6, 0)], "what is left still says how they were drawn"
    shutil.copy(next((chain / "replays" / "disc.shards").glob("*.safetensors")), shard)

    drawn.clear()
    (store / "conditions" / "disc.safetensors").unlink()
    assert prepared() == [], "drawn elsewhere and copied"


def test_a_detector_whose_preset_has_another_structure_now_is_stale(
    run, chain, tmp_path, monkeypatch
):
    shutil.copytree(chain, tmp_path / "store")
    command = ("train", "--class", "plate", "--past", "disc")
    assert states(run, *command) == [("hit", "")]
    known = train.preset_for

    monkeypatch.setattr(train, "preset_for", lambda *names: replace(known(*names), levels=(0, 1)))

    assert states(run, *command) == [("stale", "preset changed")]


def test_a_dry_run_of_replays_of_real_images_needs_no_backbone(run, tmp_path):
    store = tmp_path / "store"
    assert run("compress", "--class", "disc", "--keep", "exemplars").exit_code == 0

    typed = ["--num", "6", "--recipe", "mini", "--store", store, "--dry-run"]
    told = invoke(["replay", "--class", "disc", *typed])

    assert told.exit_code == 0, told.output
    assert "missing" in told.stdout
