"""A contender: a whole swarm in one process, the production engine with real arithmetic.

    python -m benchmarks.virtual --run run.toml --peers N

Network, directory and clock are simulated from the RunSpec's seed (p2ptrain.sim); the stages
compute in torch, inline. So it trains exactly what a swarm of processes trains, at the price
of the arithmetic and the protocol alone: eight peers need no eight interpreters. The
checkers judge the events; what they find broken is an error here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from benchmarks.alone import Stopwatch
from benchmarks.run import Run
from p2ptrain.compute.executor import TorchCompute
from p2ptrain.data import load_corpus
from p2ptrain.observe.events import StepCommitted
from p2ptrain.sim.scenario import PeerPlan, Scenario, SwarmResult, crowd
from p2ptrain.sim.world import SimWorld
from peers.reference import read_run

if TYPE_CHECKING:
    from p2ptrain.compute.turns import Kind
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Seconds, Stage

ARRIVAL_SECONDS = 0.1
"""Between two peers' starts, in virtual time."""

SEAT_MEMORY_BYTES = 1 << 30
"""Fixed, so that what is free on this machine decides nothing. Ample for the model here."""

COSTS: dict[Kind, Seconds] = {"forward": 0.010, "backward": 0.020, "loss": 0.030, "step": 0.005}
"""Virtual durations: only their order of magnitude matters, for what waits for what."""


def cost(stage: Stage, kind: Kind) -> Seconds:  # noqa: ARG001 -- all stages alike
    """Virtual duration of a call."""
    return COSTS.get(kind, 0.0)


def compute(spec: RunSpec, plan: PeerPlan) -> TorchCompute:  # noqa: ARG001 -- all peers alike
    """The compute of a peer."""
    return TorchCompute(spec, device="cpu", inline=True, cost=cost, memory_bytes=SEAT_MEMORY_BYTES)


def train_virtual(spec: RunSpec, peers: int) -> tuple[Run, SwarmResult]:
    """A whole run; wall time is not told, since virtual peers take turns on one core."""
    watch = Stopwatch()
    watch.step_ended()
    scenario = Scenario(
        spec=spec,
        peers=crowd(peers, interval_seconds=ARRIVAL_SECONDS),
        seed=spec.seed,
        compute=compute,
        corpus=load_corpus(spec),
    )
    result = SimWorld(scenario).run()
    watch.step_ended()
    commits = {e.event.step: e.event for e in result.entries if isinstance(e.event, StepCommitted)}
    val_losses = [commit.val_loss for _, commit in sorted(commits.items()) if commit.val_loss]
    run = Run(
        ended_at=watch.ended_at,
        cpu_seconds={"process": watch.cpu_seconds},
        loss=[(step, c.loss) for step, c in sorted(commits.items()) if c.loss is not None],
        val_loss=val_losses[-1] if val_losses else None,
        weights_digest=result.weights_digest,
    )
    return run, result


@click.command(help=__doc__)
@click.option("--run", "run_file", type=click.Path(path_type=Path), required=True)
@click.option("--peers", type=click.IntRange(1), required=True)
def cli(*, run_file: Path, peers: int) -> None:
    run, result = train_virtual(read_run(run_file), peers)
    for verdict in result.verdicts:
        if not verdict.holds:
            click.echo(f"{verdict.invariant} broken: {verdict.problems[0]}")
            sys.exit(1)
    click.echo(msgspec.json.encode(run))


if __name__ == "__main__":
    cli()
