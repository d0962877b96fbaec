"""The life of one peer in a run: join, serve, step, leave.

    join: read the directory, choose a stage, load its state  ->  serve  ->  the last step
    commits  ->  linger for laggards  ->  leave (or: drain at the next step boundary)

:class:`Node` owns every task of a peer in one TaskGroup; an error in any of them ends the
peer. All protocol state changes in synchronous handlers on the loop; the tasks are the
links, the directory, the worker, the timer, and short jobs (a frame to send, a reduction).

Invariants:
    * every task of a peer is a child of its one group: none outlives :meth:`Node.run`;
    * a seat is opened and closed only at a step boundary, or before its first step.

Refused: an object that knows the protocol. This one owns and wires; what a message, a
silence or a deadline means is decided by the parts.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from p2ptrain.core.schedule import last_step
from p2ptrain.engine.admission import Admission
from p2ptrain.engine.adopting import Adoption
from p2ptrain.engine.beginning import Beginning
from p2ptrain.engine.buddies import Buddies
from p2ptrain.engine.dispatch import Dispatcher
from p2ptrain.engine.distrust import Distrust
from p2ptrain.engine.farewell import finish
from p2ptrain.engine.forks import Forks
from p2ptrain.engine.holdings import Holdings
from p2ptrain.engine.lineage import Lineage
from p2ptrain.engine.link import LinkSettings
from p2ptrain.engine.links import Links
from p2ptrain.engine.mail import Mail
from p2ptrain.engine.neighbourhood import Neighbourhood
from p2ptrain.engine.parting import Parting
from p2ptrain.engine.presence import Announcer, Presence
from p2ptrain.engine.reception import Reception
from p2ptrain.engine.resuming import Resumption
from p2ptrain.engine.roster import Roster
from p2ptrain.engine.surroundings import Surroundings
from p2ptrain.engine.terms import NodeOptions
from p2ptrain.engine.timer import Timer
from p2ptrain.engine.transfers import Snapshots
from p2ptrain.engine.worker import Worker
from p2ptrain.observe import events as ev
from p2ptrain.units import Step
from p2ptrain.wire import messages as m
from p2ptrain.wire.handshake import greeting
from p2ptrain.wire.limits import FrameLimits

if TYPE_CHECKING:
    import random
    from collections.abc import Coroutine

    from p2ptrain.engine.committing import Done
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.engine.terms import NodeResult, World
    from p2ptrain.run import RunSpec
    from p2ptrain.units import PeerId, RunId, Seconds, Stage


class Node:
    """One peer of one run. Create it, then await :meth:`run` once."""

    def __init__(  # noqa: PLR0913 - who, what, where, and what it says; wired by programs
        self,
        run: RunId,
        spec: RunSpec,
        world: World,
        *,
        incarnation: int,
        emit: ev.Emit,
        rng: random.Random,
        options: NodeOptions | None = None,
    ) -> None:
        self.run_id, self.spec, self.world = run, spec, world
        self.options = options or NodeOptions()
        self.me, self.emit = world.signer.peer, emit
        self.roster = Roster(self.me)
        self.seats: dict[Stage, SeatRuntime] = {}
        self.claims: dict[Stage, float] = {}  # announced as joining, not opened; our rate
        self.limits, self.ended = FrameLimits(spec), asyncio.Event()
        self.lost = ""  # why the run was given up
        self._incarnation, self.rng, self.draining = incarnation, rng, False
        self._beats, self._sequence, self._distrust = 0, itertools.count(1), Distrust(emit)
        self._group: asyncio.TaskGroup | None = None
        self._near = Neighbourhood(
            self.roster, self.seats, spec.limits, emit=emit, changed=self._changed
        )
        self._timer = Timer(
            due_at=self._due_at,
            tick=self._tick,
            own_lag=self._near.own_lag,
            heartbeat_seconds=spec.limits.heartbeat_seconds,
        )
        arithmetic = world.compute.arithmetic if spec.sync.agreement == "bitwise" else ""
        hello = greeting(run, incarnation, arithmetic)
        beats = LinkSettings(heartbeat_seconds=spec.limits.heartbeat_seconds)
        wires = (world.transport, hello, self.limits)
        self.links = Links(*wires, heartbeat=self._heartbeat, emit=emit, settings=beats)
        self.mail = Mail(self.links, self.roster, self.spawn)
        self.worker = Worker(lambda: [line for s in self.seats.values() for line in s.lines()])
        announcer = Announcer(
            run=run, peer=self.me, incarnation=incarnation, addresses=world.transport.addresses()
        )
        self.presence = Presence(world.directory, spec, announcer, rng=rng, emit=emit)
        self.snapshots = Snapshots(self.links, emit)
        dispatch = Dispatcher(self.seats, self.mail)
        reception = Reception(
            self.links, dispatch, self._near, self.snapshots, self._timer, self._give_state
        )
        reception.attend(self._distrust)
        if world.corpus is not None:
            self.snapshots.offer_corpus(world.corpus)
        reception.resumption = self.resumption = Resumption(self)
        reception.holdings = self.holdings = Holdings(self, self.resumption.archive)
        self._buddies = Buddies(self, self.holdings.memory)
        reception.lineage = self.lineage = Lineage(self)
        self.beginning, self.parting, self.adoption = Beginning(self), Parting(self), Adoption(self)
        self.admission, self.forks = Admission(self), Forks(self)

    # --- life -------------------------------------------------------------------------------

    async def run(self) -> NodeResult:
        """Join, train to the last step, leave. Ends early when drained.

        Cancelled, it leaves at once: links are closed, seats are forgotten.

        Raises:
            RefusedError: the run does not take this peer.
            BootstrapError, UserError: from the ports.
        """
        async with asyncio.TaskGroup() as group:
            self._group = group
            background = [
                group.create_task(self.links.run()),
                group.create_task(self.presence.run()),
                group.create_task(self.worker.run()),
                group.create_task(self._timer.run()),
                group.create_task(self.admission.run()),
            ]
            await self.ended.wait()
            result = await finish(self, self._near.false_suspicions)
            self.mail.tell_all(
                self.links.peers(), m.Leaving(reason=self.lost or "the run is complete")
            )
            await self.presence.withdraw()
            for task in background:
                task.cancel()
        return result

    def drain(self) -> None:
        """Leave at a step boundary, once others hold our state; before the first step, now."""
        self.draining = True
        for seat in self.seats.values():
            seat.state = "draining"
        self.statuses_changed()  # whoever takes a seat over may begin
        if all(self.admission.untouched(seat) for seat in self.seats.values()):
            self.ended.set()
        asyncio.get_running_loop().call_later(self.options.drain_seconds, self.parting.leave_anyway)

    def come_to_end(self) -> None:
        """Somebody has completed the run: who has no seat, or none that counted, may go."""
        if all(seat.finished for seat in self.seats.values()):
            self.ended.set()

    def give_up(self, reason: str) -> None:
        """Nobody within reach has what the run would go on from: leave, and say why."""
        self.lost = reason
        self.emit(ev.RunLost(reason=reason))
        self.ended.set()

    def begin_anew(self) -> None:
        """The lineage is another: give all seats up, and take the same stages again."""
        stages = tuple(sorted(self.seats))
        self.roster.begin_anew(self.lineage.root.epoch)
        for stage in stages:
            self.close_seat(stage, f"the run begins again at step {self.lineage.root.step}")
        self.admission.begin_anew(stages)
        self._near.refresh(_now())

    def spawn(self, job: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run a short job in this peer's task group."""
        assert self._group is not None
        return self._group.create_task(job)

    def around(self) -> Surroundings:
        """What a new seat is given."""
        return Surroundings(
            run=self.run_id,
            spec=self.spec,
            incarnation=self._incarnation,
            signer=self.world.signer,
            limits=self.limits,
            post=self.mail,
            roster=self.roster,
            emit=self.emit,
            rng=self.rng,
            wake=self._changed,
            spawn=self.spawn,
            backlog=lambda: sum(s.pipeline.backlog_seconds() for s in self.seats.values()),
            committed=self._committed,
            spill=self.world.spill,
            next_seq=self._sequence.__next__,
            distrust=self._distrust,
        )

    def statuses(self) -> tuple[m.SeatStatus, ...]:
        """What we say of our seats, and of those that we have only claimed."""
        claimed = [
            m.SeatStatus(stage=s, state="joining", version=Step(0), rate=rate, queue=0, parked=0)
            for s, rate in self.claims.items()
        ]
        ours = [seat.status() for seat in self.seats.values()]
        return tuple(sorted(ours + claimed, key=lambda status: status.stage))

    def statuses_changed(self) -> None:
        """Our own seats have changed: everybody near must know at once."""
        beat = self._heartbeat()
        self.mail.tell_all(self.links.peers(), beat)
        self.presence.announce(beat.seats)
        self._near.refresh(_now())

    # --- the step's end ---------------------------------------------------------------------

    def _committed(self, stage: Stage, done: Done) -> None:
        """A seat of ours has stepped; what comes next is decided here."""
        seat = self.seats[stage]
        at = done.at
        seat.stepped(done)
        self.lineage.stepped(seat.standing()[0])
        self.presence.committed(stage, done.record())
        if at.step >= last_step(self.spec):
            seat.finished = True
            seat.stop()
            self.statuses_changed()  # who lingers for us need not
        elif self.parting.may_part(seat):
            seat.part()
            self.statuses_changed()
        elif self.adoption.due(seat):
            self.adoption.begin(seat)
        else:
            self.go_on(seat)
        if not seat.adopting:
            self.stands(seat)
        self._changed()
        if not self.claims and all(seat.finished for seat in self.seats.values()):
            self.ended.set()

    def stands(self, seat: SeatRuntime) -> None:
        """A seat has its state at a step boundary, for whoever waits for it."""
        if self.seats.get(seat.stage) is seat:
            self.admission.stepped(seat)
            self.resumption.stepped()
            self.holdings.stepped(seat)
            self._buddies.stepped(seat)
            self._changed()

    def go_on(self, seat: SeatRuntime) -> None:
        """Have a seat that has stepped take up its next step."""
        seat.begin(*seat.standing())
        if self.draining:
            seat.state = "draining"  # until somebody has taken it over

    def close_seat(self, stage: Stage, reason: str) -> None:
        """Serve ``stage`` no longer; call at a step boundary only."""
        self.statuses_changed()  # how far those behind us are, or they are asked for it again
        seat = self.seats.pop(stage)
        self.adoption.closed(stage)
        self.forks.closed(stage)
        seat.close()
        self.admission.closed(stage, reason)
        self.emit(ev.SeatClosed(stage=stage, reason=reason))
        self.statuses_changed()

    def _give_state(self, peer: PeerId, message: m.WantManifest) -> bool:
        seat = self.seats.get(message.stage)
        if (seat is None or seat.position is None) and self.resumption.give(peer, message):
            return True
        if seat is None:
            self.holdings.give(peer, message)
        else:
            self.admission.give_state(seat, peer, message)
        return True

    # --- time -------------------------------------------------------------------------------

    def _heartbeat(self) -> m.Heartbeat:
        self._beats += 1
        lag = self._timer.tell_lag(_now())
        seats = self.statuses()
        if self.roster.hear(self.me, seats) != "nothing":  # what others know of us, we know
            self._near.look_back(_now())
        begun = self.beginning.known
        return m.Heartbeat(count=self._beats, lag_seconds=lag, seats=seats, begun=begun)

    def _changed(self) -> None:
        self.worker.wake()
        self._timer.rearm()

    def _due_at(self) -> Seconds | None:
        first = self._near.due_at
        for seat in self.seats.values():
            time = seat.due_at
            if time is not None and (first is None or time < first):
                first = time
        return first

    def _tick(self, now: Seconds) -> None:
        self._near.tick(now)
        for seat in list(self.seats.values()):
            seat.tick(now)


def _now() -> Seconds:
    return asyncio.get_running_loop().time()
