import pytest

from replaycad.config import stages
from replaycad.config.stages import MaskConfig
from replaycad.engine.staleness import digest_of, make_plan, still_serves, why_stale

FACTS = {
    "stage": "compress",
    "stage_version": 1,
    "config": {"num_steps": 200, "half": False},
    "seed": 0,
    "inputs": {"images": "aa", "masks": "bb"},
    "weights": {"vae": "cc"},
}


def test_the_same_facts_have_the_same_key_in_any_order():
    again = dict(reversed(FACTS.items())) | {"config": {"half": False, "num_steps": 200}}

    assert digest_of(FACTS) == digest_of(again)
    assert why_stale({**FACTS, "key": "x", "versions": {}}, again) == []


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"stage": "mask"}, "stage compress -> mask"),
        ({"stage_version": 2}, "the stage's code changed"),
        ({"seed": 1}, "seed 0 -> 1"),
        ({"config": {"num_steps": 500, "half": False}}, "num_steps 200 -> 500"),
        ({"config": {"num_steps": 200, "half": False, "batch": 1}}, "batch is new"),
        ({"config": {"num_steps": 200}}, "half is gone"),
        ({"inputs": {"images": "zz", "masks": "bb"}}, "images changed"),
        ({"inputs": {"images": "aa"}}, "masks is gone"),
        ({"weights": {"vae": "zz"}}, "vae weights changed"),
        ({"weights": {"vae": "cc", "unet": "dd"}}, "unet weights are new"),
    ],
)
def test_every_change_gives_another_key_and_is_named(change, phrase):
    wanted = FACTS | change

    assert digest_of(wanted) != digest_of(FACTS)
    assert why_stale(FACTS, wanted) == [phrase]


def test_a_header_without_facts_is_stale_in_all_of_them():
    found = why_stale({"config": 3, "inputs": None}, FACTS)

    assert "images is new" in found
    assert "seed None -> 0" in found


def plan_of(tmp_path, *, config=None, seed=0, inputs=None, weights=None):
    """A plan for masks of bolts, as it is without changes or with these."""
    return make_plan(
        "mask", "bolt", tmp_path / "bolt.safetensors", config=config or MaskConfig(), seed=seed,
        inputs=inputs or {"images/bolt": "a"}, weights=weights or {"segmenter": "s"},
    )  # fmt: skip


def test_all_that_determines_an_artifact_is_in_its_key(tmp_path, monkeypatch):
    plain = plan_of(tmp_path)
    others = [
        plan_of(tmp_path, config=MaskConfig(image_size=64)),
        plan_of(tmp_path, seed=1),
        plan_of(tmp_path, inputs={"images/bolt": "b"}),
        plan_of(tmp_path, weights={"segmenter": "t"}),
    ]
    monkeypatch.setitem(stages.STAGE_VERSIONS, "mask", 99)
    others.append(plan_of(tmp_path))

    assert plain.state == "missing"
    assert len({plan.key for plan in (plain, *others)}) == 6
    assert plain.facts["stage_version"] != 99
    assert others[-1].facts["stage_version"] == 99


def test_an_artifact_made_with_other_settings_serves_while_its_inputs_are_the_same():
    header = {"inputs": {"images/bolt": "a"}, "config": {"image_size": 64}, "seed": 4}

    assert still_serves(header, {"images/bolt": "a"})
    assert not still_serves(header, {"images/bolt": "b"})
    assert not still_serves(header, {"images/bolt": "a", "policy": "p"})
    assert not still_serves({}, {})
