"""How far each peer had come that serves nothing any more: what a run has when all have gone.

    a seat is closed, its peer leaves, restarts, or is lost for good --> its last version

Who comes when nobody is left must know where the run stood: it gives it up, waits for a disk,
or begins it anew from the seed, and that for no run that had come far.

Invariants:
    * the middle counts, so that one who lies moves nothing;
    * at most DEPARTED_MOST peers are remembered, those who went last.

Refused: the highest version ever heard. One false word would end a run that could go on.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from p2ptrain.units import Step

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2ptrain.core.assignment import SeatView
    from p2ptrain.units import PeerId

DEPARTED_MOST = 7
"""Four that tell the truth outvote three that do not; of all who come and go nothing stays."""


class Departed:
    """Of one epoch; the next begins with another."""

    def __init__(self) -> None:
        self._stood: dict[PeerId, Step] = {}

    def note(self, peer: PeerId, seats: Iterable[SeatView]) -> None:
        """``peer`` had these of our epoch; one that was still to be loaded says nothing."""
        known = [seat.version for seat in seats if seat.state != "joining"]
        if known:
            self._stood[peer] = max(self._stood.pop(peer, Step(0)), *known)
            if len(self._stood) > DEPARTED_MOST:
                del self._stood[next(iter(self._stood))]

    @property
    def furthest(self) -> Step:
        """The highest of their versions; 0 of nobody."""
        return max(self._stood.values(), default=Step(0))

    @property
    def middle(self) -> Step:
        """The middle of them, the lower of two; 0 of nobody."""
        return Step(statistics.median_low(self._stood.values())) if self._stood else Step(0)
