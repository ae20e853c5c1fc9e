"""A memory bank in few bytes: how many patches, along how many directions, how finely rounded."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from replaycad.artifacts.coded_features import CodedFeatures, coded

STEPS = (0.5, 0.6, 0.7, 0.85, 1.0)
"""Of the codes, in parts of the patches' standard deviation per channel: the first with which all
patches fit, else the last. Measured on five real classes with directions of all patches, not of the
coreset, pixel AP (56.5 with the whole banks): in 25,000 bytes 50.5 at 0.5 (320 patches of a class),
55.1 at 1 (1089), 55.1 at 1.5 (2102), 53.7 at 2 (3310); all 4000 patches 56.4, 56.3, 55.4 and 53.9.
They were chosen on these classes; between 1 and 1.5 it makes no difference."""
LEAST_SPREAD = 0.5  # of a direction that is kept, in steps: below, nearly all codes would be 0
BASIS_SHARE = 0.25  # of the bytes, at most, for the directions: wide encoders would leave no room
_TRIES = 12
SLIGHT = 0.25
"""Of `coding_loss`: coded patches that moved less serve as well as the bank that they are. Measured
on six real classes, EfficientNet-Lite0 at 256 px, 200 and 120 kB: with a loss of 0.04 to 0.16 they
tell images 0.007 less to 0.003 better apart than the whole bank, a tenth of what decides."""
_ASKED = 1000  # patches that the loss is measured on


def bank_in_bytes(
    patches: NDArray[np.float32], room: int, num_bytes: Callable[[CodedFeatures], int]
) -> CodedFeatures | None:
    """As many patches of a bank as so many bytes hold, from the first.

    Args:
        patches: `[N, F]`, the picks of a coreset in their order: any first of them cover the class.
        room: bytes of the whole file.
        num_bytes: bytes of the whole file with these features.

    Returns:
        None if not a single patch fits.
    """
    mean, directions, spread = principal(patches)
    typical = float(np.sqrt(np.square(spread).sum() / patches.shape[1]))
    for part in STEPS:
        step = max(part * typical, 1e-6)
        wanted = max(1, int((spread > LEAST_SPREAD * step).sum()))
        wanted = min(wanted, max(1, int(BASIS_SHARE * room) // patches.shape[1]))
        whole = coded(patches, mean, directions[:wanted], step)
        if num_bytes(whole) <= room:
            return whole
    return _first_that_fit(whole, room, num_bytes)


def alike(patches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Patches `[N, F]` rounded to the widest steps, as `bank_in_bytes` may round them."""
    mean, directions, spread = principal(patches)
    step = max(STEPS[-1] * float(np.sqrt(np.square(spread).sum() / patches.shape[1])), 1e-6)
    wanted = max(1, int((spread > LEAST_SPREAD * step).sum()))
    return coded(patches, mean, directions[:wanted], step).decoded()


def _first_that_fit(
    whole: CodedFeatures, room: int, num_bytes: Callable[[CodedFeatures], int]
) -> CodedFeatures | None:
    """As many of the patches as fit, from the first, where all of them do not."""
    # How many fit is nearly in proportion to the bytes; codes packed together may differ a little.
    low, high = 0, len(whole.codes)  # the first fits, the second does not
    at_low, at_high = num_bytes(whole.first(0)), num_bytes(whole)
    if at_low > room:
        return None
    for _ in range(_TRIES):
        if high - low <= 1:
            break
        guess = low + int((high - low) * (room - at_low) / max(at_high - at_low, 1))
        guess = min(max(guess, low + 1), high - 1)
        found = num_bytes(whole.first(guess))
        if found <= room:
            low, at_low = guess, found
        else:
            high, at_high = guess, found
        if room - at_low < whole.basis.shape[0]:
            break
    return whole.first(low) if low else None


def coding_loss(bank: NDArray[np.float32], kept: CodedFeatures) -> float:
    """How far rounding moves patches, in parts of how far the patches of a bank lie apart.

    A detector that holds an image against a bank cannot tell what lies closer than its patches do.

    Args:
        bank: `[N, F]`, the patches as they were, of which the first were kept.
        kept: those.

    Returns:
        mean squared distance of kept patches to themselves before, over the mean squared distance
        of a patch to the nearest other of the bank; at least 0. Infinite where no two patches
        differ, or where there is but one.
    """
    moved = np.square(kept.decoded() - bank[: len(kept.codes)]).sum(1).mean()
    patches = torch.from_numpy(bank)
    asked = patches[:: max(1, len(bank) // _ASKED)]
    if len(patches) < 2:
        return math.inf
    apart = torch.cdist(asked, patches).topk(2, largest=False).values[:, 1].square().mean()
    return float(moved) / float(apart) if apart else math.inf


def principal(
    patches: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Mean `[F]` of patches `[N, F]`, directions `[F, F]` and their spread `[F]`, widest first.

    The spread is the standard deviation along a direction.
    """
    wide = patches.astype(np.float64)
    mean = wide.mean(0)
    centred = wide - mean
    values, vectors = np.linalg.eigh(centred.T @ centred / max(len(patches), 1))
    # The sign of a direction is nobody's: its largest number is made positive, on every machine.
    vectors = vectors[:, ::-1].T
    largest = np.abs(vectors).argmax(1)
    vectors = vectors * np.sign(vectors[np.arange(len(vectors)), largest])[:, None]
    spread = np.sqrt(values[::-1].clip(0))
    return mean.astype(np.float32), vectors.astype(np.float32), spread.astype(np.float32)
