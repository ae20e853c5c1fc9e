"""Seconds to mask and compress all classes over one Ray worker and over two.

`python -m tests.bench.fleet --data FOLDER`; each worker has one core.
"""

import argparse
import logging
import sys
import tempfile
import time
from pathlib import Path

import ray

from replaycad.data.layouts import find_classes
from replaycad.engine.builder import Builder
from replaycad.engine.settings import RunSettings
from replaycad.experiments.plan import comparison, steps
from replaycad.experiments.ray_engine import perform_on_ray
from replaycad.progress import silent


def seconds(data: Path, num_workers: int) -> float:
    """From the first task to the last, workers started anew and warmed up by nothing."""
    ray.init(num_cpus=num_workers, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            settings = RunSettings(data=data, root=folder, overrides={}, device="cpu")
            cells = comparison(find_classes(data), ["replay"])
            planned = [one for one in steps(cells, "fleet") if one.stage in ("mask", "compress")]
            start = time.perf_counter()
            perform_on_ray(Builder(settings, silent), planned)
            return time.perf_counter() - start
    finally:
        ray.shutdown()


def main() -> None:
    """Print both and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    typed = parser.parse_args()
    one, two = (seconds(typed.data, count) for count in (1, 2))
    sys.stdout.write(f"1 worker {one:.1f} s, 2 workers {two:.1f} s: {one / two:.2f} times\n")


if __name__ == "__main__":
    main()
