"""A seat that lost a frame takes its step up again: with the state that the step began with.

    a frame that is needed cannot be read back
        |- the state is saved, in memory -> the seat is closed: what it had counted is counted
        |    again -> it is opened with that state, and nothing counted
        `- TRIES_MOST times in one step -> this peer gives the run up: who guards the stage, or
             a stage-mate, goes on without a disk that loses frames

Intuition: the seat itself holds what its stage needs to count again, whether or not anybody
else does, and a step is a pure function of that.

Invariants:
    * all linked hear at once that nothing is counted: the old bitmap is of a peer that lives;
    * a state during which a step may have been taken is not used;
    * a step is begun again at most TRIES_MOST times, so a bad disk is never waited for in silence;
    * a draining peer's seat is left alone: it goes within ``drain_seconds``.

Refused: computing the frame alone once more. What it was made of may have been let go, and in
the middle of a pipeline every way back to it is another replay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.rounds import Phase
from p2ptrain.engine.pulling import Pulled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from p2ptrain.core.agreement import Position
    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.engine.loading import Loader
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.units import Stage

TRIES_MOST = 3  # a disk that garbled a file once may be sound; one that does so each time is not

REASON = "a frame that it had spilled cannot be read back"


class Rewinding:
    """The seats of one node that lost frames. ``take`` opens a seat of a stage."""

    def __init__(
        self, node: Node, loader: Loader, take: Callable[[Stage, str], Awaitable[None]]
    ) -> None:
        self._node, self._loader, self._take = node, loader, take
        self._tries: dict[Stage, tuple[Position, int]] = {}

    async def look(self) -> None:
        """Call every second or so: begin the steps of torn seats again."""
        node = self._node
        for stage, seat in sorted(node.seats.items()):
            if _torn(seat) and not (node.draining or node.ended.is_set()):
                await self._rewind(stage, seat)

    async def _rewind(self, stage: Stage, seat: SeatRuntime) -> None:
        """Cancelled while it saves, nothing has happened; later, the node is ending."""
        node = self._node
        at, members = seat.standing()
        before, tries = self._tries.get(stage, (at, 0))
        tries = tries if before == at else 0
        if tries == TRIES_MOST:
            node.give_up(f"stage {stage}: this peer's disk has lost frames {tries + 1} times")
            return
        state = await seat.compute.save()
        if node.seats.get(stage) is not seat or not _torn(seat) or seat.standing()[0] != at:
            return
        self._tries[stage] = (at, tries + 1)
        self._loader.own[stage] = Pulled(
            at=at,
            members=members,
            blob=state,
            sources=(node.me,),
            taken=seat.stepper.sums.taken(at),
        )
        node.close_seat(stage, REASON)
        await self._take(stage, REASON)
        if (again := node.seats.get(stage)) is not None:
            for peer in (node.me, *node.links.peers()):  # who would believe the old bitmap
                again.stepper.greet(peer)


def _torn(seat: SeatRuntime) -> bool:
    """Whether ``seat`` lost a frame of its step. Begun again, it would not have one of the last."""
    machine = seat.stepper.machine
    if machine is None or seat.finished or seat.parting or machine.phase is Phase.COMMITTED:
        return False
    return seat.pipeline.custodian.frames.torn
