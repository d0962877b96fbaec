"""The chaos language: what shall go wrong in a run, as values and as text.

    kill=30%/min[:min=N][:respawn=SECONDS|never]   peers die, that share of the swarm a minute
    freeze=N:10s                                   N times a peer hangs for so long
    slow=10x:N                                     N peers become that many times slower
    partition=50%:20s                              so much of the swarm is cut off for so long
    join=N                                         N more peers come
    bootstrap-death | last-replica | stage-loss    the named catastrophes
    daemon-death                                   a peer's p2pd dies; the peer lives
    swarm-death                                    all die, and resume from their disks

Faults are joined by commas. A plan is a value, drawn up before the run; ``schedule`` turns
it into ``Strike`` values from a seed alone: a fault waits for its share of the run's steps
or for its virtual instant, so that no plan depends on how fast the machine is. ``Tally``
counts what fired, because a fault that never fired has tested nothing.

Refused: faults as probabilities at code points. They fire where the code is, not where
machines fail, and change with every refactoring.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn, TypeAlias

from p2ptrain.errors import UserError

if TYPE_CHECKING:
    from random import Random

    from p2ptrain.units import Seconds

RESPAWN_SECONDS = 3.0
"""Default time until a killed peer comes back as a new one."""

EARLIEST_SHARE, LATEST_SHARE = 0.1, 0.7
"""Of the run's steps: scheduled faults strike in between, so there is something to disturb
and time to see the recovery."""

MOST = 10_000
"""Peers and times a fault may name: more is a slip of the finger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Peers die at random: ``share_per_minute`` of the living; at least ``minimum`` of them.

    ``respawn_seconds``: until a new peer takes the place (None: never).
    """

    share_per_minute: float
    minimum: int = 0
    respawn_seconds: Seconds | None = RESPAWN_SECONDS


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze:
    """``count`` times, a peer hangs for ``seconds``."""

    count: int
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """``count`` peers compute ``factor`` times slower from then on."""

    factor: float
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """``share`` of the peers cannot reach the others for ``seconds``."""

    share: float
    seconds: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """``count`` more peers come."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Catastrophe:
    """A named one: of the bootstrap, of a stage, of a p2pd, or of all peers at once."""

    what: Literal["bootstrap-death", "last-replica", "stage-loss", "daemon-death", "swarm-death"]


