"""The poses of a class: how each of its pictures lies, so that one description fits them all.

A part that turns, or a fabric that shifts, has no mean picture. Turned and shifted onto each other,
the pictures have one (congealing, Learned-Miller 2006). `compress` describes the class in that
common frame and keeps the poses; `replay` draws in the frame and moves each picture to a pose.

Deviation: the paper leaves poses to the masks alone. A small frozen model does not turn what its
tokens show by itself.
"""

from functools import cache
from typing import NamedTuple

import torch
from torch.nn import functional as F

COARSE, FINE = 32, 64  # pixels at which poses are searched, and refined
REACH = 0.15  # largest shift, as a fraction of the width
SOME = 64  # pictures that a frame is looked for with
STARTS = 4
"""Pictures tried as the first frame, each to the end: one in four led astray (a turning part, of
whose replays 30 % of the pixel AP of real images was left, and 91 % in the right frame)."""
ROUNDS = 3
FREE_GAIN = 0.7  # the whole circle is believed only if it leaves at most this much of the variance
FREE_SPREAD = 0.1  # of the angles of a class on the circle, above which its pictures turn freely
WRONG_TURN = 0.05  # of likeness of spectra, by which another turn must be better to be taken
STEPS = 40
_DEGREES = 57.2958
_CHUNK = 256  # images moved at once


class Alignment(NamedTuple):
    """What `align` found.

    Attributes:
        poses: `[N, 3]` float32: degrees clockwise, then shift to the right and down in widths; a
            picture is the frame moved by its pose.
        is_free: whether the pictures turn through the circle, rather than lie much the same way.
        left: variance in the common frame over the variance before, at most 1.
    """

    poses: torch.Tensor
    is_free: bool
    left: float


def to_frame(
    pictures: torch.Tensor, poses: torch.Tensor, fill: str = "reflection", mode: str = "bicubic"
) -> torch.Tensor:
    """Move pictures from their poses into the common frame.

    Args:
        pictures: `[N, C, H, W]` float.
        poses: `[N, 3]` as in `Alignment`.
        fill: what is seen beyond the border: `reflection`, `border` or `zeros`.
        mode: `bicubic`, where values may overshoot a little, or `bilinear`, several times as fast.

    Returns:
        `[N, C, H, W]` float.
    """
    cos, sin = _cos_sin(poses)
    right, down = 2 * poses[:, 1], 2 * poses[:, 2]
    return _resample(pictures, (cos, -sin, right), (sin, cos, down), fill, mode)


def to_pose(pictures: torch.Tensor, poses: torch.Tensor, fill: str = "reflection") -> torch.Tensor:
    """Undo `to_frame`: move pictures `[N, C, H, W]` of the frame to poses `[N, 3]`."""
    cos, sin = _cos_sin(poses)
    right, down = 2 * poses[:, 1], 2 * poses[:, 2]
    return _resample(
        pictures,
        (cos, sin, -(cos * right + sin * down)),
        (-sin, cos, sin * right - cos * down),
        fill,
        "bicubic",
    )


def between(
    pictures: torch.Tensor, poses: torch.Tensor, wanted: torch.Tensor, fill: str = "reflection"
) -> torch.Tensor:
    """Move pictures `[N, C, H, W]` from their poses `[N, 3]` to others, resampled once."""
    return to_frame(pictures, _compose(poses, _inverse(wanted)), fill)


def beyond_border(mask_rule: str) -> str:
    """What to fill with: a surface goes on as its mirror image, a background in its last colour."""
    return "reflection" if mask_rule == "frame" else "border"


