"""Chaos among real processes, decided: who is struck, when and how, from a plan and a seed.

    plan + seed -> Chaos.tick(what is seen now) -> blows (see injector, which carries them out)

    kill        at random instants of training, and so often that the plan's minimum falls
                within the run: its shares of the steps are drawn like those of the strikes
    strikes     when their share of the run's steps has been taken, also between two commits

Invariants: a kill spares a stage's last able replica (not frozen, at most one version
behind), unless the plan names it; a blow that finds no victim waits for one; after ``end``
nothing more is struck, and what was frozen or cut off has been let go.

Refused: a run made longer than ``--steps`` for the sake of its faults. The number of steps
is part of the RunSpec (the schedule of the learning rate hangs on it), so the minimum is
drawn into the run instead; what could not fire is told, and the simulation has failed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from p2ptrain.sim.faults import (
    EARLIEST_SHARE,
    LATEST_SHARE,
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

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from random import Random

    from p2ptrain.sim.faults import Fault
    from p2ptrain.units import Seconds, Stage, Step

STAGGER_SECONDS = 2.0
"""Between the deaths of a stage's replicas down to the last: time to notice each."""

BEHIND_VERSIONS = 1
"""A replica one version behind takes part (it adopts the sum); one further behind is a joiner."""

Part: TypeAlias = Literal["process", "daemon", "both"]

