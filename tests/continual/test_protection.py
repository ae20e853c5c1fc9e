"""A training under a guard: what it goes on from, what it leaves, and that it can be cut short."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from replaycad.config.stages import TrainConfig
from replaycad.continual import guard as guards
from replaycad.continual.guard import output_projection
from replaycad.data.mixture import Mixture, Source
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.registry import (
    DETECTORS,
    build_detector,
    resolve_defaults,
    training_of,
)
from replaycad.detectors.settings import OptimizerSettings
from replaycad.errors import ArtifactError, ConfigError
from replaycad.stages.train import train_detector

SIDE = 64
SECOND = "decoder.1.feed_forward.layers.3"


class Noise:
    """Images `[count, 3, SIDE, SIDE]` of one class, for `Source`."""

    def __init__(self, seed, count=6):
        random = np.random.default_rng(seed)
        flats = random.integers(40, 200, (count, 3, 1, 1)) + random.integers(-30, 30, (SIDE, SIDE))
        self._images = flats.clip(0, 255).astype(np.uint8)
        self.header = {}

    def __len__(self):
        return len(self._images)

    def images(self, rows):
        return self._images[list(rows)]


class Kept:
    """A checkpoint in memory, which ends the training at a step."""

    def __init__(self, stop=0):
        self.kept, self._stop = None, stop

    def load(self):
        return self.kept

    def save(self, step, tensors):
        self.kept = (step, {name: value.copy() for name, value in tensors.items()})
        if step == self._stop:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("mini")


def trained(encoder, seed=1, init=None, checkpoint=None, **changes):
    """Learn a class, the first one or one more."""
    order = [*(init.class_order if init else []), f"class {seed}"]
    source = Source(class_index=len(order) - 1, replays=Noise(seed))
    named = {"detector": "iuf", "guard": "iuf", "init": "before" if init else "", "num_steps": 4}
    sizes = {"batch_size": 3, "image_size": SIDE}
    config = resolve_defaults(TrainConfig(**named | sizes | changes))
    header = {"config": {"encoder": "mini", "guard": config.guard}, "weights": {}}
    return train_detector(
        Mixture([source], SIDE), order, encoder, config, 0, header, checkpoint=checkpoint,
        init=init, save_every_seconds=0.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def first(encoder):
    return trained(encoder)


def test_later_classes_are_trained_as_the_preset_says_under_a_guard():
    mini = DETECTORS["iuf"]["mini"]

    def of(**changes):
        return training_of(TrainConfig(detector="iuf", **changes))

    assert of() == of(init="a") == of(guard="iuf") == mini.training
    assert of(init="a", guard="iuf") == mini.later
    adam = of(init="a", guard="iuf-adam")
    assert adam == replace(mini.later, optimizers=mini.training.optimizers)
    assert isinstance(adam.optimizers[0], OptimizerSettings)
    found = resolve_defaults(TrainConfig(detector="iuf", init="a", guard="iuf"))
    assert (found.num_steps, found.learning_rate) == (
        mini.later.num_steps, mini.later.optimizers[0].learning_rate,
    )  # fmt: skip
    assert mini.later.grad_clip == 0.1
    assert mini.later.optimizers[0].kind == "sgd"


def test_a_class_leaves_a_matrix_of_each_layer_and_the_next_adds_to_it(encoder, first):
    second = trained(encoder, 2, first)

    assert set(first.guard) == set(second.guard)
    assert len(first.guard) == 4
    for name, moment in first.guard.items():
        assert moment.shape == (128, 128)
        assert np.linalg.eigvalsh(second.guard[name] - moment).min() > -1e-3 * moment.max()
        assert np.trace(second.guard[name]) > np.trace(moment)
    assert trained(encoder, guard="none").guard == {}
    assert trained(encoder, guard="iuf-noproject").guard == {}


def test_a_class_leaves_the_same_whether_its_layers_fit_together_or_one_by_one(
    encoder, first, monkeypatch
):
    monkeypatch.setattr(guards, "MOMENT_BYTES", 1)
    again = trained(encoder)
    for name, moment in first.guard.items():
        assert np.array_equal(again.guard[name], moment)


def test_steps_of_a_later_class_are_held(encoder, first):
    # One step: what has no matrix takes a plain step, what has one a step along its projection.
    held = trained(encoder, 2, first, num_steps=1)
    free = trained(encoder, 2, replace(
        first, header={**first.header, "config": {"guard": "iuf-noproject"}}
    ), num_steps=1, guard="iuf-noproject")  # fmt: skip

    for part in ("weight", "bias"):
        name = f"{SECOND}.{part}"
        start = first.state[name]
        moment = torch.from_numpy(first.guard[SECOND])
        wanted = output_projection(moment).numpy() @ (free.state[name] - start)
        np.testing.assert_allclose(held.state[name] - start, wanted, atol=2e-6)
        assert np.abs(free.state[name] - start).max() > 1e-4
    assert np.array_equal(held.state["project.weight"], free.state["project.weight"])


@pytest.mark.parametrize("guard", ["iuf", "iuf-adam", "iuf-nopull"])
def test_a_held_training_that_was_cut_short_ends_as_if_it_had_not(guard, encoder):
    first = trained(encoder, guard=guard)
    whole = trained(encoder, 2, first, guard=guard)
    checkpoint = Kept(stop=2)
    with pytest.raises(KeyboardInterrupt):
        trained(encoder, 2, first, checkpoint, guard=guard)
    checkpoint._stop = 0

    resumed = trained(encoder, 2, first, checkpoint, guard=guard)

    assert set(resumed.state) == set(whole.state)
    for name, values in whole.state.items():
        assert np.array_equal(resumed.state[name], values), name
    for name, moment in whole.guard.items():
        assert np.array_equal(resumed.guard[name], moment)


def test_a_first_training_that_was_cut_short_compresses_as_before(encoder, first):
    checkpoint = Kept(stop=2)
    with pytest.raises(KeyboardInterrupt):
        trained(encoder, checkpoint=checkpoint)
    checkpoint._stop = 0

    resumed = trained(encoder, checkpoint=checkpoint)

    for name, values in first.state.items():
        assert np.array_equal(resumed.state[name], values), name


def test_a_network_with_its_channels_last_goes_on_as_if_it_had_not_been_cut_short():
    encoder = load_encoder("mini", levels=DETECTORS["cdad"]["mini"].levels)
    settings = {"detector": "cdad", "guard": "none", "image_size": 128, "num_steps": 3}
    whole, checkpoint = trained(encoder, **settings), Kept(stop=2)
    with pytest.raises(KeyboardInterrupt):
        trained(encoder, checkpoint=checkpoint, **settings)
    checkpoint._stop = 0

    resumed = trained(encoder, checkpoint=checkpoint, **settings)

    for name, values in whole.state.items():
        assert np.array_equal(resumed.state[name], values), name


@pytest.mark.parametrize("penalty", ["ewc", "mas"])
def test_a_penalty_holds_a_detector_whose_head_grows_by_a_row_a_class(encoder, penalty):
    changes = {"guard": "none", "penalty": penalty, "num_steps": 2}
    last, rows = None, []
    for seed in (1, 2, 3):
        last = trained(encoder, seed, last, **changes)
        last = replace(last, header=last.header | {"config": {"penalty": penalty}})
        rows.append(len(last.penalty["discriminator.weight"]))
    assert rows == [1, 2, 3]


def test_bases_take_two_bytes_for_each_input_and_direction():
    encoder = load_encoder("mini", levels=DETECTORS["cdad"]["mini"].levels)
    kept = trained(
        encoder, detector="cdad", guard="cdad", image_size=128, num_steps=1, batch_size=6
    )

    detector = build_detector("cdad", "mini", encoder.channels, encoder.strides, 128)
    named = dict(detector.named_modules())
    assert set(kept.guard) == set(detector.guarded())
    total = 0
    for name, basis in kept.guard.items():
        wide = named[name].weight[0].numel()
        assert basis.shape[0] == wide
        assert 1 <= basis.shape[1] <= wide
        total += wide * basis.shape[1] * 2
    assert sum(basis.nbytes for basis in kept.guard.values()) == total


def test_a_detector_of_another_guard_is_refused(encoder, first):
    with pytest.raises(ArtifactError, match="trained with the guard 'iuf', not 'iuf-adam'"):
        trained(encoder, 2, first, guard="iuf-adam")


def test_a_guard_of_another_detector_is_refused(encoder):
    with pytest.raises(ConfigError, match="'iuf' belongs to the detector iuf, not uniad"):
        trained(encoder, detector="uniad", image_size=128, num_steps=1)
