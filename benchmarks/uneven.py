"""Swarms of unequal, unreliable peers in virtual time: laid out, disturbed and watched.

The setting of the capacity figures: forward .5 s and backward 1 s at speed 1, speeds
lognormal, a tenth of the peers ten times slower, 50-150 ms from peer to peer, 20% noise.
What a swarm reaches is compared with what its machines could do: a stage's capacity is the
sum of its seats' rates, the pipeline's that of its weakest stage.

    Swarm (who, how fast, where) -> Watch (the simulated world, counting as it goes)

The production engine runs here; only arithmetic, network and clock are simulated.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import click
import msgspec

from p2ptrain.observe import events as ev
from p2ptrain.run import Evaluation, preset
from p2ptrain.sim.compute import CostModel, ToyCompute
from p2ptrain.sim.pipes import Link
from p2ptrain.sim.scenario import PeerPlan, Scenario, toy_compute
from p2ptrain.sim.toy import toy_spec
from p2ptrain.sim.world import SimWorld
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from p2ptrain.sim.compute import Device
    from p2ptrain.sim.world import Host
    from p2ptrain.units import Seconds, Step

FORWARD_SECONDS, BACKWARD_SECONDS = 0.5, 1.0
SERVICE_SECONDS = FORWARD_SECONDS + BACKWARD_SECONDS
NOISE = 0.35
"""Uniform, up to so much more or less: a deviation of 20%."""

SPREAD = 0.4
"""Of the logarithm of speeds."""

SLOW_SHARE, SLOWER = 0.1, 10.0
LATENCY_SECONDS, JITTER_SECONDS = 0.05, 0.1
LINE_BYTES_PER_SECOND = 1e8
"""The toy's frames are short: only latency is to count."""

ARRIVAL_SECONDS = 0.05
HEARTBEAT_SECONDS = 2.0
"""Half the messages of the default, and the machine's time; a broken link is noticed in two."""

TELL_SECONDS = 30.0
"""Of virtual time between two lines that say how far a run is: seconds of ours to a minute."""

WINDOW = preset("small").limits.window_per_stage

