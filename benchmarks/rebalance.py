"""How peers that choose for themselves share out over the stages, and how soon they mend it.

One swarm, watched through three phases of virtual time:

    settle   peers come, choose stages, learn each other's speed and move
    rest     nothing happens: how many still move, per hour
    shock    one stage loses every second replica: until the pipeline's capacity is SHARE of
             what the living could do at best

and another that many join at once: how far apart the stages' rates are then. Capacity is
what the holders of seats can compute (benchmarks/uneven), whatever they know of it. A
state takes LOAD_SECONDS to come. Steps must be longer than that (a state that is two steps
old is of no use) and not much, for a seat is given up between steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks.uneven import Swarm, capacity, draw_speeds, lay_out
from benchmarks.watch import Watch
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from p2ptrain.observe import events as ev
    from p2ptrain.units import PeerId, Seconds

LOAD_SECONDS = 60.0
SHARE = 0.85
STEPS = 100_000
"""More than any of these runs takes: they are ended by the clock."""

STRUCK = Stage(1)
LOOK_SECONDS = 1.0
"""Between looks at the stages: no event says that a seat which is given up has no work left."""

HOUR_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """How long each lasts; ``shock_seconds`` at most."""

    settle_seconds: Seconds
    rest_seconds: Seconds
    shock_seconds: Seconds = 400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mended:
    """``before``, ``after``: capacity over the best, at the shock and just behind it.

    ``recovery_seconds``: until it was SHARE again; None: it never was.
    """

    moves_per_hour: float
    before: float
    after: float
    recovery_seconds: Seconds | None


class Shaken(Watch):
    """A world whose stage STRUCK loses every second replica."""

    def __init__(self, swarm: Swarm, phases: Phases) -> None:
        super().__init__(swarm)
        self.strikes_at = phases.settle_seconds + phases.rest_seconds
        self.history: list[tuple[Seconds, float]] = []  # capacity over the best, since the shock
        self.before = 0.0
        self._stops_at = self.strikes_at + phases.shock_seconds

    def began(self) -> None:
        """Set the clock."""
        super().began()
        self.harm.later(self.strikes_at, self._strike)
        self.harm.later(self._stops_at, self.abandon)

    def _strike(self) -> None:
        self.before = self._of_best()
        here = [host for host in self.harm.present() if STRUCK in host.stages]
        here.sort(key=lambda host: (-host.plan.speed, host.peer))
        for host in here[::2]:
            self.harm.kill(host, respawn_seconds=None)
        self._measure()

    def _measure(self) -> None:
        self.history.append((self.clock.time(), self._of_best()))
        if self.history[-1][1] >= SHARE and len(self.history) > 1:
            self.harm.later(0.0, self.abandon)
        elif self.clock.time() + LOOK_SECONDS < self._stops_at:
            self.harm.later(LOOK_SECONDS, self._measure)

    def _of_best(self) -> float:
        speeds = tuple(host.plan.speed for host in self.hosts.values() if host.alive)
        best = capacity(speeds, lay_out(speeds, self.swarm.stages), self.swarm.stages)
        return min(self.rates().values()) / best


def mend(swarm: Swarm, phases: Phases) -> Mended:
    """Settle, rest, lose half a stage, and recover."""
    world = Shaken(replace(swarm, placed=False, steps=STEPS, load_seconds=LOAD_SECONDS), phases)
    world.run()
    rest = phases.settle_seconds, world.strikes_at
    moves = sum(rest[0] < at <= rest[1] for at, _, _ in world.opened)
    mended = [at for at, share in world.history[1:] if share >= SHARE]
    return Mended(
        moves_per_hour=moves * HOUR_SECONDS / phases.rest_seconds,
        before=world.before,
        after=world.history[0][1],
        recovery_seconds=mended[0] - world.strikes_at if mended else None,
    )


class Crowded(Watch):
    """A world that many join at once."""

    def __init__(self, swarm: Swarm, *, joiners: int, joins_at: Seconds, stops_at: Seconds) -> None:
        super().__init__(swarm)
        self.ratios: list[tuple[Seconds, float]] = []  # fastest stage over slowest, by time
        self._joiners, self._joins_at, self._stops_at = joiners, joins_at, stops_at

    def began(self) -> None:
        """Set the clock."""
        super().began()
        self.harm.later(self._joins_at, self._join)
        self.harm.later(self._stops_at, self.abandon)

    def emit(self, peer: PeerId, event: ev.AnyEvent) -> None:
        """Look at the stages whenever seats have changed."""
        changes = len(self.live)
        super().emit(peer, event)
        if len(self.live) > changes and self.clock.time() > self._joins_at:
            rates = self.rates().values()
            self.ratios.append((self.clock.time(), max(rates) / max(min(rates), 1e-9)))

    def _join(self) -> None:
        model = self.scenario.peers[0]
        for speed in draw_speeds(self._joiners, f"joiners/{self.swarm.seed}"):
            self.harm.another("join", replace(model, speed=speed))


def crowd(swarm: Swarm, *, joiners: int, joins_at: Seconds, seconds: Seconds) -> float:
    """Fastest over slowest stage, ``seconds`` after ``joiners`` have come to ``swarm`` at once."""
    loose = replace(swarm, placed=False, steps=STEPS, load_seconds=LOAD_SECONDS)
    world = Crowded(loose, joiners=joiners, joins_at=joins_at, stops_at=joins_at + seconds)
    world.run()
    return world.ratios[-1][1]
