"""What is fuzzed: each target feeds bytes to readers and lets foreseen failures pass.

A target gets a folder of its own in memory, and the bytes; whatever it raises is a finding.
"""

import contextlib
import copy
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.numpy import load, save

from replaycad.artifacts import inspection
from replaycad.artifacts.checkpoints import Checkpoint
from replaycad.artifacts.digests import DigestCache
from replaycad.artifacts.embedding import read_embedding
from replaycad.artifacts.format import NUMPY_NAMES, canonical_json, content_id, header_id, plain
from replaycad.artifacts.replays import ReplaysReader
from replaycad.artifacts.store import Store
from replaycad.cli.session import split_names, split_seeds, split_sizes
from replaycad.config.recipes import stage_config
from replaycad.config.stages import STAGES, MaskConfig
from replaycad.continual.exemplars import decode
from replaycad.data.images import load_anomaly_mask, load_image
from replaycad.data.layouts import find_classes, read_class, test_samples, train_samples
from replaycad.data.levels import cut_of
from replaycad.data.samples import Sample
from replaycad.data.survey import survey
from replaycad.data.tables import VISA_TABLE
from replaycad.engine.settings import RunSettings, split_settings
from replaycad.errors import ReplayCadError
from replaycad.inference.photos import find_images
from replaycad.textual_inversion import checked_token
from tests.artifacts.artifact_examples import LOADERS, WRITERS, header_of

Target = Callable[[Path, bytes], None]
NUMBERS = (0, 1, -1, 2, 7, 255, 65536, 2**31, 2**53, -(2**63), 10**30)
VALUES: tuple[Any, ...] = (
    *NUMBERS, 0.5, True, None, "", "a", "../a", "\0", "\n<script>", [], {}, [1], ["a", "a"],
    {"a": 1}, [[]], [{}], {"file": "../x", "num_images": 3}, 1e308,
)  # fmt: skip


class Choices:
    """Decisions read from bytes, so that a fuzzer that changes bytes changes decisions."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def number(self, limit: int) -> int:
        """A number below `limit`."""
        taken, self._data = self._data[:2], self._data[2:]
        return int.from_bytes(taken, "little") % limit if limit else 0

    def one_of(self, choices: Any) -> Any:
        """One entry of a sequence."""
        return choices[self.number(len(choices))]

    def octets(self, count: int) -> bytes:
        """So many bytes."""
        taken, self._data = self._data[:count], self._data[count:]
        return taken.ljust(count, b"\0")


def _small_pictures() -> tuple[bytes, ...]:
    """A photo, a mask, an empty mask, no picture at all."""
    photo = Image.frombytes("L", (8, 8), bytes(range(0, 256, 4)))
    mask = Image.new("L", (8, 8))
    mask.paste(255, (1, 1, 3, 3))
    found = []
    for one in (photo, mask, Image.new("L", (8, 8))):
        with io.BytesIO() as file:
            one.save(file, "PNG")
            found.append(file.getvalue())
    return (*found, b"no picture")


def _read_all(path: Path) -> None:
    """Every reader of artifacts on one file."""
    for read in (*LOADERS.values(), inspection.describe, inspection.verify, read_embedding):
        with contextlib.suppress(ReplayCadError):
            found = read(path)
            if isinstance(found, ReplaysReader):
                found.images(range(len(found)))
                found.object_masks(range(len(found)))
    Checkpoint(path, "key").load()


def _feed(folder: Path, data: bytes) -> None:
    """Bytes as an artifact, as a main file of sound shards, and as a shard of a sound set."""
    path, shards = folder / "a.safetensors", folder / "a.shards"
    shards.mkdir(exist_ok=True)
    for shard, content in SHARDS.items():
        (shards / shard).write_bytes(content)
    path.write_bytes(data)
    _read_all(path)
    path.write_bytes(SOUND[REPLAYS])
    (shards / min(SHARDS)).write_bytes(data)
    _read_all(path)


def artifact(folder: Path, data: bytes) -> None:
    """Raw bytes as an artifact."""
    _feed(folder, data)


def sealed_artifact(folder: Path, data: bytes) -> None:
    """A sound artifact with some facts changed and digests made to fit: a stranger's file."""
    choices = Choices(data)
    path = folder / "b.safetensors"
    path.write_bytes(choices.one_of([*SOUND.values(), *SHARDS.values()]))
    header, tensors = header_of(path), load(path.read_bytes())
    for _ in range(1 + choices.number(3)):
        if choices.number(2):
            _change(header, choices)
        elif tensors:
            name = choices.one_of(sorted(tensors))
            tensors[choices.one_of((name, name, "images", "x", ""))] = _array(choices)
    header.pop("header_id", None)
    with contextlib.suppress(KeyError, ValueError, TypeError):
        header["content_id"] = content_id(tensors)
        header["header_id"] = header_id(plain(header))
    _feed(folder, save(tensors, {"replaycad": canonical_json(plain(header))}))


