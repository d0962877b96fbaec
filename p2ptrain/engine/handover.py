"""How a seat is given up while the run goes on: announced, kept to a step boundary, then closed.

    serving --begin--> draining --(a boundary, others serve)--> closed
                          `-----(a boundary, nobody else serves)--> serving

Routers ask a draining seat only where nobody else is left, so little is in it at the end.

Invariants:
    * a seat is closed only when another peer has come through the step as well (``parting``);
    * and TELL_SECONDS after it was announced: of two that want to leave one and the same
      stage, each sees the other drain, and both stay.

Refused: a vote on who may leave. The stage's next look mends a seat too many; a hole it
could not mend.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.units import Seconds, Stage

TELL_SECONDS = 1.0  # a state spreads within a round trip, or with the next heartbeat


class Handover:
    """The seats that one node is giving up."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._since: dict[Stage, Seconds] = {}

    @property
    def under_way(self) -> bool:
        """Whether any seat is being given up."""
        return bool(self._since)

    def begin(self, seat: SeatRuntime) -> None:
        """Announce that ``seat`` will be closed; it is, at a boundary, or serves on."""
        self._since[seat.stage] = asyncio.get_running_loop().time()
        seat.state = "draining"
        self._node.statuses_changed()

    def ripe(self, seat: SeatRuntime) -> bool:
        """Whether everybody near can know by now that ``seat`` is being given up."""
        since = self._since.get(seat.stage)
        now = asyncio.get_running_loop().time()
        elsewhere = len(self._node.seats) > 1 or bool(self._node.claims)
        return since is not None and now - since >= TELL_SECONDS and elsewhere

    def stepped(self, seat: SeatRuntime) -> None:
        """``seat`` goes on for another step: draining as before, unless nobody else is left."""
        if seat.stage not in self._since or seat.finished:
            return
        serving = self._node.roster.serving(seat.stage)
        if any(view.peer != self._node.me for view in serving):
            seat.state = "draining"
        else:
            del self._since[seat.stage]

    def closed(self, stage: Stage) -> None:
        """A seat is closed, for whatever reason; a single one that is left serves on."""
        self._since.pop(stage, None)
        seats = list(self._node.seats.values())
        if len(seats) == 1 and seats[0].stage in self._since and not self._node.claims:
            del self._since[seats[0].stage]
            if seats[0].state == "draining" and not self._node.draining:
                seats[0].state = "serving"
