"""Random swarms, drawn: the plan of a seed.

    seed -> sizes, speeds, links, memory -> faults, most of them at a failpoint -> SwarmPlan

A fault at a point that only trouble or a newcomer leads to gets the cause that leads there.

Invariants: a seed draws one plan, on every machine and under every PYTHONHASHSEED; what is
drawn last is drawn for itself, so a new kind of swarm leaves the plans of the others alone.

Refused: drawing every fault alike. The rare ones come to nothing so often that they would be
met once in a thousand swarms.
"""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import msgspec

from p2ptrain.sim.blows import Blow, BlowKind
from p2ptrain.sim.points import (
    IN_ADOPTING,
    IN_COPYING,
    IN_DEPOSITING,
    IN_LOSS,
    IN_SHARING,
    IN_TRANSFER,
    IN_TROUBLE,
    POINTS,
)
from p2ptrain.sim.spill import MEMORIES
from p2ptrain.sim.swarms import SwarmPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

Family: TypeAlias = Literal["plain", "kept", "mixed", "lossy", "rare", "deposit"]
"""A seed draws a plan in each."""

FAILPOINT_SHARE = 0.8
"""Of the faults, those that wait for a failpoint: the harder test."""

KEPT_STEPS = (1, 1, 2)
"""Runs are short: in these every loss of a stage can be mended while its guard lives."""

LOSSY: Final[tuple[Literal["int8", "int4"], ...]] = ("int8", "int4")
"""As what a state is adopted."""

FALLS: Final = {3: (2, 5), 4: (2, 3)}
"""By how often states are kept: the steps in which a stage that is lost is of no use any more,
neither as it was kept nor as the seed gives it, so that the run falls back. In one of them it
does so to a later step than the first."""

RARE_STEPS = 6
"""All of those come before the last step has committed."""

RARE: Final = IN_SHARING | IN_COPYING | IN_LOSS
"""Points that the family "rare" is about."""

PLAIN: Final = (POINTS.keys() - RARE - IN_DEPOSITING) | IN_TRANSFER
"""Those of all others: to some of both a newcomer comes as well as the keeper of a copy."""

FAULTS_MOST = 4
"""More than that at once in so short a run leave nobody to recover."""


