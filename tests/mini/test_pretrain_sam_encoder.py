"""Pre-training of the small segmenter and encoder, on a pool of discs small enough to draw here."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from replaycad.mini.pretrain import encoder as encoder_training
from replaycad.mini.pretrain import sam as sam_training
from replaycad.mini.pretrain.augment import (
    change_colours,
    change_light,
    change_sharpness,
    random_windows,
    warp,
)
from replaycad.mini.pretrain.loop import LoopConfig
from replaycad.mini.pretrain.pool import Pool
from replaycad.runtime import generator
from replaycad.segmentation.sam import build_sam_from_config, load_segmenter

pytestmark = pytest.mark.long

CPU = torch.device("cpu")
SMALL_SAM = {
    **sam_training.SAM_CONFIG,
    "encoder_embed_dim": 32,
    "encoder_depth": 1,
    "global_attn_indexes": [0],
    "prompt_embed_dim": 32,
    "decoder_mlp_dim": 32,
}


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Eight classes: discs of one tone before another, every fourth class a plain surface."""
    dice = np.random.default_rng(0)
    images = np.zeros((8, 8, 128, 128, 3), np.uint8)
    object_masks = np.zeros((8, 8, 128, 128), np.uint8)
    rows, columns = np.mgrid[:128, :128]
    for row in range(8):
        tones = dice.integers(0, 256, (2, 3))
        for number in range(8):
            y, x = dice.integers(50, 78, 2)
            disc = (rows - y) ** 2 + (columns - x) ** 2 < 30**2
            object_masks[row, number] = True if row % 4 == 0 else disc
            images[row, number] = np.where(object_masks[row, number][..., None], *tones)
    defective, anomaly_masks = images[:, :3].copy(), np.zeros((8, 3, 128, 128), np.uint8)
    defective[:, :, 60:68, 60:68] = 255 - defective[:, :, 60:68, 60:68]
    anomaly_masks[:, :, 60:68, 60:68] = 1
    captions = ["round disc", "plain surface"] * 4
    return Pool(images, object_masks, defective, anomaly_masks, captions, ["disc"] * 8)


def test_batched_masks_are_what_sam_gives_picture_by_picture():
    sam = build_sam_from_config(SMALL_SAM)
    images = torch.rand(2, 3, 128, 128) * 255
    points = torch.rand(2, 2, 4, 2) * 128
    labels = torch.ones(2, 2, 4)
    requests = [
        {"image": i, "original_size": (128, 128), "point_coords": p, "point_labels": label}
        for i, p, label in zip(images, points, labels, strict=True)
    ]

    with torch.no_grad():
        embeddings = sam_training.embed_images(sam, images)
        logits, quality = sam_training.predict_masks(sam, embeddings, points, labels)
        wanted = sam(requests, multimask_output=True)

    for row in range(2):
        torch.testing.assert_close(logits[row, :, 1:], wanted[row]["low_res_logits"])
        torch.testing.assert_close(quality[row, :, 1:], wanted[row]["iou_predictions"])


def test_prompts_lie_where_their_labels_say():
    g = generator(0, "test")
    masks = torch.zeros(64, 1, 128, 128)
    masks[:, :, 40:80, 30:90] = 1

    draws = (sam_training.object_prompts, masks), (sam_training.background_prompts, 1 - masks)
    for draw, wanted in draws:
        points, labels = draw(masks, g)
        place = points.round().long()
        inside = wanted[torch.arange(64)[:, None], 0, place[..., 1], place[..., 0]]
        used = labels >= 0
        assert used.any(1).all()
        assert torch.equal(inside[used], labels[used])


def test_corner_prompts_leave_out_covered_corners():
    masks = torch.zeros(64, 1, 128, 128)
    masks[:, :, :64, :64] = 1

    points, labels = sam_training.background_prompts(masks, generator(1, "test"))

    is_covered = (points < 20).all(2)
    assert (labels[is_covered] == -1).all()


def test_surface_prompts_may_lie_anywhere():
    masks = torch.ones(16, 1, 128, 128)

    points, labels = sam_training.background_prompts(masks, generator(0, "test"))

    assert (labels == 1).any(1).all()
    assert points.min() >= 0
    assert points.max() <= 127


