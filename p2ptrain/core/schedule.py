"""Who works on what: slots of a step, samples of a microbatch, owners and leaders.

Everything here is a pure function of the RunSpec, so that no peer has to ask another what
step t consists of. Step t is a *fixed* set of slots: G training slots 0..G-1 and, in
evaluation steps, E slots G..G+E-1. The last step (t = optimizer.steps) only evaluates.

Intuition: a seeded permutation computed on demand replaces the shuffled table (it needs no
memory and resumes from t alone), and rendezvous hashing replaces the elected dispatcher
(each peer ranks all candidates by hash, so a death moves only the dead peer's share).

Invariants: the same arguments give the same answer on every machine and Python; an epoch
visits every sample exactly once; the order of ``members`` changes nothing.

Refused: a sample counter with a target (it makes the batch depend on timing), and a table
of permuted indices (8 bytes a sample on every peer, and it must be shipped or recomputed).

Sources: Luby & Rackoff 1988 (four Feistel rounds), Black & Rogaway 2002 (cycle walking),
Thaler & Ravishankar 1998 (rendezvous), Schindler & Schlosser 2005 (its weighted form).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from p2ptrain.units import Step

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from p2ptrain.run import RunSpec
    from p2ptrain.units import Microbatch, PeerId, RunId, Stage

_FEISTEL_ROUNDS = 4
"""Four rounds make a strong pseudo-random permutation of good round functions."""

_HASH_BYTES = 8
"""64 bits: two of 10^4 members tie once in 10^11 rankings, and ties are broken by name."""

_REMEMBERED_HASHES = 8192
"""Rankings of one step are asked for again and again; these take a megabyte or two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSlots:
    """The slots of one step, as counts; masks have bit i set for slot i.

    ``first_evaluation`` is G also in the last step, where ``train`` is 0: a slot's kind
    never depends on the step.
    """

    train: int
    evaluate: int
    first_evaluation: int

    @property
    def width(self) -> int:
        """How many bits a slot set of this step has: G + E."""
        return self.first_evaluation + self.evaluate

    @property
    def train_mask(self) -> int:
        """Slots whose gradients are accumulated."""
        return (1 << self.train) - 1

    @property
    def evaluate_mask(self) -> int:
        """Slots that only flow forward."""
        return ((1 << self.evaluate) - 1) << self.first_evaluation

    @property
    def mask(self) -> int:
        """All slots that every stage must count."""
        return self.train_mask | self.evaluate_mask

    def __iter__(self) -> Iterator[int]:
        """Slots in increasing order."""
        yield from range(self.train)
        yield from range(self.first_evaluation, self.width)


def last_step(spec: RunSpec) -> Step:
    """The last step that exists: the one after training only evaluates, if anything is."""
    final = spec.optimizer.steps if spec.evaluation.microbatches else spec.optimizer.steps - 1
    return Step(final)


def step_slots(spec: RunSpec, step: Step) -> StepSlots:
    """What step ``step`` consists of.

    Raises:
        ValueError: the run has no such step.
    """
    if not 0 <= step <= last_step(spec):
        msg = f"step {step} is outside this run's 0..{last_step(spec)}"
        raise ValueError(msg)
    total, every = spec.batch.microbatches, spec.evaluation.every_steps
    final = step == spec.optimizer.steps
    due = final or (every > 0 and step % every == 0)
    return StepSlots(
        train=0 if final else total,
        evaluate=spec.evaluation.microbatches if due else 0,
        first_evaluation=total,
    )


def is_evaluation(spec: RunSpec, work: Microbatch) -> bool:
    """Whether ``work`` only flows forward, over held-out samples."""
    return work.slot >= spec.batch.microbatches


