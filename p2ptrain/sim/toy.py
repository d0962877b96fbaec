"""The toy run: the least RunSpec, its corpus, and what training it must give.

``reference`` applies every microbatch of every step to one copy of every stage, one after
another. The swarm must reach the same digests whatever happened to it on the way, or it
has not trained what it says (invariant I2, and ``--verify`` of a virtual simulation).

Refused: to compare replicas with each other only. They can agree on a wrong sum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np

from p2ptrain.core.digest import combine_digests
from p2ptrain.core.schedule import is_evaluation, last_step, step_slots
from p2ptrain.core.sizes import microbatch_token_bytes, nominal_tokens, token_id_bytes
from p2ptrain.ports import Loss, Update
from p2ptrain.run import (
    Batch,
    Checkpoint,
    Cut,
    Data,
    Evaluation,
    Model,
    Optimizer,
    RunSpec,
    Sync,
    corpus_root,
    validate,
)
from p2ptrain.sim.arithmetic import LOSS_UNIT, ToyState, expanded, mixed
from p2ptrain.units import Digest, Microbatch, Slot, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from p2ptrain.ports import Corpus

_CORPUS_BYTES = 4096


def toy_spec(
    *,
    stages: int,
    microbatches: int,
    steps: int,
    seed: int = 0,
    replicas: int = 1,
    evaluation: Evaluation | None = None,
) -> RunSpec:
    """A RunSpec with the least sizes that are valid: some hundred parameters a stage."""
    corpus = _corpus_bytes(seed)
    return validate(
        RunSpec(
            name="toy",
            seed=seed,
            model=Model(d_model=8, n_layers=stages, n_heads=1, n_kv_heads=1, d_ff=8, context=4),
            cut=Cut(stages=stages),
            batch=Batch(sequences=1, microbatches=microbatches),
            optimizer=Optimizer(steps=steps, warmup_steps=0),
            sync=Sync(start_replicas=replicas),
            checkpoint=Checkpoint(every_steps=0),  # most swarms have no disks
            evaluation=evaluation or Evaluation(every_steps=0, microbatches=0),
            data=Data(
                source="text", file_count=1, total_bytes=len(corpus), root=corpus_root(corpus)
            ),
        )
    )


def mixed_spec(
    spec: RunSpec, *, canonical_steps: int, adoption: Literal["exact", "int8", "int4"] = "exact"
) -> RunSpec:
    """``spec`` for peers that round each in its own way, with states adopted so often."""
    sync = msgspec.structs.replace(
        spec.sync, agreement="canonical", canonical_steps=canonical_steps, adoption=adoption
    )
    evaluation = spec.evaluation
    if not evaluation.microbatches:  # states are adopted before the last evaluation
        evaluation = Evaluation(every_steps=0, microbatches=1)
    return validate(msgspec.structs.replace(spec, sync=sync, evaluation=evaluation))


@cache
def _corpus_bytes(seed: int) -> bytes:
    return expanded(mixed("corpus", str(seed).encode()), _CORPUS_BYTES)


class ToyCorpus:
    """Tokens drawn from a hash of the microbatch: implements ``ports.Corpus``."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec

    def tokens(self, work: Microbatch) -> bytes:
        """See ``ports.Corpus``; evaluation slots have the same tokens in every step."""
        step = -1 if is_evaluation(self._spec, work) else work.step
        name = f"{self._spec.seed}/{step}/{work.slot}".encode()
        # ids below 256 are valid in every vocabulary
        width = token_id_bytes(self._spec.model)
        count = microbatch_token_bytes(self._spec) // width
        ids = np.frombuffer(expanded(mixed("tokens", name), count), dtype=np.uint8)
        return ids.astype(f"<u{width}").tobytes()

    def read(self, offset: int, size: int) -> bytes:
        """See ``ports.Corpus``."""
        return _corpus_bytes(self._spec.seed)[offset : offset + size]


@dataclass(slots=True, kw_only=True)
class Reference:
    """What plain sequential training gives.

    ``sums``: digest of every stage's sum by (step, stage); ``losses`` and ``val_losses``:
    (step, nats per token); ``tensors``: digest of every tensor at the end, by name.
    """

    sums: dict[tuple[Step, Stage], Digest] = field(default_factory=dict)
    losses: list[tuple[Step, float]] = field(default_factory=list)
    val_losses: list[tuple[Step, float]] = field(default_factory=list)
    tensors: Mapping[str, str] = field(default_factory=dict)

    @property
    def weights_digest(self) -> str:
        """The digest of the whole model at the end."""
        return combine_digests(self.tensors)


def reference(
    spec: RunSpec, corpus: Corpus, *, poisoned: Collection[Microbatch] = frozenset()
) -> Reference:
    """Train one copy of every stage, one microbatch after another."""
    stages = [ToyState(spec, Stage(s), poisoned=poisoned) for s in range(spec.cut.stages)]
    result = Reference()
    for step in range(last_step(spec) + 1):
        _reference_step(spec, corpus, stages, Step(step), result)
    result.tensors = {
        name: digest for state in stages for name, digest in state.tensor_digests().items()
    }
    return result


def _reference_step(
    spec: RunSpec, corpus: Corpus, stages: Sequence[ToyState], step: Step, result: Reference
) -> None:
    slots = step_slots(spec, step)
    losses: list[Loss] = []
    val_losses: list[Loss] = []
    poisoned = False
    for slot in slots:
        work = Microbatch(step, Slot(slot))
        evaluation = is_evaluation(spec, work)
        loss, bad = _flow(stages, work, corpus.tokens(work), evaluation=evaluation)
        (val_losses if evaluation else losses).append(loss)
        poisoned |= bad
    wholes = [state.finish([(0, state.read_own(0, state.elements))]) for state in stages]
    for state, whole in zip(stages, wholes, strict=True):
        result.sums[step, state.stage] = whole.digest
    if val_losses:
        result.val_losses.append((step, _nats(val_losses, spec)))
    if losses:
        result.losses.append((step, _nats(losses, spec)))
    norms = tuple(norm for whole in wholes for norm in whole.norms)
    total = sum(loss.tokens for loss in losses)
    update = Update(step=step, tokens=total, norms=norms, skip=poisoned or total == 0)
    for state in stages:
        state.step(update)


def _flow(
    stages: Sequence[ToyState], work: Microbatch, tokens: bytes, *, evaluation: bool
) -> tuple[Loss, bool]:
    """One microbatch through all stages and, in training, back; its loss, and if poisoned."""
    given: list[bytes | None] = [None]
    for state in stages[:-1]:
        given.append(state.forward(work, tokens, given[-1]))
    if evaluation:
        return stages[-1].evaluate(work, tokens, given[-1]), False
    loss = stages[-1].loss(work, tokens, given[-1], 1)
    gradient, poisoned = loss.gradient, loss.poisoned
    for state in reversed(stages[:-1]):
        assert gradient is not None
        back = state.backward(work, (tokens, given[state.stage]), gradient, 1)
        gradient = back.gradient
        poisoned |= back.poisoned
    return loss, poisoned


def _nats(losses: Sequence[Loss], spec: RunSpec) -> float:
    """Nats per token, with one correctly rounded division."""
    units = sum(loss.loss for loss in losses) * nominal_tokens(spec)
    return units / (sum(loss.tokens for loss in losses) * LOSS_UNIT)