def test_mask_loss_of_a_perfect_answer_is_near_zero():
    targets = torch.zeros(1, 2, 16, 16)
    targets[:, :, 4:12, 4:12] = 1
    logits = (targets * 40 - 20)[:, :, None].expand(1, 2, 4, 16, 16)

    loss, iou = sam_training.mask_loss(logits, torch.ones(1, 2, 4), targets)

    assert loss < 0.01
    assert iou == 1


def test_deepest_point_is_the_middle_of_the_mask():
    masks = torch.zeros(1, 1, 32, 32)
    masks[:, :, 4:15, 10:21] = 1

    assert sam_training.deepest_points(masks).tolist() == [[[15.0, 9.0]]]


def test_close_ups_hold_the_whole_object_and_little_else():
    masks = torch.zeros(16, 1, 128, 128)
    masks[:, :, 30:70, 64:100] = 1
    g = generator(0, "test")

    windows = sam_training.close_up(random_windows(16, 0.7, g), masks, g)

    shares = warp(masks, windows, 128).mean((1, 2, 3))
    sides = windows[:, :, :2].det().abs().sqrt() * 128
    torch.testing.assert_close(shares * sides**2, torch.full((16,), 1440.0), rtol=0.03, atol=0)
    assert shares.min() > 0.4


def test_close_ups_of_nothing_leave_the_window():
    windows = random_windows(4, 0.7, generator(0, "test"))

    closer = sam_training.close_up(windows, torch.zeros(4, 1, 64, 64), generator(1, "test"))

    assert torch.equal(closer, windows)


def test_batches_are_a_function_of_the_step(pool):
    first, again, other = (sam_training.draw_batch(pool, 4, 0, step) for step in (3, 3, 4))

    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_batch_targets_are_complementary_for_objects_and_whole_for_surfaces(pool):
    _, _, _, targets = sam_training.draw_batch(pool, 32, 0, 0)

    is_surface = targets[:, 0].mean((1, 2)) == 1
    assert is_surface.any()
    assert (targets[is_surface, 1] == 1).all()
    both = targets[~is_surface].sum(1)
    torch.testing.assert_close(both, torch.ones_like(both))


def test_sam_learns_and_its_export_loads_as_a_segmenter(pool, tmp_path):
    config = LoopConfig(minutes=60.0, num_steps=2, log_every=1)

    sam_training.train_sam(pool, tmp_path, tmp_path / "out", config, CPU, pool, SMALL_SAM)

    figures = json.loads((tmp_path / "sam_measured.json").read_text())
    assert set(figures) == {"corners", "centre", "surface"}
    assert all(0 <= value <= 1 for value in figures.values())
    assert (tmp_path / "sam.png").exists()
    assert len((tmp_path / "sam.jsonl").read_text().splitlines()) == 2
    mask = load_segmenter(str(tmp_path / "out" / "sam")).corner_mask(pool.images[1, 0])
    assert mask.shape == (128, 128)


def test_the_stem_of_sam_starts_from_the_encoder(pool, tmp_path):
    state = encoder_training.build_encoder().state_dict()
    (tmp_path / "encoder").mkdir()
    save_file(state, tmp_path / "encoder" / "model.safetensors")
    config = LoopConfig(minutes=60.0, num_steps=0)

    sam = sam_training.train_sam(pool, tmp_path, tmp_path, config, CPU, pool, SMALL_SAM)

    found = sam.image_encoder.patch_embed.levels.state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_a_sam_without_a_stem_ignores_the_encoder(pool, tmp_path):
    (tmp_path / "encoder").mkdir()
    save_file(encoder_training.build_encoder().state_dict(),
              tmp_path / "encoder" / "model.safetensors")  # fmt: skip
    config = LoopConfig(minutes=60.0, num_steps=0)

    sam = sam_training.train_sam(
        pool, tmp_path, tmp_path, config, CPU, pool, SMALL_SAM | {"stem": ""}
    )

    assert not hasattr(sam.image_encoder.patch_embed, "levels")


def test_windows_of_full_size_only_turn_and_mirror():
    images = torch.rand(8, 3, 16, 16)

    turned = warp(images, random_windows(8, 1.0, generator(0, "test")), 16)

    torch.testing.assert_close(turned.sort().values.sum((2, 3)), images.sum((2, 3)))
    torch.testing.assert_close(
        turned.flatten(1).sort(1).values, images.flatten(1).sort(1).values, atol=1e-4, rtol=0
    )


