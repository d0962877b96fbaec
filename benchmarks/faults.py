"""Each fault alone, on real processes: does the swarm end with the weights of one process?

    python -m benchmarks.faults [--only NAME ...] [--seed K] [--output FILE]

    fault (a failpoint, or a chaos plan) -> simulate --verify, 6 peers in 2 stages
         -> verified, lost, twice, orphans, recovery -> a table, and a JSON file

Blows at a step of the protocol fall at that step: the peer stands still there by itself
(peers/failpoint), says so in its log, and is then killed with SIGKILL. A row in which its
fault has not fired is a failure, whatever the weights.

Refused: a row that passes because nothing happened; several faults at once (that is what
``p2ptrain simulate --chaos`` is for).
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
from rich.console import Console
from rich.table import Table

from benchmarks import record
from p2ptrain.data import pin
from p2ptrain.errors import P2PTrainError
from p2ptrain.run import (
    Batch,
    Checkpoint,
    Cut,
    Evaluation,
    Optimizer,
    RunSpec,
    Sync,
    preset,
    validate,
)
from p2ptrain.sim.faults import parse
from p2ptrain.sim.spill import short_of_memory
from peers.display import Display
from peers.launch import SwarmOptions
from peers.simulation import SimulationOptions, simulate
from peers.summary import tell

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from p2ptrain.observe.report import Report

STAGES, PEERS = 2, 6

STEPS = 40
"""A dozen seconds of steps: a fault falls into them, and there is time to recover."""

CHECKPOINT_STEPS = 2
"""So that a swarm that dies has something to come back to."""

REPLICA_SECONDS, STAGE_SECONDS = 10.0, 30.0
"""What recovery may take: of a replica, and of a stage, a partition or the whole swarm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault. ``fired``: what the report must count; ``bound_seconds``: of its recovery.

    ``retained``: memory for the frames of so few microbatches a seat; the disk has the others.
    """

    name: str
    fired: str
    halt_at: str | None = None
    chaos: str = ""
    bound_seconds: float = REPLICA_SECONDS
    retained: int | None = None


ROWS = (
    Row(name="kill mid-forward", halt_at="9:forward ack sent", fired="at forward ack sent"),
    Row(name="kill mid-backward", halt_at="9:gradient ack sent", fired="at gradient ack sent"),
    Row(name="kill frozen in the round", halt_at="3:ack sent", fired="at ack sent"),
    Row(name="kill as leader", halt_at="3:plan sent", fired="at plan sent"),
    Row(name="kill as reducer", halt_at="3:summed part sent", fired="at summed part sent"),
    Row(
        name="kill, frames on disk", halt_at="12:forward ack sent", fired="at forward ack sent",
        retained=5,
    ),
    Row(name="p2pd", chaos="daemon-death", fired="daemon-death"),
    Row(name="bootstrap", chaos="bootstrap-death", fired="bootstrap-death"),
    Row(
        name="last replica", chaos="last-replica", fired="last-replica",
        bound_seconds=STAGE_SECONDS,
    ),
    Row(
        name="partition 50% 20 s", chaos="partition=50%:20s", fired="partition",
        bound_seconds=20.0 + STAGE_SECONDS,
    ),
    Row(
        name="whole swarm", chaos="swarm-death", fired="swarm-death", bound_seconds=STAGE_SECONDS
    ),
)  # fmt: skip


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What one row came to; ``problem`` is empty if it is as it should be."""

    name: str
    fired: int = 0
    verified: bool | None = None
    lost: int | None = None
    twice: int | None = None
    replayed: int | None = None
    orphans: int | None = None
    recovery_seconds: float | None = None
    seconds: float | None = None
    problem: str


