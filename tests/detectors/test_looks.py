"""What images of a class look like as a whole, carried with replays of it."""

import json

import numpy as np
import pytest
import torch

from replaycad.detectors.patchcore import looks
from replaycad.detectors.patchcore.looks import Look, Looks, fit_look, projection
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.patchcore.preset import PatchCorePreset

PRESET = PatchCorePreset(bank_fraction=1.0, bank_limit=100, is_routed=True)


def axis(number, length=1.0):
    found = np.zeros(looks.WIDTH, np.float32)
    found[number] = length
    return found


def known_look(limit=6.0):
    """Mean 1 along the first axis, deviation 3 along the second, 2 in every direction besides."""
    rows = np.zeros((1 + looks.DIRECTIONS, looks.WIDTH), np.float32)
    rows[0], rows[1] = axis(0), axis(1, 3.0)
    return Look(rows, 4.0, limit)


def test_images_are_described_by_quartiles_of_their_features():
    patches = torch.tensor([[7.0, 0, 1, 6, 2, 3, 5, 4]]).reshape(1, 8, 1)

    found = Looks(1).of(patches)

    assert torch.allclose(found, torch.tensor([[2.0, 4.0, 6.0]]) @ projection(1))


def test_a_defect_on_a_tenth_of_an_image_does_not_move_it():
    good = torch.full((1, 100, 2), 3.0)
    defective = good.clone()
    defective[:, 40:50] = 90.0

    assert torch.equal(Looks(2).of(good), Looks(2).of(defective))


def test_signs_are_the_same_on_every_machine():
    signs = projection(2)

    # the first bytes of shake_256(b"looks") are read from the left, most significant bit first
    import hashlib

    first = f"{hashlib.shake_256(b'looks').digest(8)[0]:08b}"
    assert signs.shape == (6, looks.WIDTH)
    assert [value > 0 for value in signs[0, :8].tolist()] == [bit == "1" for bit in first]
    assert torch.allclose(signs.abs(), torch.full_like(signs, 6**-0.5))


def test_distances_are_in_standard_deviations_of_each_direction():
    images = np.stack([axis(0), axis(0) + axis(1, 5.0), axis(0) + axis(2, 5.0)])

    distances = known_look().distances(images)

    # variances add up: 9 + 4 along the second axis
    assert distances == pytest.approx([0, 5 / 13**0.5, 5 / 2], abs=1e-4)


def test_a_look_takes_a_byte_a_number_and_comes_back():
    dice = np.random.default_rng(0)
    look = Look(dice.normal(size=known_look().rows.shape).astype(np.float32), 0.25, 12.5)

    record = json.loads(json.dumps(look.record()))
    found = Look.of(record)

    assert found is not None
    assert (found.rest, found.limit) == (0.25, 12.5)
    step = np.abs(look.rows).max(axis=1, keepdims=True) / 127
    assert (np.abs(found.rows - look.rows) <= 0.51 * step).all()
    assert len(json.dumps(record)) == len(json.dumps(looks.PLACEHOLDER)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        {"rows": "AAAA"}, {"rows": 3}, {"rows": "%"}, {"rest": "nan"}, {"rest": "0"},
        {"limit": "inf"}, {"limit": "x"}, {"scales": [1]}, {"scales": "1"},
    ],
)  # fmt: skip
def test_what_is_no_record_is_none(change):
    assert Look.of({**known_look().record(), **change}) is None
    assert Look.of(None) is None
    assert Look.of({}) is None


def class_of(center, num=60, seed=0):
    """Images that differ by 5 along one axis and by 0.1 along the others."""
    dice = np.random.default_rng(seed)
    spread = 0.1 + axis(3, 4.9)
    found = center + spread * dice.normal(size=(num, looks.WIDTH))
    return found.astype(np.float32)


def test_own_images_are_taken_in_and_others_left_out():
    look = fit_look(class_of(axis(0)), np.full(60, 1e-6, np.float32))
    assert look is not None

    own = look.distances(class_of(axis(0), seed=1))
    along = look.distances(axis(0)[None] + axis(3, 12.0))
    across = look.distances(axis(0)[None] + axis(4, 12.0))

    assert (own < look.limit).all()
    assert along < look.limit < across, "12 is a common difference along one axis alone"


def test_the_limit_is_that_of_images_that_were_held_out(monkeypatch):
    monkeypatch.setattr(looks, "MARGIN", 1.0)
    dice = np.random.default_rng(0)
    images = dice.normal(size=(looks.LEAST_IMAGES, looks.WIDTH)).astype(np.float32)

    look = fit_look(images, np.zeros(len(images), np.float32))

    assert look is not None
    # nine images span eight directions, in which they lie nearer than a twelfth of the rest do
    assert look.limit > 1.5 * look.distances(images).max()


def test_few_images_have_no_look():
    few = looks.LEAST_IMAGES - 1

    assert fit_look(class_of(axis(0), few), np.ones(few, np.float32)) is None


def test_new_images_of_a_class_widen_its_limit_and_never_narrow_it():
    look = known_look(limit=1.0)
    far = axis(0) + axis(2, 4.0)  # two deviations

    assert look.widened(far[None]).limit == pytest.approx(2 * looks.MARGIN)
    assert look.widened(axis(0)[None]).limit == 1.0


@pytest.fixture
def bank():
    """Patches of one number, by which the class 0 is at 0, the class 1 at 10."""
    found = PatchCore((1, 1), (4, 8), 32, PRESET)
    for index, value in enumerate((0.0, 10.0)):
        found.set_bank(index, torch.full((4, 2), value), torch.zeros(4, dtype=torch.int64))
    return found


def pyramid(value, num=1):
    return [torch.full((num, 1, 8, 8), value), torch.full((num, 1, 4, 4), value)]


def test_an_image_at_the_limit_of_its_look_is_at_the_limit_of_the_class(bank):
    patches = bank.patches(pyramid(0.5))
    _, before = bank.class_distances(patches)
    own = bank.looks.of(patches)[0].numpy()
    rows = np.zeros((1 + looks.DIRECTIONS, looks.WIDTH), np.float32)
    far = float(np.linalg.norm(own)) / 2  # deviations, each of 2

    bank.looks.set(0, Look(rows, 4.0, far), 7.0)

    means, lows = bank.class_distances(patches)
    assert lows[0, 0] == pytest.approx(7.0, rel=1e-4)
    assert lows[0, 1] == before[0, 1], "nobody knows what the other class looks like"
    assert means.argmin() == 0
    bank.looks.set(0, Look(rows, 4.0, 100 * far), 7.0)
    assert torch.equal(bank.class_distances(patches)[1], before), "the farther of the two counts"
    bank.looks.set(0, None, 0.0)
    assert not len(bank.looks.rows)


def test_looks_are_saved_with_a_bank_and_files_of_before_have_none(bank):
    bank.looks.set(1, known_look(limit=0.01), 7.0)
    again = PatchCore((1, 1), (4, 8), 32, PRESET)
    again.load_state_dict(bank.state_dict())
    patches = bank.patches(pyramid(3.0))
    assert torch.equal(again.class_distances(patches)[1], bank.class_distances(patches)[1])
    assert bank.class_distances(patches)[1][0, 1] > 7, "by its look, not by its patches"

    state = {name: value for name, value in bank.state_dict().items() if "looks" not in name}
    again.load_state_dict(state)

    bank.looks.set(1, None, 0.0)
    assert torch.equal(again.class_distances(patches)[1], bank.class_distances(patches)[1])
