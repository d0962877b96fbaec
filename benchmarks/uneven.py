"""Swarms of unequal, unreliable peers for virtual time: who is there, how fast, and where.

The setting of the capacity figures: forward .5 s and backward 1 s at speed 1, speeds
lognormal, a tenth of the peers ten times slower, 50-150 ms from peer to peer, 20% noise.
What a swarm reaches is compared with what its machines could do: a stage's capacity is the
sum of its seats' rates, the pipeline's that of its weakest stage.

    Swarm (who, how fast, where) -> Watch (benchmarks/watch: it runs, and is counted)

The production engine runs here; only arithmetic, network and clock are simulated.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.run import Evaluation, preset
from p2ptrain.sim.compute import CostModel
from p2ptrain.sim.pipes import Link
from p2ptrain.sim.scenario import PeerPlan, Scenario, toy_compute
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import PeerId, Stage

if TYPE_CHECKING:
    from p2ptrain.units import Seconds

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
