"""A swarm in virtual time, disturbed as it is told to be, and counted as it goes.

    Swarm (benchmarks/uneven) -> Watch.run -> counted, first, commits, live, able

What is seen here is of the simulated machines, whatever the peers know of each other.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias

import click

from benchmarks.uneven import SERVICE_SECONDS, SLOWER
from p2ptrain.observe import events as ev
from p2ptrain.sim.compute import ToyCompute
from p2ptrain.sim.world import SimWorld
from p2ptrain.units import Stage

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Sequence

    from benchmarks.uneven import Swarm
    from p2ptrain.sim.compute import Device
    from p2ptrain.sim.world import Host
    from p2ptrain.units import PeerId, Seconds, Step

Level: TypeAlias = "tuple[Seconds, float]"
"""From when on, and how much: microbatches a second of the weakest stage."""

TELL_SECONDS = 30.0
"""Of virtual time between two lines that say how far a run is: seconds of ours to a minute."""


class Watch(SimWorld):
    """A simulated world that counts as it goes; ends when stage 0 has counted ``until_counted``.

    ``counted``: per stage, when which slot was counted. ``first``: when a slot of stage 0 was
    counted for the first time. ``live``: (when, capacity of those that hold seats), changes;
    ``able``: likewise, with those who are slowed counted as slow as they are.
    """

    def __init__(self, swarm: Swarm, *, until_counted: int | None = None) -> None:
        super().__init__(swarm.scenario())
        self.swarm = swarm
        self.counted: dict[Stage, list[Seconds]] = defaultdict(list)
        self.first: dict[tuple[Step, int], Seconds] = {}
        self.commits: dict[Step, Seconds] = {}
        self.live: list[Level] = [(0.0, 0.0)]
        self.able: list[Level] = [(0.0, 0.0)]
        self.opened: list[tuple[Seconds, PeerId, Stage]] = []
        self._until_counted = until_counted
        self._seats: dict[PeerId, set[Stage]] = defaultdict(set)
        self._slow: Counter[PeerId] = Counter()
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
                self._note(now)
                if self.swarm.free and (node := self.hosts[peer].node):
                    node.options = replace(node.options, stage=None)
            case ev.SeatClosed(stage=stage):
                self._seats[peer].discard(stage)
                self._note(now)
            case ev.FaultFired(fault="kill"):
                self._seats.pop(peer, None)
                self._note(now)
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
        return _mean(self.live, start, stop)

    def able_capacity(self, start: Seconds, stop: Seconds) -> float:
        """The same of what they could do as they were, slowed or not: nobody can do more."""
        return _mean(self.able, start, stop)

    def rates(self, *, slowed: bool = False) -> dict[Stage, float]:
        """What every stage could do now; a seat that is given up counts while it has work.

        ``slowed``: who is slower for a while counts as what it is then.
        """
        sums = dict.fromkeys(map(Stage, range(self.swarm.stages)), 0.0)
        for peer, opened in self._seats.items():
            host = self.hosts[peer]
            stages = [stage for stage in opened if not _left(host, stage)]
            speed = host.plan.speed / (SLOWER ** self._slow[peer] if slowed else 1.0)
            for stage in stages:
                sums[stage] += speed / len(stages) / SERVICE_SECONDS
        return sums

    def _note(self, now: Seconds) -> None:
        self.live.append((now, min(self.rates().values())))
        self.able.append((now, min(self.rates(slowed=True).values())))

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
                self._pace(host.peer, host.compute.device, 1)
                self.harm.tally.count("slow")
                back = partial(self._pace, host.peer, host.compute.device, -1)
                self.harm.later(self.swarm.trouble.slow_seconds, back)

    def _pace(self, peer: PeerId, device: Device, slower: Literal[1, -1]) -> None:
        """Its machine becomes SLOWER, or is as before."""
        device.speed /= SLOWER**slower
        self._slow[peer] += slower
        self._note(self.clock.time())

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


def _mean(levels: Sequence[Level], start: Seconds, stop: Seconds) -> float:
    """Of a level that changes, over this time."""
    total, ends = 0.0, [at for at, _ in levels[1:]] + [stop]
    for (at, level), end in zip(levels, ends, strict=True):
        total += level * max(0.0, min(end, stop) - max(at, start))
    return total / (stop - start)
