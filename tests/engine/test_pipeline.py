"""The five stages in a row: same seed, same bytes; killed, they go on; stale, they say why."""

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from replaycad.artifacts import atomic
from replaycad.artifacts.checkpoints import Checkpoint
from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import read_header, write
from replaycad.artifacts.schema import Schema, TensorSpec
from replaycad.engine.builder import Builder
from replaycad.engine.replay import ReplayStage
from replaycad.engine.settings import RunSettings, split_settings
from replaycad.engine.train import TrainStage
from replaycad.progress import SilentReport
from tests.conftest import ARTIFACTS, Models, invoke, run_chain, states
from tests.tiny import make_tiny_backbone
from tests.toy import draw_object

ROOT = Path(__file__).parents[2]


def sha256(store: Path, name: str) -> str:
    return hashlib.sha256((store / f"{name}.safetensors").read_bytes()).hexdigest()


def settings(models: Models, stage: str, data: Path, root: Path, **others: object) -> RunSettings:
    """What the command line would make of the settings of a quick stage."""
    typed = models.settings(stage)
    settings = [typed[i + 1] for i, word in enumerate(typed) if word == "--set"]
    names = {"--backbone": "backbone", "--encoder": "encoder", "--segmenter": "segmenter"}
    settings += [f"{names[w]}={typed[i + 1]}" for i, w in enumerate(typed) if w in names]
    overrides = split_settings(settings, stage)
    kept = {"recipe": "mini", **others}
    return RunSettings(data=data, root=root, overrides=overrides, device="cpu", **kept)


def test_same_seed_gives_the_same_bytes_for_all_five_artifacts(chain, data, models, tmp_path):
    again = run_chain(tmp_path / "again", data, models, seed=0)

    for name in ARTIFACTS:
        assert sha256(again, name) == sha256(chain, name), name


def test_another_seed_gives_other_bytes_wherever_something_is_drawn(chain, data, models, tmp_path):
    other = run_chain(tmp_path / "other", data, models, seed=1)

    for name in ARTIFACTS:
        same = sha256(other, name) == sha256(chain, name)
        assert same == (name == "masks/disc"), name


def test_headers_say_where_an_artifact_came_from_but_not_on_which_machine(chain, models):
    for name in ARTIFACTS:
        header = read_header(chain / f"{name}.safetensors")
        assert {"config", "inputs", "weights", "versions", "key", "content_id"} <= set(header), name
        text = json.dumps(header)
        for private in (str(chain), str(Path(models.backbone).parent), os.uname().nodename):
            assert private not in text, name


