"""One seat, assembled: what it computes, whom it serves, where it stands.

    joining --state loaded--> serving --(step boundary)--> closed
                                 `--- drain: no new offers, leave at the boundary

A seat is wired here and nowhere else; pipeline, custodian, stepper and sourcer know each
other only through what they are given.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from p2ptrain.core.agreement import Position
from p2ptrain.core.offers import OfferBook, parked_bound
from p2ptrain.core.routing import Router
from p2ptrain.core.schedule import step_slots
from p2ptrain.core.sizes import boundary_bytes, microbatch_token_bytes
from p2ptrain.engine.custodian import Custodian
from p2ptrain.engine.items import Place
from p2ptrain.engine.pipeline import Pipeline
from p2ptrain.engine.sourcing import Sourcer
from p2ptrain.engine.stepping import Stepper
from p2ptrain.observe import events as ev
from p2ptrain.units import Stage, Step
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine

    from p2ptrain.engine.committing import Done
    from p2ptrain.engine.custodian import Post
    from p2ptrain.engine.roster import Roster
    from p2ptrain.ports import Signer, StageCompute
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Chain, PeerId, RunId, Seconds
    from p2ptrain.wire.limits import FrameLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all seats of a peer share."""

    run: RunId
    spec: RunSpec
    incarnation: int
    signer: Signer
    limits: FrameLimits
    post: Post
    roster: Roster
    emit: ev.Emit
    rng: random.Random
    wake: Callable[[], None]  # there may be work to compute
    spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]]
    backlog: Callable[[], Seconds]  # of all seats of this peer
    committed: Callable[[Stage, Done], None]
    next_seq: Callable[[], int]  # of bitmaps: a stage left and taken again goes on counting