def test_changes_of_colour_are_shared_by_a_group_and_stay_in_range():
    images = torch.rand(1, 3, 32, 32).expand(6, -1, -1, -1)

    changed = change_colours(images, generator(0, "test"), groups=3)

    torch.testing.assert_close(changed[0], changed[2])
    assert not torch.allclose(changed[0], changed[3])
    assert changed.min() >= 0
    assert changed.max() <= 1


def test_light_and_sharpness_change_each_picture_by_itself():
    images = torch.rand(1, 3, 32, 32).expand(2, -1, -1, -1)

    for changed in (
        change_light(images, 1.0, generator(0, "test")),
        change_sharpness(images, 1.0, generator(0, "test")),
    ):
        assert not torch.allclose(changed[0], changed[1])
        assert changed.min() >= 0
        assert changed.max() <= 1


def test_word_table_keeps_words_that_tell_classes_apart():
    table = encoder_training.word_table(["a disc", "a disc", "a plate, big", "a plate"])

    assert table.tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]


def test_pasted_blobs_are_marked_where_they_changed_the_picture():
    images = torch.rand(4, 3, 64, 64)
    everywhere = torch.ones(4, 1, 64, 64)

    pasted, blobs = encoder_training.paste_blobs(images, everywhere, generator(0, "test"))

    change = F.avg_pool2d((pasted - images).abs().mean(1, keepdim=True), 5, 1, 2)
    assert blobs.any()
    assert torch.equal(change > 0.02, blobs > 0)


def test_nearest_distances_are_zero_for_what_the_bank_holds():
    count = encoder_training.PER_CLASS
    features = torch.randn(encoder_training.NUM_CLASSES, count, 5, 4, 4)
    features[:, encoder_training.NUM_BANK :] = features[:, :1]
    features[:, -1, :, 1, 2] += 100

    distance = encoder_training.nearest_distances(features.flatten(0, 1))

    assert distance[:, :-1].max() < 0.01
    assert (distance[:, -1, 1, 2] > 100).all()


def test_defect_loss_rewards_defects_that_stand_out():
    masks = torch.zeros(encoder_training.NUM_CLASSES * 2, 1, 32, 32)
    masks[:, :, 8:16, 8:16] = 1
    marked = F.avg_pool2d(masks, 4).view(-1, 2, 8, 8)
    good = torch.cat([torch.full_like(marked, -5.0), marked * 10 - 5], 1)

    low, right = encoder_training.defect_loss(good, masks)
    high, wrong = encoder_training.defect_loss(-good, masks)

    assert low < 0.1 < high
    assert right == 1
    assert wrong == 0


def test_identity_loss_is_lowest_when_classes_lie_apart():
    apart = torch.eye(encoder_training.NUM_CLASSES).repeat_interleave(encoder_training.PER_CLASS, 0)

    together = torch.ones_like(apart)

    assert encoder_training.identity_loss(apart) < encoder_training.identity_loss(together)


def test_encoder_learns_resumes_and_exports_what_timm_loads(pool, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_training, "STATISTICS_STEPS", 1)
    monkeypatch.setattr(encoder_training, "MEASURED_EPISODES", 1)
    config = LoopConfig(minutes=60.0, num_steps=1, log_every=1)
    arguments = (pool, tmp_path, tmp_path)
    encoder_training.train_encoder(*arguments, config, CPU, pool)

    encoder_training.train_encoder(*arguments, replace(config, num_steps=2), CPU, pool)

    lines = (tmp_path / "encoder.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    figures = json.loads((tmp_path / "encoder_measured.json").read_text())
    assert set(figures) == {"order", "order_level1", "order_level2", "order_level3"}
    assert all(0 <= value <= 1 for value in figures.values())
    assert json.loads((tmp_path / "encoder" / "config.json").read_text()) == {
        "timm_name": encoder_training.TIMM_NAME,
        "out_indices": [1, 2, 3],
        "mean": list(encoder_training.MEAN),
        "std": list(encoder_training.STD),
    }
    model = encoder_training.build_encoder()
    model.load_state_dict(load_file(tmp_path / "encoder" / "model.safetensors"))
    assert [level.shape[2:] for level in model.eval()(torch.zeros(1, 3, 128, 128))] == [
        (32, 32), (16, 16), (8, 8)
    ]  # fmt: skip
