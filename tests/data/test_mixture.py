"""Real images and replays are handed out under one numbering, the same every time."""

import tempfile
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from replaycad.data.images import load_image, resize_image
from replaycad.data.layouts import train_samples
from replaycad.data.mixture import Mixture, Source, batches
from replaycad.errors import ConfigError, DatasetError


class ArrayReplays:
    """Replays of one array, which count how many images are asked for at once."""

    def __init__(self, images):
        self._images = images
        self.image_size = images.shape[-1]
        self.largest_request = 0

    def __len__(self):
        return len(self._images)

    def images(self, indices):
        """Images at these places."""
        self.largest_request = max(self.largest_request, len(indices))
        return self._images[indices]


def noise(count, size, seed=0):
    """Random images `[N, 3, H, W]` uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def write_class(data, name, count, size=12, seed=0):
    """A plain folder of images; its samples."""
    (data / name).mkdir()
    for index, image in enumerate(noise(count, size, seed)):
        Image.fromarray(image.transpose(1, 2, 0)).save(data / name / f"{index:03}.png")
    return train_samples(data, name)


def test_images_come_in_the_order_asked_for(tmp_path):
    first, last = write_class(tmp_path, "a", 3), write_class(tmp_path, "b", 2, seed=1)
    replays = ArrayReplays(noise(4, 8))
    mixture = Mixture(
        [
            Source(class_index=0, samples=first),
            Source(class_index=1, replays=replays),
            Source(class_index=2, samples=last),
        ],
        8,
    )

    images = mixture.images([8, 4, 0, 4, 7])

    assert len(mixture) == 9
    assert mixture.class_index.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert images.dtype == np.uint8
    assert images.shape == (5, 3, 8, 8)
    expected = [load_image(sample.path, 8).transpose(2, 0, 1) for sample in (last[1], first[0])]
    assert np.array_equal(images[0], expected[0])
    assert np.array_equal(images[2], expected[1])
    assert np.array_equal(images[[1, 3]], replays.images([1, 1]))
    assert np.array_equal(images[4], load_image(last[0].path, 8).transpose(2, 0, 1))


def test_replays_of_another_size_are_resized_like_files():
    stored = noise(2, 16)

    images = Mixture([Source(class_index=0, replays=ArrayReplays(stored))], 8).images([1])

    assert np.array_equal(images[0], resize_image(stored[1], 8))


def test_no_more_replays_are_read_than_asked_for():
    replays = ArrayReplays(noise(50, 8))
    mixture = Mixture([Source(class_index=0, replays=replays)], 8)

    mixture.images(np.arange(6))

    assert replays.largest_request == 6


def test_of_limited_replays_the_first_are_used():
    images = noise(5, 8)
    mixture = Mixture([
        Source(class_index=0, replays=ArrayReplays(images), limit=2),
        Source(class_index=1, replays=ArrayReplays(images), limit=9),
    ], 8)  # fmt: skip

    assert mixture.class_index.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert np.array_equal(mixture.images(range(7)), images[[0, 1, 0, 1, 2, 3, 4]])


def test_real_images_are_decoded_once_and_leave_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    samples = write_class(tmp_path, "a", 2)
    mixture = Mixture([Source(class_index=0, samples=samples)], 8)
    before = mixture.images([0, 1])

    for sample in samples:
        sample.path.unlink()

    assert list((tmp_path / "scratch").iterdir()) == []
    assert np.array_equal(mixture.images([0, 1]), before)
    mixture.close()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path):
    def peak(samples):
        tracemalloc.start()
        mixture = Mixture([Source(class_index=0, samples=samples)], 64)
        mixture.images([0, len(samples) - 1])
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    few, many = write_class(tmp_path, "a", 4), write_class(tmp_path, "b", 60)
    peak(few)  # first use of everything

    assert peak(many) < peak(few) + 10 * 3 * 64 * 64


def test_decoding_is_reported(tmp_path):
    steps = []

    class Recorder:
        def step(self, what, done, total, **values):
            steps.append((what, done, total, values))

        def note(self, text):
            raise AssertionError(text)

    Mixture([Source(class_index=0, samples=write_class(tmp_path, "a", 2))], 8, Recorder())

    assert steps == [("decoding images", 1, 2, {}), ("decoding images", 2, 2, {})]


def test_a_damaged_image_is_named(tmp_path):
    samples = write_class(tmp_path, "a", 2)
    samples[1].path.write_bytes(b"")

    with pytest.raises(DatasetError, match=r"001\.png"):
        Mixture([Source(class_index=0, samples=samples)], 8)


@pytest.mark.parametrize("sources", [[], [Source(class_index=0)]])
def test_nothing_to_train_on_is_refused(sources):
    with pytest.raises(DatasetError, match="no image to train on"):
        Mixture(sources, 8)


def test_a_source_is_real_or_replayed(tmp_path):
    with pytest.raises(ConfigError, match="both real images and replays"):
        Source(
            class_index=0,
            samples=write_class(tmp_path, "a", 1),
            replays=ArrayReplays(noise(1, 8)),
        )


@pytest.mark.parametrize("index", [-1, 2])
def test_places_outside_are_refused(index):
    mixture = Mixture([Source(class_index=0, replays=ArrayReplays(noise(2, 8)))], 8)

    with pytest.raises(IndexError, match=f"image {index} of 2"):
        mixture.images([index])


def test_empty_sources_take_no_place():
    mixture = Mixture(
        [
            Source(class_index=0),
            Source(class_index=1, replays=ArrayReplays(noise(1, 8))),
            Source(class_index=2),
        ],
        8,
    )

    assert mixture.class_index.tolist() == [1]
    assert mixture.images([0]).shape == (1, 3, 8, 8)
    assert mixture.images([]).shape == (0, 3, 8, 8)


def test_an_epoch_shows_every_image_once():
    order = list(batches(10, 4, seed=3, epoch=0))

    assert [len(batch) for batch in order] == [4, 4, 2]
    assert sorted(np.concatenate(order)) == list(range(10))


def test_order_depends_on_seed_and_epoch_alone():
    def order(seed, epoch):
        return np.concatenate(list(batches(20, 6, seed, epoch))).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)


def test_a_short_last_batch_may_be_dropped_but_not_the_only_one():
    assert [len(b) for b in batches(10, 4, 0, 0, drop_last=True)] == [4, 4]
    assert [len(b) for b in batches(8, 4, 0, 0, drop_last=True)] == [4, 4]
    assert [len(b) for b in batches(3, 4, 0, 0, drop_last=True)] == [3]


def test_balanced_epochs_show_each_class_equally_often():
    class_index = np.repeat([0, 1, 2], [3, 50, 10])

    order = np.concatenate(list(batches(63, 8, seed=0, epoch=2, class_index=class_index)))

    assert np.bincount(class_index[order]).tolist() == [21, 21, 21]
    assert set(order[class_index[order] == 0]) == {0, 1, 2}, "all of the small class, repeated"
    assert len(set(order[class_index[order] == 1])) == 21, "none of the large class twice"
    again = np.concatenate(list(batches(63, 8, seed=0, epoch=2, class_index=class_index)))
    assert (order == again).all()


def test_balanced_epochs_show_other_images_of_a_large_class_in_turn():
    class_index = np.repeat([0, 1], [2, 10])

    shown = [
        {int(row) for rows in batches(12, 4, 0, epoch, class_index=class_index) for row in rows}
        for epoch in range(8)
    ]

    assert all(len(one) == 2 + 6 for one in shown)
    assert set.union(*shown) == set(range(12))


def test_balance_of_a_count_that_does_not_divide_is_off_by_one_at_most():
    class_index = np.repeat([0, 1], [1, 6])

    order = np.concatenate(list(batches(7, 7, seed=1, epoch=0, class_index=class_index)))

    assert sorted(np.bincount(class_index[order])) == [3, 4]
