"""What can be done to the peers of a simulated world, one fault at a time.

A plan (see chaos for shares of a run, blows for failpoints) decides when and whom; this
carries it out, writes a ``FaultFired`` event for each, so that the checkers know what to
forgive, and counts it, because a fault that never fired has tested nothing.

    kill, restart, leave       of a peer; another one may come
    freeze, slow, reset        of a peer, for a while or for good
    partition, directory_down  of the whole world

Invariants: whatever is broken for a while mends by itself, or at the run's end; an action
that is due later happens in the world's own context, unless the run is complete by then.

Refused: telling the engine. It finds out as it would from a machine that fails.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVarTuple, Unpack

from p2ptrain.errors import UserError
from p2ptrain.observe import events as ev
from p2ptrain.sim.compute import ToyCompute
from p2ptrain.sim.faults import Tally
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from p2ptrain.sim.scenario import PeerPlan
    from p2ptrain.sim.world import Host, SimWorld
    from p2ptrain.units import Seconds

Ts = TypeVarTuple("Ts")

RESTART_SECONDS = 1.0
"""A process that is started again needs that long; its old tasks have ended by then."""


class Harm:
    """Does harm to one world and counts it."""

    def __init__(self, world: SimWorld) -> None:
        self.tally = Tally()
        self.cut_off: frozenset[PeerId] = frozenset()
        self._world = world
        self._frozen: dict[PeerId, Host] = {}
        self._born = 0
        self._over = False

    def end(self) -> None:
        """The run is complete: what is planned will not happen, what is broken mends."""
        self._heal()
        for host in list(self._frozen.values()):
            self._thaw(host)
        self._over = True

    # --- of one peer ------------------------------------------------------------------------

    def kill(self, host: Host, *, respawn_seconds: Seconds | None) -> None:
        """It dies where it stands; a new peer comes so much later (None: never)."""
        self.fired("kill", host.peer)
        self._world.kill(host.peer)
        if respawn_seconds is not None:
            self.later(respawn_seconds, self.another, "respawn", host.plan)

    def restart(self, host: Host) -> None:
        """It dies, and comes back under its own name with nothing in its memory."""
        self.fired("kill", host.peer)
        self.tally.count("restart")
        self._world.kill(host.peer)
        self.later(RESTART_SECONDS, self._start_again, host.plan)

    def _start_again(self, plan: PeerPlan) -> None:
        self._world.start(replace(plan, starts_at=self._world.clock.time()))

    def leave(self, host: Host) -> None:
        """It is asked to go, as by Ctrl-C."""
        if host.node is not None:
            self.fired("leave", host.peer)
            host.node.drain()

    def freeze(
        self, host: Host, seconds: Seconds, what: Literal["process", "daemon", "both"]
    ) -> None:
        """Its process stops for a while, or its network daemon, or both."""
        if host.peer in self._frozen:
            return
        self._frozen[host.peer] = host
        self.fired("freeze", host.peer)
        if what != "process":
            self._world.network.isolate(host.peer)
            self._world.table.unplug(host.peer)
        if what != "daemon":
            self._world.clock.freeze(host.peer)
        self.later(seconds, self._thaw, host)  # a dead one too: its name is free again

    def _thaw(self, host: Host) -> None:
        del self._frozen[host.peer]
        self._world.network.mend(host.peer)
        self._world.table.plug(host.peer)
        self._world.clock.thaw(host.peer)
        if host.alive:
            self._world.emit(host.peer, ev.FaultFired(fault="thaw", target=host.peer))

    def slow(self, host: Host, factor: float) -> None:
        """Its device computes so many times slower from now on."""
        if not isinstance(host.compute, ToyCompute):
            raise UserError("--chaos slow: only a simulated device can be slowed down")
        self.fired("slow", host.peer)
        host.compute.device.speed /= factor

    def reset(self, host: Host, fault: str = "reset") -> None:
        """All its streams break; it may open new ones."""
        self.fired(fault, host.peer)
        for peer in sorted(self._world.hosts):
            if peer != host.peer:
                self._world.network.reset(host.peer, peer)

    # --- of the world -----------------------------------------------------------------------

    def another(self, why: str, model: PeerPlan) -> None:
        """A new peer like ``model`` comes, and chooses its own stage."""
        self._born += 1
        plan = replace(
            model,
            peer=PeerId(f"peer-new-{self._born:04}"),
            starts_at=self._world.clock.time(),
            stage=None,
        )
        self.fired(why, plan.peer)
        self._world.start(plan)

    def partition(self, cut_off: Collection[PeerId], seconds: Seconds) -> None:
        """These peers cannot reach the others for a while; one split at a time."""
        if self.cut_off:
            return
        groups = [
            [host.peer for host in self.present() if host.peer not in cut_off],
            sorted(cut_off),
        ]
        self.fired("partition", PeerId(",".join(groups[1])))
        self.cut_off = frozenset(cut_off)
        self._world.network.partition(groups)
        self._world.table.split(groups)
        self.later(seconds, self._heal)

    def _heal(self) -> None:
        if not self.cut_off:
            return
        self.cut_off = frozenset()
        self._world.network.partition([])
        self._world.table.merge()
        self._world.emit(PeerId(""), ev.FaultFired(fault="heal", target=""))

    def directory_down(self) -> None:
        """No directory answers any more: the bootstrap is dead."""
        self.fired("bootstrap-death", PeerId(""))
        self._world.table.down = True

    # --- looking ----------------------------------------------------------------------------

    def frozen(self, peer: PeerId) -> bool:
        """Whether ``peer`` hangs at present."""
        return peer in self._frozen

    def present(self) -> list[Host]:
        """Living peers that hold a seat, by name."""
        hosts = sorted(self._world.hosts.items())
        return [host for _, host in hosts if host.alive and host.stages]

    def replicas(self) -> dict[Stage, list[Host]]:
        """Who serves each stage."""
        present = self.present()
        stages = [Stage(stage) for stage in range(self._world.scenario.spec.cut.stages)]
        return {stage: [host for host in present if stage in host.stages] for stage in stages}

    # --- inside -----------------------------------------------------------------------------

    def fired(self, fault: str, target: PeerId) -> None:
        """Write down that a fault has happened."""
        self.tally.count(fault)
        self._world.emit(target, ev.FaultFired(fault=fault, target=target))

    def later(self, seconds: Seconds, action: Callable[[Unpack[Ts]], None], *args: *Ts) -> None:
        """Do something in the world's own context, unless the run is complete by then."""
        context = self._world.network.context
        self._world.clock.call_later(seconds, self._unless_over, action, args, context=context)

    def _unless_over(self, action: Callable[[Unpack[Ts]], None], args: tuple[*Ts]) -> None:
        if not self._over:
            action(*args)
