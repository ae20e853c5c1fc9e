"""The program runs where Python lacks what only Unix has."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import json, os, sys

for name in ("fcntl", "resource", "termios"):
    sys.modules[name] = None
for name in ("fork", "pread", "preadv", "pwrite", "pwritev", "statvfs", "sync"):
    delattr(os, name)
from replaycad.cli.commands import app

for typed in json.loads(sys.argv[1]):
    try:
        app(typed)
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.mark.long
def test_all_stages_run(data, models, tmp_path):
    store = tmp_path / "store"
    commands = [
        [
            stage, *arguments, *(() if stage == "replay" else ("--data", str(data))),
            "--store", str(store), "--device", "cpu", *models.settings(stage),
        ]
        for stage, *arguments in (
            ("mask", "--class", "disc"),
            ("compress", "--class", "disc"),
            ("replay", "--class", "disc"),
            ("train", "--class", "plate", "--past", "disc"),
            ("eval", "--class", "disc,plate"),
        )
    ]  # fmt: skip

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.parent.name for path in store.glob("*/*.safetensors")}
    assert made == {"masks", "conditions", "replays", "detectors", "scores"}
    with safe_open(store / "scores" / "plate.safetensors", "np") as file:
        names = file.metadata()["replaycad"]
    assert "test/good/000.png" in names