Fault: TypeAlias = Kill | Freeze | Slow | Partition | Join | Catastrophe


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """Everything that shall go wrong."""

    faults: tuple[Fault, ...] = ()

    @property
    def kill(self) -> Kill | None:
        """The continuous fault of the plan, if it has one."""
        return next((fault for fault in self.faults if isinstance(fault, Kill)), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """One occurrence of a fault: when ``share`` of the run's steps have committed."""

    share: float
    fault: Fault


def parse(text: str) -> FaultPlan:
    """Read a plan: faults joined by commas.

    Raises:
        UserError: no such fault, or not its form; the message shows what is right.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    plan = FaultPlan(faults=tuple(_fault(part) for part in parts))
    if sum(isinstance(fault, Kill) for fault in plan.faults) > 1:
        raise UserError(f"--chaos {text!r}: give kill only once")
    return plan


def schedule(plan: FaultPlan, rng: Random) -> tuple[Strike, ...]:
    """When each occurrence of each fault strikes, in order; kills come by their rate instead."""
    strikes: list[Strike] = []
    for fault in plan.faults:
        if not isinstance(fault, Kill):
            times = fault.count if isinstance(fault, Freeze | Slow | Join) else 1
            strikes += [
                Strike(share=rng.uniform(EARLIEST_SHARE, LATEST_SHARE), fault=fault)
                for _ in range(times)
            ]
    return tuple(sorted(strikes, key=lambda strike: strike.share))


def next_kill(kill: Kill, living: int, rng: Random) -> Seconds:
    """Until the next death among ``living`` peers: deaths come independently (Poisson)."""
    return rng.expovariate(kill.share_per_minute / 60.0 * max(living, 1))


class Tally:
    """Counts the faults that fired."""

    def __init__(self) -> None:
        self._fired: Counter[str] = Counter()

    def count(self, name: str) -> None:
        """One more."""
        self._fired[name] += 1

    def fired(self) -> dict[str, int]:
        """How many of each, by name."""
        return dict(sorted(self._fired.items()))

    def owed(self, plan: FaultPlan) -> int:
        """How many kills of the plan's minimum have not fired yet."""
        return max(0, plan.kill.minimum - self._fired["kill"]) if plan.kill else 0


_FORMS = {
    "kill": "kill=30%/min[:min=N][:respawn=SECONDS|never]",
    "freeze": "freeze=N:10s",
    "slow": "slow=10x:N",
    "partition": "partition=50%:20s",
    "join": "join=N",
    "bootstrap-death": "bootstrap-death",
    "last-replica": "last-replica",
    "stage-loss": "stage-loss",
    "daemon-death": "daemon-death",
    "swarm-death": "swarm-death",
}

_CATASTROPHES = {
    "bootstrap-death": Catastrophe(what="bootstrap-death"),
    "last-replica": Catastrophe(what="last-replica"),
    "stage-loss": Catastrophe(what="stage-loss"),
    "daemon-death": Catastrophe(what="daemon-death"),
    "swarm-death": Catastrophe(what="swarm-death"),
}

_NUMBER = r"(\d+(?:\.\d+)?)"
_PATTERNS = {
    "kill": re.compile(rf"{_NUMBER}%/min(?::min=(\d+))?(?::respawn=(never|{_NUMBER}s?))?"),
    "freeze": re.compile(rf"(\d+):{_NUMBER}s"),
    "slow": re.compile(rf"{_NUMBER}x:(\d+)"),
    "partition": re.compile(rf"{_NUMBER}%:{_NUMBER}s"),
    "join": re.compile(r"(\d+)"),
}


def _fault(text: str) -> Fault:
    name, equals, value = text.partition("=")
    if name not in _FORMS:
        known = ", ".join(_FORMS.values())
        raise UserError(f"--chaos: no fault {name!r}; there are: {known}")
    if name in _CATASTROPHES:
        return _CATASTROPHES[name] if not equals else _malformed(text, name)
    match = _PATTERNS[name].fullmatch(value)
    if match is None:
        _malformed(text, name)
    fault = _built(name, match.groups())
    if not _sensible(fault):
        _malformed(text, name)
    return fault


def _built(name: str, found: tuple[str | None, ...]) -> Fault:
    first, second = found[0] or "0", (found[1] if len(found) > 1 else None) or "0"
    if name == "kill":
        respawn = found[2] or f"{RESPAWN_SECONDS}"
        return Kill(
            share_per_minute=float(first) / 100,
            minimum=int(second),
            respawn_seconds=None if respawn == "never" else float(respawn.removesuffix("s")),
        )
    if name == "freeze":
        return Freeze(count=int(first), seconds=float(second))
    if name == "slow":
        return Slow(factor=float(first), count=int(second))
    if name == "partition":
        return Partition(share=float(first) / 100, seconds=float(second))
    return Join(count=int(first))


def _sensible(fault: Fault) -> bool:
    """Whether the numbers can be carried out."""
    match fault:
        case Kill(share_per_minute=share, minimum=count):
            return 0 < share <= MOST and count <= MOST
        case Freeze(count=count) | Join(count=count):
            return 1 <= count <= MOST
        case Slow(factor=factor, count=count):
            return factor >= 1 and 1 <= count <= MOST
        case Partition(share=share):
            return 0 < share < 1
        case _:
            return True


def _malformed(text: str, name: str) -> NoReturn:
    raise UserError(f"--chaos {text!r}: write {_FORMS[name]}")