QUIET_SECONDS = 1e6
"""For watchdogs, which know nothing of steps of ten minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """What goes wrong. ``mtbf_seconds``: mean life of a peer; another like it comes later.

    ``slow_share`` of the peers at any time is SLOWER for ``slow_seconds``, unannounced.
    """

    mtbf_seconds: Seconds | None = None
    rejoin_seconds: Seconds = 60.0
    slow_share: float = 0.0
    slow_seconds: Seconds = 120.0


@dataclass(frozen=True, kw_only=True)
class Swarm:
    """Who is there. ``placed``: everybody is told its stage; else they choose.

    ``free``: those who are placed may move from there, as peers may that nobody tells.
    ``window``: the RunSpec's ``limits.window_per_stage``; ``deposit``: its ``sync.deposit_every``.
    """

    stages: int
    replicas: int
    microbatches: int
    steps: int = 1
    seed: int = 0
    placed: bool = True
    free: bool = False
    sum_seconds: Seconds = 0.0
    load_seconds: Seconds = 0.0
    memory_seats: int | None = None
    window: int = WINDOW
    deposit: int = 0
    trouble: Trouble = field(default_factory=Trouble)

    @cached_property
    def speeds(self) -> tuple[float, ...]:
        """Of all peers."""
        return draw_speeds(self.stages * self.replicas, f"speeds/{self.seed}")

    @cached_property
    def layout(self) -> tuple[int, ...]:
        """The stage of every peer: the longest-processing-time rule, fastest first."""
        return lay_out(self.speeds, self.stages)

    @property
    def bound(self) -> float:
        """Microbatches a second of the weakest stage."""
        return capacity(self.speeds, self.layout, self.stages)

    def scenario(self) -> Scenario:
        """The whole of it for the simulator."""
        seats = Counter(self.layout)
        spec = toy_spec(
            stages=self.stages,
            microbatches=self.microbatches,
            steps=self.steps,
            seed=self.seed,
            replicas=min(seats.values()) if self.placed else 1,
            evaluation=Evaluation(every_steps=0, microbatches=0),
        )
        limits = msgspec.structs.replace(
            spec.limits,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            suspect_seconds=3 * HEARTBEAT_SECONDS,
            window_per_stage=self.window,
        )
        sync = msgspec.structs.replace(spec.sync, deposit_every=self.deposit)
        cost = CostModel(
            forward_seconds=FORWARD_SECONDS,
            backward_seconds=BACKWARD_SECONDS,
            sum_seconds=self.sum_seconds,
            load_seconds=self.load_seconds,
            noise=NOISE,
            seed=self.seed,
        )
        peers = tuple(
            PeerPlan(
                peer=PeerId(f"peer-{number:04}"),
                speed=speed,
                stage=Stage(stage) if self.placed else None,
                starts_at=number * ARRIVAL_SECONDS,
            )
            for number, (speed, stage) in enumerate(zip(self.speeds, self.layout, strict=True))
        )
        return Scenario(
            spec=msgspec.structs.replace(spec, limits=limits, sync=sync),
            peers=peers,
            seed=self.seed,
            link=Link(
                latency_seconds=LATENCY_SECONDS,
                jitter_seconds=JITTER_SECONDS,
                rate_bytes_per_second=LINE_BYTES_PER_SECOND,
            ),
            compute=toy_compute(cost),
            verify=False,
            patience_seconds=QUIET_SECONDS,
            stall_seconds=QUIET_SECONDS,
        )


def draw_speeds(count: int, seed: str) -> tuple[float, ...]:
    """Lognormal, and a tenth of them ten times slower."""
    rng = random.Random(seed)
    speeds = [rng.lognormvariate(0.0, SPREAD) for _ in range(count)]
    for slow in rng.sample(range(count), round(SLOW_SHARE * count)):
        speeds[slow] /= SLOWER
    return tuple(speeds)


def lay_out(speeds: tuple[float, ...], stages: int) -> tuple[int, ...]:
    """Each to the stage that is weakest by then, fastest first."""
    sums, layout = [0.0] * stages, [0] * len(speeds)
    for number in sorted(range(len(speeds)), key=lambda number: (-speeds[number], number)):
        stage = sums.index(min(sums))
        layout[number] = stage
        sums[stage] += speeds[number]
    return tuple(layout)


def capacity(speeds: tuple[float, ...], layout: tuple[int, ...], stages: int) -> float:
    """Microbatches a second of the weakest stage."""
    sums = [0.0] * stages
    for speed, stage in zip(speeds, layout, strict=True):
        sums[stage] += speed
    return min(sums) / SERVICE_SECONDS


class Watch(SimWorld):
    """A simulated world that counts as it goes; ends when stage 0 has counted ``until_counted``.

    ``counted``: per stage, when which slot was counted. ``first``: when a slot of stage 0 was
    counted for the first time. ``live``: (when, capacity of those that hold seats), changes.
    """

    def __init__(self, swarm: Swarm, *, until_counted: int | None = None) -> None:
        super().__init__(swarm.scenario())
        self.swarm = swarm
        self.counted: dict[Stage, list[Seconds]] = defaultdict(list)
        self.first: dict[tuple[Step, int], Seconds] = {}
        self.commits: dict[Step, Seconds] = {}
        self.live: list[tuple[Seconds, float]] = [(0.0, 0.0)]
        self.opened: list[tuple[Seconds, PeerId, Stage]] = []
        self._until_counted = until_counted
        self._seats: dict[PeerId, set[Stage]] = defaultdict(set)
        self._begun = False
        self._since = time.perf_counter()

    def emit(self, peer: PeerId, event: ev.AnyEvent) -> None:  # noqa: C901, PLR0912 - one arm per event
        """Count instead of keeping: such a run has millions of events."""
        now = self.clock.time()
        match event:
            case ev.SlotCounted(stage=stage, step=step, slot=slot):
                self.counted[stage].append(now)
                if stage == 0:
                    self.first.setdefault((step, slot), now)
                    if len(self.first) == self._until_counted:
                        self.harm.later(0.0, self.abandon)
            case ev.StepCommitted(step=step):
                self.commits[step] = now
            case ev.SeatOpened(stage=stage):
                self.opened.append((now, peer, stage))
                self._seats[peer].add(stage)
                self._note_live(now)
                if self.swarm.free and (node := self.hosts[peer].node):
                    node.options = replace(node.options, stage=None)
            case ev.SeatClosed(stage=stage):
                self._seats[peer].discard(stage)
                self._note_live(now)
            case ev.FaultFired(fault="kill"):
                self._seats.pop(peer, None)
                self._note_live(now)
            case ev.PeerStarted() if not self._begun:
                self._begun = True
                self.began()
            case _:
                pass

    def began(self) -> None:
        """The first peer is there: set going what comes by the clock."""
        self.harm.later(TELL_SECONDS, self._tell)
        trouble = self.swarm.trouble
        if trouble.mtbf_seconds is not None:
            self.spawn(self._die(trouble.mtbf_seconds))
        if trouble.slow_share:
            self.spawn(self._slow_down(trouble.slow_seconds / trouble.slow_share))

    def live_capacity(self, start: Seconds, stop: Seconds) -> float:
        """The mean over this time of what those who held seats could do."""
        total, ends = 0.0, [at for at, _ in self.live[1:]] + [stop]
        for (at, level), end in zip(self.live, ends, strict=True):
            total += level * max(0.0, min(end, stop) - max(at, start))
        return total / (stop - start)

    def rates(self) -> dict[Stage, float]:
        """What every stage could do now; a seat that is given up counts while it has work."""
        sums = dict.fromkeys(map(Stage, range(self.swarm.stages)), 0.0)
        for peer, opened in self._seats.items():
            host = self.hosts[peer]
            stages = [stage for stage in opened if not _left(host, stage)]
            for stage in stages:
                sums[stage] += host.plan.speed / len(stages) / SERVICE_SECONDS
        return sums

    def _note_live(self, now: Seconds) -> None:
        self.live.append((now, min(self.rates().values())))

    def _tell(self) -> None:
        """How far it is, for who waits; nothing in the run depends on it."""
        counts = [len(self.counted[Stage(stage)]) for stage in range(self.swarm.stages)]
        wall = time.perf_counter() - self._since
        click.echo(
            f"  {self.clock.time():6.0f} s of virtual time in {wall:.0f} s: "
            f"counted {counts[0]} at the first stage, {counts[-1]} at the last; "
            f"{len(self.commits)} steps",
            err=True,
        )
        self.harm.later(TELL_SECONDS, self._tell)

    async def _die(self, mtbf_seconds: Seconds) -> None:
        """Peers die, each once in so long; a stage's last replica is spared."""
        rng = self.random("deaths")
        async for host in self._victims(mtbf_seconds, rng):
            others = [one for one in self.harm.present() if one is not host]
            if all(any(stage in one.stages for one in others) for stage in host.stages):
                self.harm.kill(host, respawn_seconds=self.swarm.trouble.rejoin_seconds)

    async def _slow_down(self, mean_seconds: Seconds) -> None:
        """Peers become slower for a while and tell nobody."""
        rng = self.random("slowness")
        async for host in self._victims(mean_seconds, rng):
            if isinstance(host.compute, ToyCompute):
                device = host.compute.device
                device.speed /= SLOWER
                self.harm.tally.count("slow")
                self.harm.later(self.swarm.trouble.slow_seconds, _quicken, device)

    async def _victims(self, mean_seconds: Seconds, rng: random.Random) -> AsyncIterator[Host]:
        """One peer after another, each living one every ``mean_seconds`` (Poisson)."""
        while alive := [host for _, host in sorted(self.hosts.items()) if host.alive]:
            await asyncio.sleep(rng.expovariate(len(alive) / mean_seconds))
            if present := self.harm.present():
                yield rng.choice(present)


def _left(host: Host, stage: Stage) -> bool:
    """Whether a seat is being given up and has nothing left to compute."""
    seat = None if host.node is None else host.node.seats.get(stage)
    return seat is not None and seat.state == "draining" and seat.pipeline.drained


def _quicken(device: Device) -> None:
    device.speed *= SLOWER
