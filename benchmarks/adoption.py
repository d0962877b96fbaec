"""What adopting states as differences costs in loss, and saves in bytes.

    python -m benchmarks.adoption [--seeds 0,1,2,3] [--steps 150] [--out FILE]

One process trains alone and adopts at every ``EVERY`` steps what it would have sent, which is what
every replica of a mixed run goes on with: same tokens, optimizer and seeds in all rows. ``exact``
adopts its own state, so nothing. Beside ``int8`` and ``int4`` stand two controls: moments that go
exactly, and no feedback (what a difference leaves out is forgotten).
Bytes are of one adoption of one receiver, without the frames' headers.

Two seeds of one row differ by more than most rows of a seed do: read the means with the spread.
"""

from __future__ import annotations

import statistics
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import click
import msgspec

from benchmarks import record
from p2ptrain.compute.difference import Difference
from p2ptrain.compute.reference import Training
from p2ptrain.core.schedule import last_step
from p2ptrain.data import load_corpus, pin
from p2ptrain.run import (
    Batch,
    Checkpoint,
    Cut,
    Evaluation,
    Model,
    Optimizer,
    RunSpec,
    Sync,
    validate,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Literal

    from torch import Tensor

    from p2ptrain.compute.optimizers import StageOptimizer

EVERY = 15
"""Steps: nine lossy adoptions in the run, each after more change than later in a long one."""


class Counted(Difference):
    """Notes how long its differences are."""

    sizes: list[int]

    def __init__(self, kind: str, weights: Mapping[str, Tensor], optimizer: StageOptimizer) -> None:
        super().__init__(kind, weights, optimizer)
        self.sizes, self.optimizer = [], optimizer

    def make(self) -> bytes | None:
        """As it is."""
        blob = super().make()
        self.sizes.append(len(blob or b""))
        return blob


class WithoutFeedback(Counted):
    """Forgets what it left out."""

    def make(self) -> bytes | None:
        """As it is, and owes nothing."""
        blob = super().make()
        self.loaded()
        return blob


class ExactMoments(Counted):
    """Sends moments by fewer bits, and keeps them as they were."""

    def make(self) -> bytes | None:
        """As it is, but for the moments."""
        before = {name: tensor.clone() for name, tensor in self.optimizer.state().items()}
        blob = super().make()
        self.optimizer.load(before)
        return blob


ROWS: dict[str, tuple[Literal["exact", "int8", "int4"], type[Counted]]] = {
    "exact": ("exact", Counted),
    "int8": ("int8", Counted),
    "int4": ("int4", Counted),
    "int4, moments exact": ("int4", ExactMoments),
    "int4, no feedback": ("int4", WithoutFeedback),
}


def spec_of(kind: Literal["exact", "int8", "int4"], *, seed: int, steps: int) -> RunSpec:
    """Two layers in one stage, 1,024 tokens a step."""
    return validate(
        RunSpec(
            seed=seed,
            model=Model(d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=128, context=64),
            cut=Cut(stages=1),
            batch=Batch(sequences=4, microbatches=4),
            optimizer=Optimizer(learning_rate=0.04, adamw_learning_rate=0.01, steps=steps),
            sync=Sync(agreement="canonical", canonical_steps=EVERY, adoption=kind),
            evaluation=Evaluation(every_steps=0, microbatches=16),
            checkpoint=Checkpoint(every_steps=0),
        )
    )


def trained(row: str, *, seed: int, steps: int) -> tuple[float, int]:
    """Validation loss at the end, and the bytes of an adoption."""
    kind, sort = ROWS[row]
    spec = pin(spec_of(kind, seed=seed, steps=steps))
    made: list[Counted] = []

    def of(
        spec: RunSpec, weights: Mapping[str, Tensor], optimizer: StageOptimizer
    ) -> Counted | None:
        if spec.sync.adoption == "exact":
            return None
        made.append(sort(spec.sync.adoption, weights, optimizer))
        return made[-1]

    with mock.patch.object(Difference, "of", of):
        training = Training(spec, load_corpus(spec))
    report = training.step()
    while training.version <= last_step(spec):
        report = training.step()
    assert report.val_loss is not None
    whole = [len(blob) for blob in training.save()]
    return report.val_loss, sum(max(each.sizes) for each in made) or sum(whole)


@click.command(help=__doc__)
@click.option("--seeds", default="0,1,2,3")
@click.option("--steps", default=150, type=click.IntRange(EVERY))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path))
def main(*, seeds: str, steps: int, out: Path | None) -> None:
    commit, table = record.source_commit(), dict[str, dict[str, object]]()
    numbers = [int(seed) for seed in seeds.split(",")]
    losses: dict[str, list[float]] = {row: [] for row in ROWS}
    for seed, row in product(numbers, ROWS):
        loss, size_bytes = trained(row, seed=seed, steps=steps)
        losses[row].append(loss)
        click.echo(f"{row}/{seed}: {loss:.4f}, {size_bytes} bytes")
        table[row] = {
            "adoption_bytes": size_bytes,
            "val_loss": losses[row],
            "mean": statistics.fmean(losses[row]),
            "gap": statistics.fmean(losses[row]) / statistics.fmean(losses["exact"]) - 1,
        }
    rows = {"steps": steps, "every_steps": EVERY, "seeds": numbers, "rows": table}
    click.echo(msgspec.json.format(msgspec.json.encode(table)).decode())
    click.echo(f"written: {record.write('adoption', rows, commit=commit, path=out)}")


if __name__ == "__main__":
    main()
