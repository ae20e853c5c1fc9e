"""CDAD's bases as its program finds them, from cases worked by hand."""

import pytest
import torch

from replaycad.continual.guard import HOLDS, Guard, remembered
from replaycad.continual.released import merged, released_bases, with_image
from tests.continual.test_guard import Layers, pyramid, share_within, trained

UNIT = torch.eye(4, dtype=torch.float64)


def moment(*energies):
    return torch.diag(torch.tensor(energies, dtype=torch.float64))


def test_vectors_of_an_image_stay_while_they_are_below_the_energy_and_at_least_one():
    # 90 and 99 of 100 are below 0.995, all 100 are not; the program leaves out the one that fills.
    found = with_image(None, moment(90.0, 9.0, 1.0, 0.0), 0.995)
    assert found.abs().tolist() == UNIT[:, :2].tolist()
    assert with_image(None, moment(90.0, 9.0, 1.0, 0.0), 0.5).abs().tolist() == UNIT[:, :1].tolist()


def test_of_earlier_images_no_more_than_a_length_of_one_is_left():
    # Ten thousand along the first direction count as one beside a hundred along the second.
    first = with_image(None, moment(1e4, 1.0, 0.0, 0.0), 0.999)
    assert first.abs().tolist() == UNIT[:, :1].tolist()
    both = with_image(first, moment(0.0, 100.0, 5.0, 0.0), 0.98)
    assert both.abs().tolist() == UNIT[:, [1]].tolist(), "the first image is forgotten"


def test_of_a_new_class_first_columns_of_what_is_left_are_appended_as_they_are():
    half = 0.5**0.5
    before = UNIT[:, :1]
    # Columns within the old one by a half, and by nothing; a half of two columns is to be covered.
    basis = torch.stack([half * UNIT[0] + half * UNIT[1], UNIT[2]], dim=1)
    found = merged(before, basis)
    assert torch.allclose(found[:, 1], half * UNIT[1]), "of length 0.7"
    assert found.shape == (4, 2), "0.5 are known, 0.5 gained: of two columns one"
    assert merged(UNIT[:, :3], basis).shape == (4, 3), "what is known is enough"


def test_bases_go_on_from_image_to_image_and_from_class_to_class():
    images = [{"one": moment(9.0, 0.0, 0.0, 0.0)}, {"one": moment(0.0, 4.0, 0.0, 0.0)}]
    first = released_bases(images, {}, 0.999)
    assert first["one"].dtype == torch.float16
    assert first["one"].abs().tolist() == UNIT[:, [1]].half().tolist()
    second = released_bases([{"one": moment(0.0, 0.0, 7.0, 0.0)}], first, 0.999)
    assert second["one"].abs().tolist() == UNIT[:, [1, 2]].half().tolist()


@pytest.mark.parametrize("name", ["cdad-gradient", "cdad-released"])
def test_a_held_gradient_of_adam_moves_within_the_basis_all_the_same(name):
    detector, hold = Layers(), HOLDS[name]
    memory = remembered(detector, [pyramid(0, 3)], name, {})
    assert memory["first"].shape[1] < 12
    start = detector.first.weight.detach().clone()

    guard = Guard(detector, memory, hold)
    trained(detector, pyramid(1), guard, steps=1)

    assert share_within(detector, start, memory["first"]) > 0.01
    guard.hold_gradients()
    held = detector.first.weight.grad.double() @ memory["first"].double()
    assert held.norm() < 0.01 * detector.first.weight.grad.norm()
    grown = remembered(detector, [pyramid(2, 3)], name, memory)
    assert torch.equal(grown["first"][:, : memory["first"].shape[1]], memory["first"])
