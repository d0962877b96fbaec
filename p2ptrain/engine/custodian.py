"""The sending side of a seat: frames in custody, retained until the receiving stage counts them.

One :class:`Custodian` serves one seat. It holds a custody machine per frame (forwards to
the stage above, gradients to the stage below), performs what the machines return, and
keeps every frame of the step, so that a lost seat is replayed from here.

Invariants:
    * a frame is retained from the moment it is encoded until the stage that gets it has
      committed the step: one custodian a step, the last one kept by engine/past;
    * nothing here awaits: messages go to bounded queues, frames to the post's tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from p2ptrain.core import duties as c
from p2ptrain.core.custody import Custody, Way
from p2ptrain.core.ledger import slots_of
from p2ptrain.core.routing import Quote
from p2ptrain.core.sparing import Spare
from p2ptrain.core.spilling import Frame
from p2ptrain.core.stragglers import Delays
from p2ptrain.engine.docket import WAYS, Docket
from p2ptrain.engine.frames import Frames
from p2ptrain.observe import events as ev
from p2ptrain.units import Microbatch, Slot, Stage
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.agreement import Position
    from p2ptrain.core.routing import Router
    from p2ptrain.engine.post import Post
    from p2ptrain.ports import Buffer, Spill
    from p2ptrain.units import PeerId, Seconds


class Custodian:
    """Keeps and delivers what one seat has computed."""

    def __init__(  # noqa: PLR0913 - three of them have defaults, for the first step and tests
        self,
        stage: Stage,
        router: Router,
        post: Post,
        emit: ev.Emit,
        *,
        limits: c.CustodyLimits | None = None,
        delays: Delays | None = None,
        spill: Spill | None = None,
    ) -> None:
        self.stage = stage
        self._router, self.delays = router, delays or Delays()
        self._post, self._emit = post, emit
        self._limits = limits or c.CustodyLimits()
        self._at: Position | None = None
        self.duties, self._concluded, self._spare = Docket(), False, Spare()
        self.frames = Frames(stage, spill, emit)
        self._paths: dict[Microbatch, tuple[PeerId, ...]] = {}
        self.borrowed: Callable[[], int] = lambda: 0  # slots that our seat counts without frames

    def begin(self, at: Position) -> None:
        """Take up a step; what is here is of none that anybody still needs."""
        self._at = at
        self.clear()

    def next(self) -> Custodian:
        """The custodian of the next step; what has been learnt of delays goes with it."""
        common = (self.stage, self._router, self._post, self._emit)
        return Custodian(*common, limits=self._limits, delays=self.delays, spill=self.frames.spill)

    def clear(self) -> None:
        """Let go of every frame."""
        self.duties = Docket()
        self.frames.clear()
        self._paths.clear()

    @property
    def due_at(self) -> Seconds | None:
        """When :meth:`tick` must run next."""
        return self.duties.due_at

    # --- after the step --------------------------------------------------------------------

    def conclude(self, parked: int, now: Seconds) -> None:
        """Every stage has counted everything; who did is looked for only for what is ``parked``."""
        self._concluded = self._spare.over = True
        for work, what in self.duties:
            if not parked >> work.slot & 1:
                self._feed(work, what, c.Returned(), now)
        for what in WAYS:
            self.tallied(what, -1, now)

    def count_out(self, what: c.What, mask: int, now: Seconds) -> None:
        """What the receiving stage had counted of ``mask`` is lost with the seat that had."""
        for work, which in self.duties:
            if which == what and mask >> work.slot & 1:
                self._feed(work, what, c.Tallied(live=False), now)

    def release(self, what: c.What) -> None:
        """Let go of the frames of one direction: their receivers need them no more."""
        for key in self.duties.drop(what):
            self.frames.release(key)

    def in_memory(self) -> list[Frame]:
        """The frames that could be put out, each with how far its custody is."""
        frames = [(key, self.duties.get(key), size) for key, size in self.frames.in_memory()]
        return [Frame(*key, duty.state if duty else None, size) for key, duty, size in frames]

    # --- what the seat says ---------------------------------------------------------------

    def open_forward(
        self,
        work: Microbatch,
        path: tuple[PeerId, ...],
        *,
        replay: bool,
        returns: bool,
        now: Seconds,
    ) -> None:
        """Look for a seat above while the forward is still computing; ``path`` ends with us.

        ``returns``: its gradient will come back. What is computed a second time (it was
        subtracted here, and is needed after all) has its way already, but no gradient yet.
        """
        if (work, "forward") in self.duties:
            if returns:
                self._feed(work, "forward", c.Owed(), now)
            return
        self._paths[work] = path
        # Of a step that is over no bitmap tells who lives: there all are asked what they have.
        there = 0 if self._concluded else self.duties.counted_there("forward")
        way = Way(router=self._router, delays=self.delays, spare=self._spare)
        again = replay or self._concluded
        duty = Custody(work, self._limits, way=way, replay=again, returns=returns)
        self._open(duty, now, counted=bool(there >> work.slot & 1))

    def forward_ready(self, work: Microbatch, payload: tuple[Buffer, ...], now: Seconds) -> None:
        """The forward is encoded: token ids, then activations."""
        self.frames.keep((work, "forward"), payload)
        self._feed(work, "forward", c.Ready(), now)

    def gradient_back(self, work: Microbatch, now: Seconds) -> None:
        """The gradient of a forward that we keep has come."""
        self._feed(work, "forward", c.Returned(), now)

    def send_gradient(
        self, work: Microbatch, target: PeerId, gradient: Buffer, now: Seconds
    ) -> None:
        """Send the gradient to the seat that parked the input, and keep it."""
        self.frames.keep((work, "gradient"), (gradient,))
        if (work, "gradient") not in self.duties:
            self._open(Custody(work, self._limits, target=target), now)

    # --- what others say ------------------------------------------------------------------

    def answered(self, peer: PeerId, message: m.Offer | m.Busy, now: Seconds) -> None:
        """An Ask of ours was answered."""
        work = Microbatch(message.at.step, message.slot)
        match message:
            case m.Offer():
                quote = Quote(delay=message.delay_seconds, service=message.service_seconds)
                event = c.Answered(peer, message.attempt, quote, message.lease_seconds)
            case m.Busy():
                event = c.Answered(peer, message.attempt, None, message.retry_seconds)
            case _:
                assert_never(message)
        if (work, "forward") in self.duties:
            self._feed(work, "forward", event, now)
        elif isinstance(message, m.Offer):  # of a step that is over, or never asked for
            decline = m.Decline(
                at=message.at, slot=work.slot, stage=message.stage, attempt=message.attempt
            )
            self._post.tell(peer, decline)

    def hear(
        self, peer: PeerId, message: m.Accepted | m.Computed | m.Whereabouts, now: Seconds
    ) -> None:
        """A seat says what it has of a frame of ours."""
        work = Microbatch(message.at.step, message.slot)
        what: c.What = "forward" if message.stage > self.stage else "gradient"
        match message:
            case m.Accepted():
                self._feed(work, what, c.Arrived(peer), now)
            case m.Computed():
                self._feed(work, what, c.Finished(peer, message.service_seconds), now)
            case m.Whereabouts():
                self._feed(work, what, c.Located(peer, message.state), now)
            case _:
                assert_never(message)

    def repath(self, peer: PeerId, work: Microbatch, now: Seconds, *, bare: bool = False) -> None:
        """The stage below replays: its gradient goes to ``peer`` now, be it counted (``bare``)."""
        self._feed(work, "gradient", c.Moved(peer), now)
        # Of a step that is over no bitmap is listened to: who asks has not counted it.
        if self._concluded or bare:
            self._feed(work, "gradient", c.Tallied(live=False), now)

    def lost(self, peer: PeerId, now: Seconds) -> None:
        """``peer`` is gone: what it held goes another way."""
        for work, what in self.duties:
            self._feed(work, what, c.Lost(peer), now)

    def found(self, peer: PeerId, now: Seconds) -> None:
        """``peer`` was suspected falsely: what it parked still waits there."""
        for work, what in self.duties:
            self._feed(work, what, c.Found(peer), now)

    def link_down(self, peer: PeerId, now: Seconds) -> None:
        """The link to ``peer`` broke: what was on its way may not have arrived."""
        for work, what in self.duties:
            self._feed(work, what, c.LinkBroke(peer), now)

    def seats_changed(self, now: Seconds) -> None:
        """Others have opened or closed seats: what lay in a closed one is lost."""
        seats = {what: self._post.seats(self._there(what)) for what in WAYS}
        for work, what in self.duties:
            duty = self.duties.get((work, what))
            holder = None if duty is None else duty.holder
            if holder is not None and holder not in seats[what]:
                self._feed(work, what, c.Lost(holder), now)

    def tallied(self, what: c.What, union: int, now: Seconds, *, left: int | None = None) -> None:
        """The live bitmaps of the stage above or below cover ``union``; ``left`` are missing."""
        if what == "forward" and left is not None:
            self._router.set_left(left)
        for slot in slots_of(self.duties.news(what, union)):
            assert self._at is not None
            work = Microbatch(self._at.step, Slot(slot))
            self._feed(work, what, c.Tallied(bool(union >> slot & 1)), now)

    def tick(self, now: Seconds) -> None:
        """Act on every deadline that has passed."""
        if self.due_at is None or now < self.due_at:
            return
        for key in self.duties.due(now):
            if (duty := self.duties.get(key)) is not None:
                self._perform(duty, duty.tick(now=now))
                assert duty.due_at is None or duty.due_at > now, (key, duty.state)
        self.duties.look_ahead()

    # --- doing ----------------------------------------------------------------------------

    def _open(self, duty: Custody, now: Seconds, *, counted: bool = False) -> None:
        self.duties.add(duty)
        seats = self._post.seats(self._there(duty.what)) if duty.replay else ()
        self._perform(duty, duty.start(now=now, seats=seats, counted=counted))

    def _feed(self, work: Microbatch, what: c.What, event: c.Event, now: Seconds) -> None:
        duty = self.duties.get((work, what))
        if duty is not None:
            self._perform(duty, duty.handle(event, now=now))

    def _perform(self, duty: Custody, actions: tuple[c.Action, ...]) -> None:
        for action in actions:
            self._act(duty, action)
        self.duties.note(duty)

    def _there(self, what: c.What) -> Stage:
        """The stage that frames of this kind go to."""
        return Stage(self.stage + (1 if what == "forward" else -1))

    def _act(self, duty: Custody, action: c.Action) -> None:
        assert self._at is not None
        work, at, there = duty.work, self._at, self._there(duty.what)
        match action:
            case c.AskSeat(peer, attempt):
                again = duty.replay or attempt > 0
                ask = m.Ask(at, work.slot, there, attempt, replay=again, spare=duty.spare)
                self._post.tell(peer, ask)
            case c.DeclineOffer(peer, attempt):
                decline = m.Decline(at=at, slot=work.slot, stage=there, attempt=attempt)
                self._post.tell(peer, decline)
            case c.SendFrame(peer, attempt):
                self._ship(duty, peer, attempt)
            case c.RecallFrame(peer):
                self._post.tell(peer, m.Recall(at=at, slot=work.slot, stage=there))
            case c.AskWhere(peer):
                asked = self._post.seats(there) if peer is None else (peer,)
                self._post.tell_all(asked, m.Where(at=at, slot=work.slot, stage=there))
            case c.TellPath(peer):
                bare = bool(self.borrowed() >> work.slot & 1)
                self._post.tell(peer, m.Repath(at, work.slot, self.stage, bare))
            case c.Again(peer, reason, recalled):
                self._note(duty, peer, reason, recalled=recalled)
            case _:
                assert_never(action)

    def _ship(self, duty: Custody, peer: PeerId, attempt: int) -> None:
        assert self._at is not None
        at, work, what = self._at, duty.work, duty.what
        frame: m.Forward | m.Gradient
        if what == "forward":
            frame = m.Forward(
                at=at,
                slot=work.slot,
                stage=Stage(self.stage + 1),
                attempt=attempt,
                replay=duty.replay or attempt > 0,
                path=self._paths[work],
                spare=duty.spare,
            )
        else:
            frame = m.Gradient(at=at, slot=work.slot, stage=Stage(self.stage - 1))

        def failed(now: Seconds) -> None:
            if self._at == at:
                self._feed(work, what, c.SendFailed(peer, attempt), now)

        self._post.ship(peer, frame, self.frames.payload((work, what)), failed)

    def _note(self, duty: Custody, peer: PeerId, reason: str, *, recalled: bool) -> None:
        stage, step, slot = self._there(duty.what), duty.work.step, duty.work.slot
        if recalled:
            self._emit(ev.Recalled(stage=stage, step=step, slot=slot, peer=peer, answer="none"))
        else:
            self._emit(ev.Replayed(stage=stage, step=step, slot=slot, peer=peer, reason=reason))