def draw(seed: int) -> SwarmPlan:
    """The plan of ``seed``."""
    rng = Random(f"p2ptrain random swarm/{seed}")
    stages = rng.randint(2, 4)
    peers, microbatches, steps = _few(rng, 4, 12), _few(rng, 4, 16), _few(rng, 3, 6)
    return SwarmPlan(
        seed=seed,
        stages=stages,
        microbatches=microbatches,
        steps=steps,
        replicas=rng.randint(1, max(1, peers // stages)),
        speeds=_speeds(rng, peers),
        interval_seconds=rng.choice((0.0, 0.1, 0.5)),
        latency_seconds=rng.choice((0.005, 0.02, 0.05, 0.15)),
        jitter_seconds=rng.choice((0.0, 0.01, 0.05)),
        rate_bytes_per_second=rng.choice((None, None, 1e6, 1e5)),
        corruption=rng.choice((0.0,) * 9 + (0.002,)),
        blows=tuple(
            blow
            for _ in range(FAULTS_MOST - _few(rng, 0, FAULTS_MOST))
            for blow in _blows(rng, stages * microbatches * steps)
        ),
        retained=rng.choice(MEMORIES),
    )


def draw_kept(seed: int) -> SwarmPlan:
    """The plan of ``seed`` with states kept, so that a stage may be lost and come back."""
    every = Random(f"p2ptrain kept states/{seed}").choice(KEPT_STEPS)
    return msgspec.structs.replace(draw(seed), checkpoint_steps=every)


def draw_mixed(seed: int) -> SwarmPlan:
    """The plan of ``seed`` with peers of different arithmetic (agreement "canonical")."""
    every = Random(f"p2ptrain mixed swarm/{seed}").randint(1, 3)
    return msgspec.structs.replace(draw(seed), canonical_steps=every)


def draw_lossy(seed: int) -> SwarmPlan:
    """A plan of ``seed`` with mixed peers, whose states are adopted as differences.

    Half of the faults strike while states are adopted, or loaded.
    """
    rng, mixed = Random(f"p2ptrain lossy swarm/{seed}"), draw_mixed(seed)
    kind, half = rng.choice(LOSSY), FAULTS_MOST // 2
    strikes = (_strike(rng, IN_ADOPTING) for _ in range(half))
    return msgspec.structs.replace(mixed, adoption=kind, blows=(*mixed.blows[:half], *strikes))


def draw_rare(seed: int) -> SwarmPlan:
    """A plan of ``seed`` with faults where the other families have none.

    While seats of stage 0 share what is left of a step, while states are copied, or while the
    run falls back, after the loss of a stage.
    """
    rng = Random(f"p2ptrain rare points/{seed}")
    stages, every = rng.randint(2, 3), rng.choice(KEPT_STEPS)
    peers, microbatches = _few(rng, 2 * stages, 10), rng.randint(6, 12)
    points = rng.choice((IN_SHARING, IN_COPYING, IN_COPYING, IN_LOSS))
    causes: tuple[Blow, ...] = ()
    if points is IN_LOSS:
        every = rng.choice(sorted(FALLS))
        counts = stages * microbatches  # of a step
        nth = rng.choice(FALLS[every]) * counts + rng.randint(1, counts)
        causes = (Blow(kind="stage-loss", point="counting", nth=nth, seconds=0.0),)
    return msgspec.structs.replace(
        draw(seed),
        stages=stages,
        microbatches=microbatches,
        steps=RARE_STEPS,
        replicas=rng.randint(1, peers // stages),
        speeds=_speeds(rng, peers),
        blows=(*causes, *(_strike(rng, points) for _ in range(FAULTS_MOST))),
        checkpoint_steps=every,
    )


def draw_deposit(seed: int) -> SwarmPlan:
    """A plan of ``seed`` whose seats leave what they count with a mate; a third of it mixed.

    Steps are long for once, and stages have mates. Half of the faults strike where deposits are
    made, taken up and given back.
    """
    rng = Random(f"p2ptrain deposits/{seed}")
    plan = rng.choice((draw, draw, draw_mixed))(seed)
    stages, half = rng.randint(2, 4), FAULTS_MOST // 2
    peers = rng.randint(2 * stages, 3 * stages)
    strikes = tuple(_strike(rng, IN_DEPOSITING) for _ in range(half))
    return msgspec.structs.replace(
        plan,
        stages=stages,
        microbatches=rng.randint(12, 40),
        steps=rng.randint(2, 3),
        replicas=rng.randint(1, 2),
        speeds=_speeds(rng, peers),
        blows=(*plan.blows[: rng.randint(0, FAULTS_MOST)], *strikes),
        deposit_every=rng.choice((1, 2, 2, 3, 5)),
    )


def _strike(rng: Random, points: Collection[str]) -> Blow:
    kind: BlowKind = rng.choice(("kill", "kill", "freeze"))
    seconds = rng.choice((2.0, 6.0, 12.0, 20.0))
    return Blow(kind=kind, point=rng.choice(sorted(points)), nth=rng.randint(1, 4), seconds=seconds)


FAMILIES: Final[Mapping[Family, Callable[[int], SwarmPlan]]] = {
    "plain": draw,
    "kept": draw_kept,
    "mixed": draw_mixed,
    "lossy": draw_lossy,
    "rare": draw_rare,
    "deposit": draw_deposit,
}


def family(plan: SwarmPlan) -> Family:
    """Which of the families draws ``plan``; plain, if it was not drawn."""
    drawn = (name for name, draws in FAMILIES.items() if draws(plan.seed) == plan)
    return next(drawn, "plain")


def _speeds(rng: Random, peers: int) -> tuple[float, ...]:
    return tuple(round(math.exp(rng.gauss(-1.2, 0.7)), 3) for _ in range(peers))


def _few(rng: Random, least: int, most: int) -> int:
    """Small ones more often: a fault meets as much in them, and three take the time of one."""
    return min(rng.randint(least, most), rng.randint(least, most))


_RARE: tuple[BlowKind, ...] = (
    *("join", "leave", "reset", "slow", "partition", "restart", "forge"),
    *("last-replica", "stage-loss", "bootstrap-death"),
)


_SELDOM = 8 * ["nack sent"] + 8 * ["nack arrived"] + ["round", "subtracted", "ack arrived"]
_READILY = {"chunk arrived", "repath sent", "manifest asked sent", "manifest arrived"}
_POINTS = [
    *sorted(PLAIN),
    *sorted((IN_TROUBLE | IN_TRANSFER) - _READILY),
    *_SELDOM,
    "summed part arrived",
]
"""The rare ones more often: some come to nothing nine times in ten (measured)."""


def _blows(rng: Random, microbatches: int) -> tuple[Blow, ...]:
    """Most strike at a failpoint, the rest somewhere in the run.

    A point that takes trouble or a newcomer to be reached gets one.
    """
    seconds = rng.choice((2.0, 6.0, 12.0, 20.0))
    somewhere = rng.randint(1, microbatches)
    if rng.random() > FAILPOINT_SHARE:
        kind: BlowKind = rng.choice(("kill", "kill", "freeze", *_RARE))
        return (Blow(kind=kind, point="counting", nth=somewhere, seconds=seconds),)
    point, kind = rng.choice(_POINTS), rng.choice(("kill", "kill", "freeze"))
    nth = 1 + int(rng.expovariate(0.25))
    blow = Blow(kind=kind, point=point, nth=nth, seconds=seconds)
    if point in IN_TROUBLE:
        cause = Blow(kind="freeze", point="counting", nth=somewhere, seconds=8.0)
    elif point in IN_TRANSFER:
        cause = Blow(kind="join", point="committed", nth=1, seconds=0.0)
    else:
        return (blow,)
    return cause, msgspec.structs.replace(blow, nth=1 + nth // 8)
