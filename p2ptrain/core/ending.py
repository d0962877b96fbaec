"""How long a stage would still need for its step without one of its seats.

A seat ten times slower than its mates is of use in the middle of a step. What it is given
last it computes ten times as long as they would, and every stage waits for it. So it takes
on, and keeps, only what it ends before they could have ended *all* that is left:

    (what lies here, and one more) x service  >  left / the mates' rates + a margin

It judges that itself: only the seat knows what waits and what is parked with it, of all its
senders.

Invariants:
    * the fastest seat of a stage is never too late, so somebody takes every microbatch;
    * rates are the mates' own word: once nothing has been counted for a while, nobody is too
      late for the rest of the step. Who promises much and does nothing costs one pause a step.

Refused: to let the sender estimate alone (core/routing: set_left does that much). It sees
what the seat offers at the moment, and not the backwards that will come to it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from p2ptrain.units import Seconds

MARGIN_SERVICES = 2.0  # of the fastest mate: what moves to it has come a long way round
STILL_SECONDS = 15.0  # nothing counted for so long: several suspicions, as in engine/sourcing
STILL_SERVICES = 2.0  # ... or for so many of our own services, where all are slow


class Rest:
    """What is left of one step for one stage, and since when it is so much."""

    def __init__(self) -> None:
        self._step = self._least = -1  # not looked yet
        self._moved_at: Seconds = -math.inf
        self._still = False  # nothing moved for so long: its mates are not believed in this step

    def services(
        self, step: int, left: int, *, own: float, mates: Collection[float], now: Seconds
    ) -> float:
        """How many of our services the mates need for all that is ``left``; inf: do not hurry.

        Args:
            step: which; what was concluded of another is forgotten.
            left: slots of the step that no live seat of the stage has counted.
            own: our microbatches per second; 0 is unknown.
            mates: those of the other live seats.
            now: the time.
        """
        if step != self._step or left < self._least:  # what is taken back is no progress
            self._still &= step == self._step
            self._step, self._least, self._moved_at = step, left, now
        fastest = max(mates, default=0.0)
        if not 0.0 < own < fastest:
            return math.inf
        self._still |= now - self._moved_at > max(STILL_SECONDS, STILL_SERVICES / own)
        if self._still:
            return math.inf
        return own * (left / sum(mates) + MARGIN_SERVICES / fastest)
