"""Masks of one class from files, with segmenters whose answers are known."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from replaycad.config.stages import MaskConfig
from replaycad.data.views import WHOLE
from replaycad.progress import SilentReport
from replaycad.stages.mask import make_masks
from tests.segmentation.test_ground import toy_class
from tests.segmentation.test_proof import iou
from tests.segmentation.test_settling import Knowing, specks


class Notes(SilentReport):
    """Keeps what the user would read."""

    def __init__(self):
        self.texts = []

    def note(self, text):
        """Keep it."""
        self.texts.append(text)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Images of a class as files, and where the part is in each."""
    folder = tmp_path_factory.mktemp("images")
    images, discs = toy_class()
    samples = []
    for index, image in enumerate(images):
        path = folder / f"{index}.png"
        Image.fromarray(image).save(path)
        samples.append(SimpleNamespace(path=path, image_id=str(index), view=WHOLE, window=None))
    return samples, images, discs


def test_a_known_name_whose_corners_give_specks_gets_a_better_rule_and_a_note(written):
    samples, images, discs = written
    report = Notes()
    segmenter = Knowing(images, specks(len(images), 128))

    made = make_masks("screw", samples, segmenter, MaskConfig(), {}, report)

    assert min(iou(a, b) for a, b in zip(made.object_masks, discs, strict=True)) > 0.9
    assert made.rule == made.header["policy"]["mask_rule"] == "ground"
    # In the table a screw turns freely; the moves of these discs are read off their own masks.
    assert made.header["policy"]["inferred"]
    assert made.header["policy"]["replay_augmentation"] == "small"
    text, poses = report.texts
    assert poses.startswith("screw: replay poses follow these masks, not the table: 'small'")
    assert text.startswith("screw: masks by 'corners' are not of one thing (0% of the masks")
    assert "made by 'ground' (100% of the masks plausible" in text


def test_a_typed_rule_is_kept_with_a_warning(written):
    samples, images, _ = written
    report, masks = Notes(), specks(len(images), 128)

    made = make_masks(
        "screw", samples, Knowing(images, masks), MaskConfig(rule="corners"), {}, report
    )

    assert made.rule == "corners"
    assert np.array_equal(made.object_masks, masks)
    (text,) = report.texts
    assert "kept as you asked" in text


def test_a_rule_that_proves_itself_is_not_worth_a_note(written):
    samples, images, discs = written
    report = Notes()

    made = make_masks("screw", samples, Knowing(images, discs), MaskConfig(), {}, report)

    assert np.array_equal(made.object_masks, discs)
    assert report.texts == []
