"""The same run in one process: what a swarm's weights are judged against.

All stages stand in a row and every microbatch passes through them alone, through the
same codecs at the same boundaries, into the same integer sums. A step is a pure
function of (weights, ids), so whatever a swarm did on its way (routes, deaths, replays,
joins), its weights must equal these to the bit, in the same arithmetic class.

It shares the arithmetic with the swarm (a stage, a schedule) and nothing else: no
links, no ledger, no rounds, no clock.

Alternative refused: comparing loss curves. Noise between seeds hides a gradient that was
counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.compute.device import choose_device, make_deterministic
from p2ptrain.compute.stage import LOSS_SCALE, StageState
from p2ptrain.core.digest import combine_digests
from p2ptrain.core.schedule import is_evaluation, last_step, step_slots
from p2ptrain.core.sizes import nominal_tokens
from p2ptrain.errors import InternalError
from p2ptrain.ports import Update
from p2ptrain.units import Microbatch, Slot, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2ptrain.ports import Corpus, Loss
    from p2ptrain.run import RunSpec

_KEEP_EVERY_GRAPH = 1 << 62
"""One microbatch is under way at a time, so its graphs are the only ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One step: mean losses in nats per token, None where nothing was (or could be) counted."""

    step: Step
    loss: float | None
    val_loss: float | None
    skipped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A whole run. ``tokens``: trained on, held-out ones not counted."""

    steps: tuple[StepReport, ...]
    weights_digest: str
    tokens: int


class _Mean:
    """Mean loss per token over microbatches, kept in integers as tallies keep it."""

    def __init__(self, nominal: int) -> None:
        self._nominal = nominal
        self._loss = 0
        self.tokens = 0

    def add(self, loss: Loss) -> None:
        self._loss += loss.loss
        self.tokens += loss.tokens

    @property
    def value(self) -> float | None:
        return self._loss / LOSS_SCALE * self._nominal / self.tokens if self.tokens else None


def train(
    spec: RunSpec,
    corpus: Corpus,
    *,
    steps: int | None = None,
    device: str = "auto",
    on_step: Callable[[StepReport], None] | None = None,
) -> Trained:
    """Train on the calling thread.

    Args:
        spec: the run.
        corpus: its data.
        steps: how many steps; None: all, with the final evaluation.
        device: auto, cpu, cuda, cuda:N or mps.
        on_step: called after each step.

    Raises:
        UserError: the device is not there.
    """
    chosen = choose_device(device, spec)
    make_deterministic(chosen, spec.arithmetic.threads)
    stages = [
        StageState(spec, Stage(stage), chosen, kept_graph_bytes=_KEEP_EVERY_GRAPH)
        for stage in range(spec.cut.stages)
    ]
    reports: list[StepReport] = []
    tokens = 0
    for step in range(last_step(spec) + 1 if steps is None else steps):
        report, counted = _step(spec, corpus, stages, Step(step))
        tokens += counted
        reports.append(report)
        if on_step is not None:
            on_step(report)
    digests = {name: value for stage in stages for name, value in stage.tensor_digests().items()}
    return Trained(steps=tuple(reports), weights_digest=combine_digests(digests), tokens=tokens)


def _step(
    spec: RunSpec, corpus: Corpus, stages: Sequence[StageState], step: Step
) -> tuple[StepReport, int]:
    """One step of all stages; returns its report and how many tokens it trained on."""
    mean, val_mean = _Mean(nominal_tokens(spec)), _Mean(nominal_tokens(spec))
    poisoned = False
    for slot in step_slots(spec, step):
        work = Microbatch(step, Slot(slot))
        tokens = corpus.tokens(work)
        if is_evaluation(spec, work):
            val_mean.add(_evaluate(stages, work, tokens))
        else:
            loss, spoilt = _train(stages, work, tokens)
            mean.add(loss)
            poisoned |= spoilt
    wholes = [stage.finish([(0, stage.read_own(0, stage.elements))]) for stage in stages]
    skip = poisoned or not all(whole.finite for whole in wholes)
    norms = tuple(norm for whole in wholes for norm in whole.norms)
    for stage in stages:
        stage.step(Update(step=step, tokens=mean.tokens, norms=norms, skip=skip))
    report = StepReport(step=step, loss=mean.value, val_loss=val_mean.value, skipped=skip)
    return report, mean.tokens


def _train(stages: Sequence[StageState], work: Microbatch, tokens: bytes) -> tuple[Loss, bool]:
    """One microbatch up and down again; returns its loss and whether a stage was poisoned."""
    *lower, last = stages
    inputs: list[bytes | None] = [None]
    for stage in lower:
        inputs.append(stage.forward(work, tokens, inputs[-1]))
    loss = last.loss(work, tokens, inputs.pop())
    poisoned, gradient = loss.poisoned, loss.gradient
    for stage, given in zip(reversed(lower), reversed(inputs), strict=True):
        if gradient is None:
            raise InternalError(f"no gradient for stage {stage.stage}")
        below = stage.backward(work, tokens, given, gradient)
        poisoned, gradient = poisoned or below.poisoned, below.gradient
    return loss, poisoned


def _evaluate(stages: Sequence[StageState], work: Microbatch, tokens: bytes) -> Loss:
    *lower, last = stages
    given: bytes | None = None
    for stage in lower:
        given = stage.forward(work, tokens, given)
    return last.evaluate(work, tokens, given)
