"""What is saved comes back; the sizes that the paper counts."""

import json
from dataclasses import replace

import numpy as np
import pytest
from artifact_examples import conditions, detector, masks, scores

from replaycad.artifacts.conditions import CONDITIONS, ConditionsArtifact
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import read_header, write
from replaycad.artifacts.inspection import describe
from replaycad.artifacts.masks import MasksArtifact
from replaycad.artifacts.scores import SCORES, ScoresArtifact
from replaycad.errors import ArtifactError

EXAMPLES = {
    "masks": (masks, MasksArtifact),
    "conditions": (conditions, ConditionsArtifact),
    "detector": (detector, DetectorArtifact),
    "scores": (scores, ScoresArtifact),
}


CONTENT_IDS = {
    "masks": "5b5ec84c1f41c4a4cef87b1ac350b844d16da4d9bedb5761d622b18be8bb3b02",
    "conditions": "5140e35fdbc429cff0141aca0c45c146f6552bdc918fd76e690ca4210e9f5218",
    "detector": "096f87ae4797f58cd91e5040548dc67d3850080fe94a1ff29cd0d8d47e832a19",
    "scores": "a4f9c1054b452c0768f75cbb0148b814773c1484841b10914d42b2a7f20329a7",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_content_ids_of_files_made_before_stay(tmp_path, name):
    make, _ = EXAMPLES[name]

    assert make().save(tmp_path / "a.safetensors") == CONTENT_IDS[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path, name):
    make, kind = EXAMPLES[name]

    first = make().save(tmp_path / "a.safetensors")
    second = kind.load(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")

    assert first == second == read_header(tmp_path / "a.safetensors")["content_id"]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_masks_come_back(tmp_path):
    masks().save(tmp_path / "a")

    found = MasksArtifact.load(tmp_path / "a")

    np.testing.assert_array_equal(found.object_masks, masks().object_masks)
    np.testing.assert_array_equal(found.area_fraction, masks().area_fraction)
    assert (found.class_name, found.image_ids, found.rule) == (
        "bottle",
        masks().image_ids,
        "corners",
    )
    assert found.header["inputs"] == masks().header["inputs"]


def test_conditions_come_back(tmp_path):
    conditions().save(tmp_path / "a")

    found = ConditionsArtifact.load(tmp_path / "a")

    for name in ("semantic_embedding", "spatial_weight", "spatial_bias", "object_masks"):
        np.testing.assert_array_equal(getattr(found, name), getattr(conditions(), name))
    assert found.policy == conditions().policy
    assert not found.half


def test_half_conditions_are_rounded_once_and_come_back_as_float32(tmp_path):
    conditions().save(tmp_path / "a", half=True)

    found = ConditionsArtifact.load(tmp_path / "a")

    rounded = conditions().semantic_embedding.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(found.semantic_embedding, rounded)
    assert found.half
    assert found.num_bytes_without_masks == conditions().num_bytes_without_masks // 2


def test_a_number_too_large_for_half_is_told(tmp_path):
    large = np.full((1, 3), 70_000, np.float32)

    with pytest.raises(ArtifactError, match="float16 ends at 65504"):
        conditions(semantic_embedding=large).save(tmp_path / "a", half=True)


def test_conditions_without_tokens_or_without_a_layer_come_back(tmp_path):
    none = np.zeros((0, 3), np.float32)
    conditions(semantic_embedding=none).save(tmp_path / "spatial")
    conditions(spatial_weight=None, spatial_bias=None, object_masks=np.zeros((0, 4, 9), bool)).save(
        tmp_path / "semantic"
    )

    spatial = ConditionsArtifact.load(tmp_path / "spatial")
    semantic = ConditionsArtifact.load(tmp_path / "semantic")

    assert spatial.semantic_embedding.shape == (0, 3)
    assert (semantic.spatial_weight, semantic.spatial_bias) == (None, None)
    assert semantic.object_masks.shape == (0, 4, 9)
    assert semantic.num_bytes == semantic.num_bytes_without_masks == 2 * 3 * 4


@pytest.mark.parametrize(
    ("size_d", "size_o", "expected"), [(1280, 200, 205_600), (768, 192, 160_512)]
)
def test_the_bytes_of_a_class_are_those_of_the_paper(tmp_path, size_d, size_o, expected):
    artifact = conditions(
        semantic_embedding=np.ones((20, size_d), np.float32),
        spatial_weight=np.ones((size_o, 128), np.float32),
        spatial_bias=np.ones(size_o, np.float32),
        object_masks=np.ones((10, 32, 36), bool),
    )
    artifact.save(tmp_path / "full")
    artifact.save(tmp_path / "half", half=True)

    full = ConditionsArtifact.load(tmp_path / "full")
    half = ConditionsArtifact.load(tmp_path / "half")

    assert artifact.num_bytes_without_masks == full.num_bytes_without_masks == expected
    assert half.num_bytes_without_masks == expected // 2
    assert full.num_bytes == expected + 10 * 32 * 5
    assert half.num_bytes == expected // 2 + 10 * 32 * 5
    assert 0 < (tmp_path / "full").stat().st_size - full.num_bytes < 3000


def test_a_detector_comes_back(tmp_path):
    detector().save(tmp_path / "a")

    found = DetectorArtifact.load(tmp_path / "a")

    assert found.state.keys() == detector().state.keys()
    for name, values in detector().state.items():
        np.testing.assert_array_equal(found.state[name], values)
        assert found.state[name].shape == values.shape
    assert found.penalty.keys() == detector().penalty.keys()
    assert found.guard == {}
    guarded = replace(detector(), guard={"layer": np.eye(3, 2, dtype=np.float16)})
    guarded.save(tmp_path / "b")
    assert DetectorArtifact.load(tmp_path / "b").guard["layer"].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert found.guard == {}
    assert (found.class_order, found.thresholds) == (["bottle", "grid"], {"bottle": 0.5})
    assert (found.mean, found.std) == (detector().mean, detector().std)


def test_scores_come_back_with_their_metrics_beside(tmp_path):
    digest = scores().save(tmp_path / "a.safetensors")

    found = ScoresArtifact.load(tmp_path / "a.safetensors")
    beside = json.loads((tmp_path / "a.json").read_text())

    for name in ("image_scores", "image_labels", "class_index", "anomaly_maps"):
        np.testing.assert_array_equal(getattr(found, name), getattr(scores(), name))
    assert found.metrics == {"bottle": {"image_auroc": 1.0, "pixel_ap": None}}
    assert beside["metrics"] == found.metrics
    assert beside["content_id"] == digest
    assert beside["key"] == scores().header["key"]


def told(**changes) -> ScoresArtifact:
    """The example with what its images were told to be."""
    values = {"told_classes": ["grid", "bottle", "cap"], "told_index": np.array([1, 2, 0, 0]),
              "product_distances": np.array([0.5, 1.5, 2.5, 0.1], np.float32)}  # fmt: skip
    return replace(scores(), **{**values, **changes})


def test_what_images_were_told_to_be_comes_back(tmp_path):
    told().save(tmp_path / "a.safetensors")

    found = ScoresArtifact.load(tmp_path / "a.safetensors")

    assert found.told_classes == ["grid", "bottle", "cap"]
    assert found.told_index.tolist() == [1, 2, 0, 0]
    assert found.product_distances.tolist() == told().product_distances.tolist()


def test_scores_of_an_earlier_version_say_nothing_of_products(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {name: getattr(scores(), name) for name in
               ("image_scores", "image_labels", "class_index")}  # fmt: skip
    write(path, SCORES, tensors, {"classes": ["bottle", "grid"], "image_ids": list("abcd"),
                                  "metrics": {}})  # fmt: skip

    found = ScoresArtifact.load(path)

    assert (found.told_classes, found.told_index, found.product_distances) == ([], None, None)
    assert "told_classes" not in found.header


def test_products_that_are_not_there_are_damage(tmp_path):
    path = tmp_path / "a.safetensors"
    told(told_index=np.array([0, 1, 2, 3])).save(path)
    with pytest.raises(ArtifactError, match="expected `told_index` below 3, found 0 to 3"):
        ScoresArtifact.load(path)
    tensors = {name: getattr(told(), name) for name in
               ("image_scores", "image_labels", "class_index", "told_index")}  # fmt: skip
    write(path, SCORES, tensors, {"classes": ["bottle", "grid"], "image_ids": list("abcd"),
                                  "metrics": {}, "told_classes": ["a", "b", "c"]})  # fmt: skip
    with pytest.raises(ArtifactError, match="expected `told_index` with `product_distances`"):
        ScoresArtifact.load(path)


def test_no_clock_host_or_path_gets_into_a_file(tmp_path):
    for folder in ("one", "two"):
        masks().save(tmp_path / folder / "a.safetensors")

    contents = [(tmp_path / folder / "a.safetensors").read_bytes() for folder in ("one", "two")]

    assert contents[0] == contents[1]
    assert str(tmp_path).encode() not in contents[0]


@pytest.mark.parametrize("half", [False, True])
def test_poses_are_kept_in_the_file_and_counted(tmp_path, half):
    poses = np.array([[12.5, 0.25, -0.5]], np.float32)
    conditions(poses=poses).save(tmp_path / "a.safetensors", half=half)
    loaded = ConditionsArtifact.load(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(loaded.poses, poses)
    assert loaded.num_bytes - conditions(half=half).num_bytes == poses.size * (2 if half else 4)


@pytest.mark.parametrize("half", [False, True])
def test_variations_are_kept_in_8_bits_and_counted(tmp_path, half):
    plain = conditions(half=half)
    num_tokens, width = plain.semantic_embedding.shape
    rng = np.random.default_rng(0)
    variations = rng.normal(size=(3, num_tokens, width)).astype(np.float32)
    variations[1] *= 1e-3  # each direction has a step of its own
    variations[2] = 0
    coefficients = np.array([[1.0, -2.0, 0.5], [0.25, 0.0, 1.0]], np.float32)
    conditions(semantic_variations=variations, coefficients=coefficients).save(
        tmp_path / "a.safetensors", half=half
    )
    loaded = ConditionsArtifact.load(tmp_path / "a.safetensors")

    np.testing.assert_array_equal(loaded.coefficients, coefficients)
    error = np.abs(loaded.semantic_variations - variations).max((1, 2))
    assert (error <= 0.51 * np.abs(variations).max((1, 2)) / 127 + 1e-9).all()
    width_of_floats = 2 if half else 4
    more = variations.size + (3 + coefficients.size) * width_of_floats
    assert loaded.num_bytes - plain.num_bytes == more
    facts = describe(tmp_path / "a.safetensors")
    assert facts["num_bytes_without_masks"] == loaded.num_bytes_without_masks

    loaded.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("missing", "finding"),
    [
        ("variation_steps", "expected `semantic_variations` with `variation_steps`"),
        ("coefficients", "expected `coefficients` along 1 directions, found 0"),
    ],
)
def test_variations_without_what_they_need_are_damage(tmp_path, missing, finding):
    path = tmp_path / "a.safetensors"
    num_tokens, width = conditions().semantic_embedding.shape
    tensors = {
        "semantic_embedding": np.zeros((num_tokens, width), np.float32),
        "semantic_variations": np.zeros((1, num_tokens, width), np.int8),
        "variation_steps": np.ones(1, np.float32),
        "coefficients": np.zeros((2, 1), np.float32),
        "object_masks": np.zeros((0, 8, 1), np.uint8),
    }
    del tensors[missing]
    write(path, CONDITIONS, tensors, {"class_name": "bolt", "policy": {}, "mask_width": 8})
    with pytest.raises(ArtifactError, match=finding):
        ConditionsArtifact.load(path)
