"""Who takes which slots of a step from the data: shares by speed, and what is handed on.

    paces of the last step record -> weights -> rendezvous order of every slot
    the first live member in a slot's order owns it
    idle seat --how much it has room for--> the seat with most time left --slots--> idle seat

Intuition: every step ends with its slowest seat of stage 0, so shares follow measured speed.
But a speed is known a step late, hashing scatters, and machines slow down unannounced. So a
seat that has nothing left asks for more, and the asked one hands on, from the end, what it
has not begun: it alone knows what that is, so nobody guesses and nothing is taken twice.

Invariants:
    * in every view each slot has exactly one owner;
    * a slot changes hands once: what was handed on is not its owner's until the taker is gone
      (then it is again), and a taker hands nothing on;
    * an answer names all that the taker was ever given in this step, so a lost one is made
      good by the next, and a doubled one changes nothing;
    * paces and shares move work only: a view that differs costs a duplicate, never a sum.

Refused: taking over by estimate what an owner "surely" has not begun. The estimate is wrong
exactly where it matters, with the slow, and each error is computed by sixteen stages. Also
refused: rates as announced at the moment; every seat would see others.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from p2ptrain.core.ledger import slots_of
from p2ptrain.core.schedule import owners
from p2ptrain.units import Microbatch, Slot

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from p2ptrain.units import PeerId, RunId, Step

PACES_MOST = 255
_PACE_OF_ONE = 128
"""The pace of one microbatch a second; 0 stands for unknown."""

_PACES_PER_OCTAVE = 4
"""Steps of 19%: equal machines have equal paces, whatever their last samples were."""


def pace_of(rate: float) -> int:
    """``rate`` (microbatches per second; 0: unknown), coarse enough to stand in a record."""
    if not 0.0 < rate < math.inf:
        return 0
    pace = _PACE_OF_ONE + round(_PACES_PER_OCTAVE * math.log2(rate))
    return min(max(pace, 1), PACES_MOST)


def weighted(members: Sequence[PeerId], paces: Sequence[int]) -> tuple[tuple[PeerId, float], ...]:
    """Members with their weights; who is unknown counts like the others' median.

    ``paces`` are of the same members in the same order, or empty where no record says them.
    """
    if len(paces) != len(members):
        paces = (0,) * len(members)
    octaves = [(min(pace, PACES_MOST) - _PACE_OF_ONE) / _PACES_PER_OCTAVE for pace in paces]
    rates = [2.0**octave for octave in octaves]
    known = [rate for rate, pace in zip(rates, paces, strict=True) if pace]
    usual = statistics.median(known) if known else 1.0
    return tuple(
        (peer, rate if pace else usual)
        for peer, rate, pace in zip(members, rates, paces, strict=True)
    )


class Shares:
    """One step's slots as one seat of stage 0 sees them; slot sets are ints (see ledger).

    ``members``: (peer, weight) of the last step record, this seat among them or not.
    """

    def __init__(
        self,
        run: RunId,
        me: PeerId,
        step: Step,
        slots: Collection[int],
        members: Sequence[tuple[PeerId, float]],
    ) -> None:
        self._me = me
        self._weights = dict(members)
        self._orders = {slot: owners(run, Microbatch(step, Slot(slot)), members) for slot in slots}
        self._live: frozenset[PeerId] = frozenset()
        self._owned: dict[PeerId, int] = {}
        self._given: dict[PeerId, int] = {}
        self._taken = 0
        self.set_live(frozenset({me}))

    def set_live(self, live: frozenset[PeerId]) -> None:
        """From now on these peers own and take; slots that none of them would own are mine."""
        if live == self._live:
            return
        self._live = live
        self._owned = {}
        for slot, order in self._orders.items():
            owner = next((peer for peer in order if peer in live), self._me)
            self._owned[owner] = self._owned.get(owner, 0) | 1 << slot

    def owned(self, peer: PeerId) -> int:
        """What ``peer`` is the first live member for, handed on or not."""
        return self._owned.get(peer, 0)

    def owners(self) -> tuple[PeerId, ...]:
        """Who owns anything, by name."""
        return tuple(sorted(self._owned))

    def mine(self) -> int:
        """What this seat is to source."""
        mine = self.owned(self._me) | self._taken
        for peer, slots in self._given.items():
            if peer in self._live:
                mine &= ~slots
        return mine

    def fallen_to(self, rank: int) -> int:
        """What is this seat's if the ``rank`` live members before it are stuck."""
        fallen = 0
        for slot, order in self._orders.items():
            alive = [peer for peer in order if peer in self._live] or [self._me]
            own = alive.index(self._me) if self._me in alive else len(alive)
            fallen |= (own <= rank) << slot
        return fallen

    def is_first_choice(self, slot: int) -> bool:
        """Whether this seat was to source ``slot`` before anybody died or was stuck."""
        return self._orders[slot][0] == self._me or bool(self._taken >> slot & 1)

    def richest(self, counted: int, *, but: Collection[PeerId] = ()) -> PeerId | None:
        """Who has most left to do for its speed, as far as bitmaps tell; None: nobody has."""
        left = {
            peer: (slots & ~counted & ~self._taken).bit_count() / max(self._weights[peer], 1e-9)
            for peer, slots in self._owned.items()
            if peer != self._me and peer not in but
        }
        richest = max(sorted(left), key=lambda peer: left[peer], default=None)
        return richest if richest is not None and left[richest] else None

    def givable(self, slots: int) -> int:
        """What of ``slots`` is this seat's to hand on, if it has not begun."""
        return slots & self.mine() & ~self._taken

    def give(self, taker: PeerId, unbegun: int, *, room: int, part: float) -> int:
        """Hand ``part`` of what is ``unbegun`` here to ``taker``, the last slots, ``room`` at most.

        Returns all that it was given in this step. Only a live peer is given anything.
        """
        given = self._given.get(taker, 0)
        if taker in self._live and taker != self._me:
            own = self.givable(unbegun)
            count = min(room, round(part * unbegun.bit_count()))
            for slot in sorted(slots_of(own), reverse=True)[:count]:
                given |= 1 << slot
            self._given[taker] = given
        return given

    def take(self, slots: int) -> None:
        """Another seat has handed us ``slots``."""
        self._taken |= sum(1 << slot for slot in slots_of(slots) if slot in self._orders)


def part_for(taker: float, mine: float) -> float:
    """What part of the rest goes to a seat of rate ``taker``, beside one of rate ``mine``.

    Both then end together. A rate that is unknown (0) counts like the other.
    """
    if taker <= 0 or mine <= 0:
        return 0.5
    return taker / (taker + mine)
