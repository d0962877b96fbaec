"""The last moments of a peer that has done its part: stay while needed, then sum up.

A finished peer may be the only one that holds the sums of the last step, which others need
to finish as well. So it stays until everybody it knows has stepped as far, or its patience
ends: the others may be dead without anybody having noticed. Everybody does so for the
stages beside its own, so nobody who lives is left alone.

Invariants:
    * nothing here changes a seat; the weights are digested as the last step left them;
    * the wait is bounded, and whoever is suspected meanwhile is not waited for.

Refused: leaving at once and letting laggards resync. At the end of a run there is nobody
left to resync from.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.engine.terms import NodeResult
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from p2ptrain.engine.roster import Roster
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.units import Chain, PeerId, Seconds

LOOK_SECONDS = 0.2  # a departure that comes a fifth of a second late bothers nobody
LOOKS_MIN = 10  # however short the patience


async def linger(
    roster: Roster, me: PeerId, stages: Collection[int], *, final: int, seconds: Seconds
) -> None:
    """Stay while others of ``stages`` have not reached version ``final``, ``seconds`` at most.

    Only who was heard and is not suspected counts: nobody judges those of other stages, and
    who only joins has come too late.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while loop.time() < until:
        near = (view for stage in stages for view in roster.present(Stage(stage)))
        if all(view.version >= final or view.peer == me for view in near):
            return
        await asyncio.sleep(min(LOOK_SECONDS, seconds / LOOKS_MIN))


async def sum_up(
    seats: Mapping[Stage, SeatRuntime], genesis: Chain, *, false_suspicions: int
) -> NodeResult:
    """What the peer leaves with. ``genesis``: the chain of a peer that has taken no step."""
    digests: dict[str, str] = {}
    chain = genesis
    for seat in seats.values():
        digests.update(await seat.compute.tensor_digests())
        if seat.stepper.last is not None:
            chain = seat.stepper.last.chain
    return NodeResult(
        finished=bool(seats) and all(seat.finished for seat in seats.values()),
        versions={stage: seat.version for stage, seat in sorted(seats.items())},
        tensor_digests=digests,
        chain=chain,
        false_suspicions=false_suspicions,
    )
