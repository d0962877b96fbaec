"""The receiving and computing side of a seat: from an Ask to a counted microbatch.

    Ask -> Offer | BUSY        Forward frame -> queued -> computing -> parked
    (stage 0: the data)                                                  |
    gradient for the stage below <- counted <- computing <- Gradient frame

Invariants:
    * the two bounds of DESIGN 4 hold (core/offers): queue slots count until the result is
      retained, parked ones until the gradient is counted; a returning gradient is always
      accepted, because its place is the parked slot;
    * a microbatch is here at most once (shelf), so it is added to the accumulator at most
      once; no more is taken than leaves frames for which there is memory;
    * nothing is counted while frozen, and ``quiet`` is true only when nothing is computing;
      while ``passing`` (the stage has its sum, others may not) all is computed as ever for
      the stages beside, should seats have died with what they need, and nothing is added;
    * nothing here awaits: worker.py computes.

When the step is committed here, all of it goes to a pipeline of its own that only passes, with
the weights the step began with, while a stage may need that (``leave``, engine/past).
Refused: leaving to each message's handler what it does while frozen, draining or full.
"""

from __future__ import annotations

from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Literal

from p2ptrain.core.agreement import Tallies
from p2ptrain.core.ledger import sum_tallies
from p2ptrain.core.offers import Declined, OfferBook, Offered
from p2ptrain.engine.answers import BEHIND_RETRY_SECONDS, FOREIGN_RETRY_SECONDS, Answers
from p2ptrain.engine.items import arrived, sourced
from p2ptrain.engine.loans import Loans
from p2ptrain.engine.pace import Pace
from p2ptrain.engine.shelf import Shelf
from p2ptrain.observe import events as ev
from p2ptrain.units import Microbatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.agreement import Position
    from p2ptrain.core.schedule import StepSlots
    from p2ptrain.engine.answers import BusyReason
    from p2ptrain.engine.custodian import Custodian
    from p2ptrain.engine.items import Item, Place
    from p2ptrain.engine.past import Past
    from p2ptrain.engine.post import Post
    from p2ptrain.ports import Corpus
    from p2ptrain.units import Bytes, PeerId, Seconds
    from p2ptrain.wire import messages as m


