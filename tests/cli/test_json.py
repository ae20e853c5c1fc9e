"""With --json, every command writes one valid document to stdout and nothing else."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.main import get_command

from replaycad.cli.commands import app
from tests.conftest import invoke
from tests.test_architecture import OPTIONS

COMMANDS = {
    "mask": ("--class", "disc"),
    "compress": ("--class", "disc"),
    "replay": ("--class", "disc"),
    "train": ("--class", "plate", "--past", "disc"),
    "eval": ("--class", "disc,plate"),
    "run": ("--class", "disc", "--strategy", "finetune"),
    "calibrate": ("PHOTOS", "--class", "plate", "--name", "plate"),
    "feedback": ("PHOTOS", "--class", "plate", "--name", "plate", "--defective"),
    "report": ("--name", "run"),
    "export": ("--name", "plate", "--format", "torch", "--out", "OUT"),
    "import": ("TOKEN", "--class", "token", "--backbone", "TINY"),
    "inspect": ("FILE",),
    "forget": ("disc", "--dry-run"),
    "fetch": ("--recipe", "mini"),
    "doctor": (),
    "help": ("classes",),
}


def test_the_list_is_whole():
    # predict answers with a line of JSON for each image; its own tests read those
    assert set(COMMANDS) | {"predict"} == set(get_command(app).commands)


@pytest.fixture(scope="module")
def places(chain, data, models, tmp_path_factory):
    """A store with a run in it, and what the words in capitals stand for."""
    folder = tmp_path_factory.mktemp("json")
    store = shutil.copytree(chain, folder / "store")
    save_file({"<token>": np.zeros((1, 32), np.float32)}, folder / "token.safetensors")
    words = {
        "OUT": folder / "plate.pt2", "TOKEN": folder / "token.safetensors", "TINY": models.backbone,
        "FILE": store / "masks" / "disc.safetensors", "PHOTOS": data / "plate" / "test" / "good",
    }  # fmt: skip
    return store, words


@pytest.fixture(scope="module")
def answered(places, data, models):
    """What a command writes."""
    store, words = places

    def call(command: str) -> str:
        known = OPTIONS[command]
        typed = [command, *(words.get(word, word) for word in COMMANDS[command]), "--json"]
        typed += models.settings(command) if "--set" in known else []
        for option, value in (("--store", store), ("--device", "cpu")):
            typed += [option, value] if option in known else []
        if "--data" in known and command not in ("doctor", "inspect"):
            typed += ["--data", data]
        if command in ("calibrate", "feedback", "report", "export"):
            typed += ["--encoder", models.encoder]
        result = invoke(typed)
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_one_document_on_stdout(command, answered):
    if command == "report":
        answered("run")

    assert json.loads(answered(command))
