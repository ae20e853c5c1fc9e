"""MambaAD: the scan against a step-by-step recurrence, the curve, the loss and the map."""

import pytest
import torch
from torch.nn import functional as F

from replaycad.anomaly import smooth
from replaycad.detectors.mambaad import selective_scan as scans
from replaycad.detectors.mambaad.network import DropPath, MambaAD, hilbert_curve, scan_orders
from replaycad.detectors.mambaad.preset import MambaADPreset
from replaycad.errors import ConfigError

BATCH, DIRECTIONS, WIDTH, STATE = 2, 3, 5, 4


def step_by_step(u, delta, a, b, c, d):
    """The recurrence as it is written, one step after another."""
    state, outputs = torch.zeros(*u.shape[:3], a.shape[-1]), []
    for t in range(u.shape[-1]):
        entering = (delta * u)[..., t, None] * b[:, :, None, :, t]
        state = torch.exp(delta[..., t, None] * a) * state + entering
        outputs.append((state * c[:, :, None, :, t]).sum(dim=-1))
    return torch.stack(outputs, dim=-1) + d[..., None] * u


def random_inputs(length):
    g = torch.Generator().manual_seed(length)
    u = torch.randn(BATCH, DIRECTIONS, WIDTH, length, generator=g)
    delta = 0.5 * torch.rand(u.shape, generator=g)
    a = -4 * torch.rand(DIRECTIONS, WIDTH, STATE, generator=g)
    b, c = torch.randn(2, BATCH, DIRECTIONS, STATE, length, generator=g)
    d = torch.randn(DIRECTIONS, WIDTH, generator=g)
    return [one.requires_grad_() for one in (u, delta, a, b, c, d)]


@pytest.mark.parametrize("length", [1, 16, 37, 300])
@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_scan_and_its_gradients_equal_the_recurrence(length, chunk, monkeypatch):
    monkeypatch.setattr(scans, "MAX_CHUNK", chunk)
    inputs = random_inputs(length)
    weights = torch.randn(BATCH, DIRECTIONS, WIDTH, length)

    fast, slow = (scan(*inputs) for scan in (scans.selective_scan, step_by_step))

    torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)
    fast_grads, slow_grads = (
        torch.autograd.grad((y * weights).sum(), inputs) for y in (fast, slow)
    )
    for ours, theirs in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_fused_kernel_gets_all_directions_in_one_row(monkeypatch):
    def kernel(u, delta, a, b, c, d):  # mamba-ssm: [B, E, L], [E, N], [B, G, N, L], [E]
        groups = b.shape[1]
        split = [x.unflatten(1, (groups, -1)) for x in (u, delta)]
        rows = [x.unflatten(0, (groups, -1)) for x in (a, d)]
        return step_by_step(*split, rows[0], b, c, rows[1]).flatten(1, 2)

    monkeypatch.setattr(scans, "selective_scan_fn", kernel)
    inputs = random_inputs(9)

    torch.testing.assert_close(scans._fused_scan(*inputs), step_by_step(*inputs))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_the_curve_visits_every_place_once_and_never_jumps(size):
    places = hilbert_curve(size)

    assert sorted(places.tolist()) == list(range(size * size))
    steps = (places // size).diff().abs() + (places % size).diff().abs()
    assert (steps == 1).all()


def test_eight_directions_are_four_curves_there_and_back():
    orders = scan_orders(4)

    assert len({tuple(order) for order in orders.tolist()}) == 8
    assert torch.equal(orders[4:], orders[:4].flip(1))
    for order in orders:
        assert sorted(order.tolist()) == list(range(16))
        assert ((order // 4).diff().abs() + (order % 4).diff().abs() == 1).all()


def small(**changes):
    torch.manual_seed(0)
    settings = {"depths": (1, 2, 1), "state_width": 2} | changes
    return MambaAD((4, 8), (8, 16), 64, MambaADPreset(**settings))


def features(seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 8, 4, 4, generator=g)]


def test_loss_is_five_times_the_sum_of_the_level_errors():
    detector = small().eval()

    pairs = zip(detector(features()), features(), strict=True)
    errors = [(fake - real).square().mean() for fake, real in pairs]

    torch.testing.assert_close(detector.loss(features()), 5 * sum(errors))


def test_maps_are_the_smoothed_mean_of_the_levels():
    detector = small().eval()

    maps = detector.anomaly_maps(features())

    distances = [
        1 - F.cosine_similarity(fake, real, dim=1)[:, None]
        for fake, real in zip(detector(features()), features(), strict=True)
    ]
    fine = [F.interpolate(d, 64, mode="bilinear", align_corners=True)[:, 0] for d in distances]
    expected = smooth(sum(fine) / 2, 1.0).detach()
    torch.testing.assert_close(maps, expected, atol=1e-5, rtol=1e-4)


def test_dropped_paths_keep_the_mean_and_only_while_training():
    drop = DropPath(0.25)
    torch.manual_seed(0)

    dropped = drop.train()(torch.ones(4000, 2))

    assert sorted(dropped.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    assert (dropped[:, 0] == dropped[:, 1]).all()
    assert dropped.mean() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(drop.eval()(torch.ones(3, 2)), torch.ones(3, 2))


def test_misfits_are_refused():
    with pytest.raises(ConfigError, match="power of two a side, found 6"):
        MambaAD((4, 8), (8, 16), 96, MambaADPreset(depths=(1, 1, 1)))
    with pytest.raises(ConfigError, match="needs 3 encoder levels"):
        MambaAD((4, 8), (8, 16), 64, MambaADPreset())
