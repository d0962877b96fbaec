"""How many microbatches a seat may park, by what its stage-mates announce of their speed.

The share of a stage's rate needs everybody's rate: while one is unknown, all count alike.

Refused: fixing the bound for a whole step. A slow seat would begin its first step with the
window of an average one, and the others would wait for what it has parked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core import offers

if TYPE_CHECKING:
    from p2ptrain.engine.surroundings import Surroundings
    from p2ptrain.units import PeerId, Stage


def rates(around: Surroundings, stage: Stage, *, own: float) -> dict[PeerId, float]:
    """Microbatches per second of the live seats of ``stage``, ours among them; 0 is unknown."""
    announced = {seat.peer: seat.rate for seat in around.roster.present(stage)}
    return {**announced, around.signer.peer: own}


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
