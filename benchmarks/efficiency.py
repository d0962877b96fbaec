"""How fast a swarm of two peers is, beside one process and beside torch's own pipeline.

    python -m benchmarks.efficiency [--model tiny|wide]... [--long] [--rounds N] [--steps N]

Four contenders train the same run on the same two cores, each step with forward, backward
and optimizer:

    swarm       2 peers, 2 stages: real processes, real libp2p, one compute thread each
    plain       one process, plain torch, a thread per core
    sums        one process with the swarm's codec and integer sums, a thread per core
    scheduled   torch.distributed.pipelining, 1F1B over gloo, 2 processes, one thread each
    plain-1     plain with one thread: the least processor time that this work can take

They take turns within a round, so that a change of weather meets all of them; figures are
medians over rounds. Ratios are taken three times: of median speeds, of best speeds (each
contender's least disturbed round) and of processor time, which disturbance changes little.
A contender that does not end in time is noted and left out.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from benchmarks import record
from benchmarks.contenders import Contenders
from benchmarks.run import Run, Speed, median, speed, step_tokens
from p2ptrain.data import pin
from p2ptrain.run import Batch, Cut, Evaluation, RunSpec, preset, validate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PEERS = STAGES = 2
LIMIT_SECONDS = 180.0
"""Of one contender in one round. Threads that share cores with strangers can wait for ever."""

MODELS = {"tiny": preset("tiny"), "wide": preset("small")}
"""``wide``: d = 512 over 4 layers, where arithmetic outweighs everything around it."""

SEQUENCES = {"tiny": 4, "wide": 1}
SHORT_STEPS, LONG_STEPS = {"tiny": 12, "wide": 4}, {"tiny": 40, "wide": 10}
SHORT_ROUNDS, LONG_ROUNDS = 2, 5

CONTENDERS: dict[str, Callable[[Contenders, int], Awaitable[Run]]] = {
    "swarm": lambda on, _: _swarm(on),
    "plain": lambda on, steps: on.alone("plain", threads=_cores(), steps=steps),
    "sums": lambda on, steps: on.alone("sums", threads=_cores(), steps=steps),
    "scheduled": lambda on, steps: on.scheduled(steps=steps),
    "plain-1": lambda on, steps: on.alone("plain", threads=1, steps=steps),
}


async def measure(spec: RunSpec, rounds: int, folder: Path) -> dict[str, object]:
    """All contenders in turns on ``spec``; its result as JSON."""
    speeds: dict[str, list[Speed]] = {name: [] for name in CONTENDERS}
    late: dict[str, int] = {}
    loads = []
    field = Contenders(spec, folder, limit_seconds=LIMIT_SECONDS)
    for number in range(rounds):
        for name, contend in CONTENDERS.items():
            loads.append(record.load())
            try:
                found = speed(spec, await contend(field, spec.optimizer.steps))
            except TimeoutError:
                late[name] = late.get(name, 0) + 1
                click.echo(f"round {number}  {name:10} not within {LIMIT_SECONDS:.0f} s")
                continue
            speeds[name].append(found)
            click.echo(f"round {number}  {name:10} {found.tokens_per_second:10,.0f} tokens/s")
    return {"loads": loads, "late": late, **summary(speeds)}


def summary(speeds: dict[str, list[Speed]]) -> dict[str, object]:
    """Medians, and the swarm over each other contender (above 1: the swarm is better)."""
    rates = {
        name: median([s.tokens_per_second for s in each]) for name, each in speeds.items() if each
    }
    costs = {
        name: median([s.cpu_seconds_per_kilotoken for s in each])
        for name, each in speeds.items()
        if each
    }
    best = {name: max(s.tokens_per_second for s in each) for name, each in speeds.items() if each}
    others = [name for name in rates if name != "swarm" and "swarm" in rates]
    return {
        "tokens_per_second": rates,
        "best_tokens_per_second": best,
        "cpu_seconds_per_kilotoken": costs,
        "swarm_speed_over": {name: rates["swarm"] / rates[name] for name in others},
        "swarm_best_speed_over": {name: best["swarm"] / best[name] for name in others},
        "swarm_work_over": {name: costs[name] / costs["swarm"] for name in others},
        "rounds": {name: [msgspec.to_builtins(s) for s in each] for name, each in speeds.items()},
    }


def spec_of(model: str, steps: int) -> RunSpec:
    """The pinned run of a model, without evaluation (its time would count for no tokens)."""
    base = MODELS[model]
    return pin(
        validate(
            msgspec.structs.replace(
                base,
                cut=Cut(stages=STAGES),
                batch=Batch(sequences=SEQUENCES[model], microbatches=16),
                optimizer=msgspec.structs.replace(base.optimizer, steps=steps),
                evaluation=Evaluation(every_steps=0, microbatches=0),
            )
        )
    )


async def _swarm(on: Contenders) -> Run:
    run, _ = await on.swarm(peers=PEERS)
    return run


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@click.command(help=__doc__)
@click.option("--model", "models", type=click.Choice(list(MODELS)), multiple=True)
@click.option("--long", "long_form", is_flag=True, help="More steps and rounds: for the record.")
@click.option("--rounds", type=click.IntRange(1), default=None)
@click.option("--steps", type=click.IntRange(2), default=None)
@click.option("--out", type=click.Path(path_type=Path), default=None)
def cli(
    *,
    models: tuple[str, ...],
    long_form: bool,
    rounds: int | None,
    steps: int | None,
    out: Path | None,
) -> None:
    commit, cases = record.source_commit(), dict[str, object]()
    for model in models or tuple(MODELS):
        spec = spec_of(model, steps or (LONG_STEPS if long_form else SHORT_STEPS)[model])
        click.echo(f"{model}: {spec.optimizer.steps} steps of {step_tokens(spec):,} tokens")
        with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder:
            count = rounds or (LONG_ROUNDS if long_form else SHORT_ROUNDS)
            found = asyncio.run(measure(spec, count, Path(folder)))
        cases[model] = {"spec": msgspec.to_builtins(spec), **found}
        _print(found)
        result = {"long": long_form, "cases": cases}  # so far: a later model may not end
        click.echo(f"written: {record.write('efficiency', result, commit=commit, path=out)}")


def _print(found: dict[str, object]) -> None:
    names = (
        "tokens_per_second",
        "best_tokens_per_second",
        "cpu_seconds_per_kilotoken",
        "swarm_speed_over",
        "swarm_best_speed_over",
        "swarm_work_over",
    )
    columns = [msgspec.convert(found[name], dict[str, float]) for name in names]
    heads = ("tokens/s", "best", "CPU s/kt", "swarm over", "best over", "CPU over")
    click.echo(" " * 10 + "".join(f"{head:>12}" for head in heads))
    for name in columns[0]:
        values = [column.get(name, 1.0) for column in columns]
        rates = "".join(f"{value:12,.0f}" for value in values[:2])
        click.echo(f"{name:10}{rates}" + "".join(f"{value:12.3f}" for value in values[2:]))


if __name__ == "__main__":
    cli()
