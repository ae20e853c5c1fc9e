"""When a search has little more to gain, told without labels from draws that stay the same.

The loss of a step says nothing: its timestep and noise decide it. On fixed images, noise and
timesteps it falls smoothly, and the search is over when it hardly moves any more (DVAR, Voronov et
al., NeurIPS 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import pvariance

LOOK_EVERY = 10  # steps between two looks
DRAWS = 16  # that a look takes
MOVING = 0.15  # share of the whole variance that the last looks must fall below


@dataclass
class Plateau:
    """Losses of the looks so far, and whether they have come to rest.

    Attributes:
        window: how many of the last looks are compared with all of them; 0 never stops.
        losses: one per look.
    """

    window: int
    losses: list[float] = field(default_factory=list)

    def lacks(self, step: int) -> bool:
        """Whether the look after `step` steps is due and was not taken, as by a killed run."""
        is_due = self.window > 0 and step % LOOK_EVERY == 0
        return is_due and len(self.losses) < step // LOOK_EVERY

    def add(self, loss: float) -> bool:
        """Take one more look; returns whether the search is over."""
        self.losses.append(loss)
        return has_settled(self.losses, self.window)


def has_settled(losses: Sequence[float], window: int) -> bool:
    """Whether the last `window` losses vary far less than all do; false before twice as many."""
    if len(losses) < 2 * window:
        return False
    return pvariance(losses[-window:]) <= MOVING * pvariance(losses)