def test_an_up_to_date_stage_does_not_import_torch(chain, data, models):
    commands = [
        ["mask", "--class", "disc"],
        ["compress", "--class", "disc"],
        ["replay", "--class", "disc"],
        ["train", "--class", "plate", "--past", "disc"],
        ["eval", "--class", "disc,plate"],
    ]
    typed = []
    for command in commands:
        place = [] if command[0] == "replay" else ["--data", str(data)]
        settings = models.settings(command[0])
        typed.append([*command, *place, "--store", str(chain), *settings, "--json"])
    code = (
        "import json, sys\n"
        "from replaycad.cli.commands import app\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        app(arguments)\n"
        "    except SystemExit as end:\n"
        "        assert not end.code, arguments\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'timm'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(typed)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"was_made": false') == len(commands)
    assert '"was_made": true' not in done.stdout


def test_conditions_alone_draw_the_same_replays_elsewhere(chain, models, tmp_path):
    conditions = tmp_path / "elsewhere" / "conditions" / "disc.safetensors"
    conditions.parent.mkdir(parents=True)
    shutil.copy(chain / "conditions" / "disc.safetensors", conditions)

    result = invoke(
        ["replay", "--class", "disc", "--store", tmp_path / "elsewhere", "--device", "cpu",
         *models.settings("replay")]
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    assert sha256(tmp_path / "elsewhere", "replays/disc") == sha256(chain, "replays/disc")


def test_touching_one_training_image_makes_exactly_its_class_stale(run, data, tmp_path):
    own = shutil.copytree(data, tmp_path / "own")
    for class_name in ("disc", "plate"):
        assert run("mask", "--class", class_name, data=own).exit_code == 0
    draw_object("disc", 5, defective=True).save(own / "disc" / "train" / "good" / "003.png")

    assert states(run, "mask", "--class", "disc,plate", data=own) == [
        ("stale", "images/disc changed"),
        ("hit", ""),
    ]


def test_a_dry_run_says_what_follows_from_a_change_and_makes_nothing(run, data, tmp_path):
    own = shutil.copytree(data, tmp_path / "own")
    command = ("run", "--class", "disc,plate")
    assert {state for state, _ in states(run, *command, data=own)} == {"missing"}
    assert not (tmp_path / "store" / "masks").exists()
    assert run(*command, data=own).exit_code == 0
    assert {state for state, _ in states(run, *command, data=own)} == {"hit"}

    draw_object("plate", 5, defective=True).save(own / "plate" / "train" / "good" / "003.png")

    result = run(*command, "--dry-run", "--json", data=own)
    found = {
        f"{one['stage']} {one['name']}": one["state"]
        for one in json.loads(result.stdout)["outcomes"]
    }
    assert {name for name, state in found.items() if state == "stale"} == {
        "mask plate", "compress plate", "replay plate", "train run-replay-2", "eval run-replay-2",
    }  # fmt: skip
    assert set(found.values()) == {"hit", "stale"}


def test_stale_says_which_setting_changed(run):
    assert run("mask", "--class", "disc").exit_code == 0

    assert states(run, "mask", "--class", "disc", "--set", "image_size=16") == [
        ("stale", "image_size 32 -> 16")
    ]


def test_compress_makes_missing_masks_first_and_says_so(run, tmp_path):
    result = run("compress", "--class", "disc")

    assert result.exit_code == 0, result.output
    assert "made the masks of disc first" in result.stderr
    assert (tmp_path / "store" / "masks" / "disc.safetensors").exists()


def test_train_draws_missing_replays_first_and_says_so(run, chain, tmp_path):
    shutil.copytree(chain / "conditions", tmp_path / "store" / "conditions")

    result = run("train", "--class", "plate", "--past", "disc")

    assert result.exit_code == 0, result.output
    assert "drew the replays of disc first" in result.stderr
    assert sha256(tmp_path / "store", "detectors/plate") == sha256(chain, "detectors/plate")


def test_training_goes_on_from_another_detector(run, tmp_path):
    assert run("train", "--class", "disc").exit_code == 0

    result = run("train", "--class", "plate", "--set", "init=disc")

    assert result.exit_code == 0, result.output
    first = DetectorArtifact.load(tmp_path / "store" / "detectors" / "disc.safetensors")
    second = DetectorArtifact.load(tmp_path / "store" / "detectors" / "plate.safetensors")
    assert second.class_order == ["disc", "plate"]
    name = max(first.state, key=lambda key: first.state[key].size)
    moved = np.abs(second.state[name] - first.state[name]).mean()
    assert 0 < moved < np.abs(first.state[name]).mean() / 2, "near where it started, but not there"
    limits = second.thresholds
    assert limits["false_alarm_rate"] == 0.01
    assert limits["typical_image"] < limits["image"]
    assert limits["typical_pixel"] < limits["pixel"] <= limits["image"]


def test_force_makes_it_again_with_the_same_bytes(run, chain, tmp_path):
    store = shutil.copytree(chain, tmp_path / "store")
    before = sha256(store, "detectors/plate")

    result = run("train", "--class", "plate", "--past", "disc", "--force", "--json")

    assert json.loads(result.stdout)["outcomes"][0]["was_made"] is True
    assert sha256(store, "detectors/plate") == before


KILLED = """
import sys
from pathlib import Path
from replaycad.engine.builder import Builder
from replaycad.engine.compress import CompressStage
from replaycad.engine.settings import RunSettings
from replaycad.engine.train import TrainStage
from replaycad.progress import SilentReport
import json
facts = json.loads(sys.argv[1])
settings = RunSettings(data=Path(facts["data"]), root=Path(facts["root"]),
                overrides=facts["overrides"], recipe="mini", device="cpu", save_every_seconds=0.0)
class Slow(SilentReport):
    def step(self, what, done, total, **values):
        if what in ("train", "search") and done >= 2:
            sys.stdin.read()  # waits here, two checkpoints written at most, until it is killed
with Builder(settings, Slow()) as builder:
    if facts["stage"] == "compress":
        builder.build(CompressStage(builder, "disc"))
    else:
        builder.build(TrainStage(builder, ["plate"], ["disc"], "plate"))
"""


def kill_at_checkpoint(stage: str, wanted: RunSettings, kind: str) -> Path:
    """Run a stage in another process and kill it once it keeps a checkpoint, which is returned."""
    facts = {
        "stage": stage, "data": str(wanted.data), "root": str(wanted.root),
        "overrides": wanted.overrides,
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, json.dumps(facts)], cwd=ROOT, stdin=subprocess.PIPE
    )
    folder = wanted.root / ".partial" / kind
    try:
        while not (found := list(folder.glob("[!.]*.safetensors"))):
            assert process.poll() is None, "the stage ended before it kept anything"
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return found[0]


@pytest.mark.parametrize(("stage", "kind", "name"), [
    ("compress", "conditions", "conditions/disc"), ("train", "detectors", "detectors/plate"),
])  # fmt: skip
def test_a_killed_stage_goes_on_from_its_checkpoint_to_the_same_bytes(
    stage, kind, name, run, chain, data, models, tmp_path
):
    store = shutil.copytree(chain, tmp_path / "store")
    (store / f"{name}.safetensors").unlink()
    wanted = settings(models, stage, data, store)

    checkpoint = kill_at_checkpoint(stage, wanted, kind)
    assert not (store / f"{name}.safetensors").exists(), "no half file"
    key = read_header(checkpoint)["key"]
    kept = Checkpoint(checkpoint, key).load()
    assert kept is not None
    assert kept[0] >= 1
    arguments = {"compress": ["disc"], "train": ["plate", "--past", "disc"]}[stage]
    result = run(stage, "--class", *arguments)

    assert result.exit_code == 0, result.output
    assert f"going on from the checkpoint at step {kept[0]} of 3" in result.stderr
    assert sha256(store, name) == sha256(chain, name)
    assert not checkpoint.exists(), "cleared once the artifact is there"


class Interrupted(SilentReport):
    """Presses ctrl-C after the sixteenth replay."""

    def step(self, what: str, done: int, total: int, **_values: float) -> None:
        if what == "replay" and 16 <= done < total:
            raise KeyboardInterrupt


def test_replay_goes_on_from_the_images_already_drawn(run, chain, data, models, tmp_path):
    store = tmp_path / "store"
    whole = shutil.copytree(chain, tmp_path / "whole")
    shutil.copytree(chain / "conditions", store / "conditions")
    twenty = ["--class", "disc", "--set", "num_images=20"]
    assert run("replay", *twenty, "--store", whole).exit_code == 0
    asked = settings(models, "replay", data, store)
    asked.overrides["replay"]["num_images"] = "20"
    with Builder(asked, Interrupted()) as builder:
        with pytest.raises(KeyboardInterrupt):
            builder.build(ReplayStage(builder, "disc"))
        assert "drawn so far" in " ".join(builder.kept())

    result = run("replay", *twenty)

    assert result.exit_code == 0, result.output
    assert "going on from image 16 of 20" in result.stderr
    assert sha256(store, "replays/disc") == sha256(whole, "replays/disc")


def test_ctrl_c_says_what_was_kept_and_exits_with_130(run, monkeypatch, tmp_path):
    def press(_report, what, done, _total, **_values):
        if what == "train" and done == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("replaycad.cli.console.TerminalReport.step", press)
    # A shell that starts the tests in the background makes them ignore ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    result = run("train", "--class", "disc")
    signal.signal(signal.SIGINT, before)
    monkeypatch.undo()

    assert result.exit_code == 130
    assert "interrupted:" in result.stderr
    assert not (tmp_path / "store" / "detectors" / "disc.safetensors").exists()
    assert run("train", "--class", "disc").exit_code == 0


@pytest.mark.parametrize(("stage", "setting", "kind"), [
    ("train", "learning_rate=1e30", "detectors"),
    ("compress", "embedding_learning_rate=1e30", "conditions"),
])  # fmt: skip
def test_a_loss_that_is_not_finite_stops_the_stage_and_writes_nothing(
    stage, setting, kind, run, tmp_path
):
    result = run(stage, "--class", "disc", "--set", setting, "--set", f"{stage}.num_steps=8")

    assert result.exit_code == 1
    assert result.stderr.count("error:") == 1
    assert "learning_rate" in result.stderr
    assert not (tmp_path / "store" / kind / "disc.safetensors").exists()


def test_the_last_good_checkpoint_outlives_a_loss_that_is_not_finite(data, models, tmp_path):
    wanted = settings(models, "train", data, tmp_path / "store", save_every_seconds=0.0)
    wanted.overrides["train"]["learning_rate"] = "1e30"
    with (
        Builder(wanted, SilentReport()) as builder,
        pytest.raises(Exception, match="checkpoint is kept"),
    ):
        builder.build(TrainStage(builder, ["disc"], [], "disc"))

    (checkpoint,) = (tmp_path / "store" / ".partial" / "detectors").glob("*.safetensors")
    kept = Checkpoint(checkpoint, read_header(checkpoint)["key"]).load()
    assert kept is not None
    assert all(np.isfinite(values).all() for values in kept[1].values())


def test_a_full_disk_leaves_the_old_artifact_and_no_other_file(run, monkeypatch, tmp_path):
    assert run("mask", "--class", "disc").exit_code == 0
    folder = tmp_path / "store" / "masks"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic.os, "fsync", full)
    result = run("mask", "--class", "disc", "--force")

    assert result.exit_code == 1
    assert "No space left" in result.stderr
    assert "free some space" in result.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def damaged_store(chain: Path, tmp_path: Path) -> Path:
    """A store with nothing but conditions of `disc`."""
    shutil.copytree(chain / "conditions", tmp_path / "store" / "conditions")
    return tmp_path / "store" / "conditions" / "disc.safetensors"


