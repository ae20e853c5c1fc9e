"""Poses of a class: found again where they are known, undone where they were applied."""

import pytest
import torch
from torch.nn import functional as F

from replaycad.diffusion.aligner import FrameAligner
from replaycad.diffusion.alignment import (
    FINE,
    align,
    all_to_frame,
    between,
    righted,
    to_frame,
    to_pose,
)
from replaycad.runtime import generator


def _picture(size: int = 64) -> torch.Tensor:
    """A smooth picture without symmetry, `[1, 3, n, n]` in 0..255."""
    coarse = torch.rand(1, 3, 7, 7, generator=generator(3, "picture"))
    return F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1) * 255


def _turned(poses: torch.Tensor) -> torch.Tensor:
    picture = _picture().expand(len(poses), -1, -1, -1)
    return to_pose(picture, poses).round().clamp(0, 255).to(torch.uint8)


def test_pictures_that_turn_freely_fall_onto_each_other() -> None:
    rng = generator(0, "poses")
    poses = torch.rand(24, 3, generator=rng) * torch.tensor([360.0, 0.1, 0.1])
    found = align(_turned(poses), generator(0, "align"))
    assert found.is_free
    assert found.left < 0.1
    # The frame is any picture's, so turns are known up to one angle that all share.
    difference = torch.deg2rad(found.poses[:, 0] - poses[:, 0])
    assert torch.hypot(difference.cos().mean(), difference.sin().mean()) > 0.999


def _mesh(poses: torch.Tensor, size: int = 64) -> torch.Tensor:
    """Wires at 0 and 62 degrees, 9 px apart, in these poses, without a border that turns along."""
    axis = torch.arange(2 * size) - size + 0.5
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    wires = torch.zeros(2 * size, 2 * size)
    for degrees in (0.0, 62.0):
        turn = torch.deg2rad(torch.tensor(degrees))
        across = right * turn.sin() - down * turn.cos()
        wires = wires.maximum(torch.cos(across * 2 * torch.pi / 9).clamp_min(0).square())
    wide = (200 * wires + 20).expand(len(poses), 3, -1, -1)
    moved = to_pose(wide, poses * torch.tensor([1.0, 0.5, 0.5]))
    half = size // 2
    return moved[:, :, half:-half, half:-half].round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("seed", [1, 3])  # without `righted` a picture of the second lies wrong
def test_no_picture_of_a_mesh_lies_across_the_others(seed: int) -> None:
    # Turned by the angle between its wires a mesh fits the mean nearly as well; one of 24 did so.
    poses = torch.rand(24, 3, generator=generator(seed, "m")) * torch.tensor([360.0, 0.1, 0.1])
    found = align(_mesh(poses), generator(0, "align"))
    assert found.is_free
    # A mesh looks alike upside down, and turns are known up to one angle that all share.
    twice = torch.deg2rad(2 * (found.poses[:, 0] - poses[:, 0]))
    shared = torch.atan2(twice.sin().mean(), twice.cos().mean())
    assert torch.cos(twice - shared).min() > 0.99  # four degrees


def test_pictures_across_the_others_are_turned_and_the_others_stay() -> None:
    poses = torch.rand(20, 3, generator=generator(2, "mesh")) * torch.tensor([360.0, 0.1, 0.1])
    pictures = F.interpolate(_mesh(poses).float() / 127.5 - 1, (FINE, FINE), mode="area")
    wrong = poses + torch.tensor([62.0, 0, 0]) * (torch.arange(20) % 4 == 0)[:, None]
    found = righted(pictures, wrong)
    assert torch.equal(found[torch.arange(20) % 4 > 0], poses[torch.arange(20) % 4 > 0])
    twice = torch.deg2rad(2 * (found[:, 0] - poses[:, 0]))
    assert torch.cos(twice).min() > 0.985  # five degrees, which descent then refines


def test_pictures_that_lie_alike_keep_small_poses() -> None:
    rng = generator(1, "poses")
    poses = (torch.rand(16, 3, generator=rng) - 0.5) * torch.tensor([4.0, 0.02, 0.02])
    found = align(_turned(poses), generator(0, "align"))
    assert not found.is_free
    assert found.left < 0.3
    assert found.poses[:, 0].abs().max() < 6


def test_a_single_picture_and_equal_pictures_stay_where_they_are() -> None:
    for count in (1, 5):
        found = align(_turned(torch.zeros(count, 3)), generator(0, "align"))
        assert not found.is_free
        assert torch.allclose(found.poses, torch.zeros(count, 3), atol=1e-4)


