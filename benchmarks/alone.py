"""A contender: the run in one process, either in plain torch or with the swarm's arithmetic.

    python -m benchmarks.alone --run run.toml --kind plain|sums --threads N [--steps N]

``plain`` is what somebody with this model would write without a swarm: float gradients
accumulated by autograd, the mean clipped, the optimizer stepped. No boundaries, no codec, no
integers. It shares the model's mathematics, the optimizer and the ids with the swarm, so
what differs is the price and the effect of swarming.
``sums`` is the reference (peers.reference): all stages in a row in one process, with the
codec at each boundary and integer sums. Its distance to ``plain`` is the price of those.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
import numpy as np
import torch

from benchmarks.run import Run
from p2ptrain.compute.initial import initial_weights
from p2ptrain.compute.model import Decoder, Slice, summed_loss
from p2ptrain.compute.optimizers import StageOptimizer, clip_factor
from p2ptrain.compute.reference import StepReport, train
from p2ptrain.core.schedule import last_step, step_slots
from p2ptrain.core.sizes import nominal_tokens, token_id_bytes
from p2ptrain.data import load_corpus
from p2ptrain.units import Microbatch, Slot, Step
from peers.reference import read_run, with_threads

if TYPE_CHECKING:
    from torch import Tensor

    from p2ptrain.ports import Corpus
    from p2ptrain.run import RunSpec


class Plain:
    """The whole model in plain torch, on the ids of the run."""

    def __init__(self, spec: RunSpec, corpus: Corpus) -> None:
        whole = Slice(layers=range(spec.model.n_layers), first=True, last=True)
        self._spec, self._corpus = spec, corpus
        self._weights = initial_weights(spec.seed, spec.model, whole)
        for weight in self._weights.values():
            weight.requires_grad_()
        self._decoder = Decoder(spec.model, whole, torch.device("cpu"))
        self._optimizer = StageOptimizer(spec.optimizer, self._weights)

    def step(self, step: Step) -> tuple[float | None, float | None]:
        """One step; mean training and validation loss in nats per token."""
        train_losses, val_losses = [], []
        slots = step_slots(self._spec, step)
        for slot in slots:
            work = Microbatch(step, Slot(slot))
            if slot < slots.first_evaluation:
                loss = self._loss(work)
                torch.autograd.backward(loss)
                train_losses.append(loss.item())
            else:
                with torch.no_grad():
                    val_losses.append(self._loss(work).item())
        if train_losses:
            self._update(step, len(train_losses))
        return _mean(train_losses), _mean(val_losses)

    def _loss(self, work: Microbatch) -> Tensor:
        inputs_bt, labels_bt = batch(self._spec, self._corpus, work)
        logits_btv = self._decoder(self._weights, inputs_bt)
        return summed_loss(logits_btv, labels_bt) / nominal_tokens(self._spec)

    def _update(self, step: Step, count: int) -> None:
        gradients = {}
        for name, weight in self._weights.items():
            assert weight.grad is not None
            gradients[name] = weight.grad.div_(count)
            weight.grad = None
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        factor = clip_factor(self._spec.optimizer.clip_norm, norm)
        for gradient in gradients.values():
            gradient.mul_(factor)
        self._optimizer.step(gradients, step)


def batch(spec: RunSpec, corpus: Corpus, work: Microbatch) -> tuple[Tensor, Tensor]:
    """Token ids and labels of a microbatch, each (sequences, context)."""
    ids = np.frombuffer(corpus.tokens(work), dtype=f"<u{token_id_bytes(spec.model)}")
    ids_bt = torch.from_numpy(ids.astype(np.int64)).view(-1, spec.model.context + 1)
    return ids_bt[:, :-1], ids_bt[:, 1:]


class Stopwatch:
    """Notes the ends of steps, and what this process used between the first and the last."""

    def __init__(self) -> None:
        self.ended_at: list[float] = []
        self._cpu: list[float] = []

    def step_ended(self) -> None:
        """Call after each training step."""
        self.ended_at.append(time.perf_counter())
        self._cpu.append(time.process_time())

    @property
    def cpu_seconds(self) -> float:
        """Of all threads of this process."""
        return self._cpu[-1] - self._cpu[0]


def train_plain(spec: RunSpec, corpus: Corpus, steps: int) -> Run:
    """``steps`` steps in plain torch."""
    watch, model = Stopwatch(), Plain(spec, corpus)
    losses, last_val_loss = [], None
    for step in map(Step, range(steps)):
        loss, val_loss = model.step(step)
        if loss is not None:
            losses.append((step, loss))
            watch.step_ended()
        last_val_loss = last_val_loss if val_loss is None else val_loss
    return Run(
        ended_at=watch.ended_at,
        cpu_seconds={"process": watch.cpu_seconds},
        loss=losses,
        val_loss=last_val_loss,
    )


def train_sums(spec: RunSpec, corpus: Corpus, steps: int) -> Run:
    """``steps`` steps of the reference."""
    watch = Stopwatch()

    def on_step(report: StepReport) -> None:
        if report.loss is not None:
            watch.step_ended()

    trained = train(spec, corpus, steps=steps, device="cpu", on_step=on_step)
    val_losses = [r.val_loss for r in trained.steps if r.val_loss is not None]
    return Run(
        ended_at=watch.ended_at,
        cpu_seconds={"process": watch.cpu_seconds},
        loss=[(r.step, r.loss) for r in trained.steps if r.loss is not None],
        val_loss=val_losses[-1] if val_losses else None,
        weights_digest=trained.weights_digest,
    )


@click.command(help=__doc__)
@click.option("--run", "run_file", type=click.Path(path_type=Path), required=True)
@click.option("--kind", type=click.Choice(["plain", "sums"]), required=True)
@click.option("--threads", type=click.IntRange(1), required=True)
@click.option("--steps", type=click.IntRange(1), default=None, help="Default: all.")
def cli(*, run_file: Path, kind: str, threads: int, steps: int | None) -> None:
    spec = with_threads(read_run(run_file), threads)
    torch.set_num_threads(threads)
    contender = {"plain": train_plain, "sums": train_sums}[kind]
    run = contender(spec, load_corpus(spec), steps or last_step(spec) + 1)
    click.echo(msgspec.json.encode(run))


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


if __name__ == "__main__":
    cli()
