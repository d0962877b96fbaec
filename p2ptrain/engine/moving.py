"""Moving a seat to a stage that needs it more, while both stages go on.

    core/migration says when and where ->
        room for two   claim and load the new seat while the old one serves -> hand the old
                       one over at a step boundary
        room for one   claim, hand the old one over, then load the new one as a newcomer does

Intuition: a stage is weakened only after the other has been strengthened, where memory
allows. Where it does not, the claim at least keeps others from going there as well.

Invariants:
    * a state that cannot be had or fails its probe leaves everything as it was;
    * only a peer with one seat, that serves and was not told which, moves;
    * how a seat is given up, and when it is not after all, is ``handover``'s.

Refused: swapping the state inside one seat. What the seat holds for others (frames, sums,
parked inputs) belongs to the stage that it serves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.core.migration import Mover

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2ptrain.core.assignment import Migration
    from p2ptrain.engine.handover import Handover
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.units import Seconds, Stage


class Moves:
    """The moves of one node. ``take``: opens a seat and returns when it serves, or cannot."""

    def __init__(
        self, node: Node, handover: Handover, take: Callable[[Stage, str], Awaitable[None]]
    ) -> None:
        self._node, self._handover, self._take = node, handover, take
        self._mover: Mover | None = None
        self._loading = False
        self._target: Stage | None = None  # of a move without room for two

    def look(self, now: Seconds) -> None:
        """Look, if it is time to, and begin to move if that is the answer."""
        node = self._node
        if self._mover is None:
            stages = node.spec.cut.stages
            self._mover = Mover(node.me, stages=stages, rng=node.rng, now=now)
        if self._target is not None:
            self._watch(self._target, self._mover, now)
        elif not self._loading and self._free():
            move = self._mover.look(node.roster.views(), now=now)
            if move is not None and self.room(move.target):
                self._loading = True
                node.spawn(self._beside(move, self._mover))
            elif move is not None:
                self._target = move.target
                node.claims = {move.target: node.seats[move.source].status().rate}
                self._handover.begin(node.seats[move.source])

    def room(self, stage: Stage) -> bool:
        """Whether memory allows a seat of ``stage`` beside ours."""
        compute = self._node.world.compute
        held = sum(compute.seat_bytes(seat) for seat in self._node.seats)
        return held + compute.seat_bytes(stage) <= compute.memory_bytes

    def _free(self) -> bool:
        node = self._node
        seats = list(node.seats.values())
        alone = len(seats) == 1 and seats[0].state == "serving" and not seats[0].finished
        return alone and not node.draining and node.options.stage is None

    async def _beside(self, move: Migration, mover: Mover) -> None:
        """Load the new seat while the old one serves; then hand the old one over."""
        node = self._node
        await self._take(move.target, move.reason)
        self._loading = False
        new, old = node.seats.get(move.target), node.seats.get(move.source)
        moved = new is not None and new.position is not None
        if moved and old is not None and not node.draining:
            self._handover.begin(old)
        mover.ended(moved=moved, now=asyncio.get_running_loop().time())

    def _watch(self, target: Stage, mover: Mover, now: Seconds) -> None:
        """A move without room for two: over when the new seat serves, or the old one must stay."""
        node = self._node
        if node.claims and self._handover.under_way:
            return
        if node.claims:  # nobody else is left where we serve
            node.claims = {}
            node.statuses_changed()
        self._target = None
        mover.ended(moved=target in node.seats, now=now)
