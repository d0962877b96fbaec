"""What a seat concludes from the speeds that its stage-mates announce: its window, its part.

The share of a stage's rate needs everybody's rate: while one is unknown, all count alike.
Who has a rate has computed: so a seat can tell whether the first step began without it.

Refused: fixing the bound for a whole step. A slow seat would begin its first step with the
window of an average one, and the others would wait for what it has parked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core import offers
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from p2ptrain.engine.surroundings import Surroundings
    from p2ptrain.units import PeerId


def rates(around: Surroundings, stage: Stage, *, own: float) -> dict[PeerId, float]:
    """Microbatches per second of the live seats of ``stage``, ours among them; 0 is unknown."""
    announced = {seat.peer: seat.rate for seat in around.roster.present(stage)}
    return {**announced, around.signer.peer: own}


def first_owners(around: Surroundings) -> tuple[PeerId, ...]:
    """Who shares the data of a first step out: all who serve stage 0, for there is no record.

    Who comes when the others have begun owns nothing: all of it is being computed already.
    """
    seats, me = around.roster.serving(Stage(0)), around.signer.peer
    begun = any(seat.rate > 0 for seat in seats)
    return tuple(seat.peer for seat in seats if seat.peer != me or seat.rate > 0 or not begun)


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
