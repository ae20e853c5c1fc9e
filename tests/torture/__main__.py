"""Torture the sequence: `python -m tests.torture --faults 200`.

Prints the seed of every trial; `--seed N --trials 1` repeats one. The last line reads
`N faults, W wrong, L lost`, and the exit code is 1 unless W and L are none.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.torture.faults import FAULTS, Trial
from tests.torture.ground import Ground, make_ground


def main() -> None:
    """Run trials in several processes until there were enough faults."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--trials", type=int, default=10**6, help="at most so many")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--only", choices=list(FAULTS))
    parser.add_argument("--workers", type=int, default=2)
    typed = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="torture-"))
    folder.chmod(0o755)
    try:
        ground = make_ground(folder)
        kinds = [typed.only] if typed.only else list(FAULTS)
        found = _work(ground, typed, kinds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    faults = sum(one["faults"] for one in found)
    wrong, lost = (sum(len(one[name]) for one in found) for name in ("wrong", "lost"))
    sys.stdout.write(f"{time.monotonic() - start:.0f} s, {len(found)} trials\n")
    sys.stdout.write(f"{faults} faults, {wrong} wrong, {lost} lost\n")
    sys.exit(1 if wrong or lost else 0)


def _work(ground: Ground, typed: argparse.Namespace, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Hand a trial to every worker that is free."""
    found: list[dict[str, Any]] = []
    running: dict[int, Path] = {}
    seed = typed.seed
    while True:
        # Those that run will bring at least a fault each.
        enough = sum(one["faults"] for one in found) + len(running) >= typed.faults
        enough = enough or seed - typed.seed >= typed.trials
        while len(running) < typed.workers and not enough:
            report = ground.folder / f"report-{seed}.json"
            pid = os.fork()
            if not pid:
                _child(ground, seed, kinds[seed % len(kinds)], report)
            running[pid] = report
            seed += 1
            enough = seed - typed.seed >= typed.trials
        if not running:
            return found
        pid, _ = os.wait()
        report = running.pop(pid)
        found.append(json.loads(report.read_text()))
        sys.stdout.write(_line(found[-1]))
        sys.stdout.flush()


def _child(ground: Ground, seed: int, kind: str, report: Path) -> None:
    """One trial in a process of its own."""
    folder = ground.folder / f"trial-{seed}"
    folder.mkdir()
    trial = Trial(ground, folder, random.Random(seed))
    try:
        ground.prepare(folder, trial.stream)
        FAULTS[kind](trial)
    except BaseException:
        trial.wrong.append(f"the harness failed: {traceback.format_exc()}")
    finally:
        report.write_text(json.dumps({
            "seed": seed, "kind": kind, "faults": trial.num_faults, "wrong": trial.wrong,
            "lost": trial.lost,
        }))  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)


def _line(one: dict[str, Any]) -> str:
    told = f"seed {one['seed']} {one['kind']}: {one['faults']} faults"
    for name in ("wrong", "lost"):
        told += "".join(f"\n  {name}: {text}" for text in one[name])
    return told + "\n"


if __name__ == "__main__":
    main()
