"""Costs of a plan against sums by hand, and units as the store measured them."""

import json
import shutil

import pytest

from replaycad.artifacts.store import Store
from replaycad.errors import ConfigError
from replaycad.experiments.forecast import Assumptions, advice, assumed, forecast, measured
from tests.conftest import invoke

PLAIN = Assumptions(
    classes=3, images=10, replays=4, test_images=5, mask_s=1, compress_s=100, replay_s=2, read_s=1,
    steps=10, step_s=3, score_s=1, image_bytes=1e6, conditions_bytes=1e5, replay_bytes=1e4,
    dollars_per_hour=36,
)  # fmt: skip


def test_one_device_does_all_of_it():
    found = forecast(PLAIN, 1)

    assert found["trainings"] == 3
    assert 3600 * found["prepare_h"] == pytest.approx(3 * (10 + 100 + 8))
    # images and replays are read, then ten steps of three seconds: 10, 14 and 18 images
    assert 3600 * found["train_h"] == pytest.approx(10 + 14 + 18 + 3 * 30)
    assert 3600 * found["eval_h"] == pytest.approx(5 + 10 + 15)
    assert found["wall_h"] == pytest.approx(found["device_h"])
    assert 3600 * found["last_step_h"] == pytest.approx(118 + 18 + 30 + 15)
    assert found["stored_gb"] == pytest.approx((3e5 + 8e4) / 1e9)
    assert found["moved_gb"] == pytest.approx((30e6 + 3e5 + 8e4) / 1e9)
    assert found["dollars"] == pytest.approx(found["device_h"] * 36)


def test_classes_are_prepared_side_by_side_and_trainings_share_devices():
    alone, two = forecast(PLAIN, 1), forecast(PLAIN, 2)

    assert two["prepare_h"] == pytest.approx(alone["prepare_h"] * 2 / 3)  # two rounds
    assert two["train_h"] == pytest.approx(alone["train_h"] / 1.8)
    assert two["device_h"] > alone["device_h"]


def test_a_training_at_the_end_alone_and_a_budget_of_replays_cost_less():
    once = forecast(PLAIN, 1, walked=False)
    assert 3600 * once["train_h"] == pytest.approx(18 + 30)

    few = forecast(assumed(["replay_budget=5"], {"images": 10, "read_s": 1.0, "steps": 0}), 1)
    assert 3600 * few["train_h"] == pytest.approx(15 * 10 + 5 * 14)


def test_advice_is_given_where_reading_outweighs_learning():
    assert not advice(PLAIN)
    large = assumed(["classes=1000,replays=10_000"], {})
    assert "--replay-budget" in advice(large)
    assert not advice(assumed(["classes=1000", "replays=10000,replay_budget=9"], {}))


@pytest.mark.parametrize(
    ("text", "told"),
    [("gpus=8", "names: classes"), ("classes=many", "NUMBER"), ("classes=0", "1 or more"),
     ("step_s=inf", "0 or more"), ("steps=nan", "NUMBER")],
)  # fmt: skip
def test_what_cannot_be_assumed_is_told(text, told):
    with pytest.raises(ConfigError) as caught:
        assumed([text], {})

    assert told in str(caught.value)


def test_units_are_those_of_the_store(chain, tmp_path):
    store = Store(shutil.copytree(chain, tmp_path / "store"))
    for note in (store.root / ".timings").glob("*/*.json"):  # a toy takes next to no time
        note.write_text(json.dumps({**json.loads(note.read_text()), "seconds": 12.0}))

    found = measured(store)

    sizes = {name: found.pop(name) for name in ("conditions_bytes", "replay_bytes")}
    assert found == {"mask_s": 2.0, "compress_s": 12.0, "replay_s": 2.0, "score_s": 1.5}
    assert all(0 < size < 1e6 for size in sizes.values())
    assert measured(Store(tmp_path / "none")) == {}


def test_the_command_prints_a_table_or_one_document(tmp_path):
    typed = ["run", "--assume", "classes=1000,replays=10000", "--store", tmp_path, "--dry-run"]

    shown, document = invoke(typed), json.loads(invoke([*typed, "--json"]).stdout)

    assert "last class h" in shown.stdout
    assert "--replay-budget" in shown.stdout
    assert document["assumptions"]["replays"] == 10_000
    assert [plan["devices"] for plan in document["plans"]] == [1, 8, 64, 1, 8, 64]
    budget = json.loads(invoke([*typed, "--json", "--replay-budget", "5"]).stdout)
    assert budget["assumptions"]["replay_budget"] == 5
    assert invoke([word for word in typed if word != "--dry-run"]).exit_code == 2
