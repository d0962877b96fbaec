"""The bitmaps of one seat: its own, signed, and when who hears them; the neighbours' in ledgers.

    counted -> a new bitmap, signed -> the leader, at once when there is enough of it
                                    -> mates and both neighbouring stages, a little later
    heard   -> verified -> the round machine (own stage), a ledger (next stages), or kept
               for the next step, if its sender committed a moment before us

Intuition: only the leader waits for what we have counted. Mates need it should the leader
die; neighbours learn what they may forget.

Invariants: nothing is kept or looked at before its signature is good; a bitmap is made only
after the accumulator holds what it says. Bounds: one bitmap per peer and stage, of the
next step at most EARLY_BITMAPS (at the bound it is dropped: it is said again).

Refused: a message per counted microbatch to everybody. It grows with the square of a stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from p2ptrain.core.agreement import Bitmap, Counted
from p2ptrain.core.ledger import Ledger, bitmap_bytes, bytes_to_mask, mask_to_bytes
from p2ptrain.core.schedule import step_slots
from p2ptrain.core.sourcing import pace_of
from p2ptrain.errors import MisbehaviourError
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.agreement import Position
    from p2ptrain.core.schedule import StepSlots
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.engine.post import Post
    from p2ptrain.ports import Signer
    from p2ptrain.run import RunSpec
    from p2ptrain.units import PeerId, Seconds

GOSSIP_SECONDS = 1.0  # a bitmap is at most this stale while a seat is busy
GOSSIP_LEAST_SHARE = 256  # ... but in a large step less than this fraction of it waits longer
REPEAT_SECONDS = 5.0  # an unchanged one is said again: whoever missed it waits for nothing else
EARLY_BITMAPS = 1024  # of the next step, kept for seats that commit a moment after their mates
GOSSIP_SHARE = 16  # the leader hears of this fraction of the step's slots at once


class Gossip:
    """See the module. ``newest`` is the seat's own last bitmap."""

    def __init__(
        self,
        pipeline: Pipeline,
        post: Post,
        signer: Signer,
        *,
        spec: RunSpec,
        incarnation: int,
        next_seq: Callable[[], int],
    ) -> None:
        self.newest: Bitmap | None = None
        self.ledgers: dict[Stage, Ledger] = {}  # of the stages below and above
        self.due_at: Seconds | None = None
        self._pipeline, self._post, self._signer = pipeline, post, signer
        self._spec, self._incarnation, self._next_seq = spec, incarnation, next_seq
        self._at: Position | None = None
        self._slots: StepSlots | None = None
        self._early: dict[tuple[Stage, PeerId], Bitmap] = {}
        self._said = 0  # the slots of the last bitmap that the leader was told
        self._spread = 0  # ... that everybody near was

    def begin(self, at: Position) -> tuple[Bitmap, ...]:
        """Take up a step; returns what was heard of it before."""
        stage = self._pipeline.stage
        self._at, self._slots = at, step_slots(self._spec, at.step)
        self.ledgers = {Stage(near): Ledger(self._slots.mask) for near in (stage - 1, stage + 1)}
        self.newest, self.due_at, self._said, self._spread = None, None, 0, 0
        early, self._early = self._early, {}
        return tuple(bitmap for _, bitmap in sorted(early.items()))

    @property
    def ahead(self) -> frozenset[PeerId]:
        """Of our stage, whose bitmaps of the next step are kept."""
        return frozenset(p for stage, p in self._early if stage == self._pipeline.stage)

    def close(self) -> None:
        """Say and hear nothing any more."""
        self._at = self.newest = self.due_at = None

    # --- hearing ----------------------------------------------------------------------------

    def admits(self, bitmap: Bitmap) -> bool:
        """Whether a bitmap is of this position; one of the next step is kept.

        Raises:
            MisbehaviourError: its signature is wrong.
        """
        at = self._at
        if at is None:
            return False
        early = bitmap.at.step == at.step + 1
        if bitmap.at != at and not early:
            return False
        if not self._signer.verify(bitmap.peer, bitmap_bytes(bitmap), bitmap.signature):
            raise MisbehaviourError("a bitmap with a wrong signature", peer=bitmap.peer)
        if early:
            self._keep(bitmap)
        return not early

    def _keep(self, bitmap: Bitmap) -> None:
        known = self._early.get((bitmap.stage, bitmap.peer))
        if known is not None:
            newer = (bitmap.incarnation, bitmap.seq) > (known.incarnation, known.seq)
        else:
            newer = len(self._early) < EARLY_BITMAPS
        if newer:
            self._early[bitmap.stage, bitmap.peer] = bitmap

    # --- saying -----------------------------------------------------------------------------

    def renew(self) -> Bitmap:
        """A new bitmap of what the accumulator holds now, signed."""
        assert self._at is not None
        assert self._slots is not None
        pipeline, width = self._pipeline, self._slots.width
        loans = tuple(Counted(peer, mask_to_bytes(m, width)) for peer, m in pipeline.loans.taken)
        unsigned = Bitmap(
            peer=self._signer.peer,
            incarnation=self._incarnation,
            at=self._at,
            stage=pipeline.stage,
            seq=self._next_seq(),
            slots=mask_to_bytes(pipeline.counted, width),
            tallies=pipeline.tallies,
            signature=b"",
            pace=pace_of(pipeline.pace.rate),
            borrowed=loans or msgspec.UNSET,
        )
        signature = self._signer.sign(bitmap_bytes(unsigned))
        self.newest = msgspec.structs.replace(unsigned, signature=signature)
        return self.newest

    def counted(self, leader: PeerId, now: Seconds) -> None:
        """The newest bitmap is new: tell the leader if it is worth a message, others soon."""
        assert self._slots is not None
        width, drained = self._slots.width, self._pipeline.drained
        news = (self._pipeline.counted ^ self._spread).bit_count()
        soon = drained or news >= width // GOSSIP_LEAST_SHARE
        due_at = now + (GOSSIP_SECONDS if soon else REPEAT_SECONDS)
        if self.due_at is None or self.due_at > due_at:
            self.due_at = due_at
        new = (self._pipeline.counted ^ self._said).bit_count()
        if new >= max(1, width // GOSSIP_SHARE) or drained:
            self.tell(leader)

    def tell(self, leader: PeerId) -> None:
        """The leader waits for what we have counted; nobody else does."""
        if self.newest is not None and leader != self._signer.peer:
            self._said = bytes_to_mask(self.newest.slots)
            self._post.tell(leader, self.newest)

    def greet(self, peer: PeerId) -> None:
        """A link to ``peer`` is up (again): it may have missed our newest bitmap."""
        if self.newest is not None:
            self._post.tell(peer, self.newest)

    def spread(self, now: Seconds) -> None:
        """Send our newest bitmap to all stage-mates and to both neighbouring stages."""
        if self.newest is None:
            self.due_at = None
            return
        self._said = self._spread = bytes_to_mask(self.newest.slots)
        self.due_at = now + REPEAT_SECONDS
        stage = self._pipeline.stage
        near = [Stage(near) for near in range(stage - 1, stage + 2) if near >= 0]
        self._post.tell_all({p for there in near for p in self._post.seats(there)}, self.newest)
