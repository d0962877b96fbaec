"""The receiving and computing side of a seat: from an Ask to a counted microbatch.

    Ask -> Offer | BUSY        Forward frame -> queued -> computing -> parked
    (stage 0: the data)                                                  |
    gradient for the stage below <- counted <- computing <- Gradient frame

Invariants:
    * the two bounds of DESIGN 4 hold (core/offers): queue slots count until the result is
      retained, parked ones until the gradient is counted; a returning gradient is always
      accepted, because its place is the parked slot;
    * a microbatch is here at most once, so it is added to the accumulator at most once;
    * no more is taken than can be retained to the step's end within ``retained_bound``;
    * nothing starts while frozen, and ``quiet`` is true only when nothing is computing;
    * nothing here awaits: worker.py computes.

Everything is forgotten at the step's commit (:meth:`begin`): by then every stage has
counted every microbatch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from p2ptrain.core.agreement import Tallies
from p2ptrain.core.ledger import sum_tallies
from p2ptrain.core.offers import RETRY_MIN_SECONDS, Declined, Offered
from p2ptrain.observe import events as ev
from p2ptrain.units import Microbatch
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.agreement import Position
    from p2ptrain.core.offers import OfferBook
    from p2ptrain.core.schedule import StepSlots
    from p2ptrain.engine.custodian import Custodian, Post
    from p2ptrain.ports import Buffer, Corpus
    from p2ptrain.units import Bytes, PeerId, Seconds, Stage

Held = Literal["none", "queued", "computing", "parked", "counted", "committed"]
BusyReason = Literal["queue", "parked", "behind", "draining", "foreign", "unknown"]

FOREIGN_RETRY_SECONDS = 2.0  # another history: only a resync ends it, so do not hurry
BEHIND_RETRY_SECONDS = 0.1  # a commit is a few round trips away when the asker already has it
BEHIND_RETRY_SHARE = 0.25  # ... of a microbatch, if that is less: every step begins with this wait
SERVICE_SMOOTHING = 0.2  # as in routing: a fifth of each new sample
FIRST_SERVICE_SECONDS = 1.0  # before the first measurement; equal for all, so nobody is favoured


@dataclass(slots=True)
class Item:
    """A microbatch at this seat. ``sender`` gets its gradient (None at stage 0)."""

    work: Microbatch
    state: Literal["queued", "computing", "parked", "counted"]
    sender: PeerId | None
    path: tuple[PeerId, ...]
    tokens: Buffer
    given: Buffer | None
    replay: bool
    gradient: Buffer | None = None
    forward_seconds: Seconds = 0.0

    @property
    def returned(self) -> bool:
        """Whether its gradient is back and waits to be computed."""
        return self.state == "parked" and self.gradient is not None

    @property
    def age(self) -> tuple[int, bool, int]:
        """Smallest is computed first: oldest step, then replays (all wait for them), then slot."""
        return self.work.step, not self.replay, self.work.slot


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a pipeline is told of its seat.

    ``token_bytes``: of the token ids that come first in a frame. ``retained_bytes_each``:
    what one microbatch leaves in the retention store, at most; ``retained_bound``: what
    may lie there in all.
    """

    me: PeerId
    stage: Stage
    is_last: bool
    token_bytes: Bytes
    retained_bytes_each: Bytes
    retained_bound: Bytes


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
        self.me = place.me
        self.stage = place.stage
        self.is_last = place.is_last
        self.book = book
        self.custodian = custodian
        self.at: Position | None = None
        self.counted = 0  # the bits of what this seat's accumulator holds
        self.tallies = Tallies()
        self.service_seconds = FIRST_SERVICE_SECONDS
        self.frozen = False
        self.draining = False
        self.corpus: Corpus | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.on_count: Callable[[], None] = lambda: None
        self._post = post
        self._emit = emit
        self._place = place
        self._backlog = backlog
        self._measured = False
        self._slots: StepSlots | None = None
        self._items: dict[Microbatch, Item] = {}
        self.offers = self.busies = 0  # answers to asks in this step
        self.computing_seconds = 0.0  # of the device, for this seat in this step
        self.running = 0  # jobs of this seat that are computing

    # --- the step ---------------------------------------------------------------------------

    def begin(self, at: Position, slots: StepSlots, *, parked_bound: int) -> None:
        """Forget the last step and take up ``at``; call only when quiet."""
        assert self.quiet
        self.at, self._slots = at, slots
        self.counted, self.tallies = 0, Tallies()
        self.offers = self.busies = 0
        self.computing_seconds = 0.0
        self._items.clear()
        self.book.clear()
        self.book.set_parked_bound(parked_bound)
        self.custodian.begin(at)
        self.frozen = False

    @property
    def rate(self) -> float:
        """Microbatches per second; 0 while unknown: others then take us for an average seat."""
        return 1.0 / max(self.service_seconds, 1e-6) if self._measured else 0.0

    @property
    def quiet(self) -> bool:
        """Whether nothing is computing at this seat."""
        return self.running == 0

    @property
    def drained(self) -> bool:
        """Whether this seat has nothing left to do for now."""
        return all(item.state == "counted" for item in self._items.values())

    def holds(self, work: Microbatch) -> bool:
        """Whether the microbatch is here in any state."""
        return work in self._items

    def counted_elsewhere(self, union: int) -> None:
        """Other live seats of this stage have counted ``union``: let go of our copies."""
        for work, item in list(self._items.items()):
            waits = item.state in ("queued", "parked") and item.gradient is None
            if waits and (union & ~self.counted) >> work.slot & 1:
                self.book.forget(work)
                del self._items[work]
        self.on_change()

    # --- messages ---------------------------------------------------------------------------

    def ask(self, peer: PeerId, message: m.Ask, now: Seconds) -> None:
        """Answer with an offer, BUSY, or what we hold of it already."""
        work = Microbatch(message.at.step, message.slot)
        if self.at is None or message.at != self.at:
            self._off_position(peer, message)
            return
        if self._state(work) != "none":
            self._whereabouts(peer, work)
            return
        reason: BusyReason
        if not self._expects(work):
            reason, retry = "unknown", FOREIGN_RETRY_SECONDS
        elif self.draining:
            reason, retry = "draining", self.service_seconds
        elif self.frozen or not self._can_retain():  # nothing begins, or could be kept
            reason, retry = "queue", max(self.service_seconds, BEHIND_RETRY_SECONDS)
        else:
            answer = self.book.ask(
                work, replay=message.replay, now=now, service_seconds=self.service_seconds
            )
            if isinstance(answer, Offered):
                self._offer(peer, message, answer.expires_at - now)
                return
            assert isinstance(answer, Declined)  # held ones were answered above
            reason, retry = answer.reason, answer.retry_seconds
        self._busy(peer, message, reason, retry)

    def decline(self, message: m.Decline) -> None:
        """The asker took another offer."""
        if message.at == self.at:
            self.book.decline(Microbatch(message.at.step, message.slot))

    def forward(self, peer: PeerId, message: m.Forward, payload: memoryview, now: Seconds) -> None:
        """A frame has arrived: it holds its place, or goes back to its sender's care."""
        work = Microbatch(message.at.step, message.slot)
        known = message.at != self.at or self._state(work) != "none"
        offered = self.book.state(work) == "reserved"
        may_come = offered or (self._expects(work) and not self.draining and self._can_retain())
        if known or not may_come:
            self._whereabouts(peer, work, message.at)
            return
        if not self.book.arrived(work, now=now, replay=message.replay):
            self._whereabouts(peer, work)
            return
        self._items[work] = Item(
            work=work,
            state="queued",
            sender=peer,
            path=message.path,
            tokens=payload[: self._place.token_bytes],
            given=payload[self._place.token_bytes :],
            replay=message.replay,
        )
        self._post.tell(
            peer, m.Accepted(at=message.at, slot=work.slot, stage=self.stage, what="forward")
        )
        self.on_change()

    def gradient(
        self, peer: PeerId, message: m.Gradient, payload: memoryview, now: Seconds
    ) -> None:
        """A gradient has come back: always accepted while its input is here.

        It may even come before the forward has ended: of a replay, whose output the next
        stage had counted already.
        """
        work = Microbatch(message.at.step, message.slot)
        item = self._items.get(work)
        if message.at != self.at or item is None or item.state == "counted":
            self._whereabouts(peer, work, message.at)
            return
        if item.gradient is None:  # the first is kept: it may be computing
            item.gradient = payload
            self.custodian.gradient_back(work, now)
        self._post.tell(
            peer, m.Accepted(at=message.at, slot=work.slot, stage=self.stage, what="gradient")
        )
        self.on_change()

    def recall(self, peer: PeerId, message: m.Recall) -> None:
        """Give a queued microbatch back; once begun it is kept."""
        work = Microbatch(message.at.step, message.slot)
        item = self._items.get(work)
        if message.at == self.at and item is not None and item.state == "queued":
            self.book.forget(work)
            del self._items[work]
            self.on_change()
        self._whereabouts(peer, work, message.at)

    def where(self, peer: PeerId, message: m.Where) -> None:
        """Say what we hold."""
        self._whereabouts(peer, Microbatch(message.at.step, message.slot), message.at)

    def repath(self, peer: PeerId, message: m.Repath, now: Seconds) -> None:
        """The stage below replays this microbatch: its gradient goes to ``peer``."""
        if message.at != self.at:
            return
        work = Microbatch(message.at.step, message.slot)
        item = self._items.get(work)
        if item is not None:
            item.sender = peer
            item.path = (*item.path[:-1], peer)
        self.custodian.repath(peer, work, now)

    # --- work -------------------------------------------------------------------------------

    def source(self, work: Microbatch, *, replay: bool) -> bool:
        """Stage 0: take a microbatch from the data, unless the parked bound forbids it."""
        if self.frozen or self.corpus is None or self._state(work) != "none":
            return False
        if not self._can_retain():
            return False
        if not self.book.source(work):
            return False
        self._items[work] = Item(
            work=work,
            state="queued",
            sender=None,
            path=(),
            tokens=self.corpus.tokens(work),
            given=None,
            replay=replay,
        )
        self._emit(ev.Sourced(step=work.step, slot=work.slot, order=int(replay)))
        return True

    def next_job(self) -> Item | None:
        """The oldest microbatch that may be computed now; see ``Item.age``."""
        if self.frozen:
            return None
        may_start = self.book.may_start()
        ready = (
            item
            for item in self._items.values()
            if item.returned
            or (item.state == "queued" and (may_start or self.evaluates(item.work)))
        )
        return min(ready, key=lambda item: item.age, default=None)

    def counts(self, item: Item, tallies: Tallies) -> None:
        """The microbatch is in the accumulator (or, evaluating, has passed)."""
        item.state = "counted"
        work = item.work
        self.counted |= 1 << work.slot
        self.tallies = sum_tallies((self.tallies, tallies))
        self._emit(ev.SlotCounted(stage=self.stage, step=work.step, slot=work.slot))
        self.on_count()

    def uncounts(self, item: Item, tallies: Tallies) -> None:
        """The microbatch was subtracted; ``tallies`` are negative."""
        work = item.work
        self.counted &= ~(1 << work.slot)
        self.tallies = sum_tallies((self.tallies, tallies))
        del self._items[work]
        self._emit(ev.Subtracted(stage=self.stage, step=work.step, slot=work.slot))

    def counted_items(self, mask: int) -> list[Item]:
        """What of ``mask`` this seat has counted, oldest first."""
        both = mask & self.counted
        return [self._items[work] for work in sorted(self._items) if both >> work.slot & 1]

    def evaluates(self, work: Microbatch) -> bool:
        """Whether the microbatch only passes, to be scored at the last stage."""
        assert self._slots is not None
        return work.slot >= self._slots.train

    def computed(self, item: Item) -> None:
        """The result is retained: tell the sender, whose custody it was."""
        if item.sender is not None and self.at is not None:
            message = m.Computed(
                at=self.at,
                slot=item.work.slot,
                stage=self.stage,
                service_seconds=self.service_seconds,
            )
            self._post.tell(item.sender, message)

    def observe(self, seconds: Seconds) -> None:
        """A microbatch took ``seconds`` of compute here, forward and backward together."""
        share = SERVICE_SMOOTHING if self._measured else 1.0
        self.service_seconds += share * (seconds - self.service_seconds)
        self._measured = True

    def backlog_seconds(self) -> Seconds:
        """Compute that is waiting or running here: a backward is two thirds of a service."""
        items = self._items.values()
        forwards = sum(item.state == "queued" for item in items)
        backwards = sum(item.returned for item in items)
        return (forwards + backwards * 2 / 3 + self.running) * self.service_seconds

    # --- answers ----------------------------------------------------------------------------

    def _offer(self, peer: PeerId, ask: m.Ask, lease_seconds: Seconds) -> None:
        offer = m.Offer(
            at=ask.at,
            slot=ask.slot,
            stage=self.stage,
            attempt=ask.attempt,
            delay_seconds=self._backlog() + self.service_seconds,
            service_seconds=self.service_seconds,
            lease_seconds=lease_seconds,
        )
        self.offers += 1
        self._post.tell(peer, offer)

    def _expects(self, work: Microbatch) -> bool:
        """Whether the step has this slot: those of an evaluation are not in every step."""
        return self._slots is not None and bool(self._slots.mask >> work.slot & 1)

    def _can_retain(self) -> bool:
        """Whether one more fits, when all that is here or is offered has left its frames."""
        open_items = sum(item.state != "counted" for item in self._items.values())
        coming = open_items + self.book.reserved + 1
        wanted = self.custodian.retained_bytes + coming * self._place.retained_bytes_each
        return wanted <= self._place.retained_bound

    def _state(self, work: Microbatch) -> Held:
        """What is here; a parked one whose gradient has come counts as being computed."""
        item = self._items.get(work)
        if item is None:
            return "none"
        returned = item.gradient is not None and item.state != "counted"
        return "computing" if returned else item.state

    def _whereabouts(self, peer: PeerId, work: Microbatch, at: Position | None = None) -> None:
        at = at or self.at
        assert at is not None
        over = self.at is not None and at.step < self.at.step
        state: Held = "committed" if over else self._state(work) if at == self.at else "none"
        message = m.Whereabouts(at=at, slot=work.slot, stage=self.stage, state=state)
        self._post.tell(peer, message)

    def _off_position(self, peer: PeerId, message: m.Ask) -> None:
        mine, theirs = self.at, message.at
        if mine is None or (theirs.epoch == mine.epoch and theirs.step > mine.step):
            retry = max(RETRY_MIN_SECONDS, BEHIND_RETRY_SHARE * self.service_seconds)
            self._busy(peer, message, "behind", min(BEHIND_RETRY_SECONDS, retry))
        elif theirs.epoch == mine.epoch and theirs.step < mine.step:
            self._whereabouts(peer, Microbatch(theirs.step, message.slot), theirs)
        else:
            self._busy(peer, message, "foreign", FOREIGN_RETRY_SECONDS)

    def _busy(self, peer: PeerId, ask: m.Ask, reason: BusyReason, retry_seconds: Seconds) -> None:
        self.busies += 1
        self._emit(ev.BusySaid(stage=self.stage, peer=peer, reason=reason))
        busy = m.Busy(
            at=ask.at,
            slot=ask.slot,
            stage=self.stage,
            attempt=ask.attempt,
            retry_seconds=retry_seconds,
            reason=reason,
        )
        self._post.tell(peer, busy)