@pytest.mark.parametrize("reach", [360.0, 6.0])
def test_new_pictures_are_found_in_the_frame_of_those_whose_poses_are_known(reach: float) -> None:
    rng = generator(4, "poses")
    poses = (torch.rand(14, 3, generator=rng) - 0.5) * torch.tensor([reach, 0.1, 0.1])
    poses[:, 0] += 40 * (reach > 180)
    poses[8:, 1] = 0.05  # all to one side, where the known ones do not lie in the mean

    found = FrameAligner(poses[:8].numpy())(_turned(poses).numpy(), 0)

    assert torch.equal(found.poses[:8], poses[:8]), "known ones stay to the bit"
    assert found.is_free == (reach > 180)
    # No angle is shared: the frame is that of the others.
    turned = torch.deg2rad(found.poses[8:, 0] - poses[8:, 0])
    assert torch.rad2deg(torch.atan2(turned.sin(), turned.cos())).abs().max() < 2
    assert (found.poses[8:, 1:] - poses[8:, 1:]).abs().max() < 0.02
    assert found.left < 0.1
    alone = FrameAligner(poses[:8].numpy())(_turned(poses[:8]).numpy(), 0)
    assert torch.equal(alone.poses, poses[:8])


def test_the_same_seed_finds_the_same_poses() -> None:
    images = _turned(torch.rand(8, 3, generator=generator(2, "poses")) * 0.1)
    first, second = (align(images, generator(5, "align")).poses for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("fill", ["reflection", "border", "zeros"])
def test_a_pose_is_undone(fill: str) -> None:
    picture = _picture()
    poses = torch.tensor([[33.0, 0.05, -0.03]])
    back = to_frame(to_pose(picture, poses, fill), poses, fill)
    middle = slice(20, 44)
    assert (back - picture)[..., middle, middle].abs().mean() < 2


def test_a_positive_turn_is_clockwise_and_shifts_go_right_and_down() -> None:
    picture = torch.zeros(1, 1, 16, 16)
    picture[..., 7:9, 12] = 1  # right of the centre
    down = to_pose(picture, torch.tensor([[90.0, 0.0, 0.0]]), "zeros")
    assert down[0, 0, 12, 7:9].sum() == pytest.approx(2, abs=1e-3)
    moved = to_pose(picture, torch.tensor([[0.0, 2 / 16, 3 / 16]]), "zeros")
    assert moved[0, 0, 10:12, 14].sum() == pytest.approx(2, abs=1e-3)


def test_corners_that_turned_away_are_seen_by_other_pictures() -> None:
    poses = torch.tensor([[0.0, 0, 0], [0, 0, 0], [45, 0, 0]])
    picture = _picture()
    images = _turned(poses)
    framed = all_to_frame(images, poses, "reflection").float()
    assert (framed[2] - picture[0])[:, :6, :6].abs().mean() < 3
    mirrored = to_frame(images[2:].float(), poses[2:], "reflection")
    assert (mirrored[0] - picture[0])[:, :6, :6].abs().mean() > 20


def test_corners_that_no_picture_shows_are_filled_from_beyond_the_border() -> None:
    poses = torch.tensor([[45.0, 0, 0]])
    images = _turned(poses)
    framed = all_to_frame(images, poses, "border").float()
    assert torch.equal(framed, to_frame(images.float(), poses, "border").round().clamp(0, 255))


def test_the_frame_stays_in_the_middle_of_the_pictures() -> None:
    rng = generator(4, "poses")
    axis = torch.linspace(-1, 1, 64)
    disc = (axis[:, None] ** 2 + axis**2 < 0.5).float()
    shade = torch.rand(12, 3, 1, 1, generator=rng)  # what varies cannot be aligned away
    images = (disc * shade * 255).to(torch.uint8)
    found = align(images, generator(0, "align"))
    assert not found.is_free
    assert found.poses[:, 1:].mean(0).abs().max() < 0.01
    assert found.poses[:, 0].mean().abs() < 0.1


def test_a_picture_moved_between_poses_is_the_one_moved_through_the_frame() -> None:
    picture = _picture()
    own, wanted = torch.tensor([[33.0, 0.05, -0.03]]), torch.tensor([[-70.0, -0.04, 0.06]])
    through = to_pose(to_frame(picture, own), wanted)
    moved = between(picture, own, wanted)
    middle = slice(20, 44)
    assert (moved - through)[..., middle, middle].abs().mean() < 1.5
    assert (moved - picture)[..., middle, middle].abs().mean() > 10
    assert torch.allclose(between(picture, own, own), picture, atol=0.05)
