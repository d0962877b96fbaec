"""The life of one peer in a run: join, serve, step, leave.

    join: read the directory, choose a stage, load its state  ->  serve  ->  the last step
    commits  ->  linger for laggards  ->  leave (or: drain at the next step boundary)

:class:`Node` owns every task of a peer in one TaskGroup; an error in any of them ends the
peer. All protocol state changes in synchronous handlers on the loop; the tasks are the
links, the directory, the worker, the timer, and short jobs (a frame to send, a reduction).

Invariants:
    * one timer: the earliest deadline of all machines, re-armed after every event;
    * a seat is opened and closed only at a step boundary, or before its first step.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p2ptrain.core.agreement import Position
from p2ptrain.core.chain import genesis_chain
from p2ptrain.core.membership import Membership, Suspected
from p2ptrain.core.schedule import last_step
from p2ptrain.engine.admission import Admission
from p2ptrain.engine.dispatch import Dispatcher, Flow, Round
from p2ptrain.engine.links import Links
from p2ptrain.engine.mail import Mail
from p2ptrain.engine.presence import Announcer, Presence
from p2ptrain.engine.roster import Roster
from p2ptrain.engine.seat import SeatRuntime, Surroundings
from p2ptrain.engine.transfers import Snapshots
from p2ptrain.engine.worker import Worker
from p2ptrain.observe import events as ev
from p2ptrain.units import Stage, Step
from p2ptrain.wire import framing
from p2ptrain.wire import messages as m
from p2ptrain.wire.limits import FrameLimits

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Coroutine, Mapping

    from p2ptrain.core.membership import Event as MembershipEvent
    from p2ptrain.engine.stepping import Done
    from p2ptrain.ports import Compute, Corpus, Directory, Signer, Transport
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Chain, PeerId, RunId, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What this peer alone decides.

    ``stage``: the one to serve, None chooses. ``spare_seconds``: how long a hole must stand
    before this peer takes it beside its own seat; newcomers get that long to come.
    ``linger_seconds``: how long a finished peer stays for others at most.
    ``drain_seconds``: how long a drained peer finishes its step, or waits for somebody to
    take over what it alone holds; under the 90 s after which service managers kill.
    ``assign_seconds``: between looks at who serves what.
    """

    stage: Stage | None = None
    spare_seconds: Seconds = 10.0
    linger_seconds: Seconds = 30.0
    drain_seconds: Seconds = 60.0
    assign_seconds: Seconds = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The ports of one peer.

    ``corpus``: the run's data, if this peer has it; else ``corpus_from`` makes it of bytes
    pulled from peers of stage 0, should this peer come to serve that.
    """

    transport: Transport
    directory: Directory
    signer: Signer
    compute: Compute
    corpus: Corpus | None
    corpus_from: Callable[[bytes], Corpus] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeResult:
    """What a peer leaves with: its seats' versions and the digests of their weights."""

    finished: bool
    versions: Mapping[Stage, Step]
    tensor_digests: Mapping[str, str]
    chain: Chain
    false_suspicions: int


