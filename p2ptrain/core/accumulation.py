"""One seat's accumulator as its round sees it: running or frozen, and what it holds.

    RUNNING --freeze--> FREEZING --quiet--> STILL --thaw--> RUNNING
                           '------------thaw---------------'

Intuition: a plan may only sum accumulators that stand still on exactly the bitmap it names.
This says when that is so, and keeps count of the slots being taken out again.

Invariants: Freeze and Unfreeze alternate; one Subtract is under way at a time, asked for once
per time a slot was counted and never while frozen; no plan matches meanwhile.

Refused: trusting the leader's copy of the bitmap, which may be a message old.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.ledger import bytes_to_mask
from p2ptrain.core.plans import in_plan
from p2ptrain.core.rounds import Freeze, Subtract, Unfreeze

if TYPE_CHECKING:
    from p2ptrain.core.agreement import Bitmap, Plan
    from p2ptrain.core.rounds import Action


class Accumulation:
    """The own accumulator; ``own`` is its newest bitmap, ``still`` whether it can be summed."""

    def __init__(self, empty: Bitmap) -> None:
        self.own = empty
        self.subtracting = 0
        self._frozen = False
        self.still = False

    def show(self, bitmap: Bitmap) -> None:
        """The accumulator now holds what ``bitmap`` says."""
        self.own = bitmap
        self.subtracting &= bytes_to_mask(bitmap.slots)

    def freeze(self) -> tuple[Action, ...]:
        """Stop it; :meth:`quiet` follows unless it is :attr:`still` already."""
        frozen, self._frozen = self._frozen, True
        return () if frozen else (Freeze(),)

    def quiet(self) -> None:
        """The compute has stopped since the latest Freeze."""
        self.still = self._frozen

    def thaw(self) -> tuple[Action, ...]:
        """Let it run again."""
        frozen, self._frozen, self.still = self._frozen, False, False
        return (Unfreeze(),) if frozen else ()

    def subtract(self, mask: int) -> tuple[Action, ...]:
        """Take ``mask`` out; one such order at a time, the rest waits for the next call."""
        if self.subtracting or not mask:
            return ()
        self.subtracting = mask
        return (Subtract(mask),)

    def matches(self, plan: Plan | None) -> bool:
        """Whether ``plan`` takes the accumulator for exactly what it is and will stay."""
        own, share = self.own, in_plan(plan, self.own.peer) if plan else None
        if share is None or self.subtracting:
            return False
        return (share.incarnation, share.seq, share.slots, share.tallies) == (
            own.incarnation,
            own.seq,
            own.slots,
            own.tallies,
        )
