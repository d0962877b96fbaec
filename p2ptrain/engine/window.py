"""What a seat concludes from the speeds that its stage-mates announce: its window, its part.

The share of a stage's rate needs everybody's rate: while one is unknown, all count alike.
Who has a rate has computed: so a seat can tell whether the first step began without it.

Refused: fixing the bound for a whole step. A slow seat would begin its first step with the
window of an average one, and the others would wait for what it has parked.
"""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

from p2ptrain.core import offers
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from p2ptrain.core.agreement import Position
    from p2ptrain.engine.roster import Roster
    from p2ptrain.engine.surroundings import Surroundings
    from p2ptrain.units import PeerId, Seconds


def rates(around: Surroundings, stage: Stage, *, own: float) -> dict[PeerId, float]:
    """Microbatches per second of the live seats of ``stage``, ours among them; 0 is unknown.

    Who drains takes nothing new: its part is the others' already.
    """
    announced = {seat.peer: seat.rate for seat in around.roster.serving(stage)}
    return {**announced, around.signer.peer: own}


def usual_service(around: Surroundings, stage: Stage) -> Seconds | None:
    """What a microbatch takes the other seats of ``stage``, by their median; None: unknown."""
    me = around.signer.peer
    known = [s.rate for s in around.roster.present(stage) if s.rate > 0 and s.peer != me]
    return 1.0 / median(known) if known else None


def begun_without_us(around: Surroundings) -> bool:
    """Whether somebody has computed in the first step already, and we have not."""
    rates = {seat.peer: seat.rate for seat in around.roster.serving(Stage(0))}
    return any(rates.values()) and not rates.get(around.signer.peer)


def left_to_mates(around: Surroundings) -> bool:
    """Whether our seat of stage 0 is being given up, and others take what it has not begun."""
    here, me = around.roster.present(Stage(0)), around.signer.peer
    states = {seat.peer: seat.state for seat in here}
    return states.get(me) == "draining" and "serving" in states.values()


def first_owners(around: Surroundings, *, late: bool) -> tuple[PeerId, ...]:
    """Who shares the data of a first step out: all who serve stage 0, for there is no record.

    ``late``: our seat was opened when the others had begun. It owns nothing then: all of it is
    being computed. Who only begins a moment after them has its part, and they know.
    """
    seats = (seat.peer for seat in around.roster.serving(Stage(0)))
    return tuple(peer for peer in seats if not (late and peer == around.signer.peer))


def parked_bound(around: Surroundings, stage: Stage, *, rate: float, total_slots: int) -> int:
    """The bound of our seat of ``stage``, which computes ``rate`` microbatches a second."""
    here = rates(around, stage, own=rate)
    return offers.parked_bound(
        stages=around.spec.cut.stages,
        stage=stage,
        share=rate / sum(here.values()) if all(here.values()) else 1.0 / len(here),
        replicas=len(here),
        total_slots=total_slots,
        window_per_stage=around.spec.limits.window_per_stage,
    )


def rates_at(
    roster: Roster, stage: Stage, at: Position, members: tuple[PeerId, ...]
) -> dict[PeerId, float]:
    """Who of ``stage`` can be asked at ``at``, and how fast it is.

    A draining seat is asked only where nobody else counts: it serves to the step's end,
    and a newcomer may be behind.
    """
    count = roster.at(stage, at, members)
    seats = [seat for seat in roster.serving(stage) if seat.peer in count]
    seats = seats or [seat for seat in roster.present(stage) if seat.peer in count]
    return {seat.peer: seat.rate for seat in seats or roster.present(stage)}
