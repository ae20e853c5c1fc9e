"""Real images at equal bytes: which are kept, that they fit, and how they are varied."""

import json
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from replaycad.artifacts.conditions import CONDITIONS, ConditionsArtifact
from replaycad.artifacts.detector import DetectorArtifact
from replaycad.artifacts.format import write
from replaycad.artifacts.replays import ReplaysReader
from replaycad.config.stages import ReplayConfig
from replaycad.continual.coverage import (
    WHOLE,
    Memory,
    cut_and_paste,
    distance,
    separations,
    symmetries,
)
from replaycad.continual.exemplars import coverage_order, decode, encode, fill, vary
from replaycad.continual.representations import chosen_representation, tried_drawing
from replaycad.data.images import load_images
from replaycad.data.layouts import train_samples
from replaycad.detectors.encoders import load_encoder
from replaycad.errors import ArtifactError
from replaycad.mask_ops import Operation, apply_to_images, augmentations
from replaycad.runtime import generator
from replaycad.stages.replay import kept_images
from tests.conftest import states

EXEMPLARS = ("--keep", "exemplars")


def smooth(seed=0, size=64, count=1):
    """Images `[N, 3, size, size]` uint8 without symmetry."""
    coarse = torch.rand(count, 3, 5, 5, generator=generator(seed, "exemplars"))
    grown = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic")
    return (grown.clamp(0, 1) * 255).to(torch.uint8).numpy()


def difference(one, other):
    return np.abs(one.astype(int) - other.astype(int)).mean()


def test_a_stored_image_comes_back_nearly_and_its_bytes_never_change():
    image = smooth()[0]

    stored = encode(image, 60)

    assert stored == encode(image, 60)
    assert len(stored) < image.size / 8
    assert decode(stored, 64).shape == image.shape
    assert difference(decode(stored, 64), image) < 2
    assert len(encode(image, 20)) < len(stored) < len(encode(image, 95))


def test_an_image_that_was_stored_smaller_comes_back_at_its_size():
    image = smooth()[0]

    (stored,) = fill(image[None], [0], 90, 10**6, size=32)

    with Image.open(BytesIO(stored)) as picture:
        assert picture.size == (32, 32)
    assert decode(stored, 64).shape == (3, 64, 64)
    assert difference(decode(stored, 64), image) < 4
    with pytest.raises(ValueError, match="it has 32 x 32 px, not 31"):
        decode(stored, 31)


def test_every_image_is_ordered_once_and_outliers_come_before_their_likes():
    clusters = torch.tensor([0.0, 0.1, 0.2, 10.0, 10.1, -20.0])[:, None]

    order = coverage_order(clusters, generator(0, "order"))

    assert sorted(order) == list(range(6))
    groups = [int(clusters[index].div(5).round()) for index in order[:3]]
    assert sorted(groups) == [-4, 0, 2], "one of each group before a second of any"


def test_images_fill_the_room_and_not_a_byte_more():
    images = smooth(count=4)
    sizes = [len(encode(images[index], 60)) for index in (2, 0, 3)]

    kept = list(fill(images, [2, 0, 3, 1], 60, sum(sizes)))
    fewer = list(fill(images, [2, 0, 3, 1], 60, sum(sizes) - 1))

    assert [len(one) for one in kept] == sizes
    assert fewer == kept[:2]


def test_an_image_is_moved_from_its_pose_to_another_and_back_again():
    image, quarter = smooth(), np.array([[90.0, 0, 0]], np.float32)
    still, rng = np.zeros((1, 3), np.float32), [np.random.default_rng(0)]

    turned = vary(image, still, quarter, "border", (), rng)
    back = vary(turned, quarter, still, "border", (), rng)

    # A pose is clockwise; numpy turns the other way.
    assert difference(turned, np.rot90(image, -1, axes=(2, 3))) < 1
    assert difference(back, image) < 1
    assert difference(turned, image) > 10
    assert np.array_equal(vary(image, quarter, quarter, "border", (), rng), image)


