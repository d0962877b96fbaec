"""One seat, assembled: what it computes, whom it serves, where it stands.

    joining --state loaded--> serving --(step boundary)--> closed
                                 `--- drain: no new offers; at the boundary it *parts*: it counts
                                      no more, but answers for its last step until a mate is through

A seat is wired here and nowhere else; its parts know each other only through what they are given.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from p2ptrain.core.agreement import Position
from p2ptrain.core.offers import OfferBook
from p2ptrain.core.routing import Router
from p2ptrain.core.schedule import step_slots
from p2ptrain.core.sourcing import weighted
from p2ptrain.engine import window
from p2ptrain.engine.custodian import Custodian
from p2ptrain.engine.depositing import Depositing
from p2ptrain.engine.ending import Ending
from p2ptrain.engine.gauge import Gauge
from p2ptrain.engine.past import Past
from p2ptrain.engine.pipeline import Pipeline
from p2ptrain.engine.sourcing import Sourcer
from p2ptrain.engine.spilling import Spilling
from p2ptrain.engine.stepping import Stepper
from p2ptrain.engine.surroundings import place_of
from p2ptrain.units import Stage, Step
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Collection

    from p2ptrain.engine.committing import Done
    from p2ptrain.engine.surroundings import Surroundings
    from p2ptrain.ports import StageCompute
    from p2ptrain.units import PeerId, Seconds


class SeatRuntime:
    """A seat of this peer."""

    def __init__(self, around: Surroundings, compute: StageCompute) -> None:
        self.stage, self.compute = compute.stage, compute
        self.state: Literal["joining", "serving", "draining"] = "joining"
        self.version = Step(0)
        self.finished = self.parting = self.adopting = False  # the last: between two steps
        self._around = around
        spec, me = around.spec, around.signer.peer
        self.router = Router(around.rng)
        self.pipeline = Pipeline(
            place_of(spec, me, self.stage),
            OfferBook(spec.limits, parked_bound=1),
            Custodian(self.stage, self.router, around.post, around.emit, spill=around.spill),
            post=around.post,
            emit=around.emit,
            backlog=around.backlog,
        )
        kept = (self.pipeline, self._custodians, around.spill, spec.limits.retained_bytes)
        self._gauge = Gauge(*kept, emit=around.emit)
        self._spilling = Spilling(*kept, emit=around.emit, spawn=around.spawn)
        self.pipeline.shelf.on_short = self._spilling.look
        self.pipeline.on_change, self.pipeline.on_count = self._changed, self._counted
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
            distrust=around.distrust,
        )
        self._ending = Ending(self.pipeline, self.stepper, around)
        self.depositing = Depositing(self.pipeline, compute, self.stepper, around)
        source = (around.run, me, self.pipeline, around.post)
        self.sourcer = Sourcer(*source, rate=self._rate) if self.stage == 0 else None
        self._total_slots, self._step_seconds, self._began = 0, 0.0, 0.0  # of this step; the last
        self._epoch, self._late = 0, False  # late: the first step had begun when we came

    # --- the step ---------------------------------------------------------------------------

    def begin(self, at: Position, members: tuple[tuple[PeerId, ...], ...]) -> None:
        """Take up a step at ``at``. ``members``: peers of the last step record, per stage."""
        now, around = _now(), self._around
        self.state, self.version, self.parting, self._epoch = "serving", at.step, False, at.epoch
        self._step_seconds, self._began = (now - self._began) if at.step else 0.0, now
        self._late, slots = window.begun_without_us(around), step_slots(around.spec, at.step)
        if usual := window.usual_service(around, self.stage):
            self.pipeline.pace.suppose(usual)
        self._gauge.look()
        if self.sourcer is not None:
            self.sourcer.stop()  # what is pending belongs to the last step
        self._total_slots = slots.width
        self.pipeline.begin(at, slots, parked_bound=self._parked_bound())
        self.depositing.begin()
        self.stepper.begin(at, members, now)
        if any(members):
            self.start_sourcing()
        self.roster_changed(now)

    def start_sourcing(self) -> None:
        """Stage 0: take this step's microbatches from the data from now on.

        At step 0 and after a stop the program calls this once the run may begin; there is no
        step record then, so the seats that serve stage 0 now are the owners.
        """
        at, now = self.position, _now()
        if self.sourcer is None or at is None:
            return
        last, members = self.stepper.last, self.stepper.members[0]
        paces: tuple[int, ...] = ()
        if not members:
            members = window.first_owners(self._around, late=self._late)
        elif last is not None and last.chain == at.chain:
            paces = last.sums[0].paces
        slots, shares = step_slots(self._around.spec, at.step), weighted(members, paces)
        self.sourcer.begin(at, slots, shares, now=now, last_seconds=self._step_seconds)
        self.refresh_sources(now)

    def stepped(self, done: Done) -> None:
        """The step is committed: its frames are kept until the stages beside us are through."""
        self.version = Step(done.at.step + 1)
        around, over = self._around, self.pipeline.leave(passing=done.kept)
        past = self.pipeline.past = Past(done, over, around.roster)
        past.settled_now = lambda: around.spawn(self.compute.release(done.at.step))
        past.begin(_now())

    def stop(self) -> None:
        """The run is over for this seat, or the seat is given away: take nothing more."""
        self.pipeline.draining = self.pipeline.frozen = True
        self._spilling.stop()
        if self.sourcer is not None:
            self.sourcer.stop()

    def part(self) -> None:
        """Count no more; answer for the last step until :attr:`may_close`."""
        self.stop()
        self.state, self.parting = "draining", True

    def standing(self) -> tuple[Position, tuple[tuple[PeerId, ...], ...]]:
        """Where the weights stand: the position, and the peers of the last step record."""
        last = self.stepper.last
        if last is None or self.position != last.at:
            assert self.position is not None
            return self.position, self.stepper.members
        at = Position(epoch=last.at.epoch, step=self.version, chain=last.chain)
        return at, tuple(tuple(whole.members) for whole in last.sums)

    @property
    def may_close(self) -> bool:
        """Whether a seat that parts is needed no more."""
        past = self.pipeline.past
        return past is None or (past.settled and past.handed_over(self._around.signer.peer))

    def close(self) -> None:
        """Give the seat up, in the middle of a step or not; it says nothing more."""
        self.stop()
        self.pipeline.custodian.clear()
        self.pipeline.forget_past()
        self.stepper.close()

    @property
    def position(self) -> Position | None:
        """Where the seat counts; None before its first step."""
        return self.pipeline.at

    def status(self) -> m.SeatStatus:
        """What heartbeats and the directory say of this seat."""
        least = self._around.roster.beside(self.stage, self._around.spec.cut.stages, self.version)
        return m.SeatStatus(
            stage=self.stage,
            state="parted" if self.parting else self.state,
            version=self.version,
            rate=self.pipeline.pace.rate,
            queue=self.pipeline.book.queue,
            parked=self.pipeline.book.parked,
            least_above=least["above"],
            least_below=least["below"],
            epoch=self._epoch,
        )

    # --- what changes around it -------------------------------------------------------------

    def roster_changed(self, now: Seconds) -> None:
        """Who lives or serves has changed."""
        self.refresh_router()
        for custodian in self._custodians():
            custodian.seats_changed(now)
        self.look_back(now)
        self.stepper.refresh_live(now)
        self.refresh_sources(now)

    def advanced(self, peer: PeerId, stages: Collection[Stage], now: Seconds) -> None:
        """``peer``, which serves ``stages``, has stepped."""
        self.stepper.advanced(peer, stages, now)
        self.look_back(now)
        if self.stage + 1 in stages:
            self.refresh_router()

    def look_back(self, now: Seconds) -> None:
        """Who lives, or how far they are, has changed: see who still needs our last step."""
        if self.pipeline.past is not None:
            self.pipeline.past.refresh(now)
            self._around.wake()

    def refresh_router(self) -> None:
        """Tell the router who serves the next stage, and how fast."""
        stage, at = Stage(self.stage + 1), self.position
        if at is not None and stage < self._around.spec.cut.stages:
            members = self.stepper.members[stage]
            self.router.set_seats(window.rates_at(self._around.roster, stage, at, members))

    def refresh_sources(self, now: Seconds) -> None:
        """Stage 0: see what is ours to take from the data."""
        machine, at = self.stepper.machine, self.position
        if self.sourcer is not None and machine is not None and at is not None:
            leaves, ledger = window.left_to_mates(self._around), machine.ledger
            live, union, computed = self.stepper.live, ledger.union(), ledger.computed()
            self.sourcer.refresh(live, union, now, computed=computed, retiring=leaves)
            self._around.wake()

    def lost(self, peer: PeerId, now: Seconds) -> None:
        """``peer`` is gone, or has restarted."""
        self.roster_changed(now)
        if self.pipeline.past is not None:
            self.pipeline.past.lost(peer, now)
        self.pipeline.custodian.lost(peer, now)

    def found(self, peer: PeerId, now: Seconds) -> None:
        """``peer`` was suspected falsely."""
        self.roster_changed(now)
        for custodian in self._custodians():
            custodian.found(peer, now)

    def forget(self, peer: PeerId) -> None:
        """``peer`` will not come back as who it was."""
        self.pipeline.custodian.delays.forget(peer)  # a step's custodian has those of the last

    def link_down(self, peer: PeerId, now: Seconds) -> None:
        """The link to ``peer`` broke: what was on its way may not have arrived."""
        for custodian in self._custodians():
            custodian.link_down(peer, now)

    @property
    def due_at(self) -> Seconds | None:
        """When :meth:`tick` must run next."""
        sourced = None if self.sourcer is None else self.sourcer.due_at
        first = self.pipeline.custodian.due_at
        before = None if self.pipeline.past is None else self.pipeline.past.due_at
        others = (self.stepper.due_at, self.pipeline.book.due_at, self.depositing.wanting.due_at)
        for time in (*others, sourced, before):
            if time is not None and (first is None or time < first):
                first = time
        return first

    def tick(self, now: Seconds) -> None:
        """Act on every deadline that has passed."""
        if self.pipeline.past is not None:
            self.pipeline.past.tick(now)
        self.pipeline.custodian.tick(now)
        self.stepper.tick(now)
        self.pipeline.book.expire(now=now)
        self.depositing.wanting.tick(now)
        sourcer = self.sourcer
        if sourcer is not None and sourcer.due_at is not None and now >= sourcer.due_at:
            self.refresh_sources(now)

    def pipeline_of(self, at: Position) -> Pipeline:
        """Who answers for the step at ``at``: the last one while we stand there, or it is kept."""
        past = self.pipeline.past
        here = past is not None and at == past.at and (self.position == at or not past.settled)
        return past.pipeline if past is not None and here else self.pipeline

    def lines(self) -> tuple[tuple[Pipeline, StageCompute], ...]:
        """All that may have something to compute."""
        past, present = self.pipeline.past, (self.pipeline, self.compute)
        return (present,) if past is None else ((past.pipeline, self.compute), present)

    def _custodians(self) -> tuple[Custodian, ...]:
        return tuple(pipeline.custodian for pipeline, _ in self.lines())

    # --- small things -----------------------------------------------------------------------

    def _changed(self) -> None:
        if self.sourcer is not None:
            self.sourcer.feed(_now())
        if self.pipeline.past is not None:
            self.pipeline.past.changed()
        self._gauge.look()
        self._spilling.look()
        self._ending.look()
        self.stepper.quiet(_now())
        self._around.wake()

    def _counted(self) -> None:
        # A speed is known from the first count on, and may have changed since.
        self.pipeline.book.set_parked_bound(self._parked_bound())
        self.stepper.counted(_now())

    def _rate(self, peer: PeerId) -> float:
        return window.rates(self._around, self.stage, own=self.pipeline.pace.rate).get(peer, 0.0)

    def _parked_bound(self) -> int:
        return window.parked_bound(
            self._around, self.stage, rate=self.pipeline.pace.rate, total_slots=self._total_slots
        )


def _now() -> Seconds:
    return asyncio.get_running_loop().time()
