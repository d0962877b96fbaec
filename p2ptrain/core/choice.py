"""Which of several SUMs of one stage and step counts, where arithmetic differs.

Under agreement "canonical" a gradient depends on who computed it, so two rounds that both end
(on two sides of a lost message) end in two sums. Either is a right sum of the step: they differ
by rounding. What must be one is the *name*, because the chain and the norms follow from it.

    told by somebody who has stepped with it (``final``)  >  any other
    of the others: the lowest round, then the lowest digest

Intuition: a name that somebody has stepped with can no longer be taken back, so whoever has
not stepped yet gives way to it. Before that, any order that all know will do; the lowest round
is the one that was most likely heard of first.

Two names that were both stepped with are a fork of the run: no order mends that, the
comparison of chains does.

Refused: a vote. It takes a majority of a stage's seats to be alive, and a stage often has two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.chain import sum_digest

if TYPE_CHECKING:
    from p2ptrain.core.agreement import Sum


def precedes(one: Sum, other: Sum) -> bool:
    """Whether ``one`` counts and not ``other``: never both ways; of two final ones neither."""
    return _place(one) < _place(other)


def _place(total: Sum) -> tuple[int, int, bytes]:
    return (0, 0, b"") if total.final else (1, total.round, sum_digest(total))
