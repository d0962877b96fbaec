"""Two steps that were both taken from one position, and which of them the run remembers.

    everybody's SUMs of the last step, as those tell them who have stepped with them
        --> sets that are whole --> the chain that each leads to --> the smallest holds

Intuition: only where arithmetic differs can one position have two successors: either set of
SUMs is right, and they differ by rounding (core/choice). So do the weights after them. What
must be one is the name. Whoever stands on another takes over the name that holds and keeps its
weights; replicas drift no further apart by that than they do between two adoptions.

Invariants:
    * all who compare the same two choose the same: no peer, time or order decides;
    * nobody takes over a name under which it would have done otherwise: stepped, or skipped.

Refused: the chain that more seats stand on. Who is counted changes while they compare, and two
sides of a cut line would each choose their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.chain import next_chain, step_outcome
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from p2ptrain.core.agreement import Position, Sum
    from p2ptrain.units import Chain


def other_name(
    at: Position,
    taken: tuple[Sum, ...],
    told: Iterable[Mapping[Stage, Sum]],
    *,
    nominal_tokens: int,
) -> tuple[Chain, tuple[Sum, ...]] | None:
    """The step from ``at`` that holds against ours: its chain and SUMs; None: ours does.

    Args:
        at: where the step began.
        taken: the SUMs that we stepped with, of all stages.
        told: what others stepped with, each peer's by stage.
        nominal_tokens: see ``step_outcome``.
    """
    skipped = step_outcome(taken, nominal_tokens).skip
    chain, sums = next_chain(at.chain, at.epoch, at.step, taken), taken
    for each in told:
        if len(each) < len(taken):
            continue
        whole = tuple(each[Stage(stage)] for stage in range(len(taken)))
        other = next_chain(at.chain, at.epoch, at.step, whole)
        if other < chain and step_outcome(whole, nominal_tokens).skip == skipped:
            chain, sums = other, whole
    return None if sums is taken else (chain, sums)
