"""The last moments of a peer that has done its part: stay while needed, then sum up.

A finished peer may be the only one that holds the sums of the last step, or what others need
of it. So it stays until everybody has stepped as far, who loads a seat of its stages as well, or
its patience ends: the others may be dead without anybody having noticed. It hears the stages
beside its own, and from them of those beyond.

Invariants:
    * nothing here changes a seat; the weights are digested as the last step left them;
    * the wait is bounded, and whoever is suspected meanwhile is not waited for.

Refused: leaving at once and letting laggards resync. At the end of a run there is nobody
left to resync from.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from p2ptrain.core.chain import genesis_chain
from p2ptrain.core.schedule import last_step
from p2ptrain.engine.terms import NodeResult
from p2ptrain.observe import events as ev
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from p2ptrain.engine.lifecycle import Node
    from p2ptrain.engine.roster import Roster, Way
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.units import Chain, PeerId, Seconds

LOOK_SECONDS = 0.2  # a departure that comes a fifth of a second late bothers nobody
LOOKS_MIN = 10  # however short the patience


async def finish(node: Node, false_suspicions: int) -> NodeResult:
    """Stay while others still need our sums, but not for ever; then sum up."""
    if node.seats and not node.draining and not node.lost:
        await linger(
            node.roster,
            node.me,
            node.seats,
            final=last_step(node.spec) + 1,
            seconds=node.options.linger_seconds,
            tell=node.statuses_changed,
        )
    result = await sum_up(node.seats, genesis_chain(node.run_id), false_suspicions=false_suspicions)
    if result.finished:
        reason = "the last step has committed"
        node.emit(ev.RunEnded(step=last_step(node.spec), reason=reason))
    return replace(result, lost=node.lost)


async def linger(
    roster: Roster,
    me: PeerId,
    stages: Collection[Stage],
    *,
    final: int,
    seconds: Seconds,
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Stay while others have not reached version ``final``, ``seconds`` at most.

    ``stages``: of our seats. ``tell``: says how far we and those behind us are; called on news.
    Only who was heard and is not suspected counts: nobody judges those of other stages. Who
    loads a seat of ours may have given it up for being behind, and be a step behind when it
    opens; for whom it is too late, goes as soon as it has heard of us.
    """
    loop = asyncio.get_running_loop()
    until, said = loop.time() + seconds, None
    while loop.time() < until:
        leasts = [least for stage in stages for least in _leasts(roster, me, stage)]
        if leasts != said:
            said = leasts
            tell()
        if all(least >= final for least in leasts) and not _coming(roster, me, stages):
            return
        await asyncio.sleep(min(LOOK_SECONDS, seconds / LOOKS_MIN))


def _leasts(roster: Roster, me: PeerId, stage: Stage) -> Iterator[int]:
    """How far the others of our stage are, and on both sides everybody."""
    yield from (view.version for view in roster.present(stage) if view.peer != me)
    ways: tuple[tuple[int, Way], ...] = ((stage + 1, "above"), (stage - 1, "below"))
    for there, way in ways:
        if any(view.peer != me for view in roster.present(Stage(there))):
            yield roster.least(Stage(there), way)


def _coming(roster: Roster, me: PeerId, stages: Collection[Stage]) -> bool:
    """Whether anybody who lives loads a seat of one of ``stages``."""
    joining = [view for view in roster.views() if view.state == "joining" and view.stage in stages]
    return any(view.peer != me and roster.counts(view.peer) for view in joining)


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
