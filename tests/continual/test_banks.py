"""Banks that are filled class by class: kept by content, and limits that other classes leave be."""

import numpy as np
import pytest
import torch

from replaycad.artifacts.store import Store
from replaycad.continual import banks
from replaycad.continual.banks import fit_banks
from replaycad.data.mixture import Mixture, Source
from replaycad.detectors.limits import LIMITS, NormalScores, together
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.patchcore.preset import PatchCorePreset
from replaycad.engine import banks as kept_banks
from replaycad.engine.banks import KeptBanks

ROUTED = PatchCorePreset(image_size=32, bank_fraction=1.0, bank_limit=20, is_routed=True)


class Pictures:
    """Images that lie in memory, as replays are read."""

    image_size = 32

    def __init__(self, seed, count=6):
        self.pixels = np.random.default_rng(seed).integers(0, 255, (count, 3, 32, 32), np.uint8)
        self.asked = 0

    def __len__(self):
        return len(self.pixels)

    def images(self, indices):
        self.asked += len(indices)
        return self.pixels[list(indices)]


class Pooling:
    """An encoder whose features are the pixels, averaged over 8 and 16 px."""

    device = torch.device("cpu")
    channels, strides = (3, 3), (8, 16)

    def encode_images(self, images):
        pixels = images.float() / 255
        return [torch.nn.functional.avg_pool2d(pixels, stride) for stride in self.strides]


def filled(pictures, names, kept=None, seed=0, replayed=()):
    detector = PatchCore(Pooling.channels, Pooling.strides, 32, ROUTED)
    sources = [Source(class_index=i, replays=one) for i, one in enumerate(pictures)]
    mixture = Mixture(sources, 32)
    assert mixture.replayed == set(range(len(names)))
    mixture.replayed = frozenset(replayed)  # the others as if they were real
    return detector, fit_banks(detector, mixture, names, Pooling(), 4, seed, kept)


def test_limits_are_quantiles_of_each_image_held_against_all_others_of_its_class():
    pictures = [Pictures(1), Pictures(2)]

    detector, limits = filled(pictures, ["a", "b"])

    for index, (name, own) in enumerate(zip("ab", pictures, strict=True)):
        patches = detector.patches(Pooling().encode_images(torch.from_numpy(own.pixels)))
        bank, places = detector.bank_of(index)
        maps = []
        for row, of_image in enumerate(patches):
            nearest = torch.cdist(of_image, bank[places != row]).square().amin(dim=1)
            maps.append(detector._to_image @ nearest.reshape(4, 4) @ detector._to_image.T)
        scores = torch.stack(maps).amax(dim=(1, 2)).numpy()
        assert limits["by_class"][name]["image"] == pytest.approx(np.quantile(scores, 0.99), 1e-3)
        assert limits["by_class"][name]["typical_image"] == pytest.approx(np.median(scores), 1e-3)


def test_a_class_that_comes_later_changes_nothing_of_those_before():
    first, second = Pictures(1), Pictures(2)

    alone, limits_alone = filled([first], ["a"])
    both, limits = filled([first, second], ["a", "b"])

    assert torch.equal(alone.bank_of(0)[0], both.bank_of(0)[0])
    assert limits["by_class"]["a"] == limits_alone["by_class"]["a"]


def test_a_kept_bank_is_taken_and_its_images_are_not_read(tmp_path):
    kept = KeptBanks(Store(tmp_path), {"a": "1" * 64, "b": "2" * 64})
    fresh, limits = filled([Pictures(1), Pictures(2)], ["a", "b"], kept)
    again = [Pictures(1), Pictures(2)]

    taken, same = filled(again, ["a", "b"], KeptBanks(Store(tmp_path), kept._keys))

    assert torch.equal(fresh.bank, taken.bank)
    assert torch.equal(fresh._bank_place, taken._bank_place)
    assert same == limits
    assert [one.asked for one in again] == [0, 0]


def test_a_bank_of_another_key_is_not_taken(tmp_path):
    filled([Pictures(1)], ["a"], KeptBanks(Store(tmp_path), {"a": "1" * 64}))
    other = Pictures(3)

    detector, _ = filled([other], ["a"], KeptBanks(Store(tmp_path), {"a": "3" * 64}))

    assert other.asked > 0
    assert torch.equal(detector.bank, filled([Pictures(3)], ["a"])[0].bank)


def test_the_banks_that_were_not_asked_for_longest_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_banks, "LIMIT_BYTES", 15_000)
    for number in range(4):
        kept = KeptBanks(Store(tmp_path), {"a": str(number) * 64})
        kept.save("a", {"bank": np.zeros(1000, np.float32)})
        if number == 1:  # asked for again, so it is not the oldest
            for path in (tmp_path / ".banks").glob("*"):
                kept_banks.os.utime(path, (number, number))
            assert KeptBanks(Store(tmp_path), {"a": "0" * 64}).load("a") is not None

    left = [n for n in range(4) if KeptBanks(Store(tmp_path), {"a": str(n) * 64}).load("a")]

    assert left == [0, 2, 3]


def test_a_store_that_cannot_be_written_costs_time_and_no_more(tmp_path):
    (tmp_path / ".banks").write_text("in the way")

    detector, _ = filled([Pictures(1)], ["a"], KeptBanks(Store(tmp_path), {"a": "1" * 64}))

    assert len(detector.bank) == 20


def test_quantiles_stand_for_the_pixels_of_classes_taken_together():
    values = np.linspace(0, 1, 100_001, dtype=np.float32)
    parts = [NormalScores(values[:10], values), NormalScores(values[:10], values + 1)]

    found = together([part.sketched() for part in parts]).limits()

    assert found["pixel"] == pytest.approx(1.98, abs=2e-3)
    assert found["typical_pixel"] == pytest.approx(1.0, abs=2e-3)
    assert banks.LIMIT_IMAGES > 100, "one in a hundred is to be told from none"


def test_beyond_one_and_a_half_of_the_farthest_normal_image_it_is_another_product():
    distances = np.arange(1, 102, dtype=np.float32)  # 1 % of them exceed 100
    scores = NormalScores(distances, distances, distances=distances)

    assert scores.limits()["product"] == pytest.approx(150.0)
    assert "product" not in together([scores.sketched(), scores.sketched()]).limits()


def test_each_class_has_a_limit_for_other_products():
    detector, limits = filled([Pictures(0), Pictures(1)], ["a", "b"])

    for index, name in enumerate("ab"):
        assert tuple(limits["by_class"][name]) == LIMITS
        assert limits["by_class"][name]["product"] > 0
        assert index in detector.known_classes()
    assert "product" not in limits


def test_how_far_real_images_are_from_replays_is_not_known(tmp_path):
    pictures = [Pictures(0), Pictures(1)]
    kept = KeptBanks(Store(tmp_path), {"a": "1" * 64, "b": "2" * 64})

    for _ in range(2):  # filled, then kept
        _, limits = filled(pictures, ["a", "b"], kept, replayed=[0])

        assert "product" not in limits["by_class"]["a"]
        assert limits["by_class"]["b"]["product"] > 0


def test_banks_kept_without_a_limit_for_other_products_are_filled_anew(tmp_path):
    kept = KeptBanks(Store(tmp_path), {"a": "1" * 64})
    _, expected = filled([Pictures(1)], ["a"], kept)
    old = dict(kept.load("a"))
    kept.save("a", {**old, "limits": old["limits"][:-1]})

    _, limits = filled([Pictures(1)], ["a"], kept)

    assert limits == expected