def test_a_class_that_may_be_flipped_is_flipped():
    image, still = smooth(), np.zeros((1, 3), np.float32)
    allowed = [np.rot90(image, turns, axes=(2, 3)) for turns in range(4)]
    allowed += [image[..., ::-1], image[:, :, ::-1]]

    operations = augmentations("six_way")
    drawn = [
        vary(image, still, still, "reflection", operations, [np.random.default_rng(seed)])
        for seed in range(40)
    ]

    found = {[difference(one, other) < 1e-9 for other in allowed].index(True) for one in drawn}
    assert found == set(range(6))


@pytest.fixture
def budget(run, tmp_path):
    """Bytes of a file that hold some of the images of the class, but not all."""
    assert run("compress", "--class", "disc", *EXEMPLARS).exit_code == 0
    whole = ConditionsArtifact.load(tmp_path / "store" / "conditions" / "disc.safetensors")
    assert len(whole.exemplars) == 6, "all of them where there is room"
    return whole.file_bytes() - 100


def test_exemplars_stay_within_their_bytes_header_and_all(run, data, tmp_path, budget):
    path = tmp_path / "store" / "conditions" / "disc.safetensors"

    result = run("compress", "--class", "disc", *EXEMPLARS, "--set", f"budget={budget}")

    assert result.exit_code == 0, result.output
    kept = ConditionsArtifact.load(path)
    assert path.stat().st_size == kept.file_bytes() <= budget
    assert len(kept.exemplars) == len(kept.exemplar_poses) == 5
    real = load_images(train_samples(data, "disc"), kept.exemplar_size)
    stored = [decode(one, kept.exemplar_size) for one in kept.exemplars]
    nearest = [min(difference(one, image) for image in real) for one in stored]
    assert max(nearest) < 4


def test_exemplars_are_replayed_without_a_diffusion_model_and_the_same_each_time(run, tmp_path):
    assert run("compress", "--class", "disc", *EXEMPLARS).exit_code == 0
    path = tmp_path / "store" / "replays" / "disc.safetensors"
    drawing = ("replay", "--class", "disc", "--set")

    assert run(*drawing, "num_images=9").exit_code == 0
    first = path.read_bytes()
    replays = ReplaysReader(path)
    images, masks = replays.images(range(9)), replays.object_masks(range(9))
    assert replays.header["weights"] == {}
    assert run(*drawing, "num_images=9", "--force").exit_code == 0
    assert path.read_bytes() == first
    assert run(*drawing, "num_images=4").exit_code == 0
    fewer = ReplaysReader(path).images(range(4))
    assert np.array_equal(fewer, images[:4]), "an image is its seed's alone"
    assert masks.all()


def test_a_budget_too_small_for_one_image_says_how_much_is_needed(run, tmp_path):
    result = run("compress", "--class", "disc", *EXEMPLARS, "--budget", "500")

    assert result.exit_code == 1
    assert "a budget of 500 bytes holds no image of disc" in result.stderr
    needed = result.stderr.rpartition("give ")[2].split()[0]
    again = run("compress", "--class", "disc", *EXEMPLARS, "--set", f"budget={needed}")
    assert again.exit_code == 0, again.output
    path = tmp_path / "store" / "conditions" / "disc.safetensors"
    assert path.stat().st_size <= int(needed)


