"""What a codec costs in loss: equal tokens, ids, first weights and optimizer, two seeds.

    python -m benchmarks.losses --size 28x|127x-narrow|127x|long [--rows NAME,...] [--minutes M]

Every row trains the same 8 layers in 4 stages on the source of Python's own library, in one
process, through the codecs and integer sums of a swarm (whose weights are the same to the
bit). ``cut`` is the control: nothing crosses, the last stage has its token anchors alone. A
gap in percent hides how much of it no wire at all would have reached, so the table also has

    recovery = (cut - codec) / (cut - none)

``wide`` is the model with a bottleneck's parts but hardly any narrowing (d_model - 1, in
fp32): what norm, encoder, decoder and anchors do by themselves, for better or worse. ``anchored``
has the codec's norm and anchors and no maps, and sends all of d_model in fp32: a codec that
beats ``none`` but not ``anchored`` owes it to its parameters, not to its wire.

Rows are written as they end, and a row that is interrupted (``--minutes``, Ctrl-C) goes on
where it was saved: the same command again continues the table. Medians are over seeds.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from benchmarks import record
from benchmarks.trainings import Progress, resume
from p2ptrain.data import load_corpus, pin
from p2ptrain.run import (
    Arithmetic,
    Batch,
    Codec,
    Composition,
    Cut,
    Evaluation,
    Model,
    Optimizer,
    RunSpec,
    validate,
)
from p2ptrain.run.codecs import BUILT_IN, composition_of
from p2ptrain.run.frames import most_frame_bytes, nominal_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LAYERS, STAGES = 8, 4
CONTEXT, SEQUENCES = 256, 8
"""Microbatches of 2,048 tokens: headers and means then take a tenth of a byte a token."""

HELD_OUT_MICROBATCHES = 24
"""49,152 held-out tokens, the same for every row and seed of a size."""

TOKENS = 1_638_400
LONG_TOKENS = 100_000_000
NOT_REACHED = 1

ROWS = "none,codec,cut,anchored,wide,bf16,bf16 latents,int8 latents"
"""In this order for every seed: what is to be shown comes first."""

Key = str
"""``row/seed``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A model's width and the latents that are compared at it."""

    d_model: int
    width: int
    bits: int
    tokens: int = TOKENS
    heads: int = 4


SIZES = {
    "28x": Size(d_model=128, width=13, bits=4),
    "127x-narrow": Size(d_model=256, width=4, bits=3),
    "127x": Size(d_model=512, width=11, bits=4, heads=8),
    "long": Size(d_model=1024, width=27, bits=4, heads=16, tokens=LONG_TOKENS),
}
"""``long`` is for a GPU: weeks on one core. Each keeps its ratio with ids and headers counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What stands at all three boundaries. ``severed``: nothing does, the control of ``codec``."""

    codec: Composition
    severed: bool = False


def rows_of(size: Size) -> dict[str, Row]:
    """The table's rows by name; ``codec`` is the one whose ratio counts."""

    def latent(bits: int, width: int = size.width) -> Row:
        return Row(
            codec=Composition(
                name="latent",
                width=width,
                anchor_order=3,
                mean=bits < 16,  # noqa: PLR2004 -- of integers alone
                forward=((0, bits),),  # type: ignore[arg-type]
                backward=((0, bits),),  # type: ignore[arg-type]
            )
        )

    codec = latent(size.bits)
    fp32 = ((0, 32),)
    return {
        "none": Row(codec=Composition(name="none")),
        "bf16": Row(codec=Composition(name="bf16")),
        "codec": codec,
        "cut": Row(codec=codec.codec, severed=True),
        "anchored": Row(
            codec=Composition(name="anchored", anchor_order=3, forward=fp32, backward=fp32)
        ),
        "wide": latent(32, size.d_model - 1),
        "bf16 latents": latent(16),
        "int8 latents": latent(8),
    }


