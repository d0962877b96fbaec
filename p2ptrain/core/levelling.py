"""Before the first step: spread the peers evenly, whoever chose what at the same moment.

Peers that start together see the same empty stages and may choose the same one. A move
costs nothing before step 0 (weights come from the seed), so there is no need for the
caution of a migration: everybody computes the same even layout from the same view and
takes the place that it finds there for itself. Views differ for a moment only; the next
look mends what they spoilt.

In a run that is under way the same holds for who has only claimed a seat and loads nothing
yet (``spread``): of fifty that come at once all have seen the same weakest stage. Seats that
serve stay where they are; they move by ``migrate``, with all its caution.

Invariants:
    * in one view the layouts of all peers agree, so nobody gets in another's way;
    * afterwards the fullest stage has at most one seat more than the emptiest;
    * nobody moves who need not: a layout that is even already is kept.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from p2ptrain.core.assignment import Assignment, stage_rates, usual_rate
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.core.assignment import SeatView
    from p2ptrain.units import PeerId


def level(  # noqa: C901, PLR0912 - one pass over one layout, which its steps share
    view: Sequence[SeatView], me: PeerId, *, stages: int
) -> Assignment | None:
    """Where this peer must move so that all stages are served evenly; None: stay.

    Peers with several seats are left alone: they give seats away (see release).
    """
    by_peer: dict[PeerId, list[Stage]] = {}
    for seat in view:
        if seat.state != "draining" and seat.stage < stages:
            by_peer.setdefault(seat.peer, []).append(seat.stage)
    layout: list[list[PeerId]] = [[] for _ in range(stages)]
    fixed = [0] * stages
    for peer, held in sorted(by_peer.items()):
        if len(held) == 1:
            layout[held[0]].append(peer)
        else:
            for stage in held:
                fixed[stage] += 1

    def load(stage: int) -> int:
        return len(layout[stage]) + fixed[stage]

    while True:
        movable = [stage for stage in range(stages) if layout[stage]]
        emptiest = min(range(stages), key=lambda stage: (load(stage), stage))
        fullest = max(movable, key=lambda stage: (load(stage), -stage), default=emptiest)
        if load(fullest) - load(emptiest) <= 1:
            return None
        mover = max(layout[fullest], key=lambda peer: _score(emptiest, peer))
        layout[fullest].remove(mover)
        layout[emptiest].append(mover)
        if mover == me:
            reason = f"stage {emptiest} has {load(emptiest) - 1} seats, stage {fullest} has more"
            return Assignment(stage=Stage(emptiest), reason=reason)


def spread(view: Sequence[SeatView], me: PeerId, *, stages: int) -> Assignment | None:
    """Where this peer, which has claimed one seat and serves none, must claim; None: stay.

    The stages are filled up with all who have only claimed, the weakest first, each as fast
    as is usual; so many stay at each stage, by hash, and the others go where some lack.
    """
    held: dict[PeerId, list[SeatView]] = {}
    for seat in view:
        if seat.stage < stages:
            held.setdefault(seat.peer, []).append(seat)
    claims = {
        peer: seats[0].stage
        for peer, seats in sorted(held.items())
        if len(seats) == 1 and seats[0].state == "joining"
    }
    rest = [seat for seat in view if seat.peer not in claims and seat.stage < stages]
    places = _places(rest, len(claims), stages)
    leftover: list[PeerId] = []
    for stage in range(stages):
        here = [peer for peer, claim in claims.items() if claim == stage]
        here.sort(key=lambda peer: _score(stage, peer))
        leftover += here[places[stage] :]
        places[stage] = max(0, places[stage] - len(here))
    lacking = [Stage(stage) for stage in range(stages) for _ in range(places[stage])]
    for stage, peer in zip(lacking, sorted(leftover), strict=True):
        if peer == me:
            reason = f"stage {stage} is the weakest"
            if len(claims) > 1:
                reason += f" of what {len(claims)} who come at once are shared out to"
            return Assignment(stage=stage, reason=reason)
    return None


def _places(rest: Sequence[SeatView], newcomers: int, stages: int) -> list[int]:
    """How many of ``newcomers`` each stage gets, beside the seats of the ``rest``."""
    rates, usual = stage_rates(rest, stages=stages), usual_rate(rest)
    served = {seat.stage for seat in rest if seat.state != "draining"}
    places = [0] * stages
    for _ in range(newcomers):
        weakest = min(range(stages), key=lambda s: (s in served or places[s] > 0, rates[s], s))
        places[weakest] += 1
        rates[weakest] += usual
    return places


def _score(stage: int, peer: PeerId) -> bytes:
    return hashlib.blake2b(f"level {stage} {peer}".encode(), digest_size=8).digest()