class Pipeline:
    """One seat's microbatches. See the module for the life of each."""

    def __init__(
        self,
        place: Place,
        book: OfferBook,
        custodian: Custodian,
        *,
        post: Post,
        emit: ev.Emit,
        backlog: Callable[[], Seconds],
    ) -> None:
        self.me, self.stage, self.is_last = place.me, place.stage, place.is_last
        self.at: Position | None = None
        self.counted = 0  # the bits of what this seat's accumulator holds
        self.tallies = Tallies()
        self.pace = Pace()
        self.past: Past | None = None  # the last step, while another stage may need it
        self.frozen = self.passing = self.draining = False
        self.corpus: Corpus | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.on_count: Callable[[], None] = lambda: None
        self.late: Callable[[], bool] = lambda: False  # see engine/ending
        self._emit, self._backlog, self._place = emit, backlog, place
        self._new_answers = partial(
            Answers, place.stage, self.pace, post=post, emit=emit, backlog=backlog
        )
        self._slots: StepSlots | None = None
        self.running = 0  # jobs of this seat that are computing
        self.loans = Loans()
        self._renew(book, custodian)

    def _renew(self, book: OfferBook, custodian: Custodian) -> None:
        self.book, self.custodian = book, custodian
        self.shelf = Shelf(self._place, book, lambda: self.retained_bytes)
        self.answers = self._new_answers(held=self.shelf.state)
        self.custodian.borrowed = self.shelf.get_borrowed

    # --- the step ---------------------------------------------------------------------------

    def begin(self, at: Position, slots: StepSlots, *, parked_bound: int) -> None:
        """Forget the last step and take up ``at``; call only when quiet."""
        assert self.quiet
        self.at, self._slots = at, slots
        self.counted, self.tallies = 0, Tallies()
        self.answers.begin(at)
        self.pace.begin()
        self.shelf.clear()
        self.book.clear()
        self.book.set_parked_bound(parked_bound)
        self.custodian.begin(at)
        self.frozen = self.passing = self.draining = False

    def leave(self, *, passing: bool) -> Pipeline:
        """The step is over here: all of it goes to another pipeline, which counts nothing."""
        over = copy(self)
        over.past, over.frozen, over.passing = None, True, passing
        over.shelf.lighten()
        self._renew(OfferBook(self.book.limits, parked_bound=1), self.custodian.next())
        self.shelf.on_short = over.shelf.on_short
        if self.at is not None:
            self.answers.begin(self.at)
        return over

    def forget_past(self) -> None:
        """What is kept of the last step is of use to nobody any more: also on disk."""
        if self.past is not None:
            self.past.custodian.clear()
            self.past = None

    @property
    def retained_bytes(self) -> Bytes:
        """Frames that are kept here in memory, of this step and the last."""
        before = self.past.retained_bytes if self.past is not None else 0
        return self.custodian.frames.memory_bytes + before

    @property
    def quiet(self) -> bool:
        """Whether nothing is computing at this seat."""
        return self.running == 0

    @property
    def still(self) -> bool:
        """Whether nothing of the last step is, either."""
        return self.quiet and (self.past is None or self.past.pipeline.quiet)

    @property
    def drained(self) -> bool:
        """Whether this seat has nothing left to do for now."""
        return self.shelf.drained

    def holds(self, work: Microbatch) -> bool:
        """Whether the microbatch is here in any state."""
        return self.shelf.state(work) != "none"

    def counted_elsewhere(self, union: int) -> None:
        """Live mates have counted ``union``: drop our copies, unless a neighbour waits for them."""
        self.shelf.drop_waiting(0 if self.passing else union & ~self.counted)
        self.on_change()

    # --- messages ---------------------------------------------------------------------------

    def ask(self, peer: PeerId, message: m.Ask, now: Seconds) -> None:
        """Answer with an offer, BUSY, or what we hold of it already."""
        work = Microbatch(message.at.step, message.slot)
        if self.at is None or message.at != self.at:
            self.answers.elsewhere(peer, message)
            return
        if self.shelf.state(work) != "none":
            self.answers.whereabouts(peer, work, message.at)
            return
        reason: BusyReason
        if not self._expects(work):
            reason, retry = "unknown", FOREIGN_RETRY_SECONDS
        elif self.draining:
            reason, retry = "draining", self.pace.service_seconds
        elif self._stands_still or self.late() or not self._has_room(spare=message.spare):
            reason, retry = "queue", max(self.pace.service_seconds, BEHIND_RETRY_SECONDS)
        else:
            answer = self.book.ask(
                work, replay=message.replay, now=now, service_seconds=self.pace.service_seconds
            )
            if isinstance(answer, Offered):
                self.answers.offer(peer, message, answer.expires_at - now)
                return
            assert isinstance(answer, Declined)  # held ones were answered above
            reason, retry = answer.reason, answer.retry_seconds
        self.answers.busy(peer, message, reason, retry)

    def decline(self, message: m.Decline) -> None:
        """The asker took another offer."""
        if message.at == self.at:
            self.book.decline(Microbatch(message.at.step, message.slot))

    def forward(self, peer: PeerId, message: m.Forward, payload: memoryview, now: Seconds) -> None:
        """A frame has arrived: it holds its place, or goes back to its sender's care."""
        work = Microbatch(message.at.step, message.slot)
        known = message.at != self.at or self.shelf.get(work) is not None
        offered = self.book.state(work) == "reserved"
        may_come = offered or (self._expects(work) and not self.draining and self.shelf.has_room())
        if known or not may_come:
            self.answers.whereabouts(peer, work, message.at)
            return
        if not self.book.arrived(work, now=now, replay=message.replay):
            self.answers.whereabouts(peer, work, message.at)
            return
        self.shelf.put(arrived(peer, message, payload, self._place.token_bytes))
        self.answers.accepted(peer, message, "forward")
        self.on_change()

    def gradient(
        self, peer: PeerId, message: m.Gradient, payload: memoryview, now: Seconds
    ) -> None:
        """A gradient has come back: always accepted while its input is here.

        It may come before the forward has ended: of a replay that was counted above already.
        """
        work = Microbatch(message.at.step, message.slot)
        item = self.shelf.get(work)
        if message.at != self.at or item is None or item.state == "counted":
            self.answers.whereabouts(peer, work, message.at)
            return
        if item.gradient is None:  # the first is kept: it may be computing
            item.gradient = payload
            self.custodian.gradient_back(work, now)
        self.answers.accepted(peer, message, "gradient")
        self.on_change()

    def recall(self, peer: PeerId, message: m.Recall) -> None:
        """Give a queued microbatch back; once begun it is kept."""
        work = Microbatch(message.at.step, message.slot)
        item = self.shelf.get(work)
        if message.at == self.at and item is not None and item.state == "queued":
            self.shelf.drop(work)
            self.on_change()
        self.answers.whereabouts(peer, work, message.at)

    def where(self, peer: PeerId, message: m.Where) -> None:
        """Say what we hold."""
        self.answers.whereabouts(peer, Microbatch(message.at.step, message.slot), message.at)

    def repath(self, peer: PeerId, message: m.Repath, now: Seconds) -> None:
        """The stage below replays this microbatch: its gradient goes to ``peer``."""
        work = Microbatch(message.at.step, message.slot)
        item = self.shelf.get(work)
        if message.at == self.at and item is not None:
            item.move(peer)
        self.custodian.repath(peer, work, now, bare=message.bare)

    # --- work -------------------------------------------------------------------------------

    def source(self, work: Microbatch, *, replay: bool, spare: bool = False) -> bool:
        """Stage 0: take a microbatch from the data, unless the parked bound forbids it."""
        if self._stands_still or self.corpus is None or self.shelf.get(work) is not None:
            return False
        if not self._has_room(spare=spare) or not self.book.source(work, parks=not spare):
            return False
        self.shelf.put(sourced(work, self.corpus.tokens(work), replay=replay, spare=spare))
        self._emit(ev.Sourced(step=work.step, slot=work.slot, order=int(replay)))
        return True

    def next_job(self) -> Item | None:
        """The oldest microbatch that may be computed now; see ``Item.age``."""
        if self._stands_still:
            return None
        return self.shelf.oldest(self.passes)

    def counts(self, item: Item, tallies: Tallies, *, sign: Literal[0, 1] = 1) -> None:
        """The microbatch is in the accumulator (or, evaluating, has passed); see ``sign``."""
        item.state = "counted"
        if sign == 0:
            return
        self.counted |= 1 << item.work.slot
        self.tallies = sum_tallies((self.tallies, tallies))
        self._emit(ev.SlotCounted(stage=self.stage, step=item.work.step, slot=item.work.slot))
        self.on_count()

    def uncounts(self, item: Item, tallies: Tallies) -> None:
        """The microbatch was subtracted; ``tallies`` are negative."""
        work = item.work
        self.counted &= ~(1 << work.slot)
        self.tallies = sum_tallies((self.tallies, tallies))
        self.shelf.take(work)
        if item.sender is not None and self.at is not None:
            self.answers.whereabouts(item.sender, work, self.at)  # its custody has not ended
        self._emit(ev.Subtracted(stage=self.stage, step=work.step, slot=work.slot))

    def counted_items(self, mask: int) -> list[Item]:
        """What of ``mask`` this seat has counted, oldest first."""
        return self.shelf.of(mask & self.counted)

    def evaluates(self, work: Microbatch) -> bool:
        """Whether the microbatch only passes, to be scored at the last stage."""
        assert self._slots is not None
        return work.slot >= self._slots.train

    def passes(self, work: Microbatch) -> bool:
        """Whether the microbatch parks nothing here: nobody wants its gradient."""
        return self.evaluates(work) or (self.stage == 0 and not self.sign(work))

    def sign(self, work: Microbatch) -> Literal[0, 1]:
        """How often what is computed of ``work`` now goes into the accumulator."""
        return 0 if self.passing or self.shelf.borrowed >> work.slot & 1 else 1

    @property
    def _stands_still(self) -> bool:
        return self.frozen and not self.passing

    def computed(self, item: Item) -> None:
        """The result is retained: tell the sender, whose custody it was."""
        if item.sender is not None:
            self.answers.computed(item.sender, item.work)

    def backlog_seconds(self) -> Seconds:
        """Compute that is waiting or running here."""
        return (self.shelf.services_waiting() + self.running) * self.pace.service_seconds

    def _has_room(self, *, spare: bool) -> bool:
        """Whether one more fits; what is ``spare``, only if the peer's other seats leave time."""
        elsewhere = self._backlog() - self.backlog_seconds() if spare else 0.0
        return elsewhere <= self.pace.service_seconds and self.shelf.has_room(spare=spare)

    def _expects(self, work: Microbatch) -> bool:
        """Whether the step has this slot: those of an evaluation are not in every step."""
        return self._slots is not None and bool(self._slots.mask >> work.slot & 1)
