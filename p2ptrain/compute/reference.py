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

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from p2ptrain.compute.codecs import CodecContext, codec_at, encoded
from p2ptrain.compute.device import choose_device, make_deterministic
from p2ptrain.compute.stage import LOSS_SCALE, StageState
from p2ptrain.core.adoption import differs_at
from p2ptrain.core.digest import combine_digests
from p2ptrain.core.schedule import is_evaluation, last_step, step_slots
from p2ptrain.core.sizes import boundary_width, nominal_tokens
from p2ptrain.errors import InternalError
from p2ptrain.ports import Update
from p2ptrain.run.codecs import composition_of
from p2ptrain.units import DIGEST_BYTES, Digest, Microbatch, Slot, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from p2ptrain.core.health import BoundaryReading
    from p2ptrain.ports import Buffer, Corpus, Loss
    from p2ptrain.run import RunSpec

ALONE = Digest(b"one process".ljust(DIGEST_BYTES))
"""Names any state that is shared with nobody."""

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
    training = Training(spec, corpus, device=device)
    reports: list[StepReport] = []
    for _ in range(last_step(spec) + 1 if steps is None else steps):
        reports.append(training.step())
        if on_step is not None:
            on_step(reports[-1])
    return Trained(
        steps=tuple(reports), weights_digest=training.weights_digest(), tokens=training.tokens
    )


class Training:
    """A run under way, step by step; its state can be saved between steps and taken up again.

    ``severed``: the control without a wire. The last stage trains alone, and all that it is
    ever given from below is zeros; what it learns it has from its token anchors. A codec
    that does no better carries nothing.

    Raises:
        UserError: the device is not there.
    """

    def __init__(
        self, spec: RunSpec, corpus: Corpus, *, device: str = "auto", severed: bool = False
    ) -> None:
        chosen = choose_device(device, spec)
        make_deterministic(chosen, spec.arithmetic.threads)
        stages = range(spec.cut.stages - 1 if severed else 0, spec.cut.stages)
        self._stages = [
            StageState(spec, Stage(stage), chosen, kept_graph_bytes=_KEEP_EVERY_GRAPH)
            for stage in stages
        ]
        self._spec, self._corpus, self._severed = spec, corpus, severed
        self.tokens = 0

    @property
    def version(self) -> Step:
        """The step that comes next."""
        return self._stages[0].version

    def step(self) -> StepReport:
        """Take the next step with all its microbatches."""
        mean, val_mean = _Mean(nominal_tokens(self._spec)), _Mean(nominal_tokens(self._spec))
        poisoned, step = False, self.version
        for slot in step_slots(self._spec, step):
            work = Microbatch(step, Slot(slot))
            tokens = self._corpus.tokens(work)
            given = silence(self._spec, work) if self._severed else None
            if is_evaluation(self._spec, work):
                val_mean.add(_evaluate(self._stages, work, tokens, given))
            else:
                loss, spoilt = _train(self._stages, work, tokens, given)
                mean.add(loss)
                poisoned |= spoilt
        norms = tuple(norm for stage in self._stages for norm in stage.finish_alone())
        skip = poisoned or not all(math.isfinite(norm) for norm in norms)
        for stage in self._stages:
            stage.step(Update(step=step, tokens=mean.tokens, norms=norms, skip=skip))
            if stage.difference is not None and differs_at(self._spec, stage.version):
                stage.difference.make()
                stage.difference.mark(ALONE)
        self.tokens += mean.tokens
        return StepReport(step=step, loss=mean.value, val_loss=val_mean.value, skipped=skip)

    def readings(self) -> tuple[BoundaryReading, ...]:
        """What the last step sent over each boundary."""
        found = (stage.reading for stage in self._stages)
        return tuple(reading for reading in found if reading is not None)

    def weights_digest(self) -> str:
        """Of all weights, whatever the cut."""
        digests: dict[str, str] = {}
        for stage in self._stages:
            digests.update(stage.tensor_digests())
        return combine_digests(digests)

    def save(self) -> list[bytes]:
        """The state of every stage; ``tokens`` is the caller's to keep."""
        return [stage.save() for stage in self._stages]

    def load(self, blobs: Sequence[bytes]) -> None:
        """Take up what :meth:`save` gave of the same run.

        Raises:
            MisbehaviourError: it is of another run.
        """
        for stage, blob in zip(self._stages, blobs, strict=True):
            stage.load(blob)


def silence(spec: RunSpec, work: Microbatch) -> Buffer | None:
    """Zeros for the last stage, encoded as this run encodes; None where it is the first too."""
    boundary = spec.cut.stages - 2
    if boundary < 0:
        return None
    context = CodecContext(
        seed=spec.seed, step=work.step, slot=work.slot, boundary=boundary, direction="forward"
    )
    zeros_rk = torch.zeros(nominal_tokens(spec), boundary_width(spec, boundary))
    codec = codec_at(composition_of(spec, boundary), "forward", work.step)
    return encoded(codec, zeros_rk, context)


def _train(
    stages: Sequence[StageState], work: Microbatch, tokens: bytes, given: Buffer | None
) -> tuple[Loss, bool]:
    """One microbatch up and down again; returns its loss and whether a stage was poisoned."""
    *lower, last = stages
    inputs: list[Buffer | None] = [given]
    for stage in lower:
        inputs.append(stage.forward(work, tokens, inputs[-1]))
    loss = last.loss(work, tokens, inputs.pop())
    poisoned, gradient = loss.poisoned, loss.gradient
    for stage, sent in zip(reversed(lower), reversed(inputs), strict=True):
        if gradient is None:
            raise InternalError(f"no gradient for stage {stage.stage}")
        below = stage.backward(work, tokens, sent, gradient)
        poisoned, gradient = poisoned or below.poisoned, below.gradient
    return loss, poisoned


def _evaluate(
    stages: Sequence[StageState], work: Microbatch, tokens: bytes, given: Buffer | None
) -> Loss:
    *lower, last = stages
    for stage in lower:
        given = stage.forward(work, tokens, given)
    return last.evaluate(work, tokens, given)
