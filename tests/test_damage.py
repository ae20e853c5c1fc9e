"""What is damaged, or changes under way, never becomes a result in silence."""

import json
import shutil

import pytest

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.replays import ReplaysWriter
from replaycad.artifacts.scores import ScoresArtifact
from tests.conftest import invoke

STAGES = {
    "mask": (["--class", "disc"], "masks/disc", MasksArtifact, "data"),
    "compress": (["--class", "disc"], "conditions/disc", ConditionsArtifact, "data"),
    "replay": (["--class", "disc"], "replays/disc", ReplaysWriter, "conditions/disc"),
    "train": (["--class", "plate", "--past", "disc"], "detectors/plate", DetectorArtifact,
              "replays/disc"),
    "eval": (["--class", "disc,plate"], "scores/plate", ScoresArtifact, "detectors/plate"),
}  # fmt: skip
IMAGES = {"mask": "train/good/000.png", "compress": "train/good/000.png"}


@pytest.fixture
def copies(chain, data, tmp_path):
    """A data folder and a store of one's own in which all stages ran."""
    shutil.copytree(data, tmp_path / "data")
    shutil.copytree(chain, tmp_path / "store")
    return tmp_path


def typed(stage, folder, models):
    arguments = [stage, *STAGES[stage][0], "--store", folder / "store", "--device", "cpu"]
    if stage != "replay":
        arguments += ["--data", folder / "data"]
    return [*arguments, *models.settings(stage)]


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_written_if_an_input_changed_while_it_was_read(
    stage, copies, models, monkeypatch
):
    _, made, kind, changed = STAGES[stage]
    (copies / "store" / f"{made}.safetensors").unlink()
    saving = "close" if stage == "replay" else "save"
    monkeypatch.setattr(kind, saving, lambda *_: pytest.fail("it was written"))
    check = "replaycad.engine.staleness.Plan.check_inputs"
    from replaycad.engine.staleness import Plan

    original = Plan.check_inputs

    def change_then_check(plan):
        if changed == "data":
            path = copies / "data" / "disc" / IMAGES[stage]
            shutil.copyfile(copies / "data" / "plate" / IMAGES[stage], path)
        else:
            other = copies / "store" / f"{changed}.safetensors"
            other.unlink()
        original(plan)

    monkeypatch.setattr(check, change_then_check)

    result = invoke(typed(stage, copies, models))

    assert result.exit_code == 1
    name = "images/disc" if changed == "data" else changed
    assert name in result.stderr
    assert "changed while" in result.stderr or "does not exist" in result.stderr
    assert not (copies / "store" / f"{made}.safetensors").exists()


def test_an_image_that_changes_leaves_no_checkpoint_either(copies, models, monkeypatch):
    from replaycad.artifacts.checkpoints import Checkpoint
    from replaycad.engine.settings import RunSettings

    (copies / "store" / "conditions" / "disc.safetensors").unlink()
    monkeypatch.setitem(RunSettings.__init__.__kwdefaults__, "save_every_seconds", 0.0)
    original = Checkpoint.save

    def change_then_save(checkpoint, step, tensors):
        folder = copies / "data"
        shutil.copyfile(folder / "plate/train/good/000.png", folder / "disc/train/good/000.png")
        original(checkpoint, step, tensors)

    monkeypatch.setattr(Checkpoint, "save", change_then_save)

    result = invoke(typed("compress", copies, models))

    assert result.exit_code == 1
    assert "images/disc changed while conditions/disc was made" in " ".join(result.stderr.split())
    assert not list((copies / "store").rglob(".partial/**/*.safetensors"))


@pytest.mark.parametrize("stage", ["compress", "replay", "train", "eval"])
def test_a_flipped_bit_in_an_input_stops_the_stage(stage, copies, models):
    before = {"compress": "masks/disc"}.get(stage, STAGES[stage][3])
    path = copies / "store" / f"{before}.safetensors"
    if stage == "train":
        (path,) = path.with_suffix(".shards").iterdir()
    (copies / "store" / f"{STAGES[stage][1]}.safetensors").unlink()
    flip(path)

    result = invoke(typed(stage, copies, models))

    assert result.exit_code == 1
    assert f"{path}: expected content_id" in result.stderr.replace("\n", "")
    assert "remove it and" in " ".join(result.stderr.split())


def test_replays_that_lost_a_shard_or_are_damaged_in_their_main_file_are_drawn_anew(
    copies, models
):
    path = copies / "store" / "replays" / "disc.safetensors"
    (shard,) = path.with_suffix(".shards").iterdir()
    sound = path.read_bytes(), shard.read_bytes()
    for spoil in (shard.unlink, lambda: flip(path)):
        spoil()

        result = invoke(typed("train", copies, models))

        assert result.exit_code == 0, result.output
        assert "drew the replays of disc first" in result.stderr
        assert (path.read_bytes(), shard.read_bytes()) == sound


def test_results_that_were_changed_are_written_anew(copies, data, models):
    arguments = ["run", "--class", "disc,plate", "--strategy", "finetune", "--data", data,
                 "--store", copies / "store", "--device", "cpu", "--quiet",
                 *models.settings("run")]  # fmt: skip
    assert invoke(arguments).exit_code == 0
    for suffix in (".json", ".csv"):
        path = copies / "store" / "results" / f"run{suffix}"
        sound = path.read_text()
        path.write_text(sound.replace("0", "1"))

        assert invoke(arguments).exit_code == 0
        assert path.read_text() == sound
    assert json.loads((copies / "store/results/run.json").read_text())["classes"]


def test_the_json_beside_up_to_date_scores_is_mended(copies, models):
    path = copies / "store" / "scores" / "plate.json"
    sound = path.read_text()
    for spoil in (path.unlink, lambda: path.write_text("{}"), lambda: path.write_bytes(b"\xff")):
        spoil()

        result = invoke([*typed("eval", copies, models), "--json"])

        assert json.loads(result.stdout)["outcomes"][0]["was_made"] is False
        assert path.read_text() == sound


def test_an_image_that_came_after_the_masks_does_not_stop_the_contact_sheet(copies):
    from replaycad.artifacts.store import Store
    from replaycad.experiments.contact_sheet import pictures_of

    good = copies / "data" / "disc" / "train" / "good"
    before = pictures_of(copies / "data", Store(copies / "store"), "disc", "disc")
    shutil.copyfile(good / "005.png", good / "999.png")

    after = pictures_of(copies / "data", Store(copies / "store"), "disc", "disc")

    assert len(after["mask"]) == len(after["real"]) == len(before["mask"])
    assert not after["mask"][-1].any()
    assert after["mask"][0].any()
