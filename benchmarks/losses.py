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

``--rows "k18 int3"`` trains latents of 18 values and 3 bits; so may any others be compared.

Rows are written as they end, and a row that is interrupted (``--minutes``, Ctrl-C) goes on
where it was saved: the same command again continues the table. Commands with other ``--rows``
or ``--seeds`` may run at the same time. Medians are over seeds. ``--told --out FILE --plot
PICTURE`` draws loss against bytes per token from a table that is there.
"""

from __future__ import annotations

import fcntl
import statistics
import sys
import time
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from benchmarks import record
from benchmarks.rows import (
    NAMES,
    SIZES,
    Size,
    bytes_per_token,
    row_named,
    rows_of,
    spec_of,
    steps_of,
)
from benchmarks.trainings import Progress, resume
from p2ptrain.compute.device import arithmetic_class, choose_device
from p2ptrain.data import load_corpus, pin
from p2ptrain.errors import RunSpecError, UserError
from p2ptrain.run import digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from p2ptrain.units import RunId

NOT_REACHED = 1
CURVE_POINTS = 100

Key = str
"""``row/seed``."""


class Table:
    """Rows that have ended, in a file that is whole after each.

    ``origins`` there: which commit and device trained each, for the next command may have others.
    """

    def __init__(self, name: str, path: Path | None, commit: str, device: str = "cpu") -> None:
        self._name, self._commit, self._device = name, commit, device
        self._path = path or record.RESULTS / f"{name}.json"
        self.ended: dict[Key, Progress] = {}
        self._origins: dict[Key, tuple[str, str]] = {}
        self._read()

    def add(self, key: Key, progress: Progress, size: Size) -> Path:
        """Keep a row's end, and what others have written meanwhile."""
        with self._alone():
            self._read()
            self.ended[key] = thinned(progress)
            self._origins[key] = self._commit, self._device
            result: dict[str, object] = {
                "device": self._device,
                "origins": self._origins,
                "runs": msgspec.to_builtins(self.ended),
                "table": summary(size, self.ended),
            }
            return record.write(self._name, result, commit=self._commit, path=self._path)

    def holds(self, key: Key, run: RunId) -> bool:
        """Whether the row has ended; those of old files do not say of which run.

        Raises:
            UserError: it has, with other settings.
        """
        known = self.ended.get(key)
        if known is not None and known.run not in ("", run):
            raise UserError(f"{self._path}: {key} is of a run with other settings: give --out")
        return known is not None

    def _read(self) -> None:
        if self._path.exists():
            held = msgspec.json.decode(self._path.read_bytes())
            self.ended |= msgspec.convert(held["runs"], dict[Key, Progress])
            whole = dict.fromkeys(held["runs"], (held["commit"], held.get("device", "")))
            self._origins |= held.get("origins", whole)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def thinned(progress: Progress) -> Progress:
    """With CURVE_POINTS of its training losses, evenly taken: a result is read by people."""
    every = max(1, -(-len(progress.loss) // CURVE_POINTS))
    return msgspec.structs.replace(progress, loss=progress.loss[::every])


def summary(size: Size, ended: Mapping[Key, Progress]) -> dict[str, dict[str, float | None]]:
    """Each row's median loss, its gap to ``none``, bytes per token and recovery."""
    losses: dict[str, list[float]] = {}
    for key, progress in ended.items():
        if progress.val_loss is not None:
            losses.setdefault(key.rpartition("/")[0], []).append(progress.val_loss)
    medians = {name: statistics.median(values) for name, values in losses.items()}
    whole, cut = medians.get("none"), medians.get("cut")
    table: dict[str, dict[str, float | None]] = {}
    for name in sorted(medians, key=medians.__getitem__):
        loss, row = medians[name], row_named(size, name)
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
            slanted = {"xytext": (3, 3), "rotation": 25.0, "rotation_mode": "anchor"}
            axes.annotate(name, (across, loss), textcoords="offset points", **slanted)
    axes.margins(0.12)
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


def _numbers(_context: click.Context, _parameter: click.Parameter, given: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(each) for each in given.split(",")}))
    except ValueError:
        raise click.BadParameter(f"{given}: not numbers with commas between") from None


def _check(size: Size, name: str) -> None:
    try:
        spec_of(size, row_named(size, name), seed=0, steps=1)
    except KeyError:
        known = ", ".join([*rows_of(size), "k18 int3"])
        raise click.BadParameter(f"no row {name}; there are: {known} and such") from None
    except RunSpecError as error:
        raise click.BadParameter(f"{name}: {error}") from None


@click.command(help=__doc__)
@click.option("--size", "name", type=click.Choice(list(SIZES)), default="28x", show_default=True)
@click.option("--rows", default=NAMES, show_default=True)
@click.option("--seeds", default="0,1", show_default=True, callback=_numbers)
@click.option("--steps", type=click.IntRange(1), default=None, help="Fewer: no figures to quote.")
@click.option("--minutes", type=float, default=None, help="Stop after so many; run again to go on.")
@click.option("--device", default="auto", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=None)
@click.option("--state", type=click.Path(path_type=Path), default=Path("losses-state"))
@click.option("--out", type=click.Path(path_type=Path), default=None)
@click.option("--told", is_flag=True, help="Train nothing: tell, and draw, what has ended.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), default=None)
def cli(  # noqa: PLR0913 -- click hands over every option
    *,
    name: str,
    rows: str,
    seeds: tuple[int, ...],
    steps: int | None,
    minutes: float | None,
    device: str,
    data: Path | None,
    state: Path,
    out: Path | None,
    told: bool,
    picture: Path | None,
) -> None:
    size = SIZES[name]
    for row in rows.split(","):
        _check(size, row)
    steps = steps or steps_of(size)
    whole = f"losses-{name}" if steps == steps_of(size) else f"losses-{name}-{steps}"
    plain = spec_of(size, rows_of(size)["none"], seed=0, steps=steps)
    kind = arithmetic_class(plain, choose_device(device, plain), plain.arithmetic.threads)
    table = Table(whole, out, record.source_commit(), kind)
    until = time.perf_counter() + (60 * minutes if minutes else float("inf"))
    for seed, row in () if told else product(seeds, rows.split(",")):
        key = f"{row}/{seed}"
        spec = pin(spec_of(size, row_named(size, row), seed=seed, steps=steps), data)
        try:
            if table.holds(key, digest(spec)):
                continue
            ended = resume(
                spec,
                load_corpus(spec, data),
                state / whole / key.replace(" ", "-").replace("/", "-"),
                severed=row_named(size, row).severed,
                device=device,
                until=until,
                tell=lambda at, key=key: click.echo(f"{key}: step {at.step}, {_recent(at):.4f}"),
            )
        except UserError as error:
            raise click.ClickException(str(error)) from None
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
