"""What holds of every detector: published size, a narrow interface, and that it finds a scratch."""

from pathlib import Path

import pytest
import torch

from replaycad.cli.options import Detector
from replaycad.detectors import registry
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.optimization import make_optimizers, optimize_step
from replaycad.detectors.registry import (
    DETECTORS,
    build_detector,
    detector_class,
    preset_for,
)
from replaycad.detectors.settings import PICTURE
from replaycad.errors import ConfigError
from tests.learned import standing_still, tied

SIZE = 64
NUM_CLASSES = 2
SEES_REGIONS = "ucad"  # of which stripes have one, so that nothing is learned of them
NEAR = 10  # pixels; the features that see a scratch are 8 and 16 px apart
CONVOLUTIONAL = {
    "wide_resnet50_2": ((64, 256, 512, 1024), (2, 4, 8, 16)),
    "resnet34": ((64, 64, 128, 256), (2, 4, 8, 16)),
    "tf_efficientnet_b4": ((24, 32, 56, 160), (2, 4, 8, 16)),
    "tf_efficientnet_b6": ((32, 40, 72, 200), (2, 4, 8, 16)),
}
TRANSFORMERS = {"vit_base_patch14": (768, 14), "vit_small_patch14": (384, 14)}
PUBLISHED = {  # trained parameters, as in the papers or counted in their published networks
    ("invad", "full"): 70_768_560,
    ("invad", "lite"): 8_976_240,
    ("patchcore", "full"): 0,
    ("patchcore", "lite"): 0,
    ("simplenet", "full"): 3_937_792,
    ("dinomaly", "full"): 61_425_408,
    ("dinomaly", "lite"): 15_377_280,
    ("uniad", "full"): 7_778_832,
    ("rlr", "full"): 21_514_512,
    ("mambaad", "full"): 17_456_960,
    # UniAD's with 196 tokens for 256, a norm, and a discriminator of 1.39 million that knows no
    # class yet
    ("iuf", "full"): 7_778_832 - 60 * 4 * 256 - 2 * 2 * 128 + 512 + 1_387_520,
}
STEPS = {"mambaad": 20}  # in which it learns a class; 60 for the others
BY_LOSS = [name for name in DETECTORS if detector_class(name).trained_by != "fit"]
POINTING = [name for name in DETECTORS if detector_class(name).localizes]


def pyramid_of(preset):
    """Channels and strides of the levels that a published preset reads."""
    name = preset.encoder.partition(".")[0]
    for start, (width, patch) in TRANSFORMERS.items():
        if name.startswith(start):
            return (width,) * len(preset.levels), (patch,) * len(preset.levels)
    channels, strides = CONVOLUTIONAL[name]
    both = dict(enumerate(zip(channels, strides, strict=True))) | {PICTURE: (3, 1)}
    return tuple(zip(*(both[level] for level in preset.levels), strict=True))


@pytest.fixture(scope="session")
def bundled():
    """Detector -> the bundled encoder with the levels that its mini preset reads."""
    levels = {name: preset_for(name, "mini").levels for name in DETECTORS}
    return {name: load_encoder("mini", "cpu", wanted) for name, wanted in levels.items()}


