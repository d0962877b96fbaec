"""A contender: torch.distributed.pipelining, 1F1B over gloo, one process for each stage.

    python -m benchmarks.scheduled --run run.toml --steps N --rank R --meet FILE

One such process for each stage; ``FILE`` is where they find each other, and must be new.

The same stages, ids, microbatches and optimizer as the swarm, one thread per process. It is
what one uses inside a datacenter: a fixed schedule, float32 on the wire, and the job ends
when a process does. Its gradient norm takes one all-reduce of one number a step.
"""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B

from benchmarks.alone import Stopwatch, batch
from benchmarks.run import Run
from p2ptrain.compute.initial import initial_weights
from p2ptrain.compute.model import Decoder, stage_slice, summed_loss
from p2ptrain.compute.optimizers import StageOptimizer, clip_factor
from p2ptrain.core.sizes import nominal_tokens
from p2ptrain.data import load_corpus
from p2ptrain.units import Microbatch, Slot, Stage, Step
from peers.reference import read_run

if TYPE_CHECKING:
    from p2ptrain.ports import Corpus
    from p2ptrain.run import RunSpec

RENDEZVOUS_SECONDS = 120
"""Two processes importing torch on a busy machine."""


class StageModule(nn.Module):
    """A slice of the decoder as torch's pipelining wants it."""

    def __init__(self, spec: RunSpec, stage: Stage) -> None:
        super().__init__()
        part = stage_slice(spec, stage)
        weights = initial_weights(spec.seed, spec.model, part)
        self.weights = {name: nn.Parameter(weight) for name, weight in weights.items()}
        for name, weight in self.weights.items():
            self.register_parameter(name.replace(".", "/"), weight)
        self._decoder = Decoder(spec.model, part, torch.device("cpu"))

    def forward(self, given: Tensor) -> Tensor:
        """Activations of this slice."""
        return self._decoder(self.weights, given)


class Rank:
    """One process of the pipeline."""

    def __init__(self, spec: RunSpec, corpus: Corpus) -> None:
        self._spec, self._corpus = spec, corpus
        self._rank, stages = dist.get_rank(), dist.get_world_size()
        self._last = self._rank == stages - 1
        self._module = StageModule(spec, Stage(self._rank))
        self._optimizer = StageOptimizer(spec.optimizer, self._module.weights)
        stage = PipelineStage(self._module, self._rank, stages, torch.device("cpu"))
        # Gradients are divided by the number of microbatches: the mean, as everywhere here.
        self._schedule = Schedule1F1B(stage, spec.batch.microbatches, self._mean_loss)

    def step(self, step: Step) -> float | None:
        """One step; the mean loss, at the last rank."""
        slots = range(self._spec.batch.microbatches)
        works = [Microbatch(step, Slot(slot)) for slot in slots]
        pairs = [batch(self._spec, self._corpus, work) for work in works]
        losses: list[Tensor] = []
        if self._rank == 0:
            self._schedule.step(torch.cat([inputs for inputs, _ in pairs]))
        elif self._last:
            labels = torch.cat([labels for _, labels in pairs])
            self._schedule.step(target=labels, losses=losses, return_outputs=False)
        else:
            self._schedule.step()
        self._update(step)
        return math.fsum(loss.item() for loss in losses) / len(losses) if losses else None

    def _mean_loss(self, logits_btv: Tensor, labels_bt: Tensor) -> Tensor:
        return summed_loss(logits_btv, labels_bt) / nominal_tokens(self._spec)

    def _update(self, step: Step) -> None:
        gradients = {}
        for name, weight in self._module.weights.items():
            assert weight.grad is not None
            gradients[name] = weight.grad
            weight.grad = None
        squares = torch.tensor(sum(float(g.square().sum()) for g in gradients.values()))
        dist.all_reduce(squares)
        factor = clip_factor(self._spec.optimizer.clip_norm, math.sqrt(float(squares)))
        for gradient in gradients.values():
            gradient.mul_(factor)
        self._optimizer.step(gradients, step)


@click.command(help=__doc__)
@click.option("--run", "run_file", type=click.Path(path_type=Path), required=True)
@click.option("--steps", type=click.IntRange(1), required=True)
@click.option("--rank", type=click.IntRange(0), required=True)
@click.option("--meet", type=click.Path(path_type=Path), required=True)
def cli(*, run_file: Path, steps: int, rank: int, meet: Path) -> None:
    spec = read_run(run_file)
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=meet.resolve().as_uri(),
        rank=rank,
        world_size=spec.cut.stages,
        timeout=timedelta(seconds=RENDEZVOUS_SECONDS),
    )
    watch, losses = Stopwatch(), []
    process = Rank(spec, load_corpus(spec))
    for step in map(Step, range(steps)):
        loss = process.step(step)
        watch.step_ended()
        if loss is not None:
            losses.append((step, loss))
    dist.destroy_process_group()
    run = Run(ended_at=watch.ended_at, cpu_seconds={f"rank {rank}": watch.cpu_seconds}, loss=losses)
    click.echo(msgspec.json.encode(run))


if __name__ == "__main__":
    cli()
