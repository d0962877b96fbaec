"""Many random swarms on all cores: ``make soak SEEDS=100000``.

    python -m peers.soak --seeds 2000             seeds 0 to 1999; exit code 1 if any fails
    python -m peers.soak --seed 427 [--shrink]    one seed; with --shrink its shortest plan
    python -m peers.soak --plan PLAN.json         a plan as --shrink prints it
    --family kept | mixed | lossy | rare | deposit
                                                  seeds of swarms that keep states, or whose
                                                  peers round differently, or that send fewer
                                                  bits of states besides, or that are struck
                                                  where others seldom are, or that leave
                                                  deposits (see sim/drawing)

Each failing seed is printed with the commit as soon as it is known, in the line that repeats
it. The parent deals seeds to one child process per core, in turn, and reads their outcomes
as lines of JSON; a child that dies is an error, never a success.

Refused: a pool of forked workers. Forks are refused everywhere here, and one file per child
would have to be watched.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from p2ptrain.errors import InternalError
from p2ptrain.sim.drawing import FAMILIES, family
from p2ptrain.sim.shrinking import shrink
from p2ptrain.sim.swarms import Outcome, SwarmPlan, run
from peers.source import source_commit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2ptrain.sim.drawing import Family

LINE_BYTES = 1 << 20
"""Of an outcome; a plan takes some hundred bytes and a reason some hundred more."""


class Totals:
    """What many outcomes come to."""

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.fired: Counter[str] = Counter()
        self.failures: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.ends[outcome.end] += 1
        self.fired.update(outcome.fired)
        if outcome.failed:
            self.failures.append(outcome)

    def by_kind(self) -> dict[str, int]:
        """How often each kind of fault fired."""
        kinds: Counter[str] = Counter()
        for name, count in self.fired.items():
            kinds[name.partition(" at ")[0]] += count
        return dict(sorted(kinds.items()))

    def by_point(self) -> dict[str, int]:
        """How often something struck at each point."""
        points: Counter[str] = Counter()
        for name, count in self.fired.items():
            points[name.partition(" at ")[2]] += count
        return dict(sorted(points.items()))


async def soak(seeds: range, *, workers: int, kind: Family = "plain", niceness: int = 0) -> Totals:
    """Run every seed of ``seeds`` in the family ``kind`` on so many processes.

    ``niceness``: 0 to 19; how far they stand back for others who want the cores.

    Raises:
        InternalError: a child ended before it had done its seeds.
    """
    totals = Totals()
    async with asyncio.TaskGroup() as tasks:
        for worker in range(workers):
            tasks.create_task(_child(seeds[worker::workers], kind, niceness, totals))
    return totals


async def _child(seeds: range, kind: Family, niceness: int, totals: Totals) -> None:
    if not seeds:
        return
    numbers = [str(seeds.start), str(seeds.stop), str(seeds.step)]
    options = ("--family", kind, "--nice", str(niceness), "--range", *numbers)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "peers.soak", *options),
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES,
    )
    assert child.stdout is not None
    done = 0
    try:
        async for line in child.stdout:
            outcome = msgspec.json.decode(line, type=Outcome)
            totals.add(outcome)
            done += 1
            if outcome.failed:
                click.echo(describe(outcome))
        await child.wait()
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if done != len(seeds):
        msg = f"a child ended with code {child.returncode} after {done} of {len(seeds)} seeds"
        raise InternalError(msg)


def describe(outcome: Outcome) -> str:
    """A failure in one line, and how to see it again in another."""
    fired = ", ".join(f"{name} ({count})" for name, count in sorted(outcome.fired.items()))
    return (
        f"seed {outcome.plan.seed} {outcome.end}: {outcome.reason} [{fired or 'no fault fired'}]\n"
        f"  again: git checkout {source_commit()} && python -m peers.soak --family "
        f"{family(outcome.plan)} --seed {outcome.plan.seed}   event log {outcome.event_log_hash}"
    )


def summary(totals: Totals) -> Iterable[str]:
    """All outcomes in a few lines."""
    yield ", ".join(f"{count} {end}" for end, count in sorted(totals.ends.items()))
    yield "faults: " + ", ".join(f"{kind} {count}" for kind, count in totals.by_kind().items())
    yield "points: " + ", ".join(f"{name} {count}" for name, count in totals.by_point().items())


@click.command()
@click.option("--seeds", type=click.IntRange(1), default=2000, show_default=True)
@click.option("--first", type=click.IntRange(0), default=0, help="The first seed.")
@click.option("--workers", type=click.IntRange(1), default=None, help="Processes; all cores.")
@click.option("--seed", type=click.IntRange(0), help="Only this one, in full.")
@click.option("--plan", type=click.Path(path_type=Path), help="Only this plan (JSON).")
@click.option("--shrink", "shortest", is_flag=True, help="Find the shortest failing plan.")
@click.option("--family", "kind", type=click.Choice(list(FAMILIES)), default="plain")
@click.option(
    "--nice", "niceness", type=click.IntRange(0, 19), default=0, help="Stand back so far."
)
@click.option("--range", "span", type=(int, int, int), hidden=True)
def main(  # noqa: PLR0913 - one per flag
    *,
    seeds: int,
    first: int,
    workers: int | None,
    seed: int | None,
    plan: Path | None,
    shortest: bool,
    kind: Family,
    niceness: int,
    span: tuple[int, int, int] | None,
) -> None:
    """Run random swarms from their seeds."""
    if span is not None:
        os.nice(niceness)
        _serve(range(*span), kind)
    elif seed is not None or plan is not None:
        single = FAMILIES[kind](seed) if seed is not None else _read(plan)
        sys.exit(_one(single, shortest=shortest))
    else:
        count = workers or os.cpu_count() or 1
        chosen = range(first, first + seeds)
        totals = asyncio.run(soak(chosen, workers=count, kind=kind, niceness=niceness))
        for line in summary(totals):
            click.echo(line)
        sys.exit(1 if totals.failures else 0)


def _serve(seeds: range, kind: Family) -> None:
    """The child: an outcome a line."""
    gc.disable()
    gc.freeze()  # what was imported need not be walked each time
    for seed in seeds:
        gc.collect()  # what the last one left, mostly in cycles, while the cache still holds it
        sys.stdout.buffer.write(msgspec.json.encode(run(FAMILIES[kind](seed))) + b"\n")
        sys.stdout.buffer.flush()


def _one(plan: SwarmPlan, *, shortest: bool) -> int:
    outcome = run(plan)
    if shortest and outcome.failed:
        outcome = shrink(outcome)
    click.echo(msgspec.json.format(msgspec.json.encode(outcome)).decode())
    return 1 if outcome.failed else 0


def _read(path: Path | None) -> SwarmPlan:
    assert path is not None
    try:
        return msgspec.json.decode(path.read_bytes(), type=SwarmPlan)
    except (OSError, msgspec.DecodeError) as error:
        raise click.BadParameter(f"{path} is no plan: {error}", param_hint="--plan") from error


if __name__ == "__main__":
    main()