def _change(header: dict[str, Any], choices: Choices) -> None:
    name = choices.one_of(sorted(header))
    if choices.number(4) == 0:
        del header[name]
    elif isinstance(header[name], list) and header[name] and choices.number(2):
        header[name][choices.number(len(header[name]))] = copy.deepcopy(choices.one_of(VALUES))
    else:
        header[name] = copy.deepcopy(choices.one_of(VALUES))


def _array(choices: Choices) -> Any:
    shape = [choices.number(5) for _ in range(choices.number(4))]
    kind = np.dtype(choices.one_of(sorted(set(NUMPY_NAMES.values()))))
    size = int(np.prod(shape)) * kind.itemsize
    return np.frombuffer(choices.octets(size), kind)[: int(np.prod(shape))].reshape(shape).copy()


def picture(folder: Path, data: bytes) -> None:
    """Bytes as an image, an anomaly mask, an exemplar; in a folder that is surveyed."""
    path = folder / "class" / "train" / "good" / "a.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    with contextlib.suppress(ReplayCadError):
        assert load_image(path, 16).shape == (16, 16, 3)
    with contextlib.suppress(ReplayCadError):
        sample = Sample(path=path, image_id="a", class_name="a", kind="bad", mask_paths=(path,))
        cut = cut_of([sample.mask_paths])
        assert load_anomaly_mask(sample, 16, cut).shape == (16, 16)
    with contextlib.suppress(ValueError):
        assert decode(data, 16).shape == (3, 16, 16)
    with contextlib.suppress(ReplayCadError):
        survey(folder)


def table(folder: Path, data: bytes) -> None:
    """Bytes as VisA's table of the images, and as Real-IAD's list."""
    lists = folder / "lists"
    draw = lists / "a" / "OK"
    draw.mkdir(parents=True, exist_ok=True)
    (draw / "x.png").write_bytes(CONTENTS[0])
    (lists / "a.json").write_bytes(data)
    with contextlib.suppress(ReplayCadError):
        _check_reading(lists, "a")
    path = folder / VISA_TABLE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    with contextlib.suppress(ReplayCadError):
        for name in find_classes(folder):
            for samples in (train_samples, test_samples):
                with contextlib.suppress(ReplayCadError):
                    for sample in samples(folder, name):
                        assert sample.path.is_relative_to(folder), sample.path
                        json.dumps(sample.image_id).encode()


FOLDER_NAMES = (
    "train", "test", "good", "OK", "NG", "ko", "scratch", "ground_truth", "Label", "masks", "S0001",
    "images", "MT_Free", "MT_Crack", "validation", "xyz", "001", ".hidden", "__MACOSX", "bottle,v2",
)  # fmt: skip
USUAL_FOLDERS = (
    "train/good", "test/good", "test/ko", "ground_truth/ko", "ground_truth/ko/000", "NG/AK/S0001",
    "OK/S0001", "OK/S0002", "Train", "Train/Label", "Test", "Test/Label", "images", "masks",
    "MT_Free/Imgs", "MT_Crack/Imgs", "kos01", "",
)  # fmt: skip
FILE_NAMES = (
    "000.png", "001.png", "0000.png", "000.bmp", "000_mask.png", "mask_000.png", "001_GT.png",
    "a.png", "A.PNG", "a.json", "ignore.png", "x.heic", "000.mask.png", "notes.txt", "1.png",
    "11.png",
)  # fmt: skip
CONTENTS = _small_pictures()


def layout(folder: Path, data: bytes) -> None:
    """Names of folders and files, drawn from those that mean something, as a data folder."""
    choices, root = Choices(data), folder / "data"
    shutil.rmtree(root, ignore_errors=True)
    for _ in range(1 + choices.number(12)):
        parts = [choices.one_of(FOLDER_NAMES) for _ in range(choices.number(4))]
        usual = choices.one_of(USUAL_FOLDERS)
        place = "/".join(parts) if choices.number(4) == 0 else f"nut/{usual}"
        path = root / place / choices.one_of(FILE_NAMES)
        with contextlib.suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(choices.one_of(CONTENTS))
    with contextlib.suppress(ReplayCadError):
        for name in find_classes(root):
            with contextlib.suppress(ReplayCadError):
                _check_reading(root, name)
    with contextlib.suppress(ReplayCadError):
        survey(root)