class SeatRuntime:
    """A seat of this peer."""

    def __init__(self, around: Surroundings, compute: StageCompute) -> None:
        self.stage = compute.stage
        self.compute = compute
        self.state: Literal["joining", "serving", "draining"] = "joining"
        self.version = Step(0)
        self.finished = False
        self._around = around
        spec, me = around.spec, around.signer.peer
        self.router = Router(around.rng)
        self.custodian = Custodian(self.stage, self.router, around.post, around.emit)
        self.pipeline = Pipeline(
            _place(spec, me, self.stage),
            OfferBook(spec.limits, parked_bound=1),
            self.custodian,
            post=around.post,
            emit=around.emit,
            backlog=around.backlog,
        )
        self.pipeline.on_change = self._changed
        self.pipeline.on_count = self._counted
        self.stepper = Stepper(
            run=around.run,
            spec=spec,
            incarnation=around.incarnation,
            signer=around.signer,
            pipeline=self.pipeline,
            compute=compute,
            post=around.post,
            emit=around.emit,
            spawn=around.spawn,
            live=around.roster.at,
            committed=lambda done: around.committed(self.stage, done),
            next_seq=around.next_seq,
        )
        self._sourcer = Sourcer(around.run, me, self.pipeline) if self.stage == 0 else None
        self._highest: tuple[int, int, int] = (0, 0, 0)
        self._step_seconds = 0.0
        self._began = 0.0

    # --- the step ---------------------------------------------------------------------------

    def begin(self, at: Position, members: tuple[tuple[PeerId, ...], ...]) -> None:
        """Take up a step at ``at``. ``members``: peers of the last step record, per stage."""
        now = _now()
        self.state, self.version = "serving", at.step
        self._step_seconds, self._began = (now - self._began) if at.step else 0.0, now
        slots = step_slots(self._around.spec, at.step)
        self._sample()
        if self._sourcer is not None:
            self._sourcer.stop()  # what is pending belongs to the last step
        self.pipeline.begin(at, slots, parked_bound=self._parked_bound(slots.width))
        self.refresh_router()
        self.stepper.begin(at, members, now)
        if at.step > 0:
            self.start_sourcing()
        self.roster_changed(now)

    def start_sourcing(self) -> None:
        """Stage 0: take this step's microbatches from the data from now on.

        At step 0 the program calls this once the run may begin; there is no step record
        yet, so the seats that serve stage 0 now are the owners.
        """
        at, now = self.position, _now()
        if self._sourcer is None or at is None:
            return
        members = self.stepper.members[0]
        if not members:
            members = tuple(seat.peer for seat in self._around.roster.serving(self.stage))
        slots = step_slots(self._around.spec, at.step)
        self._sourcer.begin(at, slots, members, now=now, last_seconds=self._step_seconds)
        self.refresh_sources(now)

    def stop(self) -> None:
        """The run is over for this seat, or the seat is given away: take nothing more."""
        self.pipeline.draining = self.pipeline.frozen = True
        self.custodian.clear()  # all of it is counted, or this seat's account is closed
        if self._sourcer is not None:
            self._sourcer.stop()

    def close(self) -> None:
        """Give the seat up, in the middle of a step or not; it says nothing more."""
        self.stop()
        self.stepper.close()

    @property
    def position(self) -> Position | None:
        """Where the seat counts; None before its first step."""
        return self.pipeline.at

    def status(self) -> m.SeatStatus:
        """What heartbeats and the directory say of this seat."""
        return m.SeatStatus(
            stage=self.stage,
            state=self.state,
            version=self.version,
            rate=self.pipeline.pace.rate,
            queue=self.pipeline.book.queue,
            parked=self.pipeline.book.parked,
        )

    # --- what changes around it -------------------------------------------------------------

    def roster_changed(self, now: Seconds) -> None:
        """Who lives or serves has changed."""
        self.refresh_router()
        self.custodian.seats_changed(now)
        self.stepper.refresh_live(now)
        self.refresh_sources(now)

    def refresh_router(self) -> None:
        """Tell the router who serves the next stage, and how fast.

        A draining seat is asked only where nobody else is left: it serves to the step's end.
        """
        roster, stage = self._around.roster, Stage(self.stage + 1)
        above = roster.serving(stage) or roster.present(stage)
        self.router.set_seats({seat.peer: seat.rate for seat in above})

    def refresh_sources(self, now: Seconds) -> None:
        """Stage 0: see what is ours to take from the data."""
        machine, at = self.stepper.machine, self.position
        if self._sourcer is not None and machine is not None and at is not None:
            self._sourcer.refresh(self.stepper.live, machine.ledger.union(), now)
            self._around.wake()

    def lost(self, peer: PeerId, now: Seconds) -> None:
        """``peer`` is gone, or has restarted."""
        self.roster_changed(now)
        self.custodian.lost(peer, now)

    def found(self, peer: PeerId, now: Seconds) -> None:
        """``peer`` was suspected falsely."""
        self.roster_changed(now)
        self.custodian.found(peer, now)

    @property
    def due_at(self) -> Seconds | None:
        """When :meth:`tick` must run next."""
        sourced = None if self._sourcer is None else self._sourcer.due_at
        first = self.custodian.due_at
        for time in (self.stepper.due_at, self.pipeline.book.due_at, sourced):
            if time is not None and (first is None or time < first):
                first = time
        return first

    def tick(self, now: Seconds) -> None:
        """Act on every deadline that has passed."""
        self.custodian.tick(now)
        self.stepper.tick(now)
        self.pipeline.book.expire(now=now)
        sourcer = self._sourcer
        if sourcer is not None and sourcer.due_at is not None and now >= sourcer.due_at:
            self.refresh_sources(now)

    # --- small things -----------------------------------------------------------------------

    def _changed(self) -> None:
        if self._sourcer is not None:
            self._sourcer.feed()
        self._sample()
        self.stepper.quiet(_now())
        self._around.wake()

    def _counted(self) -> None:
        self.stepper.counted(_now())

    def _parked_bound(self, total_slots: int) -> int:
        seats = self._around.roster.present(self.stage)
        rates = {seat.peer: seat.rate for seat in seats if seat.rate > 0}
        own = self.pipeline.pace.rate
        known = bool(own) and len(rates) == len(seats)
        rates[self._around.signer.peer] = own
        return parked_bound(
            stages=self._around.spec.cut.stages,
            stage=self.stage,
            share=own / sum(rates.values()) if known else 1.0 / max(1, len(seats)),
            replicas=max(1, len(seats)),
            total_slots=total_slots,
            window_per_stage=self._around.spec.limits.window_per_stage,
        )

    def _sample(self) -> None:
        """Emit the fill beside its bounds whenever it reaches a new maximum."""
        book, retained = self.pipeline.book, self.custodian.retained_bytes
        fill = (book.queue, book.parked, retained)
        if any(now > before for now, before in zip(fill, self._highest, strict=True)):
            queue, parked, held = (max(a, b) for a, b in zip(fill, self._highest, strict=True))
            self._highest = (queue, parked, held)
            bounds = ev.Bounds(
                stage=self.stage,
                queue=book.queue,
                queue_bound=book.queue_bound,
                parked=book.parked,
                parked_bound=book.parked_bound,
                retained_bytes=retained,
                retained_bound=self._around.spec.limits.retained_bytes,
            )
            self._around.emit(bounds)


def _place(spec: RunSpec, me: PeerId, stage: Stage) -> Place:
    """What the seat's pipeline must know. A microbatch leaves a forward, a gradient, or both."""
    last, tokens = spec.cut.stages - 1, microbatch_token_bytes(spec)
    forward = tokens + boundary_bytes(spec, stage) if stage < last else 0
    gradient = boundary_bytes(spec, stage - 1) if stage > 0 else 0
    return Place(
        me=me,
        stage=stage,
        is_last=stage == last,
        token_bytes=tokens,
        retained_bytes_each=forward + gradient,
        retained_bound=spec.limits.retained_bytes,
    )


def genesis(chain: Chain) -> Position:
    """The position of a run's first step."""
    return Position(epoch=0, step=Step(0), chain=chain)


def _now() -> Seconds:
    return asyncio.get_running_loop().time()