def test_truncated_conditions_are_named_with_the_command_that_makes_them(run, chain, tmp_path):
    path = damaged_store(chain, tmp_path)
    path.write_bytes(path.read_bytes()[:-100])

    result = run("replay", "--class", "disc")

    assert result.exit_code == 1
    assert str(path) in result.stderr.replace("\n", "")
    assert "replaycad compress --class disc" in result.stderr


def test_an_artifact_of_another_format_is_refused(run, chain, tmp_path):
    path = damaged_store(chain, tmp_path)
    shutil.copy(chain / "masks" / "disc.safetensors", path)

    result = run("replay", "--class", "disc")

    assert result.exit_code == 1
    assert "found format `masks`" in result.stderr


def test_an_artifact_of_a_newer_version_asks_for_an_update(run, chain, tmp_path):
    path = damaged_store(chain, tmp_path)
    newer = Schema("conditions", 99, {"future": TensorSpec("float32", ("N",))}, "")
    write(path, newer, {"future": np.zeros(1, np.float32)}, {})

    result = run("replay", "--class", "disc")

    assert result.exit_code == 1
    assert "newer replaycad" in result.stderr
    assert "update replaycad" in result.stderr


def test_conditions_of_another_backbone_are_refused(chain, tmp_path):
    damaged_store(chain, tmp_path)
    other = make_tiny_backbone(tmp_path / "other", text="ldmbert")

    result = invoke(
        ["replay", "--class", "disc", "--store", tmp_path / "store", "--backbone", other]
    )

    assert result.exit_code == 1
    assert "made with another backbone" in result.stderr
    assert not (tmp_path / "store" / "replays").exists()


