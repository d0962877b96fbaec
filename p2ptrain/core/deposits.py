"""What one seat keeps of its mates' accumulators, takes up when they are gone, and gives back.

    a mate's deposit, piece by piece -> coming -> whole (the newest of each mate)
    whole --its depositor is gone, mates who live have counted little of it--> taken
    taken --its depositor is there again--> whole
    taken --another mate who has taken it keeps it--> let go

Intuition: a sum of integers can be carried on by whoever has them. A seat that dies late in a
long step takes hundreds of counted microbatches along; where a mate holds a copy of its
accumulator, with the bitmap of that very moment, the mate adds the one to its own sum and the
other to its own set. Nothing moves while all live, so nobody has to agree on anything: the
taker signs its own bitmap, and that is all that others ever look at.

Invariants:
    * a deposit is added at most once at a time, and only if no slot of it stands in the taker's
      set; where mates who live have counted some of it, they take those out again (core/ledger),
      so that must be less than what it brings, and nothing that they have borrowed themselves;
    * it is taken out whole: of one slot alone nobody could say what it had added;
    * deposits of DEPOSITS_MOST accumulators are kept, taken ones included, and COMING_MOST more
      are on their way here; whatever is beyond is not looked at.

A taken slot is *bare* here: the frames it was computed from died with its depositor. When a
neighbour needs one of them the taker computes the slot again and adds nothing (engine/depositing).
:class:`Wants` says which of them it must ask for below.

Refused: moving the slots to the mate while the seat lives, by a message that both have signed.
The copy has the same effect on a death, and needs no moment at which both agree.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from p2ptrain.core.ledger import bytes_to_mask, slots_of
from p2ptrain.core.schedule import rank

if TYPE_CHECKING:
    from collections.abc import Mapping

    from p2ptrain.core.agreement import Bitmap
    from p2ptrain.units import PeerId, RunId, Seconds, Stage, Step

    Integers: TypeAlias = bytes | bytearray | memoryview
    Account: TypeAlias = tuple[PeerId, int]  # whose accumulator: a peer, and which of its starts

DEPOSITS_MOST, COMING_MOST = 3, 2
"""Each takes as much memory as the accumulator. In a ring a seat has one depositor, two beside
one that is slow; what it has taken up stays to the step's end, while those before it in the ring
die one after another. Who is refused tries again with its next deposit."""

DEPOSITED_COPIES = DEPOSITS_MOST + COMING_MOST + 1
"""Of accumulators, in memory at most: what is kept, what is coming, and our own."""

MATE_SHARE, LEFT_SHARE = 0.5, 0.25
"""Of the usual rate: whoever is slower is given no deposits, or no more. It takes them up
between two jobs, and meanwhile mates count again what is in there."""

TWICE_SHARE = 0.25
"""Less than this part of a deposit may be counted by mates: they take it out one by one, a
service each, and no plan is made meanwhile; what is lost with a deposit all make good at once."""

GRACE_SECONDS = 3.0
"""A count that has vanished above may be about to come back: with a deposit that is taken up
there, or a bitmap that is on its way. Both take a few intervals of gossip."""

WANTED_MOST = 8
"""Slots asked for at a time: about as many as a seat computes before it asks again."""


def mate(
    run: RunId,
    step: Step,
    stage: Stage,
    me: PeerId,
    rates: Mapping[PeerId, float],
    *,
    last: PeerId | None = None,
) -> PeerId | None:
    """With whom ``me`` leaves its deposits in this step: the next in a ring who is not slow.

    In a ring few get those of many. ``rates``: of the others (0: not known, so as usual);
    ``last``: whom it was before, and is still while that one is there and not much slower.
    """
    known = [rate for rate in rates.values() if rate > 0.0]
    usual = statistics.median_low(known) if known else 0.0
    speeds = {peer: rate if rate > 0.0 else usual for peer, rate in rates.items()}
    if last is not None and speeds.get(last, -1.0) >= LEFT_SHARE * usual:
        return last
    ring = rank("deposit", run, f"{step}/{stage}", {me, *rates})
    place = ring.index(me)
    others = ring[place + 1 :] + ring[:place]
    fast = (peer for peer in others if speeds[peer] >= MATE_SHARE * usual)
    return next(fast, None)


@dataclass(slots=True)
class Kept:
    """One deposit: what its depositor had counted, and the integers, as (start, bytes)."""

    bitmap: Bitmap
    pieces: list[tuple[int, Integers]] = field(default_factory=list)
    elements: int = 0

    @property
    def slots(self) -> int:
        """What it counts."""
        return bytes_to_mask(self.bitmap.slots)

    @property
    def account(self) -> Account:
        """Whose accumulator it was."""
        return _account(self.bitmap)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The stage as its seat sees it.

    ``starts``: the incarnation of each peer that a bitmap has told. ``others``: slots that mates
    who live have counted, ``tied``: those of them that were borrowed; ``counted``: what we have.
    """

    live: frozenset[PeerId]
    starts: Mapping[PeerId, int]
    counted: int
    others: int
    tied: int

    def away(self, kept: Kept) -> bool:
        """Whether the accumulator that was copied is gone, as far as we can tell."""
        peer = kept.bitmap.peer
        known = self.starts.get(peer, kept.bitmap.incarnation)
        return peer not in self.live or known > kept.bitmap.incarnation