def spec_of(seed: int, retained: int | None = None) -> RunSpec:
    """The pinned run of every row, with its memory for frames."""
    tiny = preset("tiny")
    changed = msgspec.structs.replace(
        tiny,
        seed=seed,
        model=msgspec.structs.replace(tiny.model, context=32, d_model=64, d_ff=128),
        cut=Cut(stages=STAGES),
        batch=Batch(sequences=2, microbatches=16),
        optimizer=Optimizer(steps=STEPS, warmup_steps=5),
        sync=Sync(start_replicas=PEERS // STAGES),  # a fault meets a swarm that is complete
        evaluation=Evaluation(every_steps=0, microbatches=0),
        checkpoint=Checkpoint(every_steps=CHECKPOINT_STEPS),
    )
    return pin(validate(short_of_memory(changed, retained)), None)


def judged(row: Row, report: Report, troubles: Sequence[str]) -> Result:
    """The row's result: every promise is looked at, the first that is broken is told."""
    counts = report.microbatches
    return Result(
        name=row.name,
        fired=report.faults.get(row.fired, 0),
        verified=report.verified,
        lost=counts.lost,
        twice=counts.duplicated,
        replayed=counts.replayed,
        orphans=report.orphans,
        recovery_seconds=report.recovery_seconds.max,
        seconds=report.seconds,
        problem=next(_problems(row, report, troubles), ""),
    )


def _problems(row: Row, report: Report, troubles: Sequence[str]) -> Iterator[str]:
    if not report.faults.get(row.fired, 0):
        yield f"the fault has not fired: {report.faults or 'nothing has'}"
    yield from troubles
    if row.retained is not None and not (report.frames_spilled and report.spill_reads):
        yield f"{report.frames_spilled} frames spilled, {report.spill_reads} read back"
    recovery = report.recovery_seconds.max
    if recovery is None:
        yield "nothing shows that it recovered"
    elif recovery > row.bound_seconds:
        yield f"recovered in {recovery:.1f} s, {row.bound_seconds:.0f} s are allowed"


def play(row: Row, seed: int) -> Result:
    """One row on real processes.

    Raises:
        KeyboardInterrupt: somebody pressed Ctrl-C; the swarm has drained.
    """
    with Display(as_json=True) as display, tempfile.TemporaryDirectory() as folder:
        options = SimulationOptions(
            swarm=SwarmOptions(spec=spec_of(seed, row.retained), peers=PEERS, halt_at=row.halt_at),
            chaos=parse(row.chaos),
            verify=True,
            report=Path(folder),
        )
        try:
            simulated = asyncio.run(simulate(options, display))
            if simulated.interrupted:
                raise KeyboardInterrupt
            report, troubles = tell(options, simulated, display)
        except P2PTrainError as error:
            return Result(name=row.name, problem=str(error))
    return judged(row, report, troubles)


def table(results: Sequence[Result]) -> Table:
    """The results for people."""
    made = Table(box=None)
    for title in ("fault", "fired", "verified", "lost", "twice", "orphans", "recovery", "problem"):
        made.add_column(title, justify="left" if title in ("fault", "problem") else "right")
    for each in results:
        recovery = "" if each.recovery_seconds is None else f"{each.recovery_seconds:.1f} s"
        cells = (each.fired, each.verified, each.lost, each.twice, each.orphans)
        made.add_row(each.name, *map(str, cells), recovery, each.problem or "-")
    return made


@click.command()
@click.option("--only", multiple=True, type=click.Choice([row.name for row in ROWS]))
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="Where the JSON goes.")
def main(only: Sequence[str], seed: int, output: Path | None) -> None:
    """Each fault alone on real processes, verified against one process."""
    commit, before = record.source_commit(), record.load()
    results = []
    with suppress(KeyboardInterrupt):  # what has been found is told all the same
        for row in ROWS:
            if not only or row.name in only:
                click.echo(f"{row.name} ...", err=True)
                results.append(play(row, seed))
    Console(width=160).print(table(results))
    figures: dict[str, object] = {
        "seed": seed, "peers": PEERS, "stages": STAGES, "steps": STEPS,
        "rows": results, "load_before": before, "load_after": record.load(),
    }  # fmt: skip
    click.echo(f"kept in {record.write('faults', figures, commit=commit, path=output)}")
    wanted = len(set(only)) or len(ROWS)
    sys.exit(len(results) < wanted or any(result.problem for result in results))


if __name__ == "__main__":
    main()