def mini(name, encoder, seed=0):
    detector = build_detector(name, "mini", encoder.channels, encoder.strides, SIZE, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector.begin(NUM_CLASSES, is_first=True)
    return detector


def learn(detector, name, features, num_steps):
    """Train on one batch as the preset says; returns the losses."""
    losses = [] if detector.trained_by == "fit" else descend(detector, name, features, num_steps)
    if detector.trained_by != "loss":
        detector.fit([features], 0, torch.Generator().manual_seed(0))
    return losses


def descend(detector, name, features, num_steps):
    training = preset_for(name, "mini").training
    classes = torch.arange(len(features[0])) % NUM_CLASSES
    optimizers = make_optimizers(detector, training, training.optimizers[0].learning_rate)
    detector.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [
            optimize_step(
                detector, optimizers, features, training, step / num_steps, class_index=classes
            ).item()
            for step in range(num_steps)
        ]


@pytest.mark.parametrize(("name", "size"), PUBLISHED)
def test_presets_of_the_papers_have_the_published_number_of_parameters(name, size):
    preset = preset_for(name, size)
    channels, strides = pyramid_of(preset)

    with torch.device("meta"):
        detector = build_detector(name, size, channels, strides, preset.image_size)

    trained = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == PUBLISHED[name, size]


@pytest.mark.parametrize("name", POINTING)
def test_it_over_fits_a_class_and_points_at_a_scratch(name, bundled, stripes):
    normal, scratched, scratch = stripes
    encoder = bundled[name]
    detector = mini(name, encoder)

    losses = learn(detector, name, encoder.encode_images(normal[1:]), STEPS.get(name, 60))
    maps = detector.anomaly_maps(encoder.encode_images(torch.cat([normal, scratched])))

    scores = detector.image_scores(maps)
    off, on = scores[:4], scores[4]
    row, column = divmod(maps[4].argmax().item(), SIZE)
    if losses and name != SEES_REGIONS:
        assert losses[-1] < 0.9 * losses[0]
    assert on > off.max() + 2 * (off.max() - off.min())
    near = scratch[max(0, row - NEAR) : row + NEAR + 1, max(0, column - NEAR) : column + NEAR + 1]
    assert near.any()
    assert maps[4][scratch].mean() > maps[4][~scratch].mean() + maps[:4].std()


@pytest.mark.parametrize("name", DETECTORS)
def test_maps_are_of_image_size_alone_in_a_batch_and_leave_the_detector_alone(
    name, bundled, stripes
):
    encoder = bundled[name]
    detector = mini(name, encoder)
    features = encoder.encode_images(stripes[0])
    learn(detector, name, features, 1)
    before = {key: value.clone() for key, value in detector.state_dict().items()}

    maps = detector.anomaly_maps(features)
    alone = detector.anomaly_maps([level[2:3].half() for level in features])

    assert maps.shape == (4, SIZE, SIZE)
    assert alone.dtype == maps.dtype == torch.float32
    assert not maps.requires_grad
    assert detector.training
    assert detector.image_scores(maps).shape == (4,)
    torch.testing.assert_close(alone[0], maps[2], atol=0.02, rtol=0.02)
    assert all(torch.equal(before[key], value) for key, value in detector.state_dict().items())


@pytest.mark.parametrize("name", BY_LOSS)
def test_its_state_is_all_that_going_on_needs(name, bundled, stripes):
    encoder = bundled[name]
    first, second = mini(name, encoder, seed=0), mini(name, encoder, seed=1)
    features = encoder.encode_images(stripes[0])
    learn(first, name, features, 2)

    second.load_state_dict(first.state_dict())
    losses = [learn(detector, name, features, 2) for detector in (first, second)]

    assert losses[0] == losses[1]
    assert torch.equal(first.anomaly_maps(features), second.anomaly_maps(features))


@pytest.mark.parametrize("name", BY_LOSS)
def test_what_it_makes_of_the_features_moves_nearly_every_parameter(name, bundled, stripes):
    encoder = bundled[name]
    detector = mini(name, encoder)

    outputs = detector(encoder.encode_images(stripes[0]))
    sum(level.square().mean() for level in outputs).backward()

    # What IUF sees of the object is detached.
    named = {
        key: p for key, p in detector.named_parameters()
        if p.requires_grad and not key.startswith("discriminator.")
    }
    moved = sum(p.numel() for p in named.values() if p.grad is not None and p.grad.any())
    assert moved > 0.9 * sum(p.numel() for p in named.values())


@pytest.mark.parametrize("name", [name for name in BY_LOSS if name != SEES_REGIONS])
def test_every_learned_tensor_moves_and_no_two_of_its_rows_alike(name, bundled, stripes):
    encoder = bundled[name]
    detector = mini(name, encoder)
    named = {key: p for key, p in detector.named_parameters() if p.requires_grad}
    before = {key: p.detach().clone() for key, p in named.items()}

    descend(detector, name, encoder.encode_images(stripes[0]), 5)

    after = {key: p.detach() for key, p in named.items()}
    assert standing_still(before, after) == []
    # A scan's skip adds D x at the same place whichever way it runs, so only the sum over the ways
    # counts, in the published network too: one number told eight times, not a lost one.
    assert [found for found in tied(after, before) if ".skip:" not in found] == []


def test_every_folder_of_a_detector_is_registered_and_named_in_the_help():
    folders = {path.parent.name for path in Path(registry.__file__).parent.glob("*/network.py")}

    assert folders == set(DETECTORS)
    (option,) = Detector.__metadata__
    assert all(name in option.help for name in DETECTORS)


@pytest.mark.parametrize("name", DETECTORS)
def test_its_presets_say_what_its_network_does(name):
    network = detector_class(name)

    for preset in DETECTORS[name].values():
        assert bool(preset.training.optimizers) == (network.trained_by != "fit")
        assert preset.has_memory_banks == (network.trained_by == "fit")
    assert DETECTORS[name]["mini"].encoder == "mini"


@pytest.mark.parametrize("name", sorted({*DETECTORS} - {"patchcore"}))  # which takes both kinds
def test_features_of_another_kind_of_encoder_are_refused_in_one_line(name):
    largest, preset = next(iter(DETECTORS[name].items()))
    is_transformer = preset.encoder.startswith("vit")
    channels, strides = ((64, 128, 256), (4, 8, 16)) if is_transformer else ((384,) * 3, (14,) * 3)

    with pytest.raises(ConfigError) as caught:
        build_detector(name, largest, channels, strides, 224)

    assert caught.value.hint
    assert "\n" not in str(caught.value)
