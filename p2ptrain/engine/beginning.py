"""When the run begins: from then on stage 0 takes microbatches from the data.

    nobody has begun    every stage has sync.start_replicas seats, seen LOOKS times in a row
    somebody has        one seat of every stage is enough, seen as often
    after a rollback    likewise: the run had begun when it fell back
    a state was loaded  at once

Intuition: start_replicas is what a run wants before it begins, not what it needs to go on.
In its first step nothing else tells one from the other: no step record, no version above 0,
and who had counted may be dead. So whoever knows that the run has begun says so in every
heartbeat, and whoever hears it says it on.

Invariant: once this peer's seats source, they do until the lineage changes.

A liar can have a run begin with fewer replicas than it wants, once every stage has one. What
comes out is the same: the sum of a step does not depend on how many compute it, and they may
all die but one at any time anyway.

Refused: concluding it from bitmaps or SUMs of step 0. A stage can be lost before any seat
beside it has counted, and those who only wait for its microbatches know that it had begun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2ptrain.core.agreement import Position
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.engine.seat import SeatRuntime

LOOKS = 2  # so that the peers' views have time to become one


class Beginning:
    """See the module. ``here``: the seats of this node source, or may as soon as they open."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.here = False
        self._looks = 0

    @property
    def known(self) -> bool:
        """Whether the run has begun, by what we do or have heard; heartbeats say it on."""
        return self.here or self._node.roster.begun

    def begin_anew(self) -> None:
        """The lineage is another: its stages must be covered first."""
        self.here, self._looks = False, 0

    def look(self) -> None:
        """Call at every look at the roster: let stage 0 source when its time has come."""
        if self.here or not self._node.seats:
            return
        self._looks = self._looks + 1 if self.covered() else 0
        if self._looks >= LOOKS:
            self.here = True
            for seat in self._node.seats.values():
                seat.start_sourcing()

    def covered(self) -> bool:
        """Whether every stage has as many seats as the run must have to begin, or to go on."""
        spec, begun = self._node.spec, self.known or self._node.lineage.root.epoch
        replicas = 1 if begun else spec.sync.start_replicas
        return self._node.roster.covered(spec.cut.stages, replicas)

    def opened(self, seat: SeatRuntime, at: Position) -> None:
        """Call when a seat has taken up its first step, and others know that it serves."""
        self.here = self.here or (at.step > 0 and not self._node.resumption.waiting)
        if self.here:
            seat.start_sourcing()