PARTS: tuple[Part, ...] = ("process", "daemon", "both")
"""What a freeze stops: Python, its p2pd, or both; alike from outside, they differ in what
comes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What is seen of the swarm. ``share``: of the run's steps, taken; None before the first.

    ``seats``: the versions of the living peers' seats, by the peer's name.
    """

    share: float | None
    seats: Mapping[str, Mapping[Stage, Step]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """SIGKILL to a peer. ``respawn_seconds``: until a new one comes (None: never)."""

    peer: str
    respawn_seconds: Seconds | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt:
    """Stop ``part`` of a peer, until its ``Thaw``."""

    peer: str
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Thaw:
    """A halted peer goes on."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drag:
    """A peer gets one ``factor``-th of its time from now on."""

    peer: str
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """``peers`` and the others cannot reach each other, until ``Mend``."""

    peers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """Everybody can reach everybody again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One more peer comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A stage loses all its replicas (the deaths follow); it is told before."""

    what: Literal["last-replica", "stage-loss"]
    stage: Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonDeath:
    """SIGKILL to the p2pd of a peer, which lives."""

    peer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Doom:
    """SIGKILL to every peer; all come back with their identities and checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BookDeath:
    """SIGKILL to the bootstrap."""


Blow: TypeAlias = (
    Death | Halt | Thaw | Drag | Split | Mend | Arrival | Loss | BookDeath | DaemonDeath | Doom
)


class Chaos:
    """Draws the blows of one run. Call ``tick`` a few times a second."""

    def __init__(self, plan: FaultPlan, rng: Random) -> None:
        kill = plan.kill
        self._kill, self._rng = kill, rng
        self._strikes = list(schedule(plan, rng))
        self._kill_shares = sorted(
            rng.uniform(EARLIEST_SHARE, LATEST_SHARE) for _ in range(kill.minimum if kill else 0)
        )
        self._kills = 0
        self._next_kill_at: Seconds | None = None
        self._thaw_at: dict[str, Seconds] = {}
        self._mend_at: Seconds | None = None
        self._dying: list[tuple[Seconds, str]] = []
        self._dragged: set[str] = set()
        self._newest: dict[Stage, Step] = {}
        self._over = False

    def tick(self, sight: Sight, *, now: Seconds) -> tuple[Blow, ...]:
        """What strikes now; nothing after ``end``."""
        if self._over:
            return ()
        blows = [*self._releases(now), *self._deaths(sight, now)]
        if sight.share is not None:
            blows += [*self._due_strikes(sight, sight.share, now), *self._kill_one(sight, now)]
        return tuple(blows)

    def end(self) -> tuple[Blow, ...]:
        """Strike no more; let go of everything."""
        self._over = True
        return tuple(self._releases(math.inf))

    def unfired(self) -> tuple[str, ...]:
        """What the plan still owes, a line each."""
        owed = len(self._kill_shares) - self._kills
        names = [type(strike.fault).__name__.lower() for strike in self._strikes]
        lines = [f"the run was over before the {name} that was planned" for name in names]
        if owed > 0:
            lines.append(f"the run was over after {self._kills} kills; {owed} more were planned")
        return tuple(lines)

    # --- one by one -------------------------------------------------------------------------

    def _releases(self, now: Seconds) -> Iterator[Blow]:
        for peer in sorted(peer for peer, at in self._thaw_at.items() if at <= now):
            del self._thaw_at[peer]
            yield Thaw(peer=peer)
        if self._mend_at is not None and self._mend_at <= now:
            self._mend_at = None
            yield Mend()

    def _deaths(self, sight: Sight, now: Seconds) -> Iterator[Blow]:
        due = [peer for at, peer in self._dying if at <= now]
        self._dying = [(at, peer) for at, peer in self._dying if at > now]
        for peer in due:
            if peer in sight.seats:
                yield Death(peer=peer, respawn_seconds=None)

    def _kill_one(self, sight: Sight, now: Seconds) -> Iterator[Blow]:
        """At most one at a time: the next look sees what it has left."""
        if self._kill is None or sight.share is None:
            return
        if self._next_kill_at is None:
            self._next_kill_at = now + next_kill(self._kill, len(sight.seats), self._rng)
        owed = sum(share <= sight.share for share in self._kill_shares) > self._kills
        by_rate = self._next_kill_at <= now
        if by_rate:
            self._next_kill_at = now + next_kill(self._kill, len(sight.seats), self._rng)
        victims = self._expendable(sight) if owed or by_rate else []
        if victims:
            self._kills += 1
            peer = self._rng.choice(victims)
            yield Death(peer=peer, respawn_seconds=self._kill.respawn_seconds)

    def _due_strikes(self, sight: Sight, share: float, now: Seconds) -> Iterator[Blow]:
        waiting = []
        for strike in self._strikes:
            blows = self._struck(strike.fault, sight, now) if strike.share <= share else ()
            yield from blows
            if not blows:
                waiting.append(strike)
        self._strikes = waiting

    def _struck(self, fault: Fault, sight: Sight, now: Seconds) -> tuple[Blow, ...]:
        """The blows of a fault; none while it finds no victim."""
        free = sorted(sight.seats.keys() - self._thaw_at.keys())
        match fault:
            case Join():
                return (Arrival(),)
            case Catastrophe():
                return self._catastrophe(fault, sight, now)
            case Freeze(seconds=seconds) if free:
                peer = self._rng.choice(free)
                self._thaw_at[peer] = now + seconds
                return (Halt(peer=peer, part=self._rng.choice(PARTS)),)
            case Slow(factor=factor) if slowable := sorted(set(free) - self._dragged):
                peer = self._rng.choice(slowable)
                self._dragged.add(peer)
                return (Drag(peer=peer, factor=factor),)
            case Partition(share=share, seconds=seconds) if self._mend_at is None and free:
                self._mend_at = now + seconds
                peers = sorted(sight.seats)
                cut_off = self._rng.sample(peers, math.ceil(share * len(peers)))
                return (Split(peers=tuple(sorted(cut_off))),)
            case Kill() | Freeze() | Slow() | Partition():
                return ()

    def _catastrophe(self, fault: Catastrophe, sight: Sight, now: Seconds) -> tuple[Blow, ...]:
        if fault.what == "bootstrap-death":
            return (BookDeath(),)
        if fault.what == "swarm-death":
            return (Doom(),)
        if fault.what == "daemon-death":
            free = sorted(sight.seats.keys() - self._thaw_at.keys())
            return (DaemonDeath(peer=self._rng.choice(free)),) if free else ()
        stages = sorted({stage for seats in sight.seats.values() for stage in seats})
        if not stages:
            return ()
        stage = self._rng.choice(stages)
        between = STAGGER_SECONDS if fault.what == "last-replica" else 0.0
        doomed = sorted(peer for peer, seats in sight.seats.items() if stage in seats)
        self._dying += [(now + order * between, peer) for order, peer in enumerate(doomed)]
        return (Loss(what=fault.what, stage=stage),)

    def _expendable(self, sight: Sight) -> list[str]:
        """Who may die: not frozen, and the last able replica of no stage."""
        seats = {peer: s for peer, s in sight.seats.items() if peer not in self._thaw_at}
        for held in sight.seats.values():
            for stage, version in held.items():
                self._newest[stage] = max(version, self._newest.get(stage, version))
        able = {
            stage: {
                peer
                for peer, held in seats.items()
                if stage in held and self._newest[stage] - held[stage] <= BEHIND_VERSIONS
            }
            for stage in self._newest
        }
        return sorted(
            peer for peer, held in seats.items() if all(able[stage] - {peer} for stage in held)
        )
