"""``p2ptrain simulate --virtual``: the same engine in one process, on a clock that jumps.

Network, directory, signatures and arithmetic are simulated from one seed, so the same
command gives the same events, and hours of a swarm pass in seconds. The model is the toy's:
what is shown is the protocol, not learning. Checkers judge the events from outside.

Refused: real arithmetic on virtual time here; ``simulate`` without ``--virtual`` has it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.errors import UserError
from p2ptrain.net.emulation import parse_link
from p2ptrain.sim import faults
from p2ptrain.sim.loop import SimulationError
from p2ptrain.sim.pipes import Link
from p2ptrain.sim.scenario import Scenario, SwarmResult, crowd
from p2ptrain.sim.toy import mixed_spec, toy_spec
from p2ptrain.sim.world import SimWorld
from peers.source import source_commit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from p2ptrain.run import RunSpec

ARRIVAL_SECONDS = 0.1
"""Between two peers' starts: nobody starts a swarm at one instant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualOptions:
    """What to simulate; sizes of the model come from the toy, the rest from ``spec``."""

    spec: RunSpec
    peers: int
    link: str | None = None
    chaos: str = ""


def run(options: VirtualOptions) -> SwarmResult:
    """Run to the end.

    Raises:
        UserError: ``link`` or ``chaos`` is malformed.
        SimulationError: the run did not end.
    """
    plan, spec = faults.parse(options.chaos), options.spec
    if faults.Catastrophe(what="swarm-death") in plan.faults:
        raise UserError("--chaos swarm-death: virtual peers have no disks; leave out --virtual")
    toy = toy_spec(
        stages=spec.cut.stages,
        microbatches=spec.batch.microbatches,
        steps=spec.optimizer.steps,
        seed=spec.seed,
        replicas=spec.sync.start_replicas,
        evaluation=spec.evaluation,
    )
    peers, mixed = crowd(options.peers, interval_seconds=ARRIVAL_SECONDS), False
    if spec.sync.agreement == "canonical":
        toy, mixed = mixed_spec(toy, canonical_steps=spec.sync.canonical_steps), True
        peers = tuple(replace(plan, rounding=f"device {n}") for n, plan in enumerate(peers))
    scenario = Scenario(
        spec=toy,
        peers=peers,
        verify=not mixed,  # no two covers give one sum
        seed=spec.seed,
        link=_link(options.link),
        chaos=plan,
    )
    try:
        return SimWorld(scenario).run()
    except SimulationError as error:
        message = f"{error}; {again(spec.seed)}"
        raise type(error)(message) from error


def again(seed: int) -> str:
    """What repeats a run that failed."""
    return f"to see it again: seed {seed} at commit {source_commit()}"


def summary(result: SwarmResult) -> Iterator[str]:
    """The result in words."""
    yield f"{result.seconds:.1f} virtual seconds, {len(result.entries)} events"
    yield f"event log {result.event_log_hash}"
    yield f"weights   {result.weights_digest}"
    for name, count in result.faults.items():
        yield f"fault {name}: {count}"
    if not result.holds:
        yield again(result.seed)
    for verdict in result.verdicts:
        state = "holds" if verdict.holds else f"BROKEN: {verdict.problems[0]}"
        yield f"{verdict.invariant} {state} ({verdict.facts} facts)"


def as_json(options: VirtualOptions, result: SwarmResult) -> str:
    """The result as one JSON object; the names are those of a report."""
    found = {
        "virtual": True,
        "seed": options.spec.seed,
        "commit": source_commit(),
        "peers": options.peers,
        "stages": options.spec.cut.stages,
        "steps": options.spec.optimizer.steps,
        "seconds": result.seconds,
        "events": len(result.entries),
        "event_log_hash": result.event_log_hash,
        "weights_digest": result.weights_digest,
        "faults": dict(result.faults),
        "verified": result.holds,
        "verdicts": {verdict.invariant: list(verdict.problems) for verdict in result.verdicts},
    }
    return msgspec.json.encode(found).decode()


def _link(text: str | None) -> Link | None:
    if text is None:
        return None
    shape = parse_link(text)
    return Link(
        latency_seconds=shape.delay_seconds,
        jitter_seconds=shape.jitter_seconds,
        rate_bytes_per_second=math.inf if shape.rate is None else shape.rate,
    )
