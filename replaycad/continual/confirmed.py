"""Puts patches that people confirmed as good beside a detector that has no memory bank."""

import torch

from replaycad.artifacts.detector import DetectorArtifact
from replaycad.continual.forgetting import rows_of
from replaycad.detectors.limits import of_training
from replaycad.detectors.patchcore.confirmed import Confirmed
from replaycad.detectors.patchcore.growth import spacing
from replaycad.detectors.patchcore.network import PatchCore

LEAST = 1e-12  # spacing, for a bank of one patch has none


def confirmed_beside(trained: DetectorArtifact, router: PatchCore | None) -> Confirmed | None:
    """What lowers the maps of a detector where people called photos good.

    What is near and what is typical are facts of the training: another calibration moves no map.

    Args:
        trained: the detector.
        router: the banks beside it, in the order of whose classes `Confirmed` has its own.

    Returns:
        None where nobody confirmed any.
    """
    if router is None or not trained.confirmed:
        return None
    by_class, device = trained.thresholds.get("by_class", {}), router.bank.device
    banks, spacings, typical = [], [], []
    for index in router.known_classes():
        name = trained.class_order[index]
        banks.append(torch.from_numpy(rows_of(trained, name, trained.confirmed)).to(device))
        spacings.append(max(spacing(router.bank_of(index)[0]), LEAST))
        typical.append(float(of_training(by_class.get(name, {})).get("typical_pixel", 0.0)))
    return Confirmed(banks, spacings, typical).to(device).eval()
