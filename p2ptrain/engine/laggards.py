"""Seats of ours that fell behind: asking for what they missed, or starting over.

    one step behind, for BEHIND_SECONDS   -> ask the mates that went on for that step's sums
    two or more, for LOST_SECONDS         -> give the seat up, claim the stage, load state again
    one, for APART_SECONDS                -> the same where arithmetic differs: it stands under a
                                             name of the step before that the others left
    just opened, on a state of some steps -> ask at once: the step went on while it loaded

Invariants:
    * a seat that parts, has finished or holds no state yet is left alone;
    * a mate that says more than the stages beside allow moves nobody: a lie would empty the stage;
    * nothing here awaits.

Refused: replaying missed steps one by one. Sums are kept for one step, a state for all of them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from p2ptrain.core.rounds import Phase
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from p2ptrain.core.assignment import SeatView
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.units import PeerId, Seconds

APART_SECONDS = 12.0  # four times asked, and the sums of the others are of no use to it
BEHIND_SECONDS = 3.0  # a commit spreads within a round trip; three seconds behind is lost
LOST_SECONDS = 1.0  # two steps behind all: nobody holds the sum any more, if it is not on its way


class Laggards:
    """Watches the seats of one node for those that are behind."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._behind_since: dict[Stage, Seconds] = {}
        self._apart_since: dict[Stage, Seconds] = {}

    def begin_anew(self) -> None:
        """The run begins again: nobody is behind."""
        self._behind_since.clear()
        self._apart_since.clear()

    def opened(self, seat: SeatRuntime) -> None:
        """Call for a seat that begins with a state: its step's sums may be out already."""
        seat.stepper.ask_sums(self._who_knows(seat.stage))
        self._behind_since[seat.stage] = -math.inf  # who has missed two, at once loads again

    def look(self, now: Seconds) -> bool:
        """A seat that missed a commit asks for its sums; one far behind loads state again.

        Whether one was closed: then look again at once.
        """
        node, closed = self._node, False
        for stage, seat in list(node.seats.items()):
            if seat.stepper.machine is None or seat.finished or seat.parting:
                continue
            mates = self._ahead(seat)
            if not mates:
                self._behind_since.pop(stage, None)
                self._apart_since.pop(stage, None)
                continue
            apart = now - self._apart_since.setdefault(stage, now)
            ahead = [view.version - seat.version for view in mates]
            since = self._behind_since.setdefault(stage, now)
            if now - since < (BEHIND_SECONDS if min(ahead) == 1 else LOST_SECONDS):
                continue
            del self._behind_since[stage]
            if max(ahead) > 1:
                self._start_over(stage, f"{ahead[0]} steps behind")
                closed = True
            elif apart >= APART_SECONDS and self._parts(seat):
                self._start_over(stage, "a step behind, under another name of the one before")
                closed = True
            else:
                seat.stepper.ask_sums([view.peer for view in mates])
        return closed

    def _start_over(self, stage: Stage, reason: str) -> None:
        node = self._node
        self._apart_since.pop(stage, None)
        node.close_seat(stage, reason)
        if not (node.seats or node.draining):  # its stage is as full as it was: back to it
            node.claims = {stage: 0.0}
            node.statuses_changed()  # who has finished waits for us

    def _parts(self, seat: SeatRuntime) -> bool:
        """Whether the names of sums may part, and ``seat`` is not just about to step."""
        machine = seat.stepper.machine
        canonical = self._node.spec.sync.agreement == "canonical"
        return canonical and machine is not None and machine.phase is not Phase.COMMITTED

    def _ahead(self, seat: SeatRuntime) -> list[SeatView]:
        """The mates of ``seat`` that are further, as far as that can be.

        Nobody steps before all stages have their sums: the stages beside are at most one behind.
        """
        roster, stage = self._node.roster, seat.stage
        beside = (roster.present(Stage(near)) for near in (stage - 1, stage + 1))
        least = min((max(v.version for v in views) for views in beside if views), default=None)
        return [
            view
            for view in roster.present(stage)
            if view.version > seat.version and (least is None or view.version <= least + 1)
        ]

    def _who_knows(self, stage: Stage) -> list[PeerId]:
        """Whom a newcomer to ``stage`` asks for the step's sums.

        Where arithmetic differs everybody: what its stage counts again may have a name already.
        """
        node = self._node
        if node.spec.sync.agreement == "canonical":
            return list(node.roster.everyone())
        return [view.peer for view in node.roster.present(stage) if view.peer != node.me]