class Deposits:
    """The deposits at one seat in one step. See the module."""

    def __init__(self) -> None:
        self._coming: dict[Account, Kept] = {}
        self._whole: dict[Account, Kept] = {}
        self._taken: dict[Account, Kept] = {}

    @property
    def borrowed(self) -> int:
        """The slots of all that is taken."""
        slots = 0
        for kept in self._taken.values():
            slots |= kept.slots
        return slots

    @property
    def taken(self) -> tuple[tuple[PeerId, int], ...]:
        """Whose deposits are taken, and their slots."""
        return tuple((peer, kept.slots) for (peer, _), kept in sorted(self._taken.items()))

    def came(
        self, bitmap: Bitmap, start: int, stop: int, integers: Integers, *, elements: int
    ) -> bool:
        """A piece has come, of an accumulator of ``elements``; whether the deposit is whole.

        Pieces come in order, from the first; another order, a deposit that is no news, and one
        for which there is no place, are dropped.
        """
        account = _account(bitmap)
        if start == 0 and self._has_room(account) and self._is_news(bitmap):
            self._coming[account] = Kept(bitmap)
        coming = self._coming.get(account)
        if coming is None or coming.bitmap != bitmap or coming.elements != start or stop <= start:
            return False
        coming.pieces.append((start, integers))
        coming.elements = stop
        if stop < elements:
            return False
        self._whole[account] = self._coming.pop(account)
        return True

    def make_room(self, view: View) -> None:
        """Let go of what comes no further and, if all places are taken, of what is of no use."""
        self._coming = {who: kept for who, kept in self._coming.items() if not view.away(kept)}
        if len(self._accounts) >= DEPOSITS_MOST:
            self._whole = {
                who: kept
                for who, kept in self._whole.items()
                if self._is_useful(kept, view) or not view.away(kept)
            }

    @property
    def any_whole(self) -> bool:
        """Whether there is anything to decide about."""
        return bool(self._whole or self._taken)

    def begun(self, bitmap: Bitmap) -> bool:
        """Whether a piece of this very deposit is here, so that its signature was looked at."""
        coming = self._coming.get(_account(bitmap))
        return coming is not None and coming.bitmap == bitmap

    def to_return(self, view: View) -> Kept | None:
        """What must be given back: its depositor is there, and counts it itself."""
        found = (kept for _, kept in sorted(self._taken.items()) if not view.away(kept))
        return next(found, None)

    def to_take(self, view: View) -> Kept | None:
        """What may be taken up now."""
        fit = (kept for _, kept in sorted(self._whole.items()) if self._is_useful(kept, view))
        return next((kept for kept in fit if view.away(kept)), None)

    def meeting(self, slots: int) -> Kept | None:
        """What is taken and counts any of ``slots``."""
        return next((k for _, k in sorted(self._taken.items()) if k.slots & slots), None)

    def took(self, kept: Kept) -> None:
        """It is about to be added."""
        self._taken[kept.account] = self._whole.pop(kept.account)

    def returned(self, kept: Kept, *, overlapped: bool = False) -> None:
        """It has been taken out again.

        It may be taken up anew, unless others had counted some of it (``overlapped``): two mates
        to whom one seat left its deposits would take turns for ever.
        """
        del self._taken[kept.account]
        if not overlapped:
            self._whole.setdefault(kept.account, kept)  # a newer one may have come meanwhile

    def clear(self) -> None:
        """The step is over."""
        for kept in (self._coming, self._whole, self._taken):
            kept.clear()

    def _is_useful(self, kept: Kept, view: View) -> bool:
        """Whether it may be added, and brings more than mates would have to take out again."""
        twice = (kept.slots & view.others).bit_count()
        barred = kept.slots & (view.counted | view.tied | self.borrowed)
        return not barred and twice < TWICE_SHARE * kept.slots.bit_count()

    def _has_room(self, account: Account) -> bool:
        coming = len(self._coming.keys() - {account})
        known = account in self._accounts or len(self._accounts) < DEPOSITS_MOST
        fits = known and coming < COMING_MOST
        return fits and account not in self._taken  # else it is about to be returned

    @property
    def _accounts(self) -> set[Account]:
        return {*self._whole, *self._taken, *self._coming}

    def _is_news(self, bitmap: Bitmap) -> bool:
        known = (held.get(_account(bitmap)) for held in (self._coming, self._whole))
        return all(kept is None or kept.bitmap.seq < bitmap.seq for kept in known)


def _account(bitmap: Bitmap) -> Account:
    return bitmap.peer, bitmap.incarnation


class Wants:
    """Which bare slots a seat must have again: their inputs are lacking in the stage above."""

    def __init__(self) -> None:
        self._since: dict[int, Seconds] = {}

    def look(self, needed: int, *, now: Seconds) -> int:
        """The slots to ask for now, of those ``needed``; look again every GRACE_SECONDS."""
        self._since = {slot: self._since.get(slot, now) for slot in slots_of(needed)}
        asked = 0
        for slot, since in sorted(self._since.items(), key=lambda one: (one[1], one[0])):
            if now >= since + GRACE_SECONDS and asked.bit_count() < WANTED_MOST:
                asked |= 1 << slot
        return asked
