"""Keeps the memory bank of a class itself, in few bytes, in place of what one is filled from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.artifacts.coded_features import CodedFeatures
from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.config.stages import CompressConfig, TrainConfig
from replaycad.continual.banks import Keeper, fit_banks, normal_scores
from replaycad.continual.budget import IMAGE_BUDGET
from replaycad.continual.features import SLIGHT, alike, bank_in_bytes, coding_loss
from replaycad.continual.kept import Kept
from replaycad.continual.representations import FEATURES_SERVE
from replaycad.data.mixture import Mixture, Source
from replaycad.data.samples import Sample
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.feature_cache import FeatureCache
from replaycad.detectors.limits import LIMITS, combined
from replaycad.detectors.patchcore.coreset import greedy_coreset
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.registry import build_detector, preset_for
from replaycad.errors import BudgetError
from replaycad.progress import Report, silent
from replaycad.runtime import generator

# Numbers of many digits, so that the limits, which are found later, take no more bytes.
_GUESSED = dict.fromkeys(LIMITS, 1.2345678901234567e-10)


def keep_features(
    samples: Sequence[Sample],
    class_name: str,
    policy: dict[str, Any],
    encoder: Encoder,
    train: TrainConfig,
    config: CompressConfig,
    seed: int,
    header: dict[str, Any],
    whole: Keeper | None = None,
    report: Report = silent,
) -> Kept:
    """Fill the memory bank of one class and keep as much of it as the budget holds.

    Args:
        samples: training images.
        class_name: the class.
        policy: of the class.
        encoder: frozen, of the detector, with the levels that it reads.
        train: of the detector, with no default left open.
        config: of the stage.
        seed: of the coreset's random draws.
        header: common part of the artifact's header.
        whole: keeps the whole bank for a training on the same images, or has it from one.
        report: hears how many patches are kept.

    Returns:
        an artifact of patches alone, at most `config.budget` bytes. Its header's `features` has the
        limits of normal scores, each image held against the patches of all others. With it comes
        the whole bank.

    Raises:
        BudgetError: if not a single patch fits.
        DatasetError: if an image cannot be read.
    """
    detector = build_detector(
        FEATURES_SERVE, train.preset, encoder.channels, encoder.strides, config.image_size
    )
    assert isinstance(detector, PatchCore)
    detector.to(encoder.device)
    mixture = Mixture([Source(class_index=0, samples=samples)], config.image_size, report)
    fit_banks(detector, mixture, [class_name], encoder, train.batch_size, seed, whole, report)
    served = {
        "detector": FEATURES_SERVE, "image_size": config.image_size,
        "levels": list(preset_for(FEATURES_SERVE, train.preset).levels),
    }  # fmt: skip
    empty = ConditionsArtifact(
        class_name=class_name,
        semantic_embedding=np.zeros((0, 0), np.float32),
        spatial_weight=None,
        spatial_bias=None,
        object_masks=np.zeros((0, config.image_size, config.image_size), np.bool_),
        policy=policy,
        header={**header, "features": {**served, "limits": _GUESSED}},
    )
    bank, places = (part.cpu().numpy() for part in detector.bank_of(0))
    kept = _in_budget(bank, empty, config, report)
    decoded = torch.from_numpy(kept.decoded())
    detector.set_bank(0, decoded, torch.from_numpy(places[: len(decoded)]))
    features = FeatureCache(encoder, mixture.images, len(mixture), train.batch_size, uses=1)
    rows = np.arange(len(mixture))
    limits = normal_scores(detector, features, mixture, rows, 0, train.batch_size).limits()
    artifact = replace(
        empty, features=kept, header={**header, "features": {**served, "limits": limits}}
    )
    is_whole = len(decoded) == len(bank) and coding_loss(bank, kept) <= SLIGHT
    return Kept(artifact, bank=bank, places=places, is_whole=is_whole)


def grow_features(
    before: ConditionsArtifact,
    samples: Sequence[Sample],
    encoder: Encoder,
    train: TrainConfig,
    config: CompressConfig,
    seed: int,
    header: dict[str, Any],
    num_before: int,
    report: Report = silent,
) -> ConditionsArtifact:
    """Bring new photos into a bank that was kept, within the same budget.

    A coreset of the kept patches and of those of the photos is coded anew. It has as many patches
    as that of all images would have. All patches are rounded alike before it is picked: those of
    the photos, which no rounding has moved yet, would else lie apart from all kept ones and crowd
    them out.

    Args:
        before: features of the class.
        samples: the new photos.
        encoder: the one that they were kept with.
        train: of the detector, with no default left open.
        config: that they were kept with.
        seed: of the coreset's random draws.
        header: common part of the artifact's header.
        num_before: images, or tiles, behind what was kept.
        report: hears how many patches of either are kept.

    Returns:
        an artifact of patches alone, at most `config.budget` bytes, with limits as
        `limits.combined` joins those that were there and those of the photos, each of which is held
        against the patches of all others.

    Raises:
        BudgetError: if not a single patch fits.
        DatasetError: if a photo cannot be read.
    """
    assert before.features is not None
    served = before.header["features"]
    detector = build_detector(
        FEATURES_SERVE, train.preset, encoder.channels, encoder.strides, served["image_size"]
    )
    assert isinstance(detector, PatchCore)
    detector.to(encoder.device)
    mixture = Mixture([Source(class_index=0, samples=samples)], served["image_size"], report)
    rows, size = np.arange(len(mixture)), train.batch_size
    features = FeatureCache(encoder, mixture.images, len(mixture), size, uses=2)
    chunks = np.array_split(rows, -(-len(rows) // size))
    detector.fit(map(features, chunks), 0, generator(seed, "grow", before.class_name))
    bank, places = (part.cpu().numpy() for part in detector.bank_of(0))
    pool = np.concatenate([before.features.decoded(), bank])
    places = np.concatenate([np.full(len(pool) - len(bank), -1), places])
    share = (num_before + len(rows)) / len(rows)
    picks = _joint_coreset(pool, round(share * len(bank)), detector, seed)
    empty = replace(
        before, features=None, header={**header, "features": {**served, "limits": _GUESSED}}
    )
    kept = _in_budget(pool[picks], empty, config, report)
    places = places[picks[: len(kept.codes)]]
    report.note(
        f"{before.class_name}: {int((places < 0).sum())} of them were kept before, "
        f"{int((places >= 0).sum())} are of the new photos"
    )
    detector.set_bank(0, torch.from_numpy(kept.decoded()), torch.from_numpy(places))
    found = normal_scores(detector, features, mixture, rows, 0, size).limits()
    limits = combined(served["limits"], found, num_before, len(rows))
    own = {**served, "limits": limits}
    return replace(empty, features=kept, header={**header, "features": own})


def _joint_coreset(
    pool: NDArray[np.float32], wanted: int, detector: PatchCore, seed: int
) -> NDArray[np.int64]:
    """Rows of patches `[N, F]`, at most as many as a bank has, any first of which cover them."""
    preset, stream = detector.preset, generator(seed, "grow", "coreset")
    wanted = min(wanted, preset.bank_limit, len(pool))
    # All at once would come in no order.
    rounded = torch.from_numpy(alike(pool))
    picks = greedy_coreset(
        rounded, min(wanted, len(pool) - 1), stream, preset.projection_width
    ).numpy()
    if wanted == len(pool):
        picks = np.append(picks, np.setdiff1d(np.arange(len(pool)), picks))
    return picks


def _in_budget(
    bank: NDArray[np.float32], empty: ConditionsArtifact, config: CompressConfig, report: Report
) -> CodedFeatures:
    """As many patches of a bank `[N, F]`, from the first, as fit into the file of an artifact."""
    name, budget = empty.class_name, config.budget or IMAGE_BUDGET
    kept = bank_in_bytes(bank, budget, lambda one: replace(empty, features=one).file_bytes())
    if kept is None:
        raise BudgetError(
            f"compress: a budget of {budget} bytes holds no patch of {name}", "give more"
        )
    report.note(
        f"{name}: {len(kept.codes)} of {len(bank)} patches kept, along {len(kept.basis)} "
        f"of {bank.shape[1]} directions"
    )
    return kept