def test_the_banks_of_earlier_classes_stay_within_the_room_of_one(run, tmp_path):
    result = run(
        "run", "--class", "disc,plate", "--strategy", "finetune,features,ucad", "--detector",
        "patchcore", "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.output
    detectors = tmp_path / "store" / "detectors"
    known = {
        name: DetectorArtifact.load(detectors / f"run-{name}-patchcore.safetensors").state
        for name in ("step-1", "finetune-2", "features-2")
    }
    assert set(known["finetune-2"]["bank_class_index"].tolist()) == {1}
    assert set(known["features-2"]["bank_class_index"].tolist()) == {0, 1}
    kept = json.loads(result.stdout)["strategies"]["features"]["bytes_per_class"]
    assert kept["disc"] == kept["plate"] > 0


def test_a_sequence_with_exemplars_counts_the_bytes_of_its_files(run, tmp_path):
    result = run("run", "--class", "disc,plate", "--strategy", "replay,exemplars", "--json")

    assert result.exit_code == 0, result.output
    kept = json.loads(result.stdout)["strategies"]
    folder = tmp_path / "store" / "conditions"
    for name in ("disc", "plate"):
        own, other = folder / f"{name}.safetensors", folder / f"{name}-exemplars.safetensors"
        assert kept["replay"]["bytes_per_class"][name] == own.stat().st_size
        assert kept["exemplars"]["bytes_per_class"][name] == other.stat().st_size <= 200_000


def hybrid(run, tmp_path, *settings):
    """Conditions with real images beside them, as many as the settings allow."""
    result = run("compress", "--class", "disc", "--keep", "hybrid", *settings)
    assert result.exit_code == 0, result.output
    return ConditionsArtifact.load(tmp_path / "store" / "conditions" / "disc.safetensors")


def test_a_hybrid_holds_conditions_and_images_within_one_budget(run, tmp_path):
    plenty = hybrid(run, tmp_path)
    assert len(plenty.exemplars) == 6
    assert plenty.spatial_weight is not None

    budget = plenty.file_bytes() - 200
    little = hybrid(run, tmp_path, "--set", f"budget={budget}")

    assert len(little.semantic_embedding) > 0
    assert little.exemplars
    assert little.file_bytes() <= budget


def test_every_second_replay_of_a_hybrid_is_real_and_the_others_start_from_real_ones(
    run, tmp_path
):
    kept = hybrid(run, tmp_path)
    real = np.stack([decode(one, kept.exemplar_size) for one in kept.exemplars])
    assert run("replay", "--class", "disc", "--set", "strength=0.01").exit_code == 0
    path = tmp_path / "store" / "replays" / "disc.safetensors"
    images = ReplaysReader(path).images(range(6))

    # What fills the frame is turned and flipped, never moved; a tiny decoder knows no picture.
    turned = [apply_to_images(one, real) for one in augmentations("six_way")]
    nearest = [min(difference(image, one) for one in np.concatenate(turned)) for image in images]
    assert max(nearest[1::2]) == 0
    assert min(nearest[::2]) > 6

    assert run("replay", "--class", "disc", "--set", "strength=1").exit_code == 0
    again = ReplaysReader(path).images(range(6))
    assert np.array_equal(again[1::2], images[1::2])
    assert not np.array_equal(again[::2], images[::2])


def test_auto_keeps_the_very_images_of_the_form_that_tells_images_it_lacks_apart(
    run, tmp_path, monkeypatch
):
    monkeypatch.setattr("replaycad.continual.representations.TRIED_LEAST", 2)  # of six images
    monkeypatch.setattr("replaycad.continual.representations.NEAR", -2)  # so none comes near
    path = tmp_path / "store" / "conditions" / "disc.safetensors"
    assert run("compress", "--class", "disc", *EXEMPLARS).exit_code == 0
    one = len(ConditionsArtifact.load(path).exemplars[0])
    budget = str(path.stat().st_size - 3 * one + 250)

    again = ("compress", "--class", "disc", "--keep", "auto", "--budget", budget,
             "--set", "replay.num_images=12")  # fmt: skip
    result = run(*again)

    assert result.exit_code == 0, result.output
    kept = ConditionsArtifact.load(path)
    separations = kept.header["separations"]
    assert len(separations) >= 2
    assert all(0 <= value <= 1 for value in separations.values())
    assert kept.header["form"] == chosen_representation(separations)
    assert path.stat().st_size <= int(budget)
    assert run("replay", "--class", "disc").exit_code == 0
    assert states(run, *again) == [("hit", "")]
    assert states(run, *again, "--set", "replay.num_inference_steps=3") == [
        ("stale", "drawing of replays changed")
    ]
    assert states(run, *again, "--set", "num_variations=1") == [
        ("stale", "num_variations 8 -> 1")
    ]
    form = ("--keep", kept.header["form"])
    assert run("compress", "--class", "disc", *form, "--budget", budget).exit_code == 0
    alone = ConditionsArtifact.load(path)
    assert kept.header["content_id"] == alone.header["content_id"]


def test_auto_keeps_all_images_where_they_fit_and_searches_nothing(run, tmp_path):
    result = run("compress", "--class", "disc", "--keep", "auto")

    assert result.exit_code == 0, result.output
    kept = ConditionsArtifact.load(tmp_path / "store" / "conditions" / "disc.safetensors")
    assert (kept.header["form"], kept.header["separations"]) == ("exemplars", {})
    assert list(kept.header["weights"]) == ["encoder"]
    assert len(kept.exemplars) == 6
    assert not len(kept.semantic_embedding)


@pytest.mark.parametrize(
    ("separations", "form"),
    [
        ({"exemplars": 0.6, "hybrid": 0.63, "conditions": 0.64}, "exemplars"),
        ({"exemplars": 0.6, "hybrid": 0.66, "conditions": 0.7}, "hybrid"),
        ({"exemplars": 0.6, "hybrid": 0.66, "conditions": 0.72}, "conditions"),
        ({"hybrid": 0.5, "conditions": 0.51}, "hybrid"),
        ({"conditions": 0.1}, "conditions"),
    ],
)
def test_a_form_that_needs_more_must_be_clearly_better(separations, form):
    assert chosen_representation(separations) == form


def test_forms_are_tried_with_as_many_replays_as_are_learned_from_up_to_a_limit():
    few, many = ReplayConfig(num_images=7), ReplayConfig(num_images=10_000, compile=True)

    assert tried_drawing(few, "mini") == ReplayConfig(num_images=7, backbone="mini")
    assert tried_drawing(many, "mini") == tried_drawing(ReplayConfig(num_images=999), "mini")


def test_what_was_pasted_is_where_the_mask_says():
    images = smooth(count=5, size=64)

    spoilt, masks = cut_and_paste(images, generator(0, "paste"))
    again, _ = cut_and_paste(images, generator(0, "paste"))

    changed = (spoilt != images).any(1)
    assert (spoilt == again).all()
    assert not (changed & ~masks).any()
    assert (masks.mean((1, 2)) > 0.005).all()
    assert (masks.mean((1, 2)) < 0.08).all()
    assert changed[masks].mean() > 0.9


def test_sharp_images_of_a_class_separate_better_than_its_blur(bundled_encoder):
    rng = np.random.default_rng(0)
    part = rng.integers(0, 2, (1, 1, 8, 8)).repeat(8, 2).repeat(8, 3) * 160 + 40
    sharp = (part + rng.normal(0, 6, (24, 3, 64, 64))).clip(0, 255).astype(np.uint8)
    blur = np.full_like(sharp, 120) + (sharp // 16)

    banks = {
        form: Memory.of(images[:12], bundled_encoder, generator(0, "bank"), WHOLE)
        for form, images in {"exemplars": sharp, "conditions": blur}.items()
    }
    found = separations(banks, sharp[12:], bundled_encoder, generator(0, "pasted"))

    assert found["exemplars"] > found["conditions"]


def test_auto_leaves_out_what_the_budget_does_not_hold(run, tmp_path, monkeypatch):
    monkeypatch.setattr("replaycad.continual.representations.NEAR", -2)  # so none comes near
    result = run("compress", "--class", "disc", "--keep", "auto", "--budget", "3350")

    assert result.exit_code == 0, result.output
    assert "not as conditions" in result.stderr
    path = tmp_path / "store" / "conditions" / "disc.safetensors"
    kept = ConditionsArtifact.load(path)
    assert (kept.header["form"], kept.header["separations"]) == ("exemplars", {})
    assert path.stat().st_size <= 3350

    assert run("compress", "--class", "disc", "--keep", "auto", "--budget", "900").exit_code == 1


def test_auto_keeps_conditions_where_no_image_fits(run, tmp_path):
    folder = tmp_path / "noise" / "disc" / "train" / "good"
    folder.mkdir(parents=True)
    for index in range(6):
        noise = np.random.default_rng(index).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{index}.png")

    result = run("compress", "--class", "disc", "--keep", "auto", "--budget", "3900",
                 "--set", "exemplar_quality=100", "--set", "exemplar_size=32",
                 data=tmp_path / "noise")  # fmt: skip

    assert result.exit_code == 0, result.output
    assert "not as exemplars" in result.stderr
    assert "not as hybrid" in result.stderr
    path = tmp_path / "store" / "conditions" / "disc.safetensors"
    kept = ConditionsArtifact.load(path)
    assert (kept.header["form"], len(kept.exemplars)) == ("conditions", 0)
    assert path.stat().st_size <= 3900


def test_distance_is_nought_for_the_same_images_and_grows_with_what_is_missing(bundled_encoder):
    images = smooth(count=6, size=64)

    found = [
        distance(images[:count], images, bundled_encoder, generator(0, "bank"))
        for count in (6, 3, 1)
    ]

    assert found[0] < 0.2 * found[1]
    assert found[1] < found[2]


def test_symmetries_of_noise_are_all_and_of_a_gradient_the_one_that_keeps_it(bundled_encoder):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (24, 3, 64, 64), np.uint8)
    ramp = np.broadcast_to(np.linspace(30, 220, 64), (24, 3, 64, 64))  # dark to the left
    ramp = (ramp + rng.normal(0, 4, ramp.shape)).clip(0, 255).astype(np.uint8)

    of_noise, of_ramp = (
        symmetries(images, bundled_encoder, generator(0, "halves")) for images in (noise, ramp)
    )

    assert of_noise == augmentations("six_way")
    assert of_ramp == [Operation(), Operation(flip="up_down")]
    assert symmetries(noise[:1], bundled_encoder, generator(0, "halves")) == [Operation()]


@pytest.fixture(scope="session")
def bundled_encoder():
    return load_encoder("mini")


def test_a_part_before_a_plain_ground_is_moved_to_poses_of_its_class():
    policy = {"mask_rule": "corners", "replay_augmentation": "identity"}
    image = smooth(size=32)[0]
    conditions = ConditionsArtifact(
        class_name="part", semantic_embedding=np.zeros((0, 0), np.float32), spatial_weight=None,
        spatial_bias=None, object_masks=np.zeros((0, 32, 32), np.bool_), policy=policy,
        exemplars=(encode(image, 95),), exemplar_poses=np.zeros((1, 3), np.float32),
        poses=np.array([[90, 0, 0], [180, 0, 0]], np.float32),
    )  # fmt: skip

    drawn = [kept_images(conditions).varied(seed) for seed in range(12)]

    wanted = [np.rot90(image, -turns, axes=(1, 2)) for turns in (1, 2)]
    found = {int(np.argmin([difference(one, other) for other in wanted])) for one in drawn}
    assert found == {0, 1}
    assert max(min(difference(one, other) for other in wanted) for one in drawn) < 3


@pytest.mark.parametrize("stored", [b"no image", encode(np.zeros((3, 64, 64), np.uint8), 60)])
def test_an_exemplar_that_is_no_image_or_of_another_size_is_named(stored):
    conditions = ConditionsArtifact(
        class_name="part", semantic_embedding=np.zeros((0, 0), np.float32), spatial_weight=None,
        spatial_bias=None, object_masks=np.zeros((0, 32, 32), np.bool_), policy={},
        exemplars=(stored,), exemplar_poses=np.zeros((1, 3), np.float32),
    )  # fmt: skip

    with pytest.raises(ArtifactError, match="an image among the conditions of part"):
        kept_images(conditions)


def test_exemplars_whose_ends_do_not_rise_are_damaged(tmp_path):
    header = {"class_name": "part", "policy": {}, "mask_width": 8}
    tensors = {
        "semantic_embedding": np.zeros((0, 0), np.float32),
        "object_masks": np.zeros((0, 8, 1), np.uint8),
        "exemplars": np.zeros(9, np.uint8),
        "exemplar_ends": np.array([5, 4, 9]),
        "exemplar_poses": np.zeros((3, 3), np.float32),
    }
    write(tmp_path / "one.safetensors", CONDITIONS, tensors, header)

    with pytest.raises(ArtifactError, match="expected rising `exemplar_ends` up to 9"):
        ConditionsArtifact.load(tmp_path / "one.safetensors")
