"""A pool of procedural pictures, drawn once and read many times by every pre-training."""

import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from replaycad.mini.world import draw, draw_class

CHUNK = 16  # classes drawn by one task, and the unit that an interrupted drawing loses


@dataclass(frozen=True)
class Pool:
    """Pictures of many classes, memory mapped.

    Attributes:
        images: uint8 `[C, P, S, S, 3]`, P normal pictures of each of C classes.
        object_masks: uint8 `[C, P, S, S]`, 1 on the object.
        defective_images: uint8 `[C, Q, S, S, 3]`; picture q is normal picture q with a defect.
        anomaly_masks: uint8 `[C, Q, S, S]`, 1 on the defect.
        captions: one caption per class.
        families: one family name per class.
    """

    images: np.ndarray
    object_masks: np.ndarray
    defective_images: np.ndarray
    anomaly_masks: np.ndarray
    captions: list[str]
    families: list[str]


def _draw_chunk(first_class: int, num_pictures: int, num_defective: int, size: int) -> tuple:
    images = np.empty((CHUNK, num_pictures, size, size, 3), np.uint8)
    object_masks = np.empty((CHUNK, num_pictures, size, size), np.uint8)
    defective = np.empty((CHUNK, num_defective, size, size, 3), np.uint8)
    anomaly_masks = np.empty((CHUNK, num_defective, size, size), np.uint8)
    captions, families = [], []
    for row in range(CHUNK):
        spec = draw_class(first_class + row)
        captions.append(spec.caption)
        families.append(spec.family)
        for seed in range(num_pictures):
            picture = draw(spec, seed, size)
            images[row, seed], object_masks[row, seed] = picture.image, picture.object_mask
        for seed in range(num_defective):
            picture = draw(spec, seed, size, defect="any")
            defective[row, seed], anomaly_masks[row, seed] = picture.image, picture.anomaly_mask
    return images, object_masks, defective, anomaly_masks, captions, families


def open_pool(
    folder: Path,
    num_classes: int,
    num_pictures: int = 12,
    num_defective: int = 4,
    size: int = 128,
    first_class: int = 0,
    workers: int = 2,
) -> Pool:
    """Draw the pool into `folder`, or go on with one that was interrupted, and open it.

    Args:
        num_classes: classes with seeds `first_class ...`, rounded up to a whole chunk.

    Returns:
        Memory maps: opening a finished pool costs nothing.
    """
    num_classes = -(-num_classes // CHUNK) * CHUNK
    folder = folder / f"pool-{first_class}-{num_classes}x{num_pictures}+{num_defective}-{size}"
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {
        "images": (num_classes, num_pictures, size, size, 3),
        "object_masks": (num_classes, num_pictures, size, size),
        "defective_images": (num_classes, num_defective, size, size, 3),
        "anomaly_masks": (num_classes, num_defective, size, size),
    }
    maps = {}
    for name, shape in shapes.items():
        path = folder / f"{name}.npy"
        if path.exists():
            maps[name] = np.load(path, mmap_mode="r+")
        else:
            maps[name] = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    captions: list[str] = [""] * num_classes
    families: list[str] = [""] * num_classes
    missing = []
    for start in range(0, num_classes, CHUNK):
        words = folder / f"words-{start:06d}.json"
        if words.exists():
            rows = slice(start, start + CHUNK)
            captions[rows], families[rows] = json.loads(words.read_text())
        else:
            missing.append(start)
    # One thread a worker: small matrix products on more threads than cores take five times as long.
    with ProcessPoolExecutor(workers, initializer=threadpool_limits, initargs=(1,)) as executor:
        tasks = [
            executor.submit(_draw_chunk, first_class + start, num_pictures, num_defective, size)
            for start in missing
        ]
        for start, task in zip(missing, tasks, strict=True):
            *arrays, chunk_captions, chunk_families = task.result()
            rows = slice(start, start + CHUNK)
            for name, array in zip(shapes, arrays, strict=True):
                maps[name][rows] = array
            captions[rows], families[rows] = chunk_captions, chunk_families
            # Written last: a chunk without its words counts as not drawn.
            words = folder / f"words-{start:06d}.json"
            words.write_text(json.dumps([chunk_captions, chunk_families]))
    return Pool(**maps, captions=captions, families=families)