def spec_of(size: Size, row: Row, *, seed: int, steps: int) -> RunSpec:
    """The run of one row, not pinned yet."""
    built_in = row.codec.name in BUILT_IN
    return validate(
        RunSpec(
            name="losses",
            seed=seed,
            model=Model(
                d_model=size.d_model,
                n_layers=LAYERS,
                n_heads=size.heads,
                n_kv_heads=size.heads // 2,
                d_ff=2 * size.d_model,
                context=CONTEXT,
            ),
            cut=Cut(stages=STAGES, layers=(LAYERS // STAGES,) * STAGES),
            batch=Batch(sequences=SEQUENCES, microbatches=1),
            optimizer=Optimizer(steps=steps),
            codec=Codec(name=row.codec.name, compositions=() if built_in else (row.codec,)),
            arithmetic=Arithmetic(dtype="bfloat16"),
            evaluation=Evaluation(every_steps=0, microbatches=HELD_OUT_MICROBATCHES),
        )
    )


def steps_of(size: Size) -> int:
    """Steps of one microbatch each."""
    return size.tokens // (SEQUENCES * CONTEXT)


def bytes_per_token(spec: RunSpec) -> tuple[float, float]:
    """Of whole frames, forward and backward, at the last boundary, where paths are longest."""
    boundary = spec.cut.stages - 2
    composition = composition_of(spec, boundary)
    forward, backward = (
        most_frame_bytes(spec, composition, boundary, direction) / nominal_tokens(spec)
        for direction in ("forward", "backward")
    )
    return forward, backward


class Table:
    """Rows that have ended, in a file that is whole after each."""

    def __init__(self, name: str, path: Path | None, commit: str) -> None:
        self._name, self._commit = name, commit
        self._path = path or record.RESULTS / f"{name}.json"
        self.ended: dict[Key, Progress] = {}
        if self._path.exists():
            held = msgspec.json.decode(self._path.read_bytes())
            self.ended = msgspec.convert(held["runs"], dict[Key, Progress])

    def add(self, key: Key, progress: Progress, size: Size) -> Path:
        """Keep a row's end."""
        self.ended[key] = progress
        result = {"runs": msgspec.to_builtins(self.ended), "table": summary(size, self.ended)}
        return record.write(self._name, result, commit=self._commit, path=self._path)


def summary(size: Size, ended: Mapping[Key, Progress]) -> dict[str, dict[str, float | None]]:
    """Each row's median loss, its gap to ``none``, bytes per token and recovery."""
    losses: dict[str, list[float]] = {}
    for key, progress in ended.items():
        if progress.val_loss is not None:
            losses.setdefault(key.rpartition("/")[0], []).append(progress.val_loss)
    medians = {name: statistics.median(values) for name, values in losses.items()}
    whole, cut = medians.get("none"), medians.get("cut")
    table: dict[str, dict[str, float | None]] = {}
    for name, row in rows_of(size).items():
        if name not in medians:
            continue
        loss = medians[name]
        forward, backward = bytes_per_token(spec_of(size, row, seed=0, steps=1))
        known = whole is not None and cut is not None and cut != whole and name != "none"
        table[name] = {
            "seeds": len(losses[name]),
            "val_loss": loss,
            "gap": _gap(loss, whole),
            "gap_to_anchored": _gap(loss, medians.get("anchored")),
            "gap_to_wide": _gap(loss, medians.get("wide")),
            "recovery": (cut - loss) / (cut - whole) if known and cut and whole else None,
            "forward_bytes_per_token": 0.0 if row.severed else forward,
            "backward_bytes_per_token": 0.0 if row.severed else backward,
            "ratio_vs_bf16": None if row.severed else 2 * size.d_model / max(forward, backward),
        }
    return table


def _gap(loss: float, other: float | None) -> float | None:
    return None if other is None else loss / other - 1


def plot(table: Mapping[str, Mapping[str, float | None]], path: Path) -> None:
    """Loss against bytes per token, as a picture; the control is where the wire ends."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - an extra

    figure = Figure(figsize=(8.0, 4.5))
    axes = figure.add_subplot()
    axes.set(xlabel="bytes per token and direction", ylabel="validation loss, nats per byte")
    axes.set_xscale("symlog", linthresh=1.0)
    for name, row in table.items():
        across, loss = row["forward_bytes_per_token"], row["val_loss"]
        if across is not None and loss is not None:
            axes.plot([across], [loss], "o")
            axes.annotate(name, (across, loss), textcoords="offset points", xytext=(5, 5))
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def line(name: str, row: Mapping[str, float | None]) -> str:
    """One row as people read it."""

    def of(key: str, form: str) -> str:
        value = row[key]
        return "-" if value is None else format(value, form)

    return (
        f"{name:14} {of('forward_bytes_per_token', '.2f'):>8} / "
        f"{of('backward_bytes_per_token', '.2f'):<8} {of('ratio_vs_bf16', '.1f'):>6}x  "
        f"loss {of('val_loss', '.4f')}  gap {of('gap', '+.2%')} "
        f"(to anchored {of('gap_to_anchored', '+.2%')}, to wide {of('gap_to_wide', '+.2%')})  "
        f"recovery {of('recovery', '.2f')}  ({of('seeds', 'g')} seeds)"
    )


@click.command(help=__doc__)
@click.option("--size", "name", type=click.Choice(list(SIZES)), default="28x", show_default=True)
@click.option("--rows", default=ROWS, show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=None, help="Fewer: no figures to quote.")
@click.option("--minutes", type=float, default=None, help="Stop after so many; run again to go on.")
@click.option("--device", default="auto", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=None)
@click.option("--state", type=click.Path(path_type=Path), default=Path("losses-state"))
@click.option("--out", type=click.Path(path_type=Path), default=None)
@click.option("--plot", "picture", type=click.Path(path_type=Path), default=None)
def cli(  # noqa: PLR0913 -- click hands over every option
    *,
    name: str,
    rows: str,
    seeds: int,
    steps: int | None,
    minutes: float | None,
    device: str,
    data: Path | None,
    state: Path,
    out: Path | None,
    picture: Path | None,
) -> None:
    size, held = SIZES[name], rows_of(SIZES[name])
    for row in rows.split(","):
        if row not in held:
            raise click.BadParameter(f"no row {row}; there are: {', '.join(held)}")
    steps = steps or steps_of(size)
    whole = f"losses-{name}" if steps == steps_of(size) else f"losses-{name}-{steps}"
    table = Table(whole, out, record.source_commit())
    until = time.perf_counter() + (60 * minutes if minutes else float("inf"))
    wanted = [(row, seed) for seed in range(seeds) for row in rows.split(",")]
    for row, seed in wanted:
        key = f"{row}/{seed}"
        if key in table.ended:
            continue
        spec = pin(spec_of(size, held[row], seed=seed, steps=steps), data)
        ended = resume(
            spec,
            load_corpus(spec, data),
            state / whole / key.replace(" ", "-").replace("/", "-"),
            severed=held[row].severed,
            device=device,
            until=until,
            tell=lambda at, key=key: click.echo(f"{key}: step {at.step}, {_recent(at):.4f}"),
        )
        if ended is None:
            click.echo(f"{key}: not at its end; the same command goes on")
            sys.exit(NOT_REACHED)
        click.echo(f"{key}: {ended.val_loss:.4f} in {ended.seconds:.0f} s")
        click.echo(f"written: {table.add(key, ended, size)}")
    found = summary(size, table.ended)
    for row, figures in found.items():
        click.echo(line(row, figures))
    if picture is not None:
        plot(found, picture)


def _recent(at: Progress) -> float:
    last: Sequence[tuple[int, float]] = at.loss[-20:]
    return statistics.mean(loss for _, loss in last) if last else float("nan")


if __name__ == "__main__":
    cli()
