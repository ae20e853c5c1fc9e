"""The guarded step: what it leaves as it was, exactly, and that without it nothing stays."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from replaycad.config import stages as settings
from replaycad.continual import guard as guards
from replaycad.continual.guard import (
    HOLDS,
    Guard,
    Hold,
    extended,
    in_groups,
    inputs_of,
    moments,
    orthonormal,
    output_projection,
    remembered,
)
from replaycad.detectors.interface import Detector
from replaycad.detectors.optimization import optimize_step
from replaycad.detectors.settings import TrainingSettings
from replaycad.runtime import generator

INPUT = Hold(side="input", freezes_others=True, energy=0.99)
OUTPUT = Hold(side="output")
TRAINING = TrainingSettings(grad_clip=0.0, schedule="constant")


class Layers(Detector):
    """Tokens of 12 numbers through a layer of 8, a norm and a layer of 6."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(12, 8)
            self.norm = nn.LayerNorm(8)
            self.last = nn.Linear(8, 6)

    def guarded(self):
        return ["first", "last"]

    def forward(self, features):
        return [self.last(self.norm(self.first(features[0].flatten(2).transpose(1, 2))))]

    def loss(self, features, _progress=0.0):
        return (self(features)[0] - 1.0).square().mean()

    def anomaly_maps(self, features):
        return self(features)[0]


def pyramid(seed, rank=12, count=4):
    """Images of 12 channels and 9 places, whose tokens lie near `rank` directions."""
    stream = generator(seed, "pyramid")
    codes = torch.randn(count, 9, rank, generator=stream)
    ways = torch.randn(rank, 12, generator=stream)
    noise = 0.02 * torch.randn(count, 9, 12, generator=stream)
    return [(codes @ ways + noise).transpose(1, 2).reshape(count, 12, 3, 3)]


def adam(detector, rate=0.1):
    wanted = [one for one in detector.parameters() if one.requires_grad]
    return [torch.optim.AdamW([{"params": wanted, "base_rate": rate}], weight_decay=0.01)]


def trained(detector, features, guard=None, steps=5, make=adam):
    optimizers = make(detector)
    for _ in range(steps):
        optimize_step(detector, optimizers, features, TRAINING, guard=guard)
    return detector


def started(hold, *seeds, energy_of=3):
    """A detector and what it remembers of some classes."""
    detector, memory = Layers(), {}
    for seed in seeds:
        found = moments(
            detector, layers_of(detector), [pyramid(seed, energy_of)], hold.side
        )
        memory = {
            name: extended(memory.get(name, one.new_zeros(len(one), 0).half()), one, hold.energy)
            if hold.side == "input" else memory.get(name, 0) + one
            for name, one in found.items()
        }  # fmt: skip
    return detector, memory


def layers_of(detector):
    return {name: getattr(detector, name) for name in detector.guarded()}


def share_within(detector, weight, basis):
    change = detector.first.weight.detach().double() - weight.double()
    return float((change @ orthonormal(basis)).norm() / change.norm())


def test_a_step_of_adam_changes_nothing_for_inputs_of_the_class_before():
    detector, memory = started(INPUT, 0)
    before = detector.first.weight.detach().clone()
    basis = memory["first"]
    assert basis.shape == (12, 3)

    trained(detector, pyramid(1), Guard(detector, memory, INPUT), steps=1)
    held = share_within(detector, before, basis)
    plain = trained(Layers(), pyramid(1), steps=1)

    assert held <= 1e-5
    assert share_within(plain, before, basis) > 0.1
    gradient = Hold(side="input", what="gradient", freezes_others=True)
    released = Layers()
    trained(released, pyramid(1), Guard(released, memory, gradient), steps=1)
    assert share_within(released, before, basis) > 0.1, "Adam brings it back"


def test_how_far_outputs_move_on_the_data_that_a_basis_was_made_of():
    detector, memory = started(INPUT, 0)
    before = detector.first.weight.detach().clone().double()
    tokens = pyramid(0, 3)[0].flatten(2).transpose(1, 2).flatten(0, 1).double()

    def moved(one):
        change = one.first.weight.detach().double() - before
        bound = torch.linalg.matrix_norm(change, 2) * math.sqrt(1 - INPUT.energy) * tokens.norm()
        return float((tokens @ change.T).norm() / bound)

    trained(detector, pyramid(1), Guard(detector, memory, INPUT))
    assert moved(detector) <= 1
    assert moved(trained(Layers(), pyramid(1))) > 1


