"""The judge: trains a run in one process and prints what its weights must be.

    python -m peers.reference --run run.toml [--data PATH] [--steps N] [--threads N] [--json]

A simulation starts it as a process of its own, so that no state of the swarm can leak into
the verdict: it imports run, core, data and compute, and neither engine nor network. Its
speed is the honest baseline too: the same model, codecs and integer sums, without a swarm.

With ``--json`` the last line of stdout is one object; progress goes to stderr, one line
for every step that was evaluated. ``--threads`` differing from the RunSpec's gives
another arithmetic, hence possibly other bits: it is for measuring speed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from p2ptrain.compute.reference import StepReport, Trained, train
from p2ptrain.data import load_corpus
from p2ptrain.errors import P2PTrainError, UserError
from p2ptrain.run import digest, from_toml

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.run import RunSpec


@click.command(help="Train a run in one process and print the digest of its weights.")
@click.option("--run", "run_file", type=click.Path(path_type=Path), required=True)
@click.option("--data", type=click.Path(path_type=Path), default=None)
@click.option("--steps", type=click.IntRange(1), default=None, help="Default: the whole run.")
@click.option("--threads", type=click.IntRange(1), default=None, help="Default: the RunSpec's.")
@click.option("--device", default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, last on stdout.")
def cli(
    *,
    run_file: Path,
    data: Path | None,
    steps: int | None,
    threads: int | None,
    device: str,
    as_json: bool,
) -> None:
    """Read the run, train it, print."""
    spec = read_run(run_file)
    corpus = load_corpus(spec, data)
    computed = spec if threads is None else with_threads(spec, threads)
    begun = time.perf_counter()
    trained = train(computed, corpus, steps=steps, device=device, on_step=show)
    found = result(spec, trained, time.perf_counter() - begun)
    if as_json:
        click.echo(json.dumps(found))
    else:
        for name, value in found.items():
            click.echo(f"{name:18} {value}")


def read_run(run_file: Path) -> RunSpec:
    """The RunSpec of a file.

    Raises:
        UserError: it cannot be read; RunSpecError: it cannot be run.
    """
    try:
        return from_toml(run_file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--run {run_file}: cannot be read; p2ptrain init writes one") from error


def with_threads(spec: RunSpec, threads: int) -> RunSpec:
    """``spec`` computed on ``threads`` threads."""
    arithmetic = msgspec.structs.replace(spec.arithmetic, threads=threads)
    return msgspec.structs.replace(spec, arithmetic=arithmetic)


def show(report: StepReport) -> None:
    """One line of progress for an evaluated step."""
    if report.val_loss is not None:
        training = "" if report.loss is None else f"  loss {report.loss:.4f}"
        click.echo(f"step {report.step}{training}  val_loss {report.val_loss:.4f}", err=True)


def result(spec: RunSpec, trained: Trained, seconds: float) -> dict[str, object]:
    """What is printed; the names are those of a simulation's report."""
    validations = [[r.step, r.val_loss] for r in trained.steps if r.val_loss is not None]
    return {
        "run_id": digest(spec),
        "weights_digest": trained.weights_digest,
        "steps": len(trained.steps),
        "skipped": sum(report.skipped for report in trained.steps),
        "loss": [[r.step, r.loss] for r in trained.steps if r.loss is not None],
        "val_losses": validations,
        "val_loss": validations[-1][1] if validations else None,
        "tokens": trained.tokens,
        "seconds": seconds,
        "tokens_per_second": trained.tokens / seconds,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    try:
        cli.main(arguments, prog_name="python -m peers.reference", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    except P2PTrainError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
