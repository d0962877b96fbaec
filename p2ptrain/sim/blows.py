"""Blows: a fault each, struck when somebody comes to a named point of the protocol.

"Kill whoever reaches *plan sent* for the third time in the swarm" is a blow. The striker
counts how often each point is reached, and strikes in the loop's next turn, because a real
fault owes nothing to where the engine happens to be.

Killing spares whoever alone holds the newest state of a stage and is not away: a blow that
meets such a peer waits for the next who comes to the point. Only the blows that are named
so (``last-replica``, ``stage-loss``) take a stage's state away. Who dies before anything was
counted is always replaced: a run that waits for its seats could not begin with fewer.

Invariant: each blow strikes once at most; what fired is counted by kind and point.

Refused: striking at random instants. A run of seconds has a thousand instants at which
nothing is at stake and a dozen at which everything is.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Literal, TypeAlias, assert_never, get_args

import msgspec

from p2ptrain.observe import events as ev
from p2ptrain.sim.points import Watch
from p2ptrain.units import PeerId, Seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from random import Random

    from p2ptrain.sim.world import Host, SimWorld
    from p2ptrain.units import Stage

BlowKind: TypeAlias = Literal[
    "kill",
    "restart",
    "freeze",
    "slow",
    "reset",
    "leave",
    "join",
    "partition",
    "bootstrap-death",
    "last-replica",
    "stage-loss",
    "forge",
]

BLOW_KINDS: tuple[BlowKind, ...] = get_args(BlowKind)

SLOWER = 8.0
"""What a slowed peer is slower by: it still gets something done in a run this short."""

STAGGER_SECONDS = 2.0
"""Between the deaths of a stage's replicas down to the last: time to notice each."""


class Blow(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``kind`` strikes whoever is the ``nth`` to reach ``point`` in the swarm.

    ``seconds``: how long it lasts (freeze, partition), or until a new peer takes the place of
    a killed one.
    """

    kind: BlowKind
    point: str
    nth: int
    seconds: Seconds


class Striker:
    """Waits for the points of its blows and strikes."""

    def __init__(
        self, world: SimWorld, blows: Sequence[Blow], rng: Random, forge: Callable[[Host], None]
    ) -> None:
        self.watch = Watch(self._reached)
        self.fired: Counter[str] = Counter()
        self._world = world
        self._harm = world.harm
        self._forge = forge
        self._rng = rng
        self._waiting = list(blows)
        self._times: Counter[str] = Counter()
        self._newest: dict[Stage, dict[PeerId, int]] = {}
        self._begun = False  # somebody has counted a microbatch
        for blow in blows:
            self.watch.arm(blow.point)

    def happened(self, peer: PeerId, event: ev.AnyEvent) -> None:
        """Every event of the log, in order."""
        match event:
            case ev.SeatOpened(stage=stage, version=version):
                self._newest.setdefault(stage, {})[peer] = version
            case ev.StepCommitted(stage=stage, step=step):
                self._newest.setdefault(stage, {})[peer] = step + 1
            case ev.SlotCounted():
                self._begun = True
            case ev.SeatClosed(stage=stage):
                self._newest.get(stage, {}).pop(peer, None)
            case _:
                pass
        self.watch.happened(peer, event)

    # --- striking -----------------------------------------------------------------------------

    def _reached(self, point: str, actor: PeerId) -> None:
        self._times[point] += 1
        due = [
            blow for blow in self._waiting if blow.point == point and blow.nth <= self._times[point]
        ]
        if due:
            self._harm.later(0.0, self._strike_all, point, actor)

    def _strike_all(self, point: str, actor: PeerId) -> None:
        for blow in [blow for blow in self._waiting if blow.point == point]:
            host = self._world.hosts.get(actor)
            if blow.nth > self._times[point] or host is None or not host.alive:
                continue
            if self._strike(blow, host):
                self._waiting.remove(blow)
                self.watch.disarm(point)
                self.fired[f"{blow.kind} at {point}"] += 1

    def _strike(self, blow: Blow, host: Host) -> bool:  # noqa: C901, PLR0912 - one arm per kind
        """Carry ``blow`` out; False: not on this one."""
        harm, seconds = self._harm, blow.seconds
        match blow.kind:
            case "kill" | "restart" | "leave":
                return self._take_away(blow, host)
            case "freeze":
                if harm.frozen(host.peer):
                    return False
                harm.freeze(host, seconds, self._rng.choice(("process", "daemon", "both")))
            case "slow":
                harm.slow(host, SLOWER)
            case "reset":
                harm.reset(host)
            case "join":
                harm.another("join", self._rng.choice(self._world.scenario.peers))
            case "partition":
                peers = [each.peer for each in harm.present()]
                if harm.cut_off or len(peers) < 2:  # noqa: PLR2004 - it takes two sides
                    return False
                harm.partition(self._rng.sample(peers, (len(peers) + 1) // 2), seconds)
            case "bootstrap-death":
                harm.directory_down()
            case "last-replica" | "stage-loss":
                self._lose(blow.kind, host)
            case "forge":
                self._forge(host)
            case _:
                assert_never(blow.kind)
        return True

    def _take_away(self, blow: Blow, host: Host) -> bool:
        if blow.kind == "leave":
            self._harm.leave(host)
            return True
        if self._needed(host):
            return False
        if blow.kind == "restart":
            self._harm.restart(host)
        else:
            # every third never comes back: the others must do without
            for_good = self._begun and blow.nth % 3 == 0
            self._harm.kill(host, respawn_seconds=None if for_good else blow.seconds)
        return True

    def _needed(self, host: Host) -> bool:
        """Whether some stage's newest state would be gone, or out of reach, with ``host``."""
        return any(not self._others(stage, host.peer) for stage in host.stages)

    def _others(self, stage: Stage, but: PeerId) -> list[PeerId]:
        versions: Mapping[PeerId, int] = self._newest.get(stage, {})
        most = max(versions.values(), default=0)
        side = but in self._harm.cut_off
        return [
            host.peer
            for host in self._harm.present()
            if host.peer != but
            and stage in host.stages
            and versions.get(host.peer, 0) >= most
            and not self._harm.frozen(host.peer)
            and (host.peer in self._harm.cut_off) is side
        ]

    def _lose(self, kind: Literal["last-replica", "stage-loss"], host: Host) -> None:
        if not host.stages:
            return
        stage = min(host.stages)
        self._harm.fired(kind, PeerId(f"stage {stage}"))
        between = STAGGER_SECONDS if kind == "last-replica" else 0.0
        for order, victim in enumerate(self._harm.replicas()[stage]):
            self._harm.later(order * between, self._kill_if_alive, victim)

    def _kill_if_alive(self, host: Host) -> None:
        if host.alive:
            self._harm.kill(host, respawn_seconds=None)
