"""Carries out a fault plan on a simulated world, at its rate and by shares of the run.

    kill        at random instants, sparing the last replica of a stage
    strikes     when their share of the run's steps has committed (see faults)

Freezing stops a peer's process, or its network daemon, or both, as the seed decides: the
three look alike from outside and differ in what comes back.

Refused: faults fired from inside an event handler of the engine. A strike waits for the
loop's next turn, as a real fault owes nothing to where the engine happens to be.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from p2ptrain.sim.faults import (
    Catastrophe,
    FaultPlan,
    Freeze,
    Join,
    Kill,
    Partition,
    Slow,
    next_kill,
    schedule,
)
from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from random import Random

    from p2ptrain.sim.faults import Fault
    from p2ptrain.sim.harm import Harm
    from p2ptrain.sim.world import Host, SimWorld
    from p2ptrain.units import Seconds, Stage

STAGGER_SECONDS = 2.0
"""Between the deaths of a stage's replicas down to the last: time to notice each."""


class Injector:
    """Fires the faults of a plan."""

    def __init__(self, world: SimWorld, harm: Harm, plan: FaultPlan, rng: Random) -> None:
        self._harm = harm
        self._world = world
        self._plan = plan
        self._rng = rng
        self._strikes = list(schedule(plan, rng))

    async def run(self) -> None:
        """Kill at the plan's rate until cancelled."""
        kill = self._plan.kill
        while kill is not None:
            await asyncio.sleep(next_kill(kill, len(self._harm.present()), self._rng))
            spared = self._last_replicas()
            victims = [host for host in self._harm.present() if not host.stages & spared]
            if victims:
                self._harm.kill(self._rng.choice(victims), respawn_seconds=kill.respawn_seconds)

    def reached(self, share: float) -> None:
        """So much of the run has committed: strike what is due, in the loop's next turn."""
        while self._strikes and self._strikes[0].share <= share:
            self._harm.later(0.0, self._strike, self._strikes.pop(0).fault)

    # --- one by one -------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        match fault:
            case Freeze(seconds=seconds):
                self._freeze(seconds)
            case Slow(factor=factor):
                if present := self._harm.present():
                    self._harm.slow(self._rng.choice(present), factor)
            case Partition(share=share, seconds=seconds):
                self._partition(share, seconds)
            case Join():
                self._harm.another("join", self._rng.choice(self._world.scenario.peers))
            case Catastrophe():
                self._catastrophe(fault)
            case Kill():
                pass  # comes at its rate

    def _freeze(self, seconds: Seconds) -> None:
        candidates = [host for host in self._harm.present() if not self._harm.frozen(host.peer)]
        if candidates:
            host = self._rng.choice(candidates)
            self._harm.freeze(host, seconds, self._rng.choice(("process", "daemon", "both")))

    def _partition(self, share: float, seconds: Seconds) -> None:
        peers = [host.peer for host in self._harm.present()]
        self._harm.partition(self._rng.sample(peers, math.ceil(share * len(peers))), seconds)

    def _catastrophe(self, fault: Catastrophe) -> None:
        if fault.what == "bootstrap-death":
            self._harm.directory_down()
            return
        if fault.what == "daemon-death":
            host = self._rng.choice(self._harm.present())
            self._harm.reset(host, fault.what)  # all that others see of it
            return
        replicas = self._harm.replicas()
        stage = self._rng.choice(sorted(replicas))
        self._harm.fired(fault.what, PeerId(f"stage {stage}"))
        between = STAGGER_SECONDS if fault.what == "last-replica" else 0.0
        for order, host in enumerate(replicas[stage]):
            self._harm.later(order * between, self._kill_if_alive, host)

    def _kill_if_alive(self, host: Host) -> None:
        if host.alive:
            self._harm.kill(host, respawn_seconds=None)

    def _last_replicas(self) -> set[Stage]:
        return {stage for stage, hosts in self._harm.replicas().items() if len(hosts) < 2}  # noqa: PLR2004
