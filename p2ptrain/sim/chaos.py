"""Carries out a fault plan on a simulated world.

Every fault that fires writes a ``FaultFired`` event, so that the checkers know what to
forgive (nobody commits while a stage has no live replica) and the report can count it.

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
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVarTuple, Unpack

from p2ptrain.errors import UserError
from p2ptrain.observe import events as ev
from p2ptrain.sim.compute import ToyCompute
from p2ptrain.sim.faults import (
    Catastrophe,
    FaultPlan,
    Freeze,
    Join,
    Kill,
    Partition,
    Slow,
    Tally,
    next_kill,
    schedule,
)
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from p2ptrain.sim.faults import Fault
    from p2ptrain.sim.world import Host, SimWorld
    from p2ptrain.units import Seconds

Ts = TypeVarTuple("Ts")

STAGGER_SECONDS = 2.0
"""Between the deaths of a stage's replicas down to the last: time to notice each."""


class Injector:
    """Fires the faults of a plan."""

    def __init__(self, world: SimWorld, plan: FaultPlan, rng: Random) -> None:
        self.tally = Tally()
        self._world = world
        self._plan = plan
        self._rng = rng
        self._strikes = list(schedule(plan, rng))
        self._born = 0
        self._frozen: dict[PeerId, Host] = {}
        self._split = False
        self._over = False

    async def run(self) -> None:
        """Kill at the plan's rate until cancelled."""
        kill = self._plan.kill
        while kill is not None:
            await asyncio.sleep(next_kill(kill, len(self._present()), self._rng))
            spared = self._last_replicas()
            victims = [host for host in self._present() if not host.stages & spared]
            if victims:
                self._kill(self._rng.choice(victims), respawn_seconds=kill.respawn_seconds)

    def reached(self, share: float) -> None:
        """So much of the run has committed: strike what is due, in the loop's next turn."""
        while self._strikes and self._strikes[0].share <= share:
            self._later(0.0, self._strike, self._strikes.pop(0).fault)

    def end(self) -> None:
        """The run is complete: what has not fired will not, what is broken mends."""
        self._heal()
        for host in list(self._frozen.values()):
            self._thaw(host)
        self._over = True

    # --- one by one -------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        match fault:
            case Freeze(seconds=seconds):
                self._freeze(seconds)
            case Slow(factor=factor):
                self._slow(factor)
            case Partition(share=share, seconds=seconds):
                self._partition(share, seconds)
            case Join():
                self._start_another("join")
            case Catastrophe():
                self._catastrophe(fault)
            case Kill():
                pass  # comes at its rate

    def _kill(self, host: Host, *, respawn_seconds: Seconds | None) -> None:
        self._fired("kill", host.peer)
        self._world.kill(host.peer)
        if respawn_seconds is not None:
            self._later(respawn_seconds, self._start_another, "respawn")

    def _freeze(self, seconds: Seconds) -> None:
        candidates = [host for host in self._present() if host.peer not in self._frozen]
        if not candidates:
            return
        host = self._rng.choice(candidates)
        self._frozen[host.peer] = host
        what = self._rng.choice(("process", "daemon", "both"))
        self._fired("freeze", host.peer)
        if what != "process":
            self._world.network.isolate(host.peer)
            self._world.table.unplugged.add(host.peer)
        if what != "daemon":
            self._world.clock.freeze(host.peer)
        self._later(seconds, self._thaw, host)  # a dead one too: its name is free again

    def _thaw(self, host: Host) -> None:
        del self._frozen[host.peer]
        self._world.network.mend(host.peer)
        self._world.table.unplugged.discard(host.peer)
        self._world.clock.thaw(host.peer)
        if host.alive:
            self._world.emit(host.peer, ev.FaultFired(fault="thaw", target=host.peer))

    def _slow(self, factor: float) -> None:
        candidates = self._present()
        if not candidates:
            return
        host = self._rng.choice(candidates)
        if not isinstance(host.compute, ToyCompute):
            raise UserError("--chaos slow: only a simulated device can be slowed down")
        self._fired("slow", host.peer)
        host.compute.device.speed /= factor

    def _partition(self, share: float, seconds: Seconds) -> None:
        peers = [host.peer for host in self._present()]
        cut_off = self._rng.sample(peers, math.ceil(share * len(peers)))
        groups = [[peer for peer in peers if peer not in cut_off], sorted(cut_off)]
        self._fired("partition", PeerId(",".join(groups[1])))
        self._split = True
        self._world.network.partition(groups)
        self._world.table.split(groups)
        self._later(seconds, self._heal)

    def _heal(self) -> None:
        if not self._split:
            return
        self._split = False
        self._world.network.partition([])
        self._world.table.merge()
        self._world.emit(PeerId(""), ev.FaultFired(fault="heal", target=""))

    def _start_another(self, why: str) -> None:
        model = self._rng.choice(self._world.scenario.peers)
        self._born += 1
        plan = replace(
            model,
            peer=PeerId(f"peer-new-{self._born:04}"),
            starts_at=self._world.clock.time(),
            stage=None,
        )
        self._fired(why, plan.peer)
        self._world.start(plan)

    def _catastrophe(self, fault: Catastrophe) -> None:
        if fault.what == "bootstrap-death":
            self._fired(fault.what, PeerId(""))
            self._world.table.down = True
            return
        stage = self._rng.choice(sorted(self._replicas()))
        self._fired(fault.what, PeerId(f"stage {stage}"))
        between = STAGGER_SECONDS if fault.what == "last-replica" else 0.0
        for order, host in enumerate(self._replicas()[stage]):
            self._later(order * between, self._kill_if_alive, host)

    def _kill_if_alive(self, host: Host) -> None:
        if host.alive:
            self._kill(host, respawn_seconds=None)

    # --- inside -----------------------------------------------------------------------------

    def _present(self) -> list[Host]:
        """Living peers that hold a seat, by name."""
        hosts = sorted(self._world.hosts.items())
        return [host for _, host in hosts if host.alive and host.stages]

    def _replicas(self) -> dict[Stage, list[Host]]:
        stages = [Stage(stage) for stage in range(self._world.scenario.spec.cut.stages)]
        return {
            stage: [host for host in self._present() if stage in host.stages] for stage in stages
        }

    def _last_replicas(self) -> set[Stage]:
        return {stage for stage, hosts in self._replicas().items() if len(hosts) < 2}  # noqa: PLR2004

    def _fired(self, fault: str, target: PeerId) -> None:
        self.tally.count(fault)
        self._world.emit(target, ev.FaultFired(fault=fault, target=target))

    def _later(self, seconds: Seconds, action: Callable[[Unpack[Ts]], None], *args: *Ts) -> None:
        """Do something in the world's own context, unless the run is complete by then."""
        context = self._world.network.context
        self._world.clock.call_later(seconds, self._unless_over, action, args, context=context)

    def _unless_over(self, action: Callable[[Unpack[Ts]], None], args: tuple[*Ts]) -> None:
        if not self._over:
            action(*args)
