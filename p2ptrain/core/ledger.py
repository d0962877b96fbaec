"""Who has counted which slots of one step of one stage.

Intuition: exactly-once needs no counter and no consensus, only a set union. Every seat says,
signed, which slots its accumulator holds; the stage is complete when the live seats' sets
cover the step, and summable when no slot lies in two of them.

Invariants:
    * per peer only the highest (incarnation, seq) counts: bitmaps are replaced, never OR-ed,
      so a restarted seat's lost work and a subtracted slot really vanish;
    * union, overlaps and cover speak of live seats only; a falsely suspected seat's bitmap
      comes back with it, because its accumulator never went away;
    * a bitmap with slots outside the step, or of a known (incarnation, seq), or that has borrowed
      what it does not count, changes nothing.

Bound: one bitmap per peer, of BITMAPS_MOST peers. A name costs nothing, so signatures bound
nothing: beyond, a living seat takes a stranger's place, and a stranger is not heard.

A slot set is an int here (bit i = slot i) and little-endian bytes on the wire.

Alternative refused: a count of samples against a target (hivemind's progress tracker): it
cannot tell a gradient that was counted twice from two that were counted once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from p2ptrain.core.agreement import Bitmap, Counted, Tallies
from p2ptrain.core.canonical import canonical

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from p2ptrain.units import Bytes, PeerId


BITMAPS_MOST = 1024
"""Replicas of one stage, suspects included. More names than that are not seats but a flood."""

BITMAP_BYTES = 512
"""At most what a bitmap takes on the wire without its slots: names, counters, a signature."""

LOAN_BYTES = 160
"""Likewise what one loan adds to it: a name, and what they are packed in."""


def mask_to_bytes(mask: int, width: int) -> bytes:
    """The wire form of ``mask``: ``ceil(width / 8)`` bytes.

    Raises:
        OverflowError: a slot lies beyond the bytes of ``width``.
    """
    return mask.to_bytes((width + 7) // 8, "little")


def bytes_to_mask(slots: bytes) -> int:
    """The slot set that ``slots`` stands for."""
    return int.from_bytes(slots, "little")


def slots_of(mask: int) -> Iterator[int]:
    """The slots in ``mask``, in increasing order."""
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def sum_tallies(tallies: Iterable[Tallies]) -> Tallies:
    """Field by field; over a disjoint cover the result does not depend on the cover."""
    total = Tallies()
    for one in tallies:
        total = Tallies(
            loss=total.loss + one.loss,
            tokens=total.tokens + one.tokens,
            val_loss=total.val_loss + one.val_loss,
            val_tokens=total.val_tokens + one.val_tokens,
            poisoned=total.poisoned + one.poisoned,
        )
    return total


def bitmap_bytes(bitmap: Bitmap) -> bytes:
    """What a bitmap's signature is over: everything but the signature.

    The position's chain goes back to the run's genesis, so the run needs no field of its own.
    """
    at, tallies = bitmap.at, bitmap.tallies
    return canonical(
        "p2ptrain bitmap",
        bitmap.peer,
        bitmap.incarnation,
        *(at.epoch, at.step, at.chain),
        bitmap.stage,
        bitmap.seq,
        bitmap.slots,
        *(tallies.loss, tallies.tokens, tallies.val_loss, tallies.val_tokens, tallies.poisoned),
        bitmap.pace,
        *(field for loan in loans_of(bitmap) for field in (loan.peer, loan.slots)),
    )


def loans_of(bitmap: Bitmap) -> tuple[Counted, ...]:
    """What it has borrowed, and of whom."""
    return () if isinstance(bitmap.borrowed, msgspec.UnsetType) else bitmap.borrowed


class Ledger:
    """The bitmaps of one stage at one step; ``expected`` is the step's whole slot set."""

    def __init__(self, expected: int) -> None:
        self.expected = expected
        self._bitmaps: dict[PeerId, Bitmap] = {}
        self._masks: dict[PeerId, int] = {}
        self._loans: dict[PeerId, tuple[tuple[PeerId, int], ...]] = {}
        self._live: frozenset[PeerId] = frozenset()

    def observe(self, bitmap: Bitmap) -> bool:
        """Take ``bitmap`` over if it is newer than what its peer said before; say whether."""
        mask = bytes_to_mask(bitmap.slots)
        known = self._bitmaps.get(bitmap.peer)
        stale = known is not None and (bitmap.incarnation, bitmap.seq) <= (
            known.incarnation,
            known.seq,
        )
        loans = tuple((loan.peer, bytes_to_mask(loan.slots)) for loan in loans_of(bitmap))
        wrong = mask & ~self.expected or any(slots & ~mask for _, slots in loans)
        if stale or wrong or not (known or self._has_room(bitmap.peer)):
            return False
        self._bitmaps[bitmap.peer], self._masks[bitmap.peer] = bitmap, mask
        self._loans[bitmap.peer] = loans
        return True

    def set_live(self, peers: frozenset[PeerId]) -> None:
        """From now on the bitmaps of exactly these peers count."""
        self._live = peers

    def drop(self, peer: PeerId) -> None:
        """Forget what ``peer`` counted: its accumulator is gone."""
        self._bitmaps.pop(peer, None)
        self._masks.pop(peer, None)
        self._loans.pop(peer, None)

    def get(self, peer: PeerId) -> Bitmap | None:
        """The newest bitmap of ``peer``, live or not."""
        return self._bitmaps.get(peer)

    def bitmaps(self) -> tuple[Bitmap, ...]:
        """All bitmaps held, live or not, by peer."""
        return tuple(self._bitmaps[peer] for peer in sorted(self._bitmaps))

    def shown(self, most_bytes: Bytes) -> tuple[Bitmap, ...]:
        """What fits into ``most_bytes`` of the bitmaps held, the living first."""
        shown: list[Bitmap] = []
        for _, bitmap in sorted(
            self._bitmaps.items(), key=lambda entry: (entry[0] not in self._live, entry[0])
        ):
            most_bytes -= BITMAP_BYTES + len(bitmap.slots)
            most_bytes -= sum(LOAN_BYTES + len(loan.slots) for loan in loans_of(bitmap))
            if most_bytes < 0:
                break
            shown.append(bitmap)
        return tuple(shown)

    def union(self) -> int:
        """Slots that some live seat has counted."""
        union = 0
        for _, mask in self.cover():
            union |= mask
        return union

    def missing(self) -> int:
        """Slots that no live seat has counted; 0 means complete."""
        return self.expected & ~self.union()

    def cover(self) -> tuple[tuple[PeerId, int], ...]:
        """What each live seat has counted, by peer, empty sets included.

        It is a disjoint cover of the step if and only if :meth:`missing` is 0 and
        :meth:`overlaps` is empty.
        """
        return tuple((peer, self._masks[peer]) for peer in sorted(self._masks.keys() & self._live))

    def borrowed(self, peer: PeerId) -> int:
        """Slots that ``peer`` counts of mates that are gone."""
        borrowed = 0
        for _, slots in self._loans.get(peer, ()):
            borrowed |= slots
        return borrowed

    def computed(self) -> tuple[tuple[PeerId, int], ...]:
        """What each live seat has computed of what it counts, by peer."""
        return tuple((peer, mask & ~self.borrowed(peer)) for peer, mask in self.cover())

    def overlaps(self, keeper: Callable[[int, tuple[PeerId, ...]], PeerId]) -> dict[PeerId, int]:
        """What each live seat must subtract so that no slot is counted twice, by peer.

        ``keeper(slot, holders)`` names the holder that keeps the slot. Every view that
        contains the same bitmaps must give the same name, or two seats may both subtract.
        Who has borrowed it keeps it, for it would have to take out all else of that mate's,
        unless it is that mate that holds it; of several who have, one keeps all of theirs.
        """
        cover = self.cover()
        once = twice = 0
        for _, mask in cover:
            twice |= once & mask
            once |= mask
        losers: dict[PeerId, int] = {}
        for slot in slots_of(twice):
            holders = tuple(peer for peer, mask in cover if mask >> slot & 1)
            lenders = {peer: self._lenders(peer, slot) for peer in holders}
            able = tuple(p for p in holders if not lenders[p] & set(holders)) or holders
            tied = [peer for peer in able if lenders[peer]]
            kept = min(tied) if tied else keeper(slot, able)
            for peer in holders:
                if peer != kept:
                    losers[peer] = losers.get(peer, 0) | 1 << slot
        return dict(sorted(losers.items()))

    def _lenders(self, peer: PeerId, slot: int) -> set[PeerId]:
        return {lender for lender, slots in self._loans[peer] if slots >> slot & 1}

    def _has_room(self, peer: PeerId) -> bool:
        """Whether a bitmap of ``peer``, of whom none is held, may be; made for the living."""
        if len(self._bitmaps) < BITMAPS_MOST:
            return True
        stranger = next((p for p in self._bitmaps if p not in self._live), None)
        if stranger is None or peer not in self._live:
            return False
        self.drop(stranger)
        return True
