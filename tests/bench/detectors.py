"""Speed of the detectors' inner parts against the published forms, on this machine's cores."""

import copy
import time
from collections.abc import Callable

import torch

from replaycad.detectors.optimization import make_optimizers, optimize_step
from replaycad.detectors.patchcore.coreset import greedy_coreset
from replaycad.detectors.patchcore.embedding import embed
from replaycad.detectors.registry import build_detector, preset_for
from tests.detectors.grouped import per_sample
from tests.detectors.test_patchcore import embedding_by_the_published_chain

INVAD_BAR, EMBEDDING_BAR = 1.5, 20
CORESET_BAR_S, SCAN_BAR_S = 60, 20


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Shortest of some runs after one that warms up."""
    work()
    return fresh_seconds(work, repeats)


def fresh_seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Shortest of some runs."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def training_step(detector: torch.nn.Module, name: str, features: list) -> Callable[[], object]:
    """One step of the published preset, encoder not included."""
    training = preset_for(name, "full").training
    optimizers = make_optimizers(detector, training, 1e-4)
    detector.train()
    return lambda: optimize_step(detector, optimizers, features, training)


def faster(row: str, reference: float, ours: float, bar: float) -> dict:
    """A row that holds a published form against ours."""
    return {
        "row": row, "reference_s": round(reference, 3), "ours_s": round(ours, 3),
        "ratio": round(reference / ours, 2), "bar": f"at least {bar} times as fast",
        "met": reference / ours >= bar,
    }  # fmt: skip


def within(row: str, ours: float, bar: float) -> dict:
    """A row that holds a time against a limit."""
    return {"row": row, "ours_s": round(ours, 1), "bar": f"under {bar} s", "met": ours < bar}


def invad(batch: int = 8) -> dict:
    """A training step of InvAD with ordinary and with per-sample grouped convolutions."""
    channels, sizes = (256, 512, 1024), (64, 32, 16)
    features = [torch.randn(batch, c, s, s) for c, s in zip(channels, sizes, strict=True)]
    plain = build_detector("invad", "full", channels, (4, 8, 16), 256)
    grouped = per_sample(copy.deepcopy(plain))
    ours, theirs = (
        seconds(training_step(detector, "invad", features)) for detector in (plain, grouped)
    )
    return faster(f"InvAD, training step of {batch} images", theirs, ours, INVAD_BAR)


def embedding(batch: int = 8) -> dict:
    """PatchCore's embedding in closed form and by unfolding and adaptive pooling."""
    middle, coarse = torch.randn(batch, 512, 32, 32), torch.randn(batch, 1024, 16, 16)
    ours = seconds(lambda: embed(middle, coarse), 9)
    theirs = seconds(lambda: embedding_by_the_published_chain(middle, coarse, 1024), 3)
    return faster(f"PatchCore, embedding of {batch} images", theirs, ours, EMBEDDING_BAR)


def coreset(num_vectors: int = 150_000, num_picks: int = 15_000) -> dict:
    """Greedy coreset of one class's patches."""
    stream = torch.Generator().manual_seed(0)
    vectors = torch.randn(num_vectors, 1024, generator=stream)
    ours = fresh_seconds(lambda: greedy_coreset(vectors, num_picks, stream, 128))
    return within(f"PatchCore, coreset of {num_picks} from {num_vectors}", ours, CORESET_BAR_S)


def scan() -> dict:
    """A training step of MambaAD on one 256 px image."""
    channels, sizes = (64, 128, 256), (64, 32, 16)
    features = [torch.randn(1, c, s, s) for c, s in zip(channels, sizes, strict=True)]
    detector = build_detector("mambaad", "full", channels, (4, 8, 16), 256)
    ours = fresh_seconds(training_step(detector, "mambaad", features))
    return within("MambaAD, training step of one image", ours, SCAN_BAR_S)


def measure() -> list[dict]:
    """All rows."""
    return [invad(), embedding(), coreset(), scan()]
