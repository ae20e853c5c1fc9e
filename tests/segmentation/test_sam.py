"""Segment-anything behind the small class: building, loading, and what a known network answers."""

import hashlib
import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from segment_anything import sam_model_registry

from replaycad.errors import WeightsError
from replaycad.segmentation import presets
from replaycad.segmentation.sam import Segmenter, build_sam_from_config, load_segmenter
from replaycad.segmentation.selection import SettledRule
from tests.segmentation.tiny_sam import CONFIG, constant_sam, tiny_sam, write_segmenter

CORNERS = SettledRule(mask_rule="corners")
AREA = SettledRule(mask_rule="area", area_range=(0.1, 0.3))


def picture(height=48, width=80):
    """A bright rectangle on a dark ground, not square."""
    image = np.full((height, width, 3), 30, dtype=np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = (220, 120, 40)
    return image


def blank():
    """A picture that shows nothing."""
    return np.full((48, 80, 3), 30, dtype=np.uint8)


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_official_configs_build_the_official_networks(name):
    with torch.device("meta"):
        ours = build_sam_from_config(presets.SEGMENTERS[name].config)
        official = sam_model_registry[name]()

    def shapes(sam):
        return {key: value.shape for key, value in sam.state_dict().items()}

    def windows(sam):
        return [block.window_size for block in sam.image_encoder.blocks]

    assert shapes(ours) == shapes(official)
    assert windows(ours) == windows(official)


def test_a_config_with_missing_or_unknown_keys_is_refused():
    with pytest.raises(WeightsError, match=r"encoder_depth.*hat_size"):
        build_sam_from_config(
            {key: value for key, value in CONFIG.items() if key != "encoder_depth"}
            | {"hat_size": 7}
        )


def test_a_stem_embeds_patches_with_a_convolutional_network():
    sam = build_sam_from_config(CONFIG | {"stem": "resnet10t"})

    with torch.no_grad():
        tokens = sam.image_encoder.patch_embed(torch.rand(2, 3, 64, 64))
        embedding = sam.image_encoder(torch.rand(2, 3, 64, 64))

    assert tokens.shape == (2, 8, 8, 32)
    assert embedding.shape == (2, 32, 8, 8)


def test_a_stem_for_other_patches_is_refused():
    with pytest.raises(WeightsError, match="embeds patches of 8 px, not of 16"):
        build_sam_from_config(CONFIG | {"stem": "resnet10t", "patch_size": 16})


@pytest.mark.parametrize("policy", [CORNERS, AREA, SettledRule(mask_rule="frame")])
def test_masks_have_the_size_of_the_image_and_are_the_same_every_time(policy):
    segmenter = Segmenter(tiny_sam(), "tiny")

    first = segmenter.object_mask(picture(), policy)
    second = segmenter.object_mask(picture(), policy)

    assert first.dtype == np.bool_
    assert first.shape == (48, 80)
    assert np.array_equal(first, second)


def test_the_object_is_what_the_corners_do_not_belong_to():
    nothing_is_ground = Segmenter(constant_sam(-1.0, 0.9), "tiny")

    assert nothing_is_ground.corner_mask(picture()).all()


def test_an_empty_answer_becomes_the_whole_frame():
    all_is_ground = Segmenter(constant_sam(1.0, 0.9), "tiny")
    finds_nothing = Segmenter(constant_sam(1.0, 0.1), "tiny")

    assert not all_is_ground.corner_mask(picture()).any()
    assert all_is_ground.object_mask(picture(), CORNERS).all()
    assert finds_nothing.everything(picture()) == ([], [])
    assert finds_nothing.object_mask(picture(), AREA).all()


def test_everything_merges_equal_answers_and_reports_their_quality():
    masks, qualities = Segmenter(constant_sam(1.0, 0.9), "tiny").everything(picture())

    assert len(masks) == 1
    assert masks[0].all()
    assert qualities == pytest.approx([0.9])


def test_auto_rule_settles_on_the_frame_where_corners_find_no_object():
    settled = Segmenter(constant_sam(1.0, 0.9), "tiny").settle(
        [blank()] * 3, AutoPolicy("auto", None)
    )

    assert settled.mask_rule == "frame"
    assert "0% of the masks plausible" in settled.reason


def test_unknown_area_settles_on_the_frame_where_nothing_is_plausible():
    settled = Segmenter(constant_sam(1.0, 0.9), "tiny").settle(
        [blank()], AutoPolicy("area", None)
    )

    assert settled.mask_rule == "frame"
    assert settled.reason


@pytest.mark.parametrize("rule", ["corners", "frame"])
def test_known_rules_are_kept(rule):
    settled = Segmenter(tiny_sam(), "tiny").settle([], AutoPolicy(rule, None))

    assert settled.mask_rule == rule


def test_known_area_is_kept():
    settled = Segmenter(tiny_sam(), "tiny").settle([], AutoPolicy("area", (0.2, 0.4)))

    assert (settled.mask_rule, settled.area_range) == ("area", (0.2, 0.4))


class Answers:
    """Stands in for the network: everything it finds, and what belongs to the corners."""

    def __init__(self, found):
        self.found = found
        self.background = ~np.any(found, axis=0)

    def generate(self, _image):
        return [{"segmentation": mask, "predicted_iou": 0.9} for mask in self.found]

    def set_image(self, _image):
        pass

    def reset_image(self):
        pass

    def predict(self, **_prompt):
        return self.background[None], None, None


class Coarse:
    """A predictor that sees what is dark in 8 x 8 blocks of what it is shown."""

    def __init__(self):
        self.shapes = []

    def set_image(self, image):
        self.shapes.append(image.shape[:2])
        dark = image[..., 0] < 100
        rows, columns = (np.arange(side) * 8 // side for side in dark.shape)
        blocks = rows[:, None] * 8 + columns
        share = np.bincount(blocks.ravel(), dark.ravel()) / np.bincount(blocks.ravel())
        self.ground = share[blocks] > 0.5

    def predict(self, **_prompt):
        return self.ground[None], None, None

    def reset_image(self):
        pass


def test_a_small_sam_looks_again_at_the_surroundings_of_what_it_found():
    image = np.full((160, 160, 3), 30, dtype=np.uint8)
    image[48:92, 48:92] = 220
    segmenter = Segmenter(tiny_sam(), "tiny")
    segmenter._predictor = Coarse()
    object_mask = image[..., 0] > 100

    mask = segmenter.corner_mask(image)

    assert segmenter._predictor.shapes == [(160, 160), (72, 72)]
    once = segmenter._predictor
    once.set_image(image)
    assert (mask != object_mask).sum() < (~once.ground != object_mask).sum()


def test_an_object_that_fills_the_image_is_looked_at_once():
    image = np.full((160, 160, 3), 30, dtype=np.uint8)
    image[20:140, 10:150] = 220
    segmenter = Segmenter(tiny_sam(), "tiny")
    segmenter._predictor = Coarse()

    segmenter.corner_mask(image)

    assert len(segmenter._predictor.shapes) == 1


def test_masks_of_several_objects_are_unions_by_either_rule():
    objects = np.zeros((4, 48, 80), dtype=bool)
    for index, mask in enumerate(objects):
        row, column = divmod(index, 2)
        mask[4 + 24 * row : 20 + 24 * row, 4 + 40 * column : 34 + 40 * column] = True
    frame = np.ones((48, 80), dtype=bool)
    segmenter = Segmenter(tiny_sam(), "tiny")
    segmenter._predictor = Answers(objects)
    segmenter._everything = Answers([*objects, frame])
    size = float(objects[0].mean())
    known = AutoPolicy("area", (size * 0.8, size * 1.2), several_objects=True)
    unknown = AutoPolicy("area", None, several_objects=True)

    by_corners = segmenter.object_mask(picture(), AutoPolicy("corners", None, True))
    by_area = segmenter.object_mask(picture(), segmenter.settle([], known))
    by_found_area = segmenter.object_mask(picture(), segmenter.settle([picture()] * 3, unknown))
    alone = segmenter.object_mask(picture(), AutoPolicy("area", (size * 0.8, size * 1.2)))

    for mask in (by_corners, by_area, by_found_area):
        assert np.array_equal(mask, objects.any(0))
    assert np.array_equal(alone, objects[0])


def test_unknown_rule_is_a_bug_of_the_caller():
    with pytest.raises(ValueError, match="by_colour"):
        Segmenter(tiny_sam(), "tiny").object_mask(picture(), AutoPolicy("by_colour", None))


def test_a_policy_may_be_given_instead_of_a_settled_rule():
    segmenter = Segmenter(constant_sam(1.0, 0.9), "tiny")

    assert segmenter.object_mask(blank(), AutoPolicy("auto", None)).all()


def test_a_written_segmenter_answers_like_the_original(tmp_path):
    sam = tiny_sam()
    for parameter in sam.parameters():
        parameter.data = parameter.data.half().float()
    original = Segmenter(sam, "tiny")

    loaded = load_segmenter(str(write_segmenter(tmp_path / "tiny", sam)))

    assert loaded.name == str(tmp_path / "tiny")
    assert np.array_equal(loaded.corner_mask(picture()), original.corner_mask(picture()))


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path):
    folder = write_segmenter(tmp_path, tiny_sam())
    (folder / "config.json").write_text(json.dumps(CONFIG | {"encoder_depth": 3}))

    with pytest.raises(WeightsError, match="does not fit its config"):
        load_segmenter(str(folder))


def test_truncated_safetensors_are_refused(tmp_path):
    folder = write_segmenter(tmp_path, tiny_sam())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])

    with pytest.raises(WeightsError, match=r"model\.safetensors cannot be read"):
        load_segmenter(str(folder))


