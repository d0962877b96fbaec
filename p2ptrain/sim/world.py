"""A whole swarm in one process: the production engine on simulated ports.

``SimWorld`` builds one engine node per peer of a ``Scenario``, runs them in virtual time
to the end of training, and lets the checkers judge what happened. Everything follows from
the scenario: the same one gives the same event log, byte for byte, in any process.

    Scenario -> SimWorld.run() -> SwarmResult (events, their hash, digests, verdicts)

A peer is a task under its own ``owner`` (see loop), so it can be frozen like a process,
and killed: its tasks are cancelled, its streams end, and nothing that it still does while
it is torn down reaches the network or the event log.

Refused: importing torch here. A program that wants real arithmetic hands over a compute
factory; durations then come from its cost model all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.core.schedule import last_step
from p2ptrain.engine.lifecycle import Node
from p2ptrain.engine.terms import World
from p2ptrain.errors import InternalError
from p2ptrain.observe import events as ev
from p2ptrain.run import digest
from p2ptrain.sim import loop
from p2ptrain.sim.chaos import Injector
from p2ptrain.sim.checkers import judge
from p2ptrain.sim.compute import CostModel
from p2ptrain.sim.directory import SimTable
from p2ptrain.sim.harm import Harm
from p2ptrain.sim.network import SimNetwork
from p2ptrain.sim.scenario import Scenario, SwarmResult, toy_compute
from p2ptrain.sim.signer import SimSigner
from p2ptrain.sim.spill import MemorySpill, spill_of
from p2ptrain.sim.toy import ToyCorpus, reference

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from p2ptrain.engine.terms import NodeOptions, NodeResult
    from p2ptrain.ports import Compute
    from p2ptrain.sim.pipes import Tap
    from p2ptrain.sim.scenario import PeerPlan
    from p2ptrain.sim.verdicts import Verdict
    from p2ptrain.units import PeerId, Seconds, Stage

DEPARTURE_SECONDS = 40.0
"""Once somebody has finished: how long nobody may step or leave until those that are still
there are stopped. More than any linger, so that only who came too late is cut short."""

REMAINS_SECONDS = 0.25
"""From a peer's end until somebody looks for what is left of it: tasks that are cancelled end
within a few turns, and it is before a restarted process takes the name over."""

TAIL_EVENTS = 12
"""Events shown with an error: the last thing that went on."""


class Host:
    """A running peer: what the world and its faults need to get at."""

    def __init__(self, plan: PeerPlan, compute: Compute, spill: MemorySpill | None) -> None:
        self.plan = plan
        self.peer = plan.peer
        self.compute = compute
        self.alive = True
        self.stages: set[Stage] = set()
        self.node: Node | None = None
        self.spill = spill
        self.task: asyncio.Task[None] | None = None


class SimWorld:
    """One simulated run; create it and call :meth:`run` once."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.entries: list[ev.Entry] = []
        self.hosts: dict[PeerId, Host] = {}
        self.table = SimTable(seed=scenario.seed)
        self.network: SimNetwork
        self.clock: loop.VirtualTimeLoop
        self._make = scenario.compute or toy_compute(CostModel(seed=scenario.seed))
        self.run_id = digest(scenario.spec)
        self._log = blake2b(digest_size=32)
        self._results: dict[PeerId, NodeResult] = {}
        self._unfinished: list[PeerId] = []
        self._group = asyncio.TaskGroup()
        self._changed = asyncio.Event()
        self._ended = False
        self._moved_at: Seconds = 0.0  # when somebody last stepped or left
        self._incarnations = 0
        self._looks = 0  # for the remains of peers, still to be made
        self.harm = Harm(self)
        self.tap: Tap | None = None
        self._injector = Injector(self, self.harm, scenario.chaos, self.random("faults"))

    def run(self) -> SwarmResult:
        """Run to the end of training and judge.

        Raises:
            SimulationError: the run did not end.
            ExceptionGroup: an engine failed. The notes of both say how to see it again.
        """
        scenario = self.scenario
        try:
            seconds = loop.run(
                self._main(),
                ceiling_seconds=scenario.ceiling_seconds,
                stall_seconds=scenario.stall_seconds,
            )
        except (loop.SimulationError, ExceptionGroup) as error:
            error.add_note(f"simulated run of seed {scenario.seed}, the last events:")
            for entry in self.entries[-TAIL_EVENTS:]:
                error.add_note(f"  {entry.at:.6f} {entry.peer} {entry.event}")
            raise
        return SwarmResult(
            seed=scenario.seed,
            entries=self.entries,
            event_log_hash=self.event_log_hash,
            tensors=self._tensors(),
            verdicts=self.judge(),
            peers=self._results,
            faults=self.harm.tally.fired(),
            unfinished=tuple(sorted(self._unfinished)),
            seconds=seconds,
        )

    def random(self, name: str) -> random.Random:
        """A generator of its own for everything that draws, so that draws do not mix."""
        return random.Random(f"{self.scenario.seed}/{name}")

    # --- peers ----------------------------------------------------------------------------

    def start(self, plan: PeerPlan) -> None:
        """Start a peer; its id must be new, or dead."""
        host = Host(plan, self._make(self.scenario.spec, plan), spill_of(self.scenario))
        self.hosts[plan.peer] = host
        self._incarnations += 1
        context = contextvars.Context()
        context.run(loop.owner.set, plan.peer)
        host.task = self._group.create_task(self._live(host, self._incarnations), context=context)
        host.task.add_done_callback(lambda _: self._changed.set(), context=self.network.context)

    def kill(self, peer: PeerId) -> None:
        """The process dies where it stands."""
        host = self.hosts[peer]
        host.alive = False
        host.stages.clear()
        self.network.kill(peer)
        self.clock.thaw(peer)
        assert host.task is not None
        host.task.cancel()
        self._look_later(host.peer, streams=0, left=None)

    def abandon(self) -> None:
        """Nothing more can come of this run: stop everybody."""
        for host in self._living():
            self.kill(host.peer)

    def spawn(self, job: Coroutine[None, None, None]) -> None:
        """Let something go on beside the peers; it must end by itself."""
        self._group.create_task(job, context=self.network.context.copy())

    def emit(self, peer: PeerId, event: ev.AnyEvent) -> None:
        """Write to the one event log of the world."""
        entry = ev.Entry(at=self.clock.time(), peer=peer, event=event)
        self.entries.append(entry)
        self._log.update(msgspec.msgpack.encode(entry))

    @property
    def ended(self) -> bool:
        """Whether some peer has completed the run."""
        return self._ended

    async def _live(self, host: Host, incarnation: int) -> None:
        await asyncio.sleep(host.plan.starts_at - self.clock.time())
        spec, peer = self.scenario.spec, host.peer
        if host.plan.link is not None:
            self.network.set_link(peer, host.plan.link)
        signer = SimSigner(peer, seed=self.scenario.seed)
        host.node = node = Node(
            self.run_id,
            spec,
            World(
                transport=self.network.transport(peer),
                directory=self.table.directory(signer),
                signer=signer,
                compute=host.compute,
                corpus=self.scenario.corpus or ToyCorpus(spec),
                store=self.scenario.stores.get(peer),
                spill=host.spill,
            ),
            incarnation=incarnation,
            emit=lambda event: self._hear(host, event),
            rng=self.random(f"node/{peer}/{incarnation}"),
            options=self._options(host.plan),
        )
        self.emit(peer, ev.PeerStarted(run=self.run_id, addresses=()))
        self._results[peer] = result = await node.run()
        self.emit(peer, ev.PeerStopped(reason=result.lost or "the run is complete"))
        self._moved_at = self.clock.time()
        host.alive = False
        left = incarnation if self.table.has_listened(peer) else None
        self._look_later(peer, streams=await self.network.retire(peer), left=left)
        self.network.kill(peer)

    def _look_later(self, peer: PeerId, *, streams: int, left: int | None) -> None:
        """See after a moment what is left of an ended peer; ``left``: as, if it could say so."""
        self._looks += 1
        context = self.network.context
        self.clock.call_later(REMAINS_SECONDS, self._look, peer, streams, left, context=context)

    def _look(self, peer: PeerId, streams: int, left: int | None) -> None:
        records = 0 if left is None else self.table.serving(peer, left)
        tasks = self.clock.tasks_of(peer)
        self.emit(peer, ev.Remains(tasks=tasks, streams=streams, records=records))
        self._looks -= 1
        self._changed.set()

    def _options(self, plan: PeerPlan) -> NodeOptions:
        options = self.scenario.options
        return options if plan.stage is None else replace(options, stage=plan.stage)

    def _hear(self, host: Host, event: ev.AnyEvent) -> None:
        if not host.alive:
            return  # a dead process writes no log, whatever its tear-down does
        self.emit(host.peer, event)
        match event:
            case ev.StepCommitted(step=step):
                self._moved_at = self.clock.time()
                self.clock.progress()
                self._injector.reached((step + 1) / (last_step(self.scenario.spec) + 1))
            case ev.SeatOpened(stage=stage):
                host.stages.add(stage)
            case ev.SeatClosed(stage=stage):
                host.stages.discard(stage)
            case ev.RunEnded():
                self._ended = True
                self._changed.set()
            case _:
                pass

    # --- the run --------------------------------------------------------------------------

    async def _main(self) -> Seconds:
        clock = asyncio.get_running_loop()
        assert isinstance(clock, loop.VirtualTimeLoop)
        self.clock = clock
        network = SimNetwork(seed=self.scenario.seed, link=self.scenario.link, tap=self.tap)
        async with network as self.network, self._group as group:
            for plan in self.scenario.peers:
                self.start(plan)
            faults = group.create_task(self._injector.run())
            await self._until(lambda: self._ended or not self._living())
            faults.cancel()
            self.harm.end()
            await self._depart()
            await self._until(lambda: not self._looks)
        return clock.time()

    async def _depart(self) -> None:
        """Wait for those who are still there, while they step or leave."""
        while self._living() and self.clock.time() < self._moved_at + DEPARTURE_SECONDS:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._moved_at + DEPARTURE_SECONDS):
                    await self._until(lambda: not self._living())
        for host in self._living():
            self._unfinished += [host.peer] if host.node else []  # else it has not come yet
            self.kill(host.peer)

    async def _until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self._changed.clear()
            await self._changed.wait()

    def _living(self) -> list[Host]:
        return [
            host for host in self.hosts.values() if host.task is not None and not host.task.done()
        ]

    # --- the verdict ------------------------------------------------------------------------

    def _tensors(self) -> dict[str, str]:
        tensors: dict[str, str] = {}
        bitwise = self.scenario.spec.sync.agreement == "bitwise"  # else the checkers see to it
        for peer, result in self._results.items():
            for name, value in result.tensor_digests.items():
                if result.finished and tensors.setdefault(name, value) != value and bitwise:
                    msg = f"{peer} ends with another {name} than its replicas"
                    raise InternalError(msg)
        return tensors

    @property
    def event_log_hash(self) -> str:
        """Over every event so far: equal scenarios give equal ones."""
        return self._log.hexdigest()

    def judge(self) -> tuple[Verdict, ...]:
        """What the checkers say of the events so far."""
        spec, toy = self.scenario.spec, self.scenario.compute is None
        sums = None
        if self.scenario.verify and toy:
            sums = reference(spec, self.scenario.corpus or ToyCorpus(spec)).sums
        return judge(
            self.entries,
            spec,
            patience_seconds=self.scenario.patience_seconds,
            reference=sums,
        )