def _check_reading(root: Path, name: str) -> None:
    """Every file is one thing: learned from, tested, a mask of one image, or left out."""
    reading = read_class(root, name)
    images = [sample.path for sample in (*reading.train, *reading.test)]
    masks = [path for sample in reading.test for path in sample.mask_paths]
    assert len(set(images)) == len(images), "an image is used twice"
    assert not set(images) & set(masks), "an image is a mask"
    assert len(set(masks)) == len(masks), "a mask is of two images"
    assert all(path.is_relative_to(root) for path in (*images, *masks))
    assert not any(sample.is_anomalous or sample.mask_paths for sample in reading.train)
    left_out = [one for ids in reading.left_out.values() for one in ids]
    assert len(set(left_out)) == len(left_out), "a file is left out twice"
    assert not set(left_out) & {sample.image_id for sample in (*reading.train, *reading.test)}
    with contextlib.suppress(ReplayCadError):
        assert train_samples(root, name) == reading.train, "training depends on who asks"


def words(folder: Path, data: bytes) -> None:
    """Text wherever a user or a file can say something: names, settings, lists, paths."""
    text = data.decode("utf-8", "surrogateescape")
    store = Store(folder)
    with contextlib.suppress(ReplayCadError):
        path = store.path("masks", text)
        assert path.parent == folder / "masks"
        assert path.resolve().parent == (folder / "masks").resolve()
    for samples in (train_samples, test_samples):
        with contextlib.suppress(ReplayCadError):
            samples(folder, text)
    with contextlib.suppress(ReplayCadError):
        checked_token(text, "class")
    _settings(text)
    split_names([text])
    import typer

    for split in (split_seeds, split_sizes):
        with contextlib.suppress(typer.BadParameter):
            split(text)
    for path in (folder / ".digests.json", folder / ".timings" / "masks" / "a.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    DigestCache(folder)
    sys.stdin = io.StringIO(text)
    with contextlib.suppress(ReplayCadError):
        for found in find_images(["-"]):
            with contextlib.suppress(ReplayCadError):
                load_image(found.path, 8)


def _settings(text: str) -> None:
    for stage in (None, *STAGES):
        with contextlib.suppress(ReplayCadError):
            settings = split_settings([text], stage)
            for one, values in settings.items():
                stage_config("mini", one, values, "")
    plain = RunSettings(data=Path(), root=Path(), overrides={})
    with contextlib.suppress(ReplayCadError):
        plain.config(MaskConfig, recorded={"config": {text: text}})


def _pictures() -> list[bytes]:
    """One small picture of every kind that is read."""
    found = []
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    for name in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM", "AVIF"):
        for mode in ("RGB", "L", "P"):
            with io.BytesIO() as file, contextlib.suppress(OSError, KeyError):
                Image.fromarray(noise).convert(mode).save(file, name)
                found.append(file.getvalue())
    return found


def _artifacts() -> dict[str, bytes]:
    """Every example by its path in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        for name, write in WRITERS.items():
            write(Path(folder) / f"{name}.safetensors")
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(Path(folder).rglob("*.safetensors"))
        }


REPLAYS = "replays.safetensors"
SOUND = _artifacts()
SHARDS = {Path(name).name: SOUND.pop(name) for name in list(SOUND) if "/" in name}
ROWS = (
    b"object,split,label,image,mask\na,train,normal,a/x.png,\na,test,anomaly,a/y.png,m.png\n"
)
LIST = json.dumps({
    "meta": {"normal_class": "OK"},
    "train": [{"anomaly_class": "OK", "image_path": "OK/x.png"}],
    "test": [{"anomaly_class": "AK", "image_path": "OK/y.png", "mask_path": "OK/m.png"}],
}).encode()  # fmt: skip
TARGETS: dict[str, tuple[Target, list[bytes]]] = {
    "artifact": (artifact, [*SOUND.values(), *SHARDS.values()]),
    "sealed_artifact": (sealed_artifact, [bytes(range(0, 256, 3))]),
    "picture": (picture, _pictures()),
    "table": (table, [ROWS, LIST]),
    "layout": (layout, [bytes(range(0, 250, 7)), bytes(200)]),
    "words": (words, [b"bottle", b"train.num_steps=3", b"25kB,1MB", b"../a", b"0,1"]),
}
"""Name -> what to feed, and inputs to start from."""
