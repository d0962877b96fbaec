"""Deposits of one seat: copies of its accumulator for a mate, and what becomes of mates' copies.

    F more are counted --between two jobs--> a copy, its bitmap --piece by piece--> one mate
    that mate loses us  --between two jobs--> core/deposits: the integers are added, the bitmap
                                              says so at once, mates drop what they replay of it
    a slot of it must be subtracted, or we are there again --> the integers are taken out

What is taken up is *bare*: no frame of it is here. Two neighbours may come to need one. A seat
below that replays it waits for its gradient: it is told so (``bare``) and sends its frame here.
The stage above lacks it again: the stage below is asked (engine/wanting). It is then computed
like any other, and added to nothing; what is bare above, or below, in turn goes the same way.

Invariants:
    * integers and bitmap change between two jobs, while nothing is computing or being taken
      out, and not while the round has stopped the accumulator; what has begun ends first;
    * one deposit is on its way at a time, and nobody waits for it;
    * nothing is kept of a peer but what it has signed.

Refused: acknowledging a deposit. Whoever has it may die all the same, and the depositor would
do nothing else: the next one follows.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.core.agreement import Tallies
from p2ptrain.core.deposits import Deposits, View, mate
from p2ptrain.core.ledger import bitmap_bytes, bytes_to_mask, sum_tallies
from p2ptrain.core.rounds import Phase
from p2ptrain.engine.loans import let_go
from p2ptrain.engine.reduction import PART_TRIES, PIECE_ELEMENTS, pieces_of
from p2ptrain.engine.wanting import Wanting
from p2ptrain.errors import MisbehaviourError
from p2ptrain.observe import events as ev
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from p2ptrain.core.agreement import Bitmap
    from p2ptrain.core.deposits import Kept
    from p2ptrain.core.step import StepMachine
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.engine.stepping import Stepper
    from p2ptrain.engine.surroundings import Surroundings
    from p2ptrain.ports import Buffer, OwnCopy, StageCompute
    from p2ptrain.units import PeerId, Seconds


class Depositing:
    """See the module. Without ``sync.deposit_every`` it does nothing at all."""

    def __init__(
        self, pipeline: Pipeline, compute: StageCompute, stepper: Stepper, around: Surroundings
    ) -> None:
        self._pipeline, self._compute = pipeline, compute
        self._stepper, self._around = stepper, around
        self._every = around.spec.sync.deposit_every
        self._deposits = Deposits()
        self.wanting = Wanting(pipeline, stepper, around.post)
        self._lock = asyncio.Lock()  # of two that would give the same deposit back
        self._mate: PeerId | None = None
        self._left = 0  # slots of the last deposit, which lies with the mate
        self._sending = False
        if self._every:
            pipeline.loans.chore = self._chore
            pipeline.loans.give_back = self._give_back

    @property
    def on(self) -> bool:
        """Whether this run's seats leave deposits, so that a slot may be bare."""
        return self._every > 0

    def begin(self) -> None:
        """A step is taken up: what was left of the last is of no use."""
        self._deposits.clear()
        self._pipeline.loans.taken = ()
        self.wanting.begin()
        self._mate, self._left = None, 0

    # --- between two jobs -------------------------------------------------------------------

    def _chore(self) -> Coroutine[None, None, None] | None:
        """What is to be done before the next microbatch is computed."""
        machine, pipeline = self._stepper.machine, self._pipeline
        if machine is None or machine.phase not in (Phase.COUNTING, Phase.PLANNING):
            return None
        if pipeline.frozen or pipeline.passing or pipeline.loans.taking_out or not pipeline.quiet:
            return None
        if not self._deposits.any_whole:
            return self._deposit() if self._is_due() else None
        view = self._view(machine)
        if (kept := self._deposits.to_return(view)) is not None:
            return self._give_back(kept.slots, overlapped=False)
        if (kept := self._deposits.to_take(view)) is not None:
            return self._take_up(kept)
        return self._deposit() if self._is_due() else None

    def _view(self, machine: StepMachine) -> View:
        ledger, pipeline, others, tied = machine.ledger, self._pipeline, 0, 0
        for peer, mask in ledger.cover():
            if peer != pipeline.me:
                others, tied = others | mask, tied | ledger.borrowed(peer)
        return View(
            live=self._stepper.live,
            starts={bitmap.peer: bitmap.incarnation for bitmap in ledger.bitmaps()},
            counted=pipeline.counted,
            others=others,
            tied=tied,
        )

    # --- our own ----------------------------------------------------------------------------

    def _is_due(self) -> bool:
        if self._sending or self._stepper.gossip.newest is None:
            return False
        to = self._choose_mate()
        if to != self._mate:
            self._mate, self._left = to, 0
        counted = self._pipeline.counted
        new = (counted & ~self._left).bit_count()
        shown = bytes_to_mask(self._stepper.gossip.newest.slots)
        return to is not None and new >= self._every and shown == counted

    def _choose_mate(self) -> PeerId | None:
        at, around, stage = self._stepper.at, self._around, self._pipeline.stage
        me, live = self._pipeline.me, self._stepper.live
        serving = (seat for seat in around.roster.serving(stage) if seat.version == at.step)
        rates = {seat.peer: seat.rate for seat in serving if seat.peer != me and seat.peer in live}
        return mate(around.run, at.step, stage, me, rates, last=self._mate)

    async def _deposit(self) -> None:
        """Copy what we hold, and send it from a task of its own."""
        bitmap, to = self._stepper.gossip.newest, self._mate
        assert bitmap is not None
        assert to is not None
        self._sending, self._left = True, bytes_to_mask(bitmap.slots)
        try:
            copied = await self._compute.copy_own()
        except BaseException:
            self._sending = False
            raise
        self._send(to, bitmap, copied, 0)

    def _send(self, to: PeerId, bitmap: Bitmap, copied: OwnCopy, index: int) -> None:
        """Send the piece ``index``, and when it is out the next; a later step ends it."""
        pieces, machine = pieces_of(0, self._compute.elements), self._stepper.machine
        if machine is None or machine.at != bitmap.at or index == len(pieces):
            self._sending = False
            if index == len(pieces):
                self._emit(ev.Deposited, to, bitmap)
            self._around.wake()
            return
        start, stop = pieces[index]
        message = m.Deposit(at=bitmap.at, stage=bitmap.stage, bitmap=bitmap, start=start, stop=stop)

        async def read() -> tuple[Buffer, ...]:
            return (await copied.read(start, stop),)

        def failed(_now: Seconds) -> None:
            self._sending = False

        def sent() -> None:
            self._send(to, bitmap, copied, index + 1)

        self._around.post.ship(to, message, read, failed, tries=PART_TRIES, sent=sent)

    # --- a mate's ---------------------------------------------------------------------------

    def hear(self, peer: PeerId, message: m.Deposit, integers: Buffer) -> None:
        """Keep a piece of what ``peer`` has counted.

        Raises:
            MisbehaviourError: it is not its own, not signed, or cannot be true.
        """
        bitmap, machine = message.bitmap, self._stepper.machine
        if (bitmap.peer, bitmap.at, bitmap.stage) != (peer, message.at, message.stage):
            raise MisbehaviourError("a deposit of somebody else's", peer=peer)
        if not self._every or machine is None or bitmap.at != machine.at:
            return
        if peer not in self._stepper.live:  # no mate, or one that is taken for dead
            return
        if (fault := self._fault(message, machine.ledger.expected)) is not None:
            raise MisbehaviourError(f"a deposit {fault}", peer=peer)
        if message.start == 0:
            self._deposits.make_room(self._view(machine))
        elements = self._compute.elements
        if self._deposits.came(bitmap, message.start, message.stop, integers, elements=elements):
            self._around.wake()  # it may be gone already

    def _fault(self, message: m.Deposit, expected: int) -> str | None:
        """Why a deposit of a step of these slots cannot be true; None: it may be.

        Its integers nobody can judge: they are the word of a mate, like the parts of a sum.
        """
        bitmap, around = message.bitmap, self._around
        tallies, slots = bitmap.tallies, bytes_to_mask(bitmap.slots)
        count = slots.bit_count()
        tokens = count * around.spec.batch.sequences * around.spec.model.context
        if slots & ~expected:
            return "of slots that the step has not"
        if max(tallies.tokens, tallies.val_tokens) > tokens or tallies.poisoned > count:
            return "that tells more than it counts"
        end = min(message.start + PIECE_ELEMENTS, self._compute.elements)
        if message.start % PIECE_ELEMENTS or message.stop != end:
            return "that is cut otherwise"
        if self._deposits.begun(bitmap):
            return None  # its signature was looked at with the first piece
        sound = around.signer.verify(bitmap.peer, bitmap_bytes(bitmap), bitmap.signature)
        return None if sound else "with a wrong signature"

    async def _take_up(self, kept: Kept) -> None:
        """Add a deposit to our own accumulator, and say so."""
        pipeline, slots = self._pipeline, kept.slots
        self._deposits.took(kept)
        pipeline.shelf.borrow(slots)
        pipeline.running += 1
        try:
            await self._compute.add(kept.pieces, 1)
        finally:
            pipeline.running -= 1
        self._enter(kept, counted=pipeline.counted | slots, sign=1)
        self.wanting.borrowed(_now())
        self._emit(ev.DepositTaken, kept.bitmap.peer, kept.bitmap)
        self._show()

    async def _give_back(self, slots: int, *, overlapped: bool = True) -> None:
        """Take out whatever deposits count any of ``slots``; ``overlapped``: others do, too."""
        async with self._lock:
            while (kept := self._deposits.meeting(slots)) is not None:
                await self._take_out(kept, overlapped=overlapped)

    async def _take_out(self, kept: Kept, *, overlapped: bool) -> None:
        pipeline = self._pipeline
        pipeline.running += 1
        try:
            await self._compute.add(kept.pieces, -1)
        finally:
            pipeline.running -= 1
        self._deposits.returned(kept, overlapped=overlapped)
        self._enter(kept, counted=pipeline.counted & ~kept.slots, sign=-1)
        pipeline.shelf.borrowed = self._deposits.borrowed
        for item in pipeline.shelf.of(kept.slots):
            if item.state == "counted":
                let_go(pipeline, item)
        self._emit(ev.DepositReturned, kept.bitmap.peer, kept.bitmap)
        self._show()

    def _enter(self, kept: Kept, *, counted: int, sign: int) -> None:
        told = kept.bitmap.tallies
        signed = Tallies(
            loss=sign * told.loss,
            tokens=sign * told.tokens,
            val_loss=sign * told.val_loss,
            val_tokens=sign * told.val_tokens,
            poisoned=sign * told.poisoned,
        )
        self._pipeline.counted, self._pipeline.loans.taken = counted, self._deposits.taken
        self._pipeline.tallies = sum_tallies((self._pipeline.tallies, signed))

    def _show(self) -> None:
        """Others replay, or count, what has just changed: tell all of them now."""
        self._pipeline.on_count()
        self._stepper.gossip.spread(_now())
        self._pipeline.on_change()

    def _emit(
        self,
        kind: type[ev.Deposited | ev.DepositTaken | ev.DepositReturned],
        peer: PeerId,
        bitmap: Bitmap,
    ) -> None:
        step, slots = bitmap.at.step, bytes(bitmap.slots)
        self._around.emit(kind(stage=self._pipeline.stage, step=step, peer=peer, slots=slots))


def _now() -> Seconds:
    return asyncio.get_running_loop().time()