def all_to_frame(images: torch.Tensor, poses: torch.Tensor, fill: str) -> torch.Tensor:
    """Move all images of a class into its frame.

    What an image does not show of the frame, for its corners turned away, is taken from the mean of
    the images that do, and from beyond the border only where none does.

    Args:
        images: `[N, 3, S, S]` uint8.
        poses: `[N, 3]`, as `align` gives.
        fill: as in `to_frame`.

    Returns:
        `[N, 3, S, S]` uint8.
    """
    moved, seen = torch.empty_like(images), torch.empty_like(images[:, :1], dtype=torch.bool)
    total, count = torch.zeros(images.shape[1:]), torch.zeros(images.shape[2:])
    for rows in torch.arange(len(images)).split(_CHUNK):
        floats = images[rows].float()
        shown = to_frame(torch.ones_like(floats[:, :1]), poses[rows], "zeros") > 0.99
        floats = to_frame(floats, poses[rows], fill).round().clamp(0, 255)
        total += (floats * shown).sum(0)
        count += shown.sum((0, 1))
        moved[rows], seen[rows] = floats.to(torch.uint8), shown
    mean = (total / count.clamp_min(1)).round().to(torch.uint8)
    return torch.where(seen | (count == 0), moved, mean)


def align_to(images: torch.Tensor, frame: torch.Tensor, is_free: bool) -> torch.Tensor:
    """Find the poses of images in a frame that is known already.

    Args:
        images: `[N, 3, S, S]` uint8.
        frame: `[3, S, S]` float in 0..255, the mean picture of the class in its frame.
        is_free: whether to look for turns through the circle.

    Returns:
        `[N, 3]` float32, as in `Alignment`.
    """
    coarse, fine = (
        F.interpolate(images.float() / 127.5 - 1, (size, size), mode="area")
        for size in (COARSE, FINE)
    )
    small, mean = (
        F.interpolate(frame[None] / 127.5 - 1, (size, size), mode="area") for size in (COARSE, FINE)
    )
    poses = torch.zeros(len(images), 3)
    if is_free:
        poses = _best_poses(coarse, small, torch.arange(0.0, 360.0, 10.0), int(REACH * COARSE))
        moved = to_frame(fine, poses, mode="bilinear")
        step = _best_poses(moved, mean, torch.arange(-10.0, 10.1, 2.5), 4)
        poses = _compose(poses, step)
    return _descend(fine, poses, mean)


def align(images: torch.Tensor, seed: torch.Generator) -> Alignment:
    """Find the poses of a class.

    The pictures are compared inside a disc, which no turn leaves. All turns by ten degrees and all
    shifts within `REACH` are tried against one picture, then against the mean; gradient descent on
    the variance refines to parts of a pixel.

    Args:
        images: `[N, 3, S, S]` uint8.
        seed: draws the pictures that are tried as the first frame.

    Returns:
        The simpler of two answers (all lie alike but for a little; each lies as it likes), unless
        the second leaves far less variance.
    """
    coarse, fine = (
        F.interpolate(images.float() / 127.5 - 1, (size, size), mode="area")
        for size in (COARSE, FINE)
    )
    before = variance(fine)
    still = _descend(fine, torch.zeros(len(images), 3))
    free = _descend(fine, _search(coarse, fine, seed))
    left_still = variance(to_frame(fine, still, mode="bilinear"))
    left_free = variance(to_frame(fine, free, mode="bilinear"))
    is_free = bool(left_free < FREE_GAIN * left_still)
    poses, left = (free, left_free) if is_free else (still, left_still)
    if not is_free:  # no angle is the frame's own; that of the pictures is the natural one
        poses[:, 0] -= poses[:, 0].mean()
        poses = _centred(poses)
    return Alignment(poses, is_free, float(left / before.clamp_min(1e-9)))


def _search(coarse: torch.Tensor, fine: torch.Tensor, seed: torch.Generator) -> torch.Tensor:
    """Poses `[N, 3]` by trying all of a grid, in the frame that some pictures fit best."""
    angles, reach = torch.arange(0.0, 360.0, 10.0), int(REACH * COARSE)
    some = coarse[torch.randperm(len(coarse), generator=seed)[:SOME]]
    frames = [_frame_of(some, picture[None], angles, reach) for picture in some[:STARTS]]
    frame = min(frames, key=lambda one: float(one[1]))[0]
    for _ in range(ROUNDS):
        poses = _best_poses(coarse, frame, angles, reach)
        frame = to_frame(coarse, poses, mode="bilinear").mean(0, keepdim=True)
    for _ in range(2):
        moved = to_frame(fine, poses, mode="bilinear")
        frame = moved.mean(0, keepdim=True)
        poses = _compose(poses, _best_poses(moved, frame, torch.arange(-10.0, 10.1, 2.5), 4))
    return righted(fine, poses)


