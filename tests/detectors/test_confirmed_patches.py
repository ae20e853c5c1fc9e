"""Maps fall to what is typical where a patch is like one that was confirmed, and nowhere else."""

import torch

from replaycad.detectors.patchcore.confirmed import FADE, Confirmed

TYPICAL = 1.0


def lowered(maps, patches, rows, banks=((0.0,), ()), spacings=(5.0, 5.0)):
    """Of two classes, of which photos of the first were confirmed."""
    tensors = [torch.tensor(bank).reshape(-1, 1) for bank in banks]
    memory = Confirmed(tensors, spacings, [TYPICAL, 0.0])
    return memory(torch.tensor(maps), torch.tensor(patches)[..., None], torch.tensor(rows))


def test_a_map_falls_by_how_near_the_patches_are():
    near = (4.9, 7.5, -6.25, 10.0)  # all up to a spacing of 5, a half, 3/4, nothing from 10 on
    maps = [[[9.0, 9.0], [9.0, 9.0]]]

    found = lowered(maps, [near], [0])

    assert FADE == 2
    assert found.tolist() == [[[1.0, 5.0], [3.0, 9.0]]]


def test_what_is_below_typical_stays():
    maps = [[[0.5, 1.0], [1.5, -3.0]]]

    assert lowered(maps, [(0.0,) * 4], [0]).tolist() == [[[0.5, 1.0], [1.0, -3.0]]]


def test_images_of_other_classes_stay_to_the_bit_also_in_one_batch():
    maps = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0)) + 2

    found = lowered(maps.tolist(), [(0.0,) * 4] * 3, [1, 0, 1])

    assert torch.equal(found[[0, 2]], maps[[0, 2]])
    assert torch.equal(found[1], torch.full((4, 4), TYPICAL))


def test_each_class_has_its_own_patches_spacing_and_typical_value():
    found = lowered(
        [[[9.0]], [[9.0]]], [(4.5,), (7.0,)], [0, 1], ((0.0, 90.0, 3.0), (0.0,)), (1.0, 4.0)
    )

    assert found[0, 0, 0] == 9 - 8 * 0.5  # 1.5 spacings from the third patch
    assert found[1, 0, 0] == 9 - 9 * 0.25  # 7 of 4, 1.75 spacings


def test_what_is_near_fades_out_between_patches():
    maps = torch.full((1, 4, 4), 5.0)

    found = lowered(maps.tolist(), [(0.0, 10.0, 0.0, 10.0)], [0])

    assert found[0, 1].tolist() == [1.0, 2.0, 4.0, 5.0]  # a quarter and 3/4 of the way
