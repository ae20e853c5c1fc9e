"""Keeps the memory bank of a class itself, in few bytes, in place of what one is filled from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from replaycad.artifacts.conditions import ConditionsArtifact
from replaycad.config.stages import CompressConfig, TrainConfig
from replaycad.continual.banks import Keeper, fit_banks, normal_scores
from replaycad.continual.budget import IMAGE_BUDGET
from replaycad.continual.features import SLIGHT, bank_in_bytes, coding_loss
from replaycad.continual.kept import Kept
from replaycad.continual.representations import FEATURES_SERVE
from replaycad.data.mixture import Mixture, Source
from replaycad.data.samples import Sample
from replaycad.detectors.encoders import Encoder
from replaycad.detectors.feature_cache import FeatureCache
from replaycad.detectors.limits import LIMITS
from replaycad.detectors.patchcore.network import PatchCore
from replaycad.detectors.registry import build_detector, preset_for
from replaycad.errors import BudgetError
from replaycad.progress import Report, silent


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
    # Numbers of many digits, so that the limits, which are found later, take no more bytes.
    guessed = dict.fromkeys(LIMITS, 1.2345678901234567e-10)
    empty = ConditionsArtifact(
        class_name=class_name,
        semantic_embedding=np.zeros((0, 0), np.float32),
        spatial_weight=None,
        spatial_bias=None,
        object_masks=np.zeros((0, config.image_size, config.image_size), np.bool_),
        policy=policy,
        header={**header, "features": {**served, "limits": guessed}},
    )
    bank, places = (part.cpu().numpy() for part in detector.bank_of(0))
    budget = config.budget or IMAGE_BUDGET
    kept = bank_in_bytes(bank, budget, lambda one: replace(empty, features=one).file_bytes())
    if kept is None:
        raise BudgetError(
            f"compress: a budget of {budget} bytes holds no patch of {class_name}", "give more"
        )
    report.note(
        f"{class_name}: {len(kept.codes)} of {len(bank)} patches kept, along {len(kept.basis)} "
        f"of {bank.shape[1]} directions"
    )
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