def test_a_detector_of_another_kind_is_no_start(run, chain, tmp_path):
    shutil.copytree(chain, tmp_path / "store")

    result = run("train", "--class", "disc", "--set", "init=plate", "--set", "image_size=64")

    assert result.exit_code == 1
    assert "another image_size" in result.stderr


def test_stored_masks_are_spread_over_the_images_and_counted(chain):
    conditions = ConditionsArtifact.load(chain / "conditions" / "disc.safetensors")

    assert conditions.object_masks.shape == (4, 32, 32)
    assert conditions.poses.shape == (6, 3)
    assert conditions.coefficients.shape == (6, 5), "six images vary in five directions"
    assert conditions.num_bytes == conditions.num_bytes_without_masks + 4 * 32 * 4


def test_of_very_many_images_a_search_reads_as_many_as_its_steps_see(run, monkeypatch, tmp_path):
    monkeypatch.setattr("replaycad.stages.compress.LEAST_IMAGES", 2)
    typed = ("compress", "--class", "disc", "--set", "num_steps=2", "--set", "batch_size=2")
    path = tmp_path / "store" / "conditions" / "disc.safetensors"

    assert run(*typed).exit_code == 0
    assert len(ConditionsArtifact.load(path).poses) == 4
    assert run(*typed[:-2], "--set", "batch_size=8").exit_code == 0
    assert len(ConditionsArtifact.load(path).poses) == 6, "all there are"


def test_tokens_inside_the_prompt_are_the_same_for_every_image(run, tmp_path):
    typed = ("--class", "disc", "--set", "semantic_placement=prompt", "--set", "init=word",
             "--set", "init_word=screw", "--set", "num_tokens=3")  # fmt: skip
    result = run("compress", *typed)
    assert result.exit_code == 0, result.stderr

    conditions = ConditionsArtifact.load(tmp_path / "store" / "conditions" / "disc.safetensors")
    assert conditions.header["config"]["num_variations"] == 8
    assert conditions.semantic_variations is None
    assert conditions.coefficients is None
    assert conditions.poses.shape == (6, 3)


def test_training_asks_for_no_backbone_while_its_replays_are_there(chain, data, models, tmp_path):
    store = tmp_path / "store"
    shutil.copytree(chain, store)

    result = invoke([
        "train", "--class", "plate", "--past", "disc", "--data", data, "--store", store,
        "--encoder", models.encoder, "--set", "image_size=32", "--set", "num_steps=1",
        "--set", "batch_size=4", "--name", "other",
    ])  # fmt: skip

    assert result.exit_code == 0, result.output
