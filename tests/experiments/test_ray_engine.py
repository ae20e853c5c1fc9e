"""The sequence as tasks of a Ray cluster, one node of which dies."""

import logging
import os
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from replaycad.engine.staleness import KINDS
from replaycad.experiments.plan import comparison, steps
from replaycad.experiments.ray_engine import read_by
from tests.conftest import invoke

ROOT = Path(__file__).resolve().parents[2]
STRATEGIES = "finetune,replay,exemplars,joint"


def typed(data, models, store, *more):
    return ["run", "--class", "disc,plate", "--strategy", STRATEGIES, "--data", data, "--store",
            store, "--device", "cpu", "--quiet", *models.settings("run"), *more]  # fmt: skip


def artifacts(store):
    found = sorted(store.glob("[!.]*/*.safetensors"))
    return {str(path.relative_to(store)): path.read_bytes() for path in found}


def test_a_step_waits_for_all_that_it_reads():
    cells = comparison(["a", "b", "c"], ["finetune", "replay", "joint"])
    made = set()
    for step in steps(cells, "run"):
        assert set(read_by(step)) <= made
        assert read_by(step) or step.stage in ("mask", "train")
        made.add(f"{KINDS[step.stage]}/{step.name}")
    assert {label.partition("/")[0] for label in made} == set(KINDS.values())


def test_without_ray_the_command_says_how_to_get_it(data, models, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)

    result = invoke(typed(data, models, tmp_path, "--device", "ray"))

    assert result.exit_code == 1
    assert "pip install replaycad[ray]" in result.stderr


@pytest.mark.long
def test_a_lost_node_changes_nothing(data, models, tmp_path, monkeypatch, request):
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray has it
    monkeypatch.setenv("RAY_DISABLE_IMPORT_WARNING", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    import torch

    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)
    assert invoke(typed(data, models, tmp_path / "alone")).exit_code == 0
    alone = artifacts(tmp_path / "alone")
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        killed = []

        def kill_half_way():
            while len(artifacts(tmp_path / "fleet")) < len(alone) // 2:
                time.sleep(0.05)
            cluster.remove_node(nodes[0], allow_graceful=False)
            killed.append(len(artifacts(tmp_path / "fleet")))

        thread = threading.Thread(target=kill_half_way, daemon=True)
        thread.start()

        result = invoke(typed(data, models, tmp_path / "fleet", "--device", "ray"))

        thread.join(60)
        assert result.exit_code == 0, result.output
        assert killed
        assert killed[0] < len(alone)
        assert artifacts(tmp_path / "fleet") == alone
    finally:
        ray.shutdown()
        cluster.shutdown()
