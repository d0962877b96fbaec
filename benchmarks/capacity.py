"""How much of its machines' capacity a swarm of unequal, unreliable peers turns into steps.

    python -m benchmarks.capacity [--long] [--deposit N] [--free] [--only NAME ...] [--seed N ...]

The production engine in virtual time (benchmarks/uneven: the setting), so the figures are
the same on every machine. ``stream``: one step so long that neither its beginning nor its
end is in the window that is measured, so routing alone counts. ``step``: whole exact steps
with a reduction of ten seconds, from commit to commit. Each in calm, and with peers dying
and slowing down unannounced. Peers stay at the stage that they are told, so that routing is
what is measured; with ``--free`` they are told where to begin, and may move, as peers do.

    of bound   against the weakest stage of the layout, everybody alive and well
    of live    against the weakest stage of those who held seats at the time
    of able    likewise, with those who were slowed down as slow as they were
    work       services computed, replays too, against the same bound

``mend``: a stage loses every second replica, and peers that choose for themselves mend it;
``join``: many come at once (benchmarks/rebalance).

Short, it is 4 stages x 4 and a minute or two; ``--long`` is the record's 16 stages x 8, and ten
minutes of an idle core for each case. How far it is comes on standard error; what has been found is
written after every case.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from benchmarks import record
from benchmarks.rebalance import SHARE, Phases, crowd, mend
from benchmarks.uneven import WINDOW, Swarm, Trouble
from benchmarks.watch import Watch
from p2ptrain.units import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2ptrain.units import Seconds

EACH = 16
"""Microbatches of a step, for each peer."""

JOINS_AT, JOIN_SECONDS = 150.0, 200.0
"""In the second step; their states come within a minute, and are too old once in a while."""

SUM_SECONDS = 10.0
MTBF_SECONDS = 1800.0
DYING = Trouble(mtbf_seconds=MTBF_SECONDS)
STORMY = Trouble(mtbf_seconds=MTBF_SECONDS, slow_share=0.05)

HEAD = (
    "case            stages replicas   ids  bound/s  of bound  of live  of able    work  died  slow"
    "  wall s"
)

WARM_SHARE, COLD_SHARE = 0.25, 0.7
"""Of the microbatches of the long step: between these the stream is measured. What is in
flight, eight a stage and average seat, is a quarter at the sizes used here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What one case came to; rates are microbatches a second."""

    name: str
    stages: int
    replicas: int
    window: int
    deposit: int
    free: bool
    microbatches: int
    seed: int
    bound: float
    live: float
    able: float
    rate: float
    work: float
    deaths: int
    slowdowns: int
    seconds: Seconds
    wall_seconds: Seconds

    @property
    def of_bound(self) -> float:
        """Of the static capacity."""
        return self.rate / self.bound

    @property
    def of_live(self) -> float:
        """Of the capacity of those who were there."""
        return self.rate / self.live

    @property
    def of_able(self) -> float:
        """The same, but of what those who were slowed could do."""
        return self.rate / self.able


def stream(swarm: Swarm, name: str) -> Figure:
    """Microbatches that came all the way back, per second, in the middle of one long step."""
    began = time.perf_counter()
    total = swarm.microbatches
    watch = Watch(swarm, until_counted=int(COLD_SHARE * total))
    watch.run()
    back = sorted(watch.first.values())
    start, stop = back[int(WARM_SHARE * total)], back[int(COLD_SHARE * total) - 1]
    count = int(COLD_SHARE * total) - 1 - int(WARM_SHARE * total)
    return _figure(watch, name, (start, stop), count / (stop - start), began)


def steps(swarm: Swarm, name: str) -> Figure:
    """Whole steps: from the commit of the first to that of the last."""
    began = time.perf_counter()
    watch = Watch(swarm)
    watch.run()
    start, stop = watch.commits[Step(0)], watch.commits[Step(swarm.steps - 1)]
    rate = swarm.microbatches * (swarm.steps - 1) / (stop - start)
    return _figure(watch, name, (start, stop), rate, began)


def _figure(
    watch: Watch, name: str, window: tuple[Seconds, Seconds], rate: float, began: float
) -> Figure:
    swarm, fired, (start, stop) = watch.swarm, watch.harm.tally.fired(), window
    counted = [sum(start < at <= stop for at in times) for times in watch.counted.values()]
    return Figure(
        name=name,
        stages=swarm.stages,
        replicas=swarm.replicas,
        window=swarm.window,
        deposit=swarm.deposit,
        free=swarm.free,
        microbatches=swarm.microbatches,
        seed=swarm.seed,
        bound=swarm.bound,
        live=watch.live_capacity(start, stop),
        able=watch.able_capacity(start, stop),
        rate=rate,
        work=sum(counted) / len(counted) / (stop - start),
        deaths=fired.get("kill", 0),
        slowdowns=fired.get("slow", 0),
        seconds=stop - start,
        wall_seconds=time.perf_counter() - began,
    )


def flows(
    *, long: bool, seed: int, window: int, deposit: int = 0, free: bool = False
) -> Sequence[tuple[str, Swarm]]:
    """Streams and steps: names and swarms."""
    stages, replicas = (16, 8) if long else (4, 4)
    ids, steps_ = EACH * stages * replicas, 2 if long else 3
    whole = Swarm(
        stages=stages,
        replicas=replicas,
        microbatches=ids,
        steps=steps_,
        seed=seed,
        window=window,
        deposit=deposit,
        free=free,
        sum_seconds=SUM_SECONDS,
    )
    endless = replace(whole, microbatches=2 * ids, steps=1, sum_seconds=0.0)
    return (
        ("step", whole),
        ("step, dying", replace(whole, trouble=DYING)),
        ("stream", endless),
        ("stream, stormy", replace(endless, trouble=STORMY)),
    )


def flow(name: str, swarm: Swarm) -> dict[str, object]:
    """Run one, print its line, return its row."""
    found = (stream if name.startswith("stream") else steps)(swarm, name)
    click.echo(
        f"{name:15} {found.stages:6} {found.replicas:8} {found.microbatches:5} "
        f"{found.bound:8.3f} {found.of_bound:9.3f} {found.of_live:8.3f} {found.of_able:8.3f} "
        f"{found.work / found.bound:7.3f} {found.deaths:5} {found.slowdowns:5} "
        f"{found.wall_seconds:7.0f}"
    )
    shares = {"of_bound": found.of_bound, "of_live": found.of_live, "of_able": found.of_able}
    return {**asdict(found), **shares}


def mending(*, long: bool, seed: int) -> dict[str, object]:
    """A stage loses half of its replicas."""
    stages, replicas = (8, 8) if long else (3, 4)
    swarm = Swarm(stages=stages, replicas=replicas, microbatches=40 * replicas, seed=seed)
    phases = Phases(settle_seconds=300.0, rest_seconds=600.0 if long else 200.0)
    found = mend(swarm, phases)
    mended = "never" if found.recovery_seconds is None else f"after {found.recovery_seconds:.0f} s"
    click.echo(
        f"mend   {stages} x {replicas}: {found.before:.2f} of the best, then {found.after:.2f}; "
        f"{SHARE:.2f} again {mended}; at rest {found.moves_per_hour:.0f} moves an hour"
    )
    return {"name": "mend", "stages": stages, "replicas": replicas, "seed": seed, **asdict(found)}


def joining(*, long: bool, seed: int) -> dict[str, object]:
    """Many come at once."""
    stages, joiners = (8, 50) if long else (3, 15)
    swarm = Swarm(stages=stages, replicas=2, microbatches=100, seed=seed)
    ratio = crowd(swarm, joiners=joiners, joins_at=JOINS_AT, seconds=JOIN_SECONDS)
    click.echo(f"join   {joiners} to {stages} x 2: fastest over slowest stage {ratio:.2f}")
    return {"name": "join", "stages": stages, "joiners": joiners, "seed": seed, "ratio": ratio}


@click.command(help=__doc__)
@click.option("--long", is_flag=True, help="the record's size")
@click.option("--seed", "seeds", multiple=True, default=(0,), help="draws: one case each")
@click.option("--window", default=WINDOW, show_default=True, help="limits.window_per_stage")
@click.option("--deposit", default=0, show_default=True, help="sync.deposit_every")
@click.option("--free", is_flag=True, help="peers that were told their first stage alone may move")
@click.option("--only", multiple=True, help="names of cases; all without")
@click.option("--out", type=click.Path(path_type=Path), default=None)
def cli(  # noqa: PLR0913 -- click hands over every option
    *,
    long: bool,
    seeds: tuple[int, ...],
    window: int,
    deposit: int,
    free: bool,
    only: tuple[str, ...],
    out: Path | None,
) -> None:
    commit, rows = record.source_commit(), []
    cases: list[tuple[str, Callable[[], dict[str, object]]]] = []
    for seed in seeds:
        swarms = flows(long=long, seed=seed, window=window, deposit=deposit, free=free)
        cases += [(name, partial(flow, name, one)) for name, one in swarms]
        cases.append(("mend", partial(mending, long=long, seed=seed)))
        cases.append(("join", partial(joining, long=long, seed=seed)))
    click.echo(HEAD)
    for name, case in cases:
        if not only or name in only:
            rows.append(case())
            written = record.write("capacity", {"cases": rows}, commit=commit, path=out)
    if rows:
        click.echo(f"written: {written}")


if __name__ == "__main__":
    cli()
