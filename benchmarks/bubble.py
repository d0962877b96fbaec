"""What the protocol alone costs: how much of the seats' computing time a step is.

    python -m benchmarks.bubble

The production engine in virtual time with toy arithmetic, where computing takes exactly what
we say and nothing else happens on the machine. So the figure is the same everywhere, to the
last digit, and what is missing to 1 is waiting: filling and draining the pipeline, asking,
counting, agreeing. ``bound`` is what 1F1B reaches with the same seats and no protocol:
m / (m + S - 1), m microbatches per seat and step.

It says nothing of processor time: benchmarks/efficiency does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks import record
from p2ptrain.observe.events import StepCommitted
from p2ptrain.run import Evaluation
from p2ptrain.sim.compute import CostModel
from p2ptrain.sim.pipes import Link
from p2ptrain.sim.scenario import Scenario, crowd, toy_compute
from p2ptrain.sim.toy import toy_spec
from p2ptrain.sim.world import SimWorld

if TYPE_CHECKING:
    from p2ptrain.units import Seconds, Step

STEPS = 8
WARM_STEP = 1
"""The end of the step after which seats know each other's speed."""

ARRIVAL_SECONDS = 0.1
LINK_BYTES_PER_SECOND = 1e9
"""The toy's frames are small: only latency is to count here."""

FORWARD_SHARE = 1 / 3
"""A backward pass is about two forwards."""

STEP_SHARE = 1 / 6
"""The optimizer's step, of a microbatch: it counts as waiting here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A swarm. ``microbatch_seconds``: forward and backward at one stage."""

    stages: int
    replicas: int
    microbatches: int
    microbatch_seconds: Seconds
    latency_seconds: Seconds

    @property
    def bound(self) -> float:
        """Of 1F1B."""
        each = self.microbatches / self.replicas
        return each / (each + self.stages - 1)


CASES = tuple(
    Case(
        stages=stages,
        replicas=replicas,
        microbatches=microbatches,
        microbatch_seconds=seconds,
        latency_seconds=latency,
    )
    for stages, replicas, microbatches, seconds, latency in (
        (2, 1, 16, 0.006, 0.0002),
        (2, 1, 16, 0.060, 0.0002),
        (2, 1, 16, 0.600, 0.0002),
        (2, 1, 16, 0.600, 0.0500),
        (4, 2, 32, 0.060, 0.0002),
        (4, 2, 32, 0.600, 0.0500),
        (4, 4, 64, 0.600, 0.0500),
    )
)


def efficiency(case: Case) -> float:
    """Computing time of a seat over the time of a step, in the steady state."""
    unit = case.microbatch_seconds
    cost = CostModel(
        forward_seconds=unit * FORWARD_SHARE,
        backward_seconds=unit * (1 - FORWARD_SHARE),
        step_seconds=unit * STEP_SHARE,
        noise=0.0,
    )
    spec = toy_spec(
        stages=case.stages,
        microbatches=case.microbatches,
        steps=STEPS,
        seed=0,
        replicas=case.replicas,
        evaluation=Evaluation(every_steps=0, microbatches=0),
    )
    link = Link(
        latency_seconds=case.latency_seconds,
        jitter_seconds=0.0,
        rate_bytes_per_second=LINK_BYTES_PER_SECOND,
    )
    scenario = Scenario(
        spec=spec,
        peers=crowd(case.stages * case.replicas, interval_seconds=ARRIVAL_SECONDS),
        link=link,
        compute=toy_compute(cost),
    )
    ended: dict[Step, Seconds] = {}
    for entry in SimWorld(scenario).run().entries:
        if isinstance(entry.event, StepCommitted):
            ended[entry.event.step] = entry.at
    ends = [ended[step] for step in sorted(ended)]
    seconds = (ends[-1] - ends[WARM_STEP]) / (len(ends) - 1 - WARM_STEP)
    return case.microbatches / case.replicas * unit / seconds


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=None)
def cli(*, out: Path | None) -> None:
    commit = record.source_commit()
    rows = []
    click.echo("stages  replicas   ids  ms/microbatch  latency ms  efficiency  1F1B bound")
    for case in CASES:
        found = efficiency(case)
        rows.append({**asdict(case), "efficiency": found, "bound": case.bound})
        click.echo(
            f"{case.stages:6} {case.replicas:9} {case.microbatches:5} "
            f"{1000 * case.microbatch_seconds:14.0f} {1000 * case.latency_seconds:11.1f} "
            f"{found:11.3f} {case.bound:11.3f}"
        )
    click.echo(f"written: {record.write('bubble', {'cases': rows}, commit=commit, path=out)}")


if __name__ == "__main__":
    cli()