def publish(folder, content, algorithm="sha256"):
    """Name a file as the publishers do, with the first digits of its digest."""
    tag = hashlib.new(algorithm, content).hexdigest()[:6]
    path = folder / f"sam_vit_b_{tag}.pth"
    path.write_bytes(content)
    return path


def saved(obj, folder):
    """Bytes of a torch file."""
    torch.save(obj, folder / "saved")
    return (folder / "saved").read_bytes()


def test_an_official_file_with_another_digest_is_refused(tmp_path, monkeypatch):
    (tmp_path / "sam_vit_b_01ec64.pth").write_bytes(b"not these weights")
    monkeypatch.setenv("REPLAYCAD_WEIGHTS", str(tmp_path))

    with pytest.raises(WeightsError, match="should begin with 01ec64"):
        load_segmenter("vit_b")


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_an_official_file_of_other_tensors_is_refused(tmp_path, algorithm):
    path = publish(tmp_path, saved(OrderedDict(weight=torch.zeros(2)), tmp_path), algorithm)

    with pytest.raises(WeightsError, match="does not fit its config"):
        load_segmenter(str(path))


def test_a_checkpoint_that_is_no_torch_file_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read"):
        load_segmenter(str(publish(tmp_path, b"neither zip nor tensors")))


class Trap:
    """What an attacker would store; loading it must not run it."""

    def __reduce__(self):
        """Ask the reader to raise."""
        return exec, ("raise AssertionError('code of a checkpoint was run')",)


def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path):
    with pytest.raises(WeightsError, match="holds more than tensors"):
        load_segmenter(str(publish(tmp_path, saved({"weight": Trap()}, tmp_path))))


class AutoPolicy:
    """A class policy as the data room has it, without knowing it."""

    def __init__(self, mask_rule, area_range, several_objects=False):
        self.several_objects = several_objects
        self.mask_rule = mask_rule
        self.area_range = area_range
