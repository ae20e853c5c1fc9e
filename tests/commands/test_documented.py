"""The README's commands for the published results, from an empty cache to the table.

The networks are stand-ins with the published files and shapes, and the hub is one on this machine;
counts of steps and images, the segmenter, InvAD and its pictures are small. All else is as typed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.replays import ReplaysReader
from replaycad.config.paper_classes import MVTEC, VISA
from tests.hub import Hub
from tests.learned import closest_rows
from tests.standins import publish, write_mvtec, write_visa

pytestmark = pytest.mark.long
ROOT = Path(__file__).parent.parent.parent
SMALL = " ".join(
    f"--set {text}"
    for text in (
        "mask.segmenter=mini", "mask.image_size=128", "compress.num_steps=1",
        "compress.batch_size=1", "replay.num_images=1", "replay.num_inference_steps=1",
        "train.num_steps=1", "train.batch_size=2", "train.image_size=64", "train.preset=mini",
        "train.encoder=wide_resnet50_2.racm_in1k",
    )
)  # fmt: skip


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Both data sets, and a cache into which one command brought what the paper needs."""
    folder = tmp_path_factory.mktemp("ground")
    write_mvtec(folder / "mvtec")
    write_visa(folder / "visa")
    hub = Hub()
    publish(hub, folder / "published")
    places = {
        "HF_ENDPOINT": hub.address, "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0",
        "REPLAYCAD_WEIGHTS": str(folder / "weights"), "REPLAYCAD_SAM_URL": f"{hub.address}/sam",
        "TRANSFORMERS_OFFLINE": "0",
    }  # fmt: skip
    for name in ("REPLAYCAD_DATA", "REPLAYCAD_STORE", "HF_HUB_CACHE"):
        os.environ.pop(name, None)
    brought = _call(["fetch", "--recipe", "paper", "--class", "all", "--json"], places, folder)
    hub.close()  # from here on there is no network
    return folder, {**places, "HF_HUB_OFFLINE": "1"}, json.loads(brought.stdout)


def _call(arguments, places, cwd):
    done = subprocess.run(
        [sys.executable, "-m", "replaycad", *arguments], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, **places}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def _make(ground, target, **variables):
    """`make TARGET NAME=VALUE ...` in the checkout, as the README has it; its store and output."""
    folder, places, _ = ground
    store = folder / f"{target}-store"
    typed = {"DATA": folder / target, "STORE": store, "OPTIONS": f"{SMALL} --quiet",
             "INSTALLED": "", "BIN": Path(sys.executable).parent, **variables}  # fmt: skip
    done = subprocess.run(
        ["make", "--no-print-directory", target, *(f"{k}={v}" for k, v in typed.items())],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, **places}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return store / variables.get("RECIPE", "paper"), done.stdout


def test_one_command_brought_everything(ground):
    assert {f"{one['kind']} {one['name']}": one["state"] for one in ground[2]["parts"]} == {
        "backbone ldm256": "fetched", "backbone sd15": "fetched", "segmenter vit_h": "fetched",
        "encoder wide_resnet50_2.racm_in1k": "fetched",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "recipe", "classes"),
    [("mvtec", "paper", MVTEC), ("visa", "paper", VISA), ("visa", "release", VISA)],
)
def test_from_pictures_to_the_table(ground, target, recipe, classes):
    store, printed = _make(ground, target, RECIPE=recipe)

    document = json.loads((store / f"results/{target}.json").read_text())
    assert document["classes"] == list(classes)
    for name in ("final", "joint"):
        entry = document["strategies"][name]["image_auroc"]
        assert None not in entry["matrix"][-1]
        assert f"{100 * entry['mean']:.1f}" in printed
    sizes = document["strategies"]["final"]["bytes_per_class"]
    assert [name for name, size in sizes.items() if not size] == [classes[-1]]
    kept = {path.stem for path in (store / "conditions").glob("*.safetensors")}
    assert kept == set(classes[:-1])
    for name in kept:
        _look_at(store, name, recipe)


def _look_at(store, name, recipe):
    """As many different tokens as the recipe has, and masks that the recipe's law moved."""
    found = ConditionsArtifact.load(store / f"conditions/{name}.safetensors")
    num_tokens = 40 if recipe == "release" and name in ("macaroni2", "capsules") else 20
    embedding = found.semantic_embedding
    assert np.linalg.matrix_rank(embedding) == num_tokens, name
    if recipe == "paper":
        import torch

        assert closest_rows(torch.from_numpy(embedding)) > 0.1
        assert found.spatial_weight is not None
        drawn = ReplaysReader(store / f"replays/{name}.safetensors").object_masks([0])
        assert drawn.shape[1] == (512 if name in VISA else 256)


def test_step_by_step(ground):
    """On what the single training left, where there is any."""
    store, printed = _make(ground, "visa", STRATEGY="replay,joint")

    entry = json.loads((store / "results/visa.json").read_text())["strategies"]["replay"]
    matrix = entry["image_auroc"]["matrix"]
    assert [sum(value is not None for value in row) for row in matrix] == list(range(1, 13))
    assert all(entry["bytes_per_class"].values())
    assert "replay" in printed
