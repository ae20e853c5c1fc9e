"""A part that turns on a ground that lies still: both come out of fragments as they went in."""

from dataclasses import replace

import numpy as np
from PIL import Image
from scipy import ndimage

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.artifacts.masks import MasksArtifact
from replaycad.config.stages import CompressConfig
from replaycad.continual.fragments import Frame, cut, cut_order, shown_cells
from replaycad.continual.kept_fragments import KeptFragments, kept_fragments
from replaycad.continual.part import Part, on_plain_ground, shape_of
from replaycad.data.layouts import train_samples
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.patchcore.preset import PRESETS
from replaycad.stages.fragments import keep_fragments
from tests.continual.test_fragments import OVERLAP, SIDE, SIZE, bars

ANGLES = np.arange(72) * 5.0
POSES = np.stack([ANGLES, 0 * ANGLES, 0 * ANGLES], 1).astype(np.float32)
MASKS = bars(ANGLES)[:, 0] > 150
ROWS = list(range(72))


def on_stripes():
    """Bars on stripes that lie still, 8 px dark and 8 px light."""
    stripes = np.where(np.arange(SIDE) // 8 % 2, 110, 50)
    return np.where(MASKS[:, None], 220, stripes).astype(np.uint8).repeat(3, 1)


def cut_apart(images):
    frame, shape = Frame(SIDE, POSES), shape_of(MASKS, POSES)
    part = Part(shape, POSES, SIDE)
    shown = [
        shown_cells(part.ground(ROWS), SIZE, OVERLAP),
        shown_cells(frame.seen(ROWS), SIZE, OVERLAP)
        & shown_cells(part.upright(frame.canvas)[None], SIZE, OVERLAP, 0.02),
    ]
    order = cut_order(shown, np.random.default_rng(0))
    pictures = [images, frame.moved(images, ROWS)]
    return order, shape, frame, cut(pictures, order, SIZE, OVERLAP, 100, 10**6)


def test_the_shape_of_a_part_is_found_upright_and_laid_where_the_part_lies():
    shape = shape_of(MASKS, POSES)
    part = Part(shape, POSES, SIDE)

    length, width = 24 / SIDE, 8 / SIDE
    assert abs(shape.mean() - length * width) < 0.012, "as large as the bar"
    covers = part.covers(ROWS)
    assert np.abs(covers - MASKS).mean() < 0.012
    assert not (part.ground(ROWS) & MASKS).any(), "nothing of the part counts as ground"
    assert part.ground(ROWS).mean() > 0.85
    upright = part.upright(96)
    assert upright.shape == (96, 96)
    assert upright[48, 52:68].all()
    assert not upright[48, 80:].any()


def test_about_a_part_there_is_a_rim_that_is_needed_of_it_and_counts_as_no_ground():
    side, rim = 256, 4  # a 64th of the side
    shape = np.zeros((96, 96), np.bool_)
    shape[40:56, 24:72] = True
    part = Part(shape, POSES[:3], side)

    needed, ground = part.upright(side), part.ground([0])[0]
    clear = part.covers([0])[0] < 1e-3  # a turn by nothing leaves millionths beside the part
    near = ndimage.distance_transform_cdt(clear, "chessboard")
    across = ndimage.distance_transform_cdt(clear, "taxicab")
    assert not ground[near <= rim].any()
    assert ground[near > rim + 1].all()
    assert needed[across <= rim].all()
    assert not needed[across > rim].any()


def test_a_part_and_its_ground_are_put_together_apart():
    images = on_stripes()
    order, shape, frame, fragments = cut_apart(images)
    gives = {image: {cell < 25 for cell, owner in order if owner == image} for image in ROWS}
    assert {len(kinds) for kinds in gives.values()} == {1}, "an image gives ground or part"

    drawn = KeptFragments(fragments, frame, (), shape).draw(range(12))

    assert drawn.shape == (12, 3, SIDE, SIDE)
    nearest = [np.abs(images.astype(int) - one).mean((1, 2, 3)) for one in drawn.astype(int)]
    assert max(one.min() for one in nearest) < 6, "a bar at one of the poses, on the stripes"
    assert len({int(one.argmin()) for one in nearest}) > 6, "in many poses"
    turned = KeptFragments(
        cut([frame.moved(images, ROWS)], *upright_order(frame), 100, 10**6), frame, ()
    ).draw(range(12))
    worse = [np.abs(images.astype(int) - one).mean((1, 2, 3)) for one in turned.astype(int)]
    assert min(one.min() for one in worse) > 12, "turned upright, the stripes are lost"


def upright_order(frame):
    shown = shown_cells(frame.seen(ROWS), SIZE, OVERLAP)
    return cut_order([shown], np.random.default_rng(0)), SIZE, OVERLAP


def test_a_plain_ground_is_the_mean_of_what_masks_leave():
    images = on_stripes()

    plain = on_plain_ground(images, MASKS)

    ground = ~MASKS[:, None].repeat(3, 1)
    assert np.ptp(plain[ground]) == 0
    assert abs(int(plain[ground][0]) - images[ground].mean()) <= 0.5
    assert (plain[~ground] == 220).all()


def test_such_a_class_is_kept_apart_by_measurement(tmp_path):
    folder = tmp_path / "data" / "bolt" / "train" / "good"
    folder.mkdir(parents=True)
    chosen = slice(0, 72, 2)
    for number, image in enumerate(on_stripes()[chosen]):
        picture = Image.fromarray(image.transpose(1, 2, 0))
        picture.save(folder / f"{number:03}.png")
    samples = train_samples(tmp_path / "data", "bolt")
    policy = {"mask_rule": "sam", "train_augmentation": "none"}
    masks = MasksArtifact(
        "bolt", [one.image_id for one in samples], MASKS[chosen],
        np.ones(36, np.float32), "sam", {"policy": policy},
    )  # fmt: skip
    config = CompressConfig(keep="fragments", budget=60_000, image_size=64)
    heard = []
    report = type("Heard", (), {"note": lambda _, text: heard.append(text)})()

    kept, _ = keep_fragments(
        samples, masks, load_encoder("mini"), PRESETS["mini"], config, 0, {}, report
    )

    assert "their part turned upright, the ground as it lies" in heard[-1]
    kept.save(tmp_path / "a.safetensors")
    read = ConditionsArtifact.load(tmp_path / "a.safetensors")
    drawn = kept_fragments(read).draw(range(12))
    nearest = [np.abs(on_stripes().astype(int) - one).mean((1, 2, 3)) for one in drawn.astype(int)]
    assert np.median([one.min() for one in nearest]) < 12

    none = replace(masks, object_masks=np.zeros_like(MASKS[chosen]))
    keep_fragments(samples, none, load_encoder("mini"), PRESETS["mini"], config, 0, {}, report)
    assert "their part" not in heard[-1], "no mask shows one"
