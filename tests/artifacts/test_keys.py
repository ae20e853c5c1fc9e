import pytest

from replaycad.artifacts.keys import stage_facts, stage_key, why_stale

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

    assert stage_key(**FACTS) == stage_key(**again)
    assert stage_facts(**FACTS) == FACTS
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

    assert stage_key(**wanted) != stage_key(**FACTS)
    assert why_stale(FACTS, wanted) == [phrase]


def test_a_header_without_facts_is_stale_in_all_of_them():
    found = why_stale({"config": 3, "inputs": None}, FACTS)

    assert "images is new" in found
    assert "seed None -> 0" in found