@dataclass(slots=True)
class _Clock:
    """When the timer will fire next, and what wakes it earlier."""

    armed_at: Seconds | None = None
    poke: asyncio.Event = field(default_factory=asyncio.Event)


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
        self.me = world.signer.peer
        self.emit = emit
        self.roster = Roster(self.me)
        self.seats: dict[Stage, SeatRuntime] = {}
        self.limits = FrameLimits(spec)
        self.ended = asyncio.Event()
        self._incarnation = incarnation
        self.rng = rng
        self._membership = Membership(spec.limits)
        self._near: frozenset[PeerId] = frozenset()
        self._beats = 0
        self._sequence = itertools.count(1)
        self._lag_seconds = 0.0
        self._lag_told_at = -math.inf
        self._clock = _Clock()
        self.draining = False
        self._group: asyncio.TaskGroup | None = None
        hello = m.Hello(
            protocol=framing.PROTOCOL,
            run=run,
            channel="control",
            incarnation=incarnation,
            arithmetic=world.compute.arithmetic if spec.sync.agreement == "bitwise" else "",
        )
        self.links = Links(
            world.transport, hello, self.limits, heartbeat=self._heartbeat, emit=emit
        )
        self.links.on_control, self.links.on_data = self._on_control, self._on_data
        self.links.on_up, self.links.on_down = self._on_up, self._on_down
        self.links.beats_to = lambda peer: peer in self._near
        self.mail = Mail(self.links, self.roster, self.spawn)
        self.worker = Worker(lambda: [(s.pipeline, s.compute) for s in self.seats.values()])
        self._dispatch = Dispatcher(self.seats, self.mail)
        announcer = Announcer(
            run=run, peer=self.me, incarnation=incarnation, addresses=world.transport.addresses()
        )
        self.presence = Presence(world.directory, spec, announcer, rng=rng, emit=emit)
        self.snapshots = Snapshots(self.links, emit)
        if world.corpus is not None:
            self.snapshots.offer_corpus(world.corpus)
        self.admission = Admission(self)

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
                group.create_task(self._tick_forever()),
                group.create_task(self.admission.run()),
            ]
            await self.ended.wait()
            await self._linger()
            result = await self._result()
            self.mail.tell_all(self.links.peers(), m.Leaving(reason="the run is complete"))
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
        asyncio.get_running_loop().call_later(self.options.drain_seconds, self.ended.set)

    def come_to_end(self) -> None:
        """Somebody has completed the run: who has no seat, or none that counted, may go."""
        if all(seat.finished for seat in self.seats.values()):
            self.ended.set()

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
            next_seq=self._sequence.__next__,
        )

    def statuses_changed(self) -> None:
        """Our own seats have changed: everybody near must know at once."""
        beat = self._heartbeat()
        self.mail.tell_all(self.links.peers(), beat)
        self.presence.announce(beat.seats)
        self._roster_changed()

    # --- the step's end ---------------------------------------------------------------------

    def _committed(self, stage: Stage, done: Done) -> None:
        """A seat of ours has stepped; what comes next is decided here."""
        seat = self.seats[stage]
        at = done.at
        seat.version = Step(at.step + 1)
        self.presence.committed(stage, done.record())
        if at.step >= last_step(self.spec):
            seat.finished = True
            seat.stop()
            self.statuses_changed()  # who lingers for us need not
        elif self.admission.may_leave(seat, done.sums[stage].members):
            self.close_seat(stage, "drained" if self.draining else "given away")
        else:
            members = tuple(tuple(whole.members) for whole in done.sums)
            position = Position(epoch=at.epoch, step=seat.version, chain=done.chain)
            seat.begin(position, members)
            if self.draining:
                seat.state = "draining"  # until somebody has taken it over
        self._changed()
        if all(seat.finished for seat in self.seats.values()):
            self.ended.set()

    def close_seat(self, stage: Stage, reason: str) -> None:
        """Serve ``stage`` no longer; call at a step boundary only."""
        seat = self.seats.pop(stage)
        seat.close()
        self.snapshots.withdraw(stage)
        self.emit(ev.SeatClosed(stage=stage, reason=reason))
        self.statuses_changed()

    async def _linger(self) -> None:
        """Stay while others still need our sums, but not for ever."""
        if not self.seats or self.draining:
            return
        loop = asyncio.get_running_loop()
        until = loop.time() + self.options.linger_seconds
        final = last_step(self.spec) + 1
        while loop.time() < until:
            waiting = [s for s in self.roster.views() if s.version < final and s.peer != self.me]
            if not waiting:
                return
            await asyncio.sleep(min(0.2, self.options.linger_seconds / 10))

    async def _result(self) -> NodeResult:
        digests: dict[str, str] = {}
        chain = genesis_chain(self.run_id)
        for seat in self.seats.values():
            digests.update(await seat.compute.tensor_digests())
            if seat.stepper.last is not None:
                chain = seat.stepper.last.chain
        finished = bool(self.seats) and all(seat.finished for seat in self.seats.values())
        if finished:
            self.emit(ev.RunEnded(step=last_step(self.spec), reason="the last step has committed"))
        return NodeResult(
            finished=finished,
            versions={stage: seat.version for stage, seat in sorted(self.seats.items())},
            tensor_digests=digests,
            chain=chain,
            false_suspicions=self._membership.false_suspicions,
        )

    # --- events from links ------------------------------------------------------------------

    def _on_control(self, peer: PeerId, message: m.Control) -> None:
        now = _now()
        self._heard(peer, now)
        if isinstance(message, m.Heartbeat):
            if not self._hear_seats(peer, message, now):
                self._wake_by(self._membership.due_at)  # the only deadline it may have set
                return
        elif isinstance(message, Flow):
            self._dispatch.flow(peer, message, now)
        elif isinstance(message, Round):
            self._dispatch.round(peer, message, now)
        elif isinstance(message, m.Leaving):
            self._left(peer, now)
        elif isinstance(message, m.WantManifest) and message.stage in self.seats:
            self.admission.give_state(self.seats[message.stage], peer, message)
        elif not self.snapshots.handle(peer, message) and isinstance(message, m.NoSuch):
            self._dispatch.round(peer, message, now)  # else: nobody waits for it any more
        self._rearm()

    def _left(self, peer: PeerId, now: Seconds) -> None:
        self.roster.left(peer)
        self._membership.forget(peer)
        if peer in self._near:  # nobody else holds anything of ours
            self._lost(peer, now)

    def _hear_seats(self, peer: PeerId, message: m.Heartbeat, now: Seconds) -> bool:
        """Take a heartbeat over; whether it said anything that matters here."""
        was_near = peer in self._near
        news = self.roster.hear(peer, message.seats)
        if news == "seats":
            self._find_near()
            if was_near or peer in self._near:  # else no machine of ours looks at it
                self._roster_changed()
        elif news == "versions" and peer in self._near:
            for seat in self.seats.values():
                seat.stepper.advanced(peer, [status.stage for status in message.seats], now)
        return news != "nothing"

    def _on_data(self, peer: PeerId, message: m.Data, payload: memoryview) -> None:
        now = _now()
        self._heard(peer, now)
        if not self.snapshots.handle(peer, message, payload):
            self._dispatch.frame(peer, message, payload, now)
        self._rearm()

    def _on_up(self, peer: PeerId) -> None:
        now = _now()
        self._heard(peer, now)
        incarnation = self.links.incarnation(peer)
        if incarnation is not None and self.roster.incarnated(peer, incarnation):
            for seat in self.seats.values():
                seat.stepper.restarted(peer)
            self._lost(peer, now)
        for seat in self.seats.values():
            seat.stepper.greet(peer)
        self._rearm()

    def _on_down(self, peer: PeerId, _reason: str) -> None:
        now = _now()
        self._membership.link_lost(peer, now=now)
        for seat in self.seats.values():
            seat.custodian.link_down(peer, now)
        self.snapshots.lost(peer)
        self._rearm()

    def near(self) -> frozenset[PeerId]:
        """Peers with a seat beside one of ours: who they are, and that they live, matters."""
        return self._near

    def _find_near(self) -> None:
        stages = {stage + offset for stage in self.seats for offset in (-1, 0, 1)}
        near = self.roster.near(stages)
        for peer in sorted(self._near - near):
            self._membership.forget(peer)
        self._near = near

    def _heard(self, peer: PeerId, now: Seconds) -> None:
        if peer in self._near:
            for event in self._membership.heard(peer, now=now):
                self._membership_changed(event, now)

    def _membership_changed(self, event: MembershipEvent, now: Seconds) -> None:
        if isinstance(event, Suspected):
            self.emit(ev.Suspected(peer=event.peer, silent_seconds=event.silent_seconds))
            self.roster.lost(event.peer)
            self._lost(event.peer, now)
        else:
            self.emit(ev.Restored(peer=event.peer))
            self.roster.found(event.peer)
            self._find_near()
            for seat in list(self.seats.values()):
                seat.found(event.peer, now)
            self._changed()

    def _lost(self, peer: PeerId, now: Seconds) -> None:
        for seat in list(self.seats.values()):
            seat.lost(peer, now)
        self._changed()

    def _roster_changed(self) -> None:
        now = _now()
        self._find_near()
        for seat in list(self.seats.values()):
            if seat.position is not None:
                seat.roster_changed(now)
        self._changed()

    # --- time -------------------------------------------------------------------------------

    def _heartbeat(self) -> m.Heartbeat:
        self._beats += 1
        now = _now()
        if now >= self._lag_told_at + self.spec.limits.heartbeat_seconds:
            self._membership.own_lag(self._lag_seconds)
            self._lag_seconds, self._lag_told_at = 0.0, now
        seats = tuple(seat.status() for _, seat in sorted(self.seats.items()))
        self.roster.hear(self.me, seats)  # what others know of us, we know
        return m.Heartbeat(count=self._beats, lag_seconds=self._lag_seconds, seats=seats)

    def _changed(self) -> None:
        self.worker.wake()
        self._rearm()

    def _due_at(self) -> Seconds | None:
        first = self._membership.due_at
        for seat in self.seats.values():
            time = seat.due_at
            if time is not None and (first is None or time < first):
                first = time
        return first

    def _rearm(self) -> None:
        if not self._clock.poke.is_set():  # else the timer looks at everything anyway
            self._wake_by(self._due_at())

    def _wake_by(self, due_at: Seconds | None) -> None:
        armed_at = self._clock.armed_at
        if due_at is not None and (armed_at is None or due_at < armed_at):
            self._clock.poke.set()

    async def _tick_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            for event in self._membership.tick(now=now):
                self._membership_changed(event, now)
            for seat in list(self.seats.values()):
                seat.tick(now)
            due_at = self._due_at()
            self._clock.armed_at = due_at
            self._clock.poke.clear()
            handle = None if due_at is None else loop.call_at(due_at, self._clock.poke.set)
            await self._clock.poke.wait()
            if handle is not None:
                handle.cancel()
            if due_at is not None:
                self._note_lag(loop.time() - due_at)

    def _note_lag(self, seconds: Seconds) -> None:
        """How late we woke, at worst, since the last heartbeat: told before anybody is judged."""
        self._lag_seconds = max(self._lag_seconds, seconds)
        if seconds > self.spec.limits.heartbeat_seconds:
            self._membership.own_lag(seconds)


def _now() -> Seconds:
    return asyncio.get_running_loop().time()