def _frame_of(
    pictures: torch.Tensor, start: torch.Tensor, angles: torch.Tensor, reach: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean `[1, 3, n, n]` that pictures come to from that of one, and the variance about it."""
    frame = start
    for _ in range(ROUNDS):
        moved = to_frame(pictures, _best_poses(pictures, frame, angles, reach), mode="bilinear")
        frame = moved.mean(0, keepdim=True)
    return frame, variance(moved)


def righted(pictures: torch.Tensor, poses: torch.Tensor) -> torch.Tensor:
    """Turn those pictures anew whose texture lies across that of the others in the frame.

    A lattice fits the mean picture turned by its own angle nearly as well as it should (more
    than a tenth of a class of wire mesh lay so). Its spectrum tells, whatever the shift.

    Args:
        pictures: `[N, 3, n, n]` float.
        poses: `[N, 3]`, of which more than half are right.

    Returns:
        `[N, 3]`; those that lie as the others do are not touched.
    """
    angles = torch.arange(0.0, 180.0, 5.0)
    for _ in range(2):
        moved = to_frame(pictures, poses, mode="bilinear")
        found = _spectra(moved)
        typical = found.median(0).values
        alike = []
        for angle in angles.tolist():
            turn = torch.tensor([[angle, 0.0, 0.0]]).expand(len(pictures), 3)
            alike.append(_spectra(to_frame(pictures, turn, mode="bilinear")) @ typical)
        best = torch.stack(alike).max(0)
        is_wrong = best.values > found @ typical + WRONG_TURN * typical.norm()
        if not is_wrong.any() or is_wrong.all():
            break
        turn = F.pad(angles[best.indices[is_wrong]][:, None], (0, 2))
        turned = to_frame(pictures[is_wrong], turn, mode="bilinear")
        frame, reach = moved[~is_wrong].mean(0, keepdim=True), int(REACH * pictures.shape[-1])
        either_way = torch.tensor([-2.5, 0.0, 2.5, 177.5, 180.0, 182.5])
        step = _best_poses(turned, frame, either_way, reach)
        poses = poses.clone()
        poses[is_wrong] = _compose(turn, step)
    return poses


def _spectra(pictures: torch.Tensor) -> torch.Tensor:
    """Log magnitudes `[N, K]` of the spectra of pictures `[N, 3, n, n]`, without mean, unit length.

    They turn with a picture and do not know its shift.
    """
    disc = _disc(pictures.shape[-1])
    grey = pictures.mean(1)
    grey = disc * (grey - (disc * grey).sum((1, 2), keepdim=True) / disc.sum())
    logs = torch.fft.fftshift(torch.fft.fft2(grey).abs().log1p(), dim=(1, 2))
    flat = F.avg_pool2d(logs[:, None], 3, 1, 1).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True), dim=1)


def _best_poses(
    pictures: torch.Tensor, frames: torch.Tensor, angles: torch.Tensor, reach: int
) -> torch.Tensor:
    """The poses `[N, 3]` of least squared error against whichever of `[F, 3, n, n]` fits best.

    All shifts of one angle are compared at once, as correlations.
    """
    size, count = pictures.shape[-1], len(pictures)
    disc = _disc(size)
    disc_spectrum = torch.fft.rfft2(disc).conj()
    frame_spectra = torch.fft.rfft2(disc * frames).conj()
    offset = torch.fft.fftfreq(size, 1 / size)
    too_far = (offset.abs()[:, None] > reach) | (offset.abs()[None] > reach)
    poses = torch.zeros(len(frames), count, 3)
    least = torch.full((len(frames), count), torch.inf)
    for angle in angles.tolist():
        turn = torch.tensor([[angle, 0.0, 0.0]]).expand(count, 3)
        turned = to_frame(pictures, turn, mode="bilinear")
        power = torch.fft.rfft2(turned.square().sum(1)) * disc_spectrum
        spectra = torch.fft.rfft2(turned)
        for number, spectrum in enumerate(frame_spectra):
            product = (spectra * spectrum).sum(1)
            error = torch.fft.irfft2(power - 2 * product, s=(size, size))
            error, index = error.masked_fill(too_far, torch.inf).flatten(1).min(1)
            shift = torch.stack([offset[index % size], offset[index // size]], 1) / size
            moved = _compose(turn, torch.cat([torch.zeros(count, 1), shift], 1))
            better = error < least[number]
            poses[number] = torch.where(better[:, None], moved, poses[number])
            least[number] = torch.minimum(error, least[number])
    total = least.mean(1) + (disc * frames.square()).sum((1, 2, 3))
    return poses[total.argmin()]


def spread(angles: torch.Tensor) -> torch.Tensor:
    """How far angles `[N]` in degrees lie apart: 0 for all alike, 1 for all directions."""
    turned = angles / _DEGREES
    return 1 - torch.hypot(turned.cos().mean(), turned.sin().mean())


def _descend(
    pictures: torch.Tensor, poses: torch.Tensor, frame: torch.Tensor | None = None
) -> torch.Tensor:
    """Refine poses by gradient descent on the variance around the mean picture, or a known one."""
    unit = torch.tensor([_DEGREES, 1.0, 1.0])  # half a width of turn moves the rim as far as one
    raw = (poses / unit).requires_grad_(True)
    optimizer = torch.optim.Adam([raw], betas=(0.7, 0.9))
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / STEPS)
        moved = to_frame(pictures, raw * unit, mode="bilinear")
        loss = variance(moved, frame) * len(pictures)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            if frame is None:
                raw.copy_(_centred(raw * unit) / unit)
            raw[:, 1:].clamp_(-REACH, REACH)
    return raw.detach() * unit


def _centred(poses: torch.Tensor) -> torch.Tensor:
    """The same poses about a frame whose middle is, in the mean, the middle of the pictures.

    Without this the descent pushes what varies out of the disc, all pictures alike.
    """
    cos, sin = _cos_sin(poses)
    right, down = poses[:, 1], poses[:, 2]
    drift = torch.stack([cos * right + sin * down, cos * down - sin * right], 1).mean(0)
    step = torch.cat([torch.zeros(1), -drift]).expand(len(poses), 3)
    return _compose(poses, step)


def _compose(poses: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The pose whose `to_frame` is that of `poses` followed by that of `step`; `[N, 3]` each."""
    cos, sin = _cos_sin(poses)
    right, down = step[:, 1], step[:, 2]
    shift = torch.stack([cos * right - sin * down, sin * right + cos * down], 1)
    return torch.cat([poses[:, :1] + step[:, :1], poses[:, 1:] + shift], 1)


def _inverse(poses: torch.Tensor) -> torch.Tensor:
    """The poses `[N, 3]` whose `to_frame` undoes that of `poses`."""
    cos, sin = _cos_sin(poses)
    right, down = poses[:, 1], poses[:, 2]
    shift = torch.stack([-(cos * right + sin * down), sin * right - cos * down], 1)
    return torch.cat([-poses[:, :1], shift], 1)


def variance(pictures: torch.Tensor, frame: torch.Tensor | None = None) -> torch.Tensor:
    """Mean squared distance of pictures `[N, 3, n, n]` from their mean, inside the disc, a scalar.

    Args:
        pictures: of one class.
        frame: `[3, n, n]`, a mean that is known; None for their own.
    """
    middle = pictures.mean(0) if frame is None else frame
    return (_disc(pictures.shape[-1]) * (pictures - middle).square()).mean()


@cache
def _disc(size: int) -> torch.Tensor:
    """`[n, n]`: 1 around the centre, 0 beyond 0.95 of the half width."""
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    return ((0.95 - torch.hypot(axis[:, None], axis[None])) / 0.15).clamp(0, 1)


def _cos_sin(poses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    angle = poses[:, 0] / _DEGREES
    return angle.cos(), angle.sin()


def _resample(pictures, x_row, y_row, fill: str, mode: str) -> torch.Tensor:
    rows = torch.stack([torch.stack(x_row, 1), torch.stack(y_row, 1)], 1)
    grid = F.affine_grid(rows, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, mode=mode, padding_mode=fill, align_corners=False)