def microbatch_samples(
    spec: RunSpec, work: Microbatch, train_count: int, val_count: int
) -> tuple[int, ...]:
    """Which samples make up ``work``: ``batch.sequences`` indices.

    For a training slot they index the training samples (0..train_count-1), for an
    evaluation slot the held-out ones (0..val_count-1): see :func:`is_evaluation`.
    Evaluation takes the same samples every time, so that its losses can be compared;
    where fewer are held out than asked for, they repeat.

    Raises:
        ValueError: there are no samples to take from.
    """
    sequences = spec.batch.sequences
    if is_evaluation(spec, work):
        first, seed, count = work.slot - spec.batch.microbatches, ~spec.seed, val_count
    else:
        first, seed, count = work.step * spec.batch.microbatches + work.slot, spec.seed, train_count
    positions = range(first * sequences, (first + 1) * sequences)
    return tuple(sample_index(seed, position, count) for position in positions)


def sample_index(seed: int, position: int, count: int) -> int:
    """The sample at ``position`` of an endless walk over ``count`` shuffled samples.

    Each run of ``count`` positions (an epoch over the data) is a permutation of its own.
    The domain is the next even power of two, less than 4 ``count``; images outside
    0..count-1 are permuted again until they fall inside, which keeps it a permutation
    and ends, because the walk is on a cycle that began inside.

    Raises:
        ValueError: ``count`` is not positive or ``position`` is negative.
    """
    if count < 1 or position < 0:
        msg = f"no sample {position} among {count}"
        raise ValueError(msg)
    epoch, index = divmod(position, count)
    half_bits = max(1, ((count - 1).bit_length() + 1) // 2)
    while True:
        index = _feistel(f"{seed}/{epoch}", index, half_bits)
        if index < count:
            return index


def owners(
    run: RunId, work: Microbatch, members: Sequence[tuple[PeerId, float]]
) -> tuple[PeerId, ...]:
    """Peers in the order in which they should source ``work``, given (peer, weight) pairs.

    A peer comes first in proportion to its weight (any unit, not negative; weight 0 ranks
    last). The order is a preference: two peers that see other weights, or whose logarithms
    differ in the last bit, cost a duplicate at worst, never a wrong sum.
    """

    def score(member: tuple[PeerId, float]) -> tuple[float, PeerId]:
        peer, weight = member
        # Uniform in (0, 1): an exponential clock of rate `weight` rings first with
        # probability weight / total.
        uniform = (_hash("owner", run, work.step, work.slot, peer) + 0.5) / 2.0 ** (8 * _HASH_BYTES)
        uniform = min(uniform, 1.0 - 2.0**-53)
        return (-math.log(uniform) / weight if weight > 0 else math.inf, peer)

    return tuple(peer for peer, _ in sorted(members, key=score))


def leaders(
    run: RunId, step: Step, stage: Stage, round_: int, members: Sequence[PeerId]
) -> tuple[PeerId, ...]:
    """Peers in the order in which they should lead round ``round_`` of this stage and step."""
    return tuple(
        sorted(members, key=lambda peer: (_hash("leader", run, step, stage, round_, peer), peer))
    )


def keeper(run: RunId, stage: Stage, work: Microbatch, holders: Sequence[PeerId]) -> PeerId:
    """Which of ``holders`` keeps ``work`` in its accumulator of this stage; the others subtract it.

    Any two holders rank each other alike in every view, so two never both subtract for
    each other's sake.
    """
    return min(
        holders, key=lambda peer: (_hash("keeper", run, stage, work.step, work.slot, peer), peer)
    )


def rank(
    what: str, run: RunId, about: str | int, candidates: Collection[PeerId]
) -> tuple[PeerId, ...]:
    """``candidates`` in the order that everybody gives them who asks ``what`` ``about`` this."""
    return tuple(sorted(candidates, key=lambda peer: (_hash(what, run, about, peer), peer)))


def _feistel(key: str, index: int, half_bits: int) -> int:
    """One pass of a balanced Feistel network over 2 x ``half_bits`` bits."""
    mask = (1 << half_bits) - 1
    left, right = index >> half_bits, index & mask
    for turn in range(_FEISTEL_ROUNDS):
        left, right = right, left ^ (_hash("sample", key, turn, right) & mask)
    return left << half_bits | right


@functools.lru_cache(maxsize=_REMEMBERED_HASHES)
def _hash(*parts: str | int) -> int:
    """64 bits of BLAKE2b over ``parts``; a separator no part contains keeps them apart."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(blake2b(text.encode(), digest_size=_HASH_BYTES).digest(), "little")
