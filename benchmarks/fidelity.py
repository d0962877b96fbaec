"""Whether a swarm learns what one process learns: validation loss at equal tokens.

    python -m benchmarks.fidelity [--real] [--long] [--steps N] [--seed K]

A swarm of 4 stages x 2 replicas with bf16 at the boundaries, beside two controls on the same
ids, initial weights and optimizer:

    plain   one process, plain torch: no boundaries, no codec, float gradients
    sums    one process with the swarm's codec and integer sums (the reference)

``plain`` says what swarming costs in loss: at most 0.5%. ``sums`` must have the swarm's very
weights, to the bit, so the whole cost is that of codec and sums and none of it the swarm's.
By default the swarm runs in virtual time in one process; ``--real`` starts eight peers.

One seed is one draw: two runs that differ in a last bit drift apart, and the gap may have
either sign. ``--seed`` gives others.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from benchmarks import record
from benchmarks.contenders import Contenders
from benchmarks.run import step_tokens
from p2ptrain.data import pin
from p2ptrain.run import Batch, Codec, Cut, Evaluation, Optimizer, RunSpec, Sync, preset, validate

if TYPE_CHECKING:
    from benchmarks.run import Run

STAGES, REPLICAS = 4, 2
ALLOWED_GAP = 0.005
"""Of the control's loss. On top of seed noise, half a percent is what nobody would notice."""

SHORT_STEPS, LONG_STEPS = 40, 300

HELD_OUT_MICROBATCHES = 64
"""8,192 held-out tokens, the same for all: so few that they cost little, and paired."""

LIMIT_SECONDS = 3600.0
"""300 steps take minutes on an idle machine; on a shared one, whatever others leave."""


def spec_of(steps: int, seed: int) -> RunSpec:
    """The pinned run: ``tiny`` with one sequence to a microbatch."""
    return pin(
        validate(
            msgspec.structs.replace(
                preset("tiny"),
                seed=seed,
                cut=Cut(stages=STAGES),
                sync=Sync(start_replicas=REPLICAS),
                codec=Codec(name="bf16"),
                batch=Batch(sequences=1, microbatches=16),
                optimizer=Optimizer(steps=steps),
                evaluation=Evaluation(every_steps=0, microbatches=HELD_OUT_MICROBATCHES),
            )
        )
    )


async def measure(spec: RunSpec, folder: Path, *, real: bool) -> dict[str, object]:
    """The swarm beside its controls. Nothing is timed, so they may share the machine."""
    field = Contenders(spec, folder, limit_seconds=LIMIT_SECONDS)

    async def controls() -> tuple[Run, Run]:
        plain = await field.alone("plain", threads=1)
        return plain, await field.alone("sums", threads=1)

    async with asyncio.TaskGroup() as group:
        beside = group.create_task(controls())
        swarm = group.create_task(_swarm(field, real=real))
    plain, sums = beside.result()
    return compare(swarm.result(), plain, sums)


def compare(swarm: Run, plain: Run, sums: Run) -> dict[str, object]:
    """Losses in nats per token, their gap, and the two verdicts."""
    if swarm.val_loss is None or plain.val_loss is None:
        raise ValueError("a run without validation has no fidelity")
    gap = swarm.val_loss / plain.val_loss - 1
    return {
        "val_loss": {"swarm": swarm.val_loss, "plain": plain.val_loss, "sums": sums.val_loss},
        "gap": gap,
        "within": gap <= ALLOWED_GAP,
        "allowed_gap": ALLOWED_GAP,
        "bit_equal_to_sums": swarm.weights_digest == sums.weights_digest,
        "weights_digest": swarm.weights_digest,
        "loss": {"swarm": swarm.loss, "plain": plain.loss},
    }


async def _swarm(field: Contenders, *, real: bool) -> Run:
    if not real:
        return await field.virtual(peers=STAGES * REPLICAS)
    run, _ = await field.swarm(peers=STAGES * REPLICAS)
    return run


@click.command(help=__doc__)
@click.option("--real", is_flag=True, help="Eight processes with libp2p, not virtual time.")
@click.option("--long", "long_form", is_flag=True, help=f"{LONG_STEPS} steps: for the record.")
@click.option("--steps", type=click.IntRange(1), default=None)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=None)
def cli(*, real: bool, long_form: bool, steps: int | None, seed: int, out: Path | None) -> None:
    spec = spec_of(steps or (LONG_STEPS if long_form else SHORT_STEPS), seed)
    commit, world = record.source_commit(), "real" if real else "virtual"
    tokens = spec.optimizer.steps * step_tokens(spec)
    click.echo(f"{world} swarm, {STAGES} stages x {REPLICAS}, {tokens:,} tokens")
    with tempfile.TemporaryDirectory(prefix="p2ptrain-bench-") as folder:
        found = asyncio.run(measure(spec, Path(folder), real=real))
    for name, loss in msgspec.convert(found["val_loss"], dict[str, float]).items():
        click.echo(f"{name:6} validation loss {loss:.4f}")
    gap = msgspec.convert(found["gap"], float)
    click.echo(f"gap to plain {gap:+.2%} (allowed {ALLOWED_GAP:+.1%})")
    click.echo(f"weights equal to those of one process: {found['bit_equal_to_sums']}")
    result = {"world": world, "steps": spec.optimizer.steps, "seed": seed, **found}
    result["spec"] = msgspec.to_builtins(spec)
    name = f"fidelity-{world}-{spec.optimizer.steps}"
    click.echo(f"written: {record.write(name, result, commit=commit, path=out)}")
    if not (found["within"] and found["bit_equal_to_sums"]):
        sys.exit(1)


if __name__ == "__main__":
    cli()
