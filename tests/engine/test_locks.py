"""Two commands on one store: what one makes, the other waits for and takes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from replaycad.artifacts.store import Store

ROOT = Path(__file__).resolve().parents[2]


def test_two_commands_on_one_class_compute_it_once(chain, data, models, tmp_path):
    root = tmp_path / "store"
    with Store(root).alone_with("masks", "disc", lambda: pytest.fail("nobody has it")):
        process = subprocess.Popen(
            [sys.executable, "-m", "replaycad", "mask", "--class", "disc", "--store", root,
             "--data", data, "--device", "cpu", "--json", *models.settings("mask")],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        for line in process.stderr:
            if "waiting: another command is making masks/disc" in line:
                break
        else:
            pytest.fail("it did not wait")
        shutil.copytree(chain / "masks", root / "masks")
    stdout, _ = process.communicate()

    assert process.returncode == 0
    assert json.loads(stdout)["outcomes"][0]["was_made"] is False


def test_a_killed_owner_gives_its_lock_back(tmp_path):
    owner = subprocess.Popen(
        [sys.executable, "-c", "import sys, time; from replaycad.artifacts.store import Store\n"
         "with Store(sys.argv[1]).alone_with('masks', 'a', print): print('has it', flush=True); "
         "time.sleep(60)", tmp_path],
        cwd=ROOT, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout.readline()
    owner.kill()
    owner.wait()

    with Store(tmp_path).alone_with("masks", "a", lambda: pytest.fail("it is still held")):
        pass


def test_what_another_command_replaced_with_other_settings_is_not_taken(
    data, models, tmp_path, monkeypatch
):
    from replaycad.experiments import run
    from tests.conftest import invoke

    typed = ["run", "--class", "disc,plate", "--strategy", "replay", "--data", data, "--store",
             tmp_path, "--device", "cpu", *models.settings("run")]  # fmt: skip
    original, met = run.ReplayStage, []

    def rival_first(builder, name, *more):
        if not met:
            met.append(name)
            rival = ["compress", "--class", name, "--seed", "1", "--data", data, "--store",
                     tmp_path, "--device", "cpu", *models.settings("compress")]  # fmt: skip
            assert invoke(rival).exit_code == 0
        return original(builder, name, *more)

    monkeypatch.setattr(run, "ReplayStage", rival_first)

    result = invoke(typed)

    assert met
    assert result.exit_code == 1
    assert "conditions/disc was replaced by another command" in result.stderr
    assert invoke(typed).exit_code == 0
