"""Fuzz the readers: `python -m tests.fuzz --inputs 1000000`; needs atheris (`make fuzz`).

libFuzzer watches which branches an input takes, and stops at a crash, at a hang of 30 s, at one
allocation of 1 GB and at 3.25 GB beyond the 0.75 that the imported packages take. The largest
picture that PIL opens, 179 million pixels, is read four times by one input, which takes 6 s on an
idle machine and up to 2.5 GB. Each target runs in a process of its own, two at a time. The last
line reads `N inputs, F findings`, and the exit code says it.

atheris 3.0 never gives back the result of a comparison of arrays when it watches it; so whole
pictures are compared by `np.greater` and `np.equal`, which it does not watch.
"""

import argparse
import atexit
import os
import re
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SHARES = {
    "artifact": 0.3, "sealed_artifact": 0.2, "picture": 0.15, "table": 0.15, "layout": 0.1,
    "words": 0.1,
}  # fmt: skip
LIMITS = ("-timeout=30", "-rss_limit_mb=4096", "-malloc_limit_mb=1024")
MEMORY = Path("/dev/shm")


def main() -> None:
    """Fuzz every target in its share of the inputs, or with --target one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--target", choices=list(SHARES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--found", type=Path, default=Path("build/fuzz"), help="crashing inputs")
    typed = parser.parse_args()
    if os.environ.get("FUZZ_TARGET"):
        _fuzz(os.environ["FUZZ_TARGET"], typed.inputs, typed.seed, typed.found)
        return
    targets = [typed.target] if typed.target else list(SHARES)
    total = sum(SHARES[name] for name in targets)
    counts = {name: round(typed.inputs * SHARES[name] / total) for name in targets}
    with ThreadPoolExecutor(2) as pool:
        ran = list(pool.map(lambda name: _child(name, counts[name], typed), targets))
    inputs, findings = (sum(column) for column in zip(*ran, strict=True))
    sys.stdout.write(f"{inputs} inputs, {findings} findings\n")
    sys.exit(1 if findings else 0)


def _child(name: str, count: int, typed: argparse.Namespace) -> tuple[int, int]:
    """How many inputs a target took, and whether something was found."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--inputs", str(count), "--seed", str(typed.seed),
         "--found", str(typed.found)],
        env={**os.environ, "FUZZ_TARGET": name}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = done.stdout + done.stderr
    ran = [int(number) for number in re.findall(r"^(?:#|Done )(\d+)", told, re.MULTILINE)]
    tail = "" if not done.returncode else "\n" + told[-4000:]
    sys.stdout.write(f"{name}: {max(ran, default=0)} inputs, exit code {done.returncode}{tail}\n")
    sys.stdout.flush()
    return max(ran, default=0), int(done.returncode != 0)


def _fuzz(name: str, count: int, seed: int, found: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=["replaycad"]):
        from tests.fuzz.targets import TARGETS
    target, seeds = TARGETS[name]
    found.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        place, corpus = Path(folder) / "place", Path(folder) / "corpus"
        place.mkdir()
        corpus.mkdir()
        for number, content in enumerate(seeds):
            (corpus / str(number)).write_bytes(content)
        options = [f"-atheris_runs={count}", f"-seed={seed}", *LIMITS, "-print_final_stats=1",
                   f"-artifact_prefix={found}/{name}-"]  # fmt: skip
        # Its clock may strike when all is done and nobody listens any more.
        atexit.register(signal.signal, signal.SIGALRM, signal.SIG_IGN)
        atheris.Setup([sys.argv[0], str(corpus), *options], lambda data: target(place, data))
        atheris.Fuzz()


if __name__ == "__main__":
    main()