@pytest.mark.parametrize("energy", [0.9, 0.99, 0.999])
def test_a_basis_covers_its_share_of_every_class_for_good(energy):
    basis, known = torch.zeros(12, 0).half(), []
    for seed in range(4):
        tokens = pyramid(seed, 2)[0].flatten(2).transpose(1, 2).flatten(0, 1).double()
        known.append(10.0 ** -seed * tokens.T @ tokens)  # later classes have smaller activations
        wider = extended(basis, known[-1], energy)
        assert torch.equal(wider[:, : basis.shape[1]], basis), "nothing is taken away"
        basis = wider
        columns = orthonormal(basis)
        assert (columns.T @ columns - torch.eye(columns.shape[1])).abs().max() <= 1e-5
        for moment in known:
            assert (columns.T @ moment @ columns).trace() >= energy * moment.trace()
    assert 4 <= basis.shape[1] < 12
    assert extended(basis, known[0], energy) is basis, "what it knows adds nothing"


def test_a_basis_grows_by_no_more_than_it_lacks():
    basis = torch.eye(4)[:, :1].half()
    moment = torch.diag(torch.tensor([100.0, 0.001, 10.0, 0.5], dtype=torch.float64))

    wider = extended(basis, moment, 0.99)

    assert wider[:, 1].abs().tolist() == [0, 0, 1, 0], "110 of 110.501 are 0.995"
    assert wider.shape == (4, 2)


def test_a_full_basis_freezes_a_layer_and_an_empty_one_does_nothing():
    full = {name: torch.eye(width).half() for name, width in (("first", 12), ("last", 8))}
    detector = Layers()
    before = detector.first.weight.detach().clone()
    trained(detector, pyramid(1), Guard(detector, full, INPUT))
    assert (detector.first.weight - before).abs().max() < 1e-6

    none = {name: one[:, :0] for name, one in full.items()}
    hold = Hold(side="input")
    held, plain = Layers(), Layers()
    trained(held, pyramid(1), Guard(held, none, hold))
    trained(plain, pyramid(1))
    drift = [
        (one - other).abs().max()
        for one, other in zip(held.parameters(), plain.parameters(), strict=True)
    ]
    assert max(drift) < 1e-6
    assert extended(torch.eye(12).half(), torch.eye(12).double(), 1.0).shape == (12, 12)


def test_what_has_no_matrix_stays_as_it_is():
    detector, memory = started(INPUT, 0)
    before = {name: one.detach().clone() for name, one in detector.named_parameters()}

    trained(detector, pyramid(1), Guard(detector, memory, INPUT))

    moved = {
        name for name, one in detector.named_parameters() if not torch.equal(one, before[name])
    }
    assert moved == {"first.weight", "last.weight"}


def test_the_order_of_classes_does_not_matter_on_the_output_side():
    one, other = started(OUTPUT, 0, 1)[1], started(OUTPUT, 1, 0)[1]
    for name, moment in one.items():
        assert torch.allclose(moment, other[name], rtol=1e-12)
    alone = [started(OUTPUT, seed)[1]["first"] for seed in (0, 1)]
    assert torch.allclose(one["first"], sum(alone), rtol=1e-12)


def test_of_a_step_each_direction_of_outputs_has_its_weight():
    stream = generator(0, "moment")
    directions = torch.linalg.qr(torch.randn(8, 8, generator=stream, dtype=torch.float64)).Q
    moment = directions * torch.arange(8.0, 0.0, -1.0, dtype=torch.float64) @ directions.T
    step = torch.randn(8, 12, generator=stream, dtype=torch.float64)

    held = directions.T @ (output_projection(moment).double() @ step)

    wanted = torch.arange(1, 9).double().log()[:, None] / math.log(8) * (directions.T @ step)
    assert torch.allclose(held, wanted, atol=1e-5)
    assert held[0].abs().max() < 1e-6, "the leading direction stays"


def test_directions_that_no_image_had_are_free():
    moment = torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.0, 0.0], dtype=torch.float64))

    found = output_projection(moment)

    wanted = [0.0, math.log(2) / math.log(5), math.log(3) / math.log(5), 1.0, 1.0]
    assert torch.allclose(found, torch.diag(torch.tensor(wanted)), atol=1e-6)


