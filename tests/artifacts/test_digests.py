import hashlib
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from replaycad.artifacts.digests import FILE_NAME, DigestCache, file_digest, images_digest
from replaycad.errors import ArtifactError


@dataclass(frozen=True)
class Picture:
    """The part of a sample that matters here."""

    image_id: str
    path: Path
    is_anomalous: bool = False
    mask_paths: tuple[Path, ...] = ()


def later() -> int:
    """A clock by which every file is old enough."""
    return time.time_ns() + 10**10


def plant(path: Path, store: Path, digest: str) -> None:
    """Put a false digest into the cache, to see whether it is used."""
    with DigestCache(store, later) as cache:
        cache.put(path, path.stat(), digest)


def test_a_digest_is_the_sha256_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 10**6)

    assert file_digest(tmp_path / "a") == hashlib.sha256(b"abc" * 10**6).hexdigest()


def test_an_unchanged_file_is_not_read_again(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    plant(tmp_path / "a", tmp_path, "0" * 64)

    assert file_digest(tmp_path / "a", DigestCache(tmp_path)) == "0" * 64


@pytest.mark.parametrize("change", ["size", "time", "content", "replaced"])
def test_a_changed_file_is_read_again(tmp_path, change):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    os.utime(path, ns=(10**18, 10**18))
    plant(path, tmp_path, "0" * 64)

    if change == "size":
        path.write_bytes(b"abcd")
    elif change == "time":
        os.utime(path, ns=(10**18, 2 * 10**18))
    elif change == "content":  # and the time put back
        path.write_bytes(b"abd")
        os.utime(path, ns=(10**18, 10**18))
    else:
        (tmp_path / "b").write_bytes(b"abe")
        os.utime(tmp_path / "b", ns=(10**18, 10**18))
        (tmp_path / "b").replace(path)

    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert file_digest(path, DigestCache(tmp_path)) == expected


def test_a_young_file_is_not_remembered(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")

    with DigestCache(tmp_path) as cache:
        file_digest(tmp_path / "a", cache)

    assert not (tmp_path / FILE_NAME).exists()


def remembered(folder):
    """What the file behind its checksum holds."""
    return json.loads((folder / FILE_NAME).read_text().partition("\n")[2])


def test_what_two_runs_remember_is_kept(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(name.encode())
    first, second = DigestCache(tmp_path, later), DigestCache(tmp_path, later)

    file_digest(tmp_path / "a", first)
    file_digest(tmp_path / "b", second)
    first.save()
    second.save()
    second.save()

    assert len(remembered(tmp_path)) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b"3", b"[" * 10**5, b'{"PATH":3}', b'{"PATH":[[1,2],"x"]}',
     b'{"PATH":[[1,2,3,4],"zz"]}', b'{"PATH":[[1,2,3,"4"],"' + b"0" * 64 + b'"]}'],
)  # fmt: skip
def test_a_spoiled_cache_is_an_empty_one(tmp_path, content):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    content = content.replace(b"PATH", str(path).encode())
    checksum = hashlib.sha256(content).hexdigest().encode()
    (tmp_path / FILE_NAME).write_bytes(checksum + b"\n" + content + b"\n")

    with DigestCache(tmp_path, later) as cache:
        assert file_digest(path, cache) == hashlib.sha256(b"abc").hexdigest()

    assert str(path) in remembered(tmp_path)


def test_a_flipped_bit_in_the_cache_is_found(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    with DigestCache(tmp_path, later) as cache:
        digest = file_digest(path, cache)
    content = (tmp_path / FILE_NAME).read_bytes()

    for place in range(len(content) - 1):
        spoilt = bytearray(content)
        spoilt[place] ^= 1
        (tmp_path / FILE_NAME).write_bytes(spoilt)
        assert DigestCache(tmp_path, later).get(path, path.stat()) is None

    assert file_digest(path, DigestCache(tmp_path, later)) == digest


def test_a_cache_that_cannot_be_written_is_no_failure(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "store").write_text("a file where the folder should be")

    with DigestCache(tmp_path / "store", later) as cache:
        assert file_digest(tmp_path / "a", cache)


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ArtifactError, match="cannot read"):
            file_digest(path)


def test_the_digest_of_images_sees_every_change_but_not_the_place(tmp_path):
    samples = {}
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        for name in ("a", "b", "c"):
            (tmp_path / place / name).write_bytes(name.encode())
        samples[place] = [Picture(name, tmp_path / place / name) for name in ("a", "b")]
    first, second = samples["here"]
    defect = tmp_path / "here" / "c"

    variants = [
        [first],
        [first, second],
        [second, first],
        [replace(first, image_id="x"), second],
        [replace(first, path=defect), second],
        [replace(first, is_anomalous=True), second],
        [replace(first, mask_paths=(defect,)), second],
    ]

    assert len({images_digest(variant) for variant in variants}) == len(variants)
    assert images_digest(samples["here"]) == images_digest(samples["there"])
