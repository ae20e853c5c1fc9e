"""Features of training images are computed once where that pays, and are the encoder's own."""

import io

import numpy as np
import pytest
import torch

from replaycad.detectors import feature_cache
from replaycad.detectors.encoders import load_encoder
from replaycad.detectors.feature_cache import FeatureCache

COUNT = 7
IMAGES = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 32, 32), dtype=np.uint8)


class CountingEncoder:
    """The bundled encoder, which remembers how many images it was shown."""

    def __init__(self) -> None:
        self.encoder, self.shown = load_encoder("mini"), 0

    @property
    def device(self) -> torch.device:
        return self.encoder.device

    def encode_images(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.shown += len(images)
        return self.encoder.encode_images(images)


def images(rows):
    return IMAGES[np.asarray(rows)]


def test_cached_features_are_those_of_the_encoder_in_any_order():
    encoder = CountingEncoder()
    cache = FeatureCache(encoder, images, COUNT, chunk=3, uses=2)
    shown = encoder.shown

    found = cache([6, 0, 6])

    expected = load_encoder("mini").encode_images(torch.from_numpy(images([6, 0, 6])))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert encoder.shown == shown == COUNT + 1  # one more to learn how much room they take
    cache.close()


@pytest.mark.parametrize(("uses", "limit"), [(1, 2**30), (50, 10)])
def test_features_used_once_or_too_large_are_encoded_each_time(monkeypatch, uses, limit):
    monkeypatch.setattr(feature_cache, "LIMIT_BYTES", limit)
    encoder = CountingEncoder()
    cache = FeatureCache(encoder, images, COUNT, chunk=3, uses=uses)
    shown = encoder.shown

    cache([1, 2])

    assert encoder.shown == shown + 2 <= 3


def test_a_full_disk_costs_the_cache_and_not_the_training(monkeypatch):
    class Full(io.BytesIO):
        def write(self, _data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_cache.tempfile, "TemporaryFile", lambda **_: Full())
    cache = FeatureCache(CountingEncoder(), images, COUNT, chunk=3, uses=9)

    assert [level.shape[0] for level in cache([4, 4])] == [2, 2, 2]
