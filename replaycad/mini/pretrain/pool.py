"""A pool of procedural pictures, drawn once and read many times by every pre-training."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from replaycad.mini.world.pictures import ClassSpec, draw, draw_class

CHUNK = 16  # classes drawn by one task, and the unit that an interrupted drawing loses
STILL_SHARE, FIXED_SHARE = 0.75, 0.5  # of classes that lie still; of surfaces among them
STILL_STREAM = 99
STILL_TURN, STILL_SHIFT = 0.02, 0.01  # radians, picture units: what moving images together leaves


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


def lying_still(spec: ClassSpec) -> ClassSpec:
    """Most classes as `compress` sees them, whose images it has moved onto each other."""
    rng = np.random.default_rng([spec.class_seed, STILL_STREAM])
    is_still, is_fixed = rng.random(2) < (STILL_SHARE, FIXED_SHARE)
    if not is_still:
        return spec
    scene = spec.scene
    # A pattern can be moved onto itself, the grain of a surface cannot.
    moves = spec.is_surface and not is_fixed
    scene = scene._replace(
        angle_jitter=min(scene.angle_jitter, STILL_TURN),
        shift=scene.shift if moves else min(scene.shift, STILL_SHIFT),
        scale_jitter=min(scene.scale_jitter, STILL_SHIFT),
    )
    return replace(spec, scene=scene)


def _draw_chunk(
    first_class: int, num_pictures: int, num_defective: int, size: int, is_still: bool
) -> tuple:
    images = np.empty((CHUNK, num_pictures, size, size, 3), np.uint8)
    object_masks = np.empty((CHUNK, num_pictures, size, size), np.uint8)
    defective = np.empty((CHUNK, num_defective, size, size, 3), np.uint8)
    anomaly_masks = np.empty((CHUNK, num_defective, size, size), np.uint8)
    captions, families = [], []
    for row in range(CHUNK):
        spec = draw_class(first_class + row)
        if is_still:
            spec = lying_still(spec)
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
    is_still: bool = False,
    workers: int | None = None,
) -> Pool:
    """Draw the pool into `folder`, or go on with one that was interrupted, and open it.

    Args:
        num_classes: classes with seeds `first_class ...`, rounded up to a whole chunk.
        is_still: of most classes, pictures that do not turn or shift.
        workers: processes that draw; all the machine's cores if not said.

    Returns:
        Memory maps: opening a finished pool costs nothing.
    """
    num_classes = -(-num_classes // CHUNK) * CHUNK
    kind = "still" if is_still else "pool"
    folder = folder / f"{kind}-{first_class}-{num_classes}x{num_pictures}+{num_defective}-{size}"
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
    workers = workers or os.cpu_count()
    with ProcessPoolExecutor(workers, initializer=threadpool_limits, initargs=(1,)) as executor:
        tasks = [
            executor.submit(
                _draw_chunk, first_class + start, num_pictures, num_defective, size, is_still
            )
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