@pytest.mark.parametrize("count", [40, 10])
def test_directions_count_however_far_the_mean_of_outputs_lies(count):
    # Token means of 16 numbers about 10, which vary by 1 to 1e-5: as the singular vectors of their
    # rows say, of which there may be fewer than directions.
    stream = np.random.default_rng(0)
    rows = 10 + stream.normal(size=(count, 16)) * 10.0 ** -np.linspace(0, 5, 16)
    _, _, vectors = np.linalg.svd(rows)
    weights = np.log(np.arange(1, 17)) / np.log(16)
    weights[count:] = 1

    found = output_projection(torch.from_numpy(rows.T @ rows))

    np.testing.assert_allclose(found, vectors.T * weights @ vectors, atol=1e-4)


def test_weight_and_bias_move_alike_under_the_output_side():
    # With plain SGD a held step is a held gradient.
    detector, memory = started(OUTPUT, 0)
    plain = Layers()
    projection = output_projection(memory["first"])

    def sgd(one):
        return [torch.optim.SGD([{"params": one.parameters(), "base_rate": 0.5}])]

    start = {name: one.detach().clone() for name, one in plain.named_parameters()}
    trained(detector, pyramid(1), Guard(detector, memory, OUTPUT), steps=1, make=sgd)
    trained(plain, pyramid(1), steps=1, make=sgd)
    for name in ("first.weight", "first.bias"):
        change = dict(plain.named_parameters())[name].detach() - start[name]
        held = dict(detector.named_parameters())[name].detach() - start[name]
        assert torch.allclose(held, projection @ change, atol=1e-6)
    assert torch.equal(detector.norm.weight, plain.norm.weight)


def test_a_pull_bounds_the_way_from_the_weights_before_however_long():
    # After any number of steps of at most rate * clip: rate * clip / pull.
    detector = Layers()
    start = torch.cat([one.detach().flatten() for one in detector.parameters()]).clone()
    training = TrainingSettings(grad_clip=0.1, schedule="constant")
    guard = Guard(detector, {}, Hold(side="output", what="nothing", pull=0.05))
    optimizers = [torch.optim.SGD([{"params": detector.parameters(), "base_rate": 1.0}])]
    ways = []
    for number in range(200):
        optimize_step(detector, optimizers, pyramid(number), training, guard=guard)
        now = torch.cat([one.detach().flatten() for one in detector.parameters()])
        ways.append(float((now - start).norm()))
    assert max(ways) <= 1.0 * 0.1 / 0.05
    assert max(ways) > 0.1, "of more than a step"


def test_a_whole_pull_starts_each_step_where_the_class_before_ended():
    detector = Layers()
    start = detector.first.weight.detach().clone()
    guard = Guard(detector, {}, Hold(side="output", what="nothing", pull=1.0))
    for number in range(3):
        guard.before_step()
        assert torch.equal(detector.first.weight, start)
        trained(detector, pyramid(number), steps=1)
    assert not torch.equal(detector.first.weight, start)


def test_weights_and_statistics_are_pulled_before_the_loss_is_taken():
    # A whole pull: each step then is the one from the start, and statistics have seen one batch.
    torch.manual_seed(0)
    once, twice = (Layers() for _ in range(2))
    for one in (once, twice):
        one.norm = nn.Sequential(nn.Flatten(0, 1), nn.BatchNorm1d(8), nn.Unflatten(0, (4, 9)))
        guard = Guard(one, {}, Hold(side="output", what="nothing", pull=1.0))
        optimizers = [torch.optim.SGD([{"params": one.parameters(), "base_rate": 0.5}])]
        for _ in range(2 if one is twice else 1):
            optimize_step(one, optimizers, pyramid(1), TRAINING, guard=guard)
    for name, values in once.state_dict().items():
        if values.is_floating_point():
            assert torch.equal(values, twice.state_dict()[name]), name
    assert not torch.equal(once.first.weight, Layers().first.weight)


def test_methods_are_held_by_the_numbers_of_their_papers():
    wanted = {  # what, pull, energy, images
        "iuf": ("step", 0.05), "iuf-adam": ("step", 0.05), "iuf-nopull": ("step", 0.0),
        "iuf-noproject": ("nothing", 0.05), "iuf-plain": ("nothing", 0.0),
        "cdad": ("step", 0.999, 24, False), "cdad-gradient": ("gradient", 0.999, 24, False),
        "cdad-released": ("gradient", 0.999, 24, True), "cdad-plain": ("nothing",),
    }  # fmt: skip
    for name, hold in HOLDS.items():
        found = (hold.what, hold.pull)
        if name.startswith("cdad"):
            assert hold.pull == 0
            found = (hold.what, hold.energy, hold.num_images, hold.as_released)
        assert found[: len(wanted[name])] == wanted[name]
        assert hold.freezes_others == (hold.side == "input" and hold.what != "nothing")
    assert set(wanted) == set(HOLDS) == set(get_args(settings.Guard)) - {"none"}


