"""What decides a simulated run, and what it comes to: values, no machinery.

A ``Scenario`` holds everything that a virtual swarm depends on, so that the same scenario
gives the same ``SwarmResult``, event log and all. Peers are a ``crowd`` or planned one by
one; compute is the toy's unless a factory is handed over (real arithmetic comes from the
programs, since nothing here imports torch).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from p2ptrain.core.digest import combine_digests
from p2ptrain.engine.terms import NodeOptions, NodeResult
from p2ptrain.sim.compute import CostModel, ToyCompute
from p2ptrain.sim.faults import FaultPlan
from p2ptrain.units import PeerId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from p2ptrain.observe.events import Entry
    from p2ptrain.ports import Compute, Corpus, Store
    from p2ptrain.run import RunSpec
    from p2ptrain.sim.pipes import Link
    from p2ptrain.sim.verdicts import Verdict
    from p2ptrain.units import Bytes, Seconds, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerPlan:
    """One peer of a scenario. ``speed``: multiples of the cost model's.

    ``stage``: the one it insists on; None lets it choose. ``rounding``: of its device; see
    ``ToyCompute``.
    """

    peer: PeerId
    speed: float = 1.0
    link: Link | None = None
    stage: Stage | None = None
    memory_bytes: Bytes | None = None
    starts_at: Seconds = 0.0
    rounding: str = ""


ComputeFactory: TypeAlias = Callable[["RunSpec", PeerPlan], "Compute"]


def toy_compute(cost: CostModel | None = None) -> ComputeFactory:
    """Toy arithmetic with this cost model."""

    def make(spec: RunSpec, plan: PeerPlan) -> Compute:
        return ToyCompute(
            spec,
            plan.peer,
            speed=plan.speed,
            cost=cost,
            memory_bytes=plan.memory_bytes,
            rounding=plan.rounding,
        )

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that decides a simulated run.

    ``patience_seconds``: of the progress checker; ``stall_seconds`` of the watchdog, which
    ends the run. ``compute`` and ``corpus``: None is the toy, which alone can be verified
    against the reference (``verify``). ``stores``: disks, which outlive their peers' deaths.
    ``spill_bytes``: what each peer may spill of its frames, None: no disk for that.
    """

    spec: RunSpec
    peers: Sequence[PeerPlan]
    seed: int = 0
    link: Link | None = None
    chaos: FaultPlan = field(default_factory=FaultPlan)
    options: NodeOptions = field(default_factory=NodeOptions)
    compute: ComputeFactory | None = None
    corpus: Corpus | None = None
    stores: Mapping[PeerId, Store] = field(default_factory=dict)
    spill_bytes: Bytes | None = None
    verify: bool = True
    patience_seconds: Seconds = 60.0
    stall_seconds: Seconds = 600.0
    ceiling_seconds: Seconds = 7 * 86_400.0


def crowd(
    count: int,
    *,
    speeds: Sequence[float] = (1.0,),
    interval_seconds: Seconds = 0.0,
    memory_bytes: Bytes | None = None,
) -> tuple[PeerPlan, ...]:
    """``count`` peers, one every ``interval_seconds``, taking ``speeds`` in turn."""
    return tuple(
        PeerPlan(
            peer=PeerId(f"peer-{number:04}"),
            speed=speeds[number % len(speeds)],
            starts_at=number * interval_seconds,
            memory_bytes=memory_bytes,
        )
        for number in range(count)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmResult:
    """What a simulated run came to.

    ``tensors``: digest of every tensor at the end, by name. ``faults``: how many of each
    fired. ``seconds`` are virtual. ``unfinished``: peers that were stopped at the end.
    ``seed``: the scenario's.
    """

    seed: int
    entries: Sequence[Entry]
    event_log_hash: str
    tensors: Mapping[str, str]
    verdicts: tuple[Verdict, ...]
    peers: Mapping[PeerId, NodeResult]
    faults: Mapping[str, int]
    unfinished: tuple[PeerId, ...]
    seconds: Seconds

    @property
    def weights_digest(self) -> str:
        """Digest of the whole model."""
        return combine_digests(self.tensors)

    @property
    def holds(self) -> bool:
        """Whether every checker is content."""
        return all(verdict.holds for verdict in self.verdicts)