def test_no_pull_and_no_matrix_is_fine_tuning_bit_for_bit():
    held, plain = Layers(), Layers()
    trained(held, pyramid(1), Guard(held, {}, Hold(side="output", what="nothing")))
    trained(plain, pyramid(1))
    for one, other in zip(held.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Conv2d(3, 5, 1),
        nn.Conv2d(3, 5, 3, padding=2, dilation=2),
    ],
)  # fmt: skip
def test_columns_of_a_convolution_times_its_weight_are_what_it_gives(layer):
    images = torch.randn(2, 3, 8, 8, generator=generator(0, "images"))

    columns = inputs_of(layer, images)

    given = layer(images) - layer.bias[:, None, None]
    flat = given.flatten(2).transpose(1, 2).flatten(0, 1)
    assert torch.allclose(columns @ layer.weight.flatten(1).T, flat, atol=1e-5)


def test_moments_are_sums_over_images_however_they_are_batched():
    detector, images = Layers(), pyramid(0)[0]
    whole = moments(detector, layers_of(detector), [[images]], "input")
    parts = moments(detector, layers_of(detector), [[images[:1]], [images[1:]]], "input")
    tokens = images.flatten(2).transpose(1, 2).flatten(0, 1).double()
    # A basis asks for 0.999 of the trace, so that is what products of 32 bits are held against.
    by_hand = tokens.T @ tokens
    assert whole["first"].dtype == torch.float64
    assert (whole["first"] - by_hand).abs().max() < 1e-6 * by_hand.trace()
    for name, moment in whole.items():
        assert (parts[name] - moment).abs().max() < 1e-6 * moment.trace()
    means = moments(detector, layers_of(detector), [[images]], "output")["first"]
    own = detector.first(images.flatten(2).transpose(1, 2)).mean(1).double()
    torch.testing.assert_close(means, own.T @ own, rtol=1e-12, atol=0)  # their last bits count


def test_what_is_remembered_grows_by_class_and_not_by_image():
    detector = Layers()
    first = remembered(detector, [pyramid(0)], "iuf", {})
    both = remembered(detector, [pyramid(1)], "iuf", first)
    more = remembered(detector, [pyramid(1), pyramid(2), pyramid(3)], "iuf", first)
    assert {name: tuple(one.shape) for name, one in both.items()} == {
        "first": (8, 8), "last": (6, 6),
    }  # fmt: skip
    assert [one.dtype for one in more.values()] == [torch.float64] * 2
    second = remembered(detector, [pyramid(1)], "iuf", {})
    assert torch.allclose(both["last"], first["last"] + second["last"], rtol=1e-12)
    assert remembered(detector, [pyramid(0)], "iuf-noproject", {}) == {}


def test_layers_are_gone_through_in_groups_whose_moments_fit_together(monkeypatch):
    # float64 matrices of what is given: 12 x 12 and 8 x 8, 1,152 and 512 bytes
    layers = layers_of(Layers())
    for fits, wanted in {
        1664: [["first", "last"]], 1663: [["first"], ["last"]], 1: [["first"], ["last"]]
    }.items():  # fmt: skip
        monkeypatch.setattr(guards, "MOMENT_BYTES", fits)
        assert [list(group) for group in in_groups(layers, "input")] == wanted
    # of what they give out: 8 x 8 and 6 x 6, 512 and 288 bytes
    monkeypatch.setattr(guards, "MOMENT_BYTES", 800)
    assert [list(group) for group in in_groups(layers, "output")] == [["first", "last"]]


@pytest.mark.parametrize("name", ["iuf", "cdad", "cdad-released"])
def test_groups_of_layers_remember_what_all_at_once_do(name, monkeypatch):
    detector, images = Layers(), [pyramid(1), pyramid(2)]
    before = remembered(detector, [pyramid(0)], name, {})
    whole = remembered(detector, images, name, before)
    monkeypatch.setattr(guards, "MOMENT_BYTES", 1)

    parts = remembered(detector, images, name, before)

    assert set(parts) == set(whole) == {"first", "last"}
    for layer, matrix in whole.items():
        assert torch.equal(parts[layer], matrix)
