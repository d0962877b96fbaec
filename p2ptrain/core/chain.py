"""What all stages conclude from the SUMs of a step: its digest, its outcome, the chain.

A stage's SUM is a pure function of (weights t-1, M_t), because gradients are integers: its
unique part is hashed here. Cover, members and round belong to whoever published it; they
feed the ledger and later hashes of membership, but never the chain, so two sides of a
partition that both finish t arrive at one chain.

Refused: hashing the whole message. Two honest covers of one step would then be a fork.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from p2ptrain.core.canonical import canonical, digest
from p2ptrain.units import DIGEST_BYTES, Chain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.core.agreement import Position, Sum
    from p2ptrain.units import Digest, RunId, Step

_FIXED_POINT_BITS = 32
"""Losses in tallies are 2^-32 nats: equal in all orders of summation, exact to 10^-9."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """What one step came to, equal on all peers.

    ``loss`` and ``val_loss``: nats per token, None where no token was tallied. ``norms``:
    squared norms of all stages' parameters, in stage order, then name order. ``skip``: the
    weights stay as they are (nothing to train on, or some stage's sum is not finite).
    """

    tokens: int
    loss: float | None
    val_tokens: int
    val_loss: float | None
    poisoned: int
    norms: tuple[float, ...]
    skip: bool


def sum_digest(total: Sum) -> Digest:
    """Digest of the part of a SUM that is unique for its position and stage."""
    at, tallies = total.at, total.tallies
    return digest(
        "p2ptrain sum",
        *(at.epoch, at.step, at.chain),
        total.stage,
        total.digest,
        len(total.norms),
        *map(float, total.norms),
        total.finite,
        *(tallies.loss, tallies.tokens, tallies.val_loss, tallies.val_tokens, tallies.poisoned),
    )


def sum_bytes(total: Sum) -> bytes:
    """What a SUM's signature is over: all but the signature and what its teller adds."""
    covered = [field for one in total.cover for field in (one.peer, one.slots)]
    return canonical(
        "p2ptrain signed sum",
        total.publisher,
        total.incarnation,
        sum_digest(total),
        total.round,
        len(covered),
        *covered,
        len(total.members),
        *total.members,
        *total.paces,
    )


def genesis_chain(run: RunId) -> Chain:
    """The chain before step 0."""
    return Chain(blake2b(b"p2ptrain genesis" + run.encode(), digest_size=DIGEST_BYTES).digest())


def next_chain(previous: Chain, epoch: int, step: Step, sums: Sequence[Sum]) -> Chain:
    """The chain after ``step``, given the SUMs of all stages in stage order."""
    return Chain(digest("p2ptrain chain", previous, epoch, step, *map(sum_digest, sums)))


def leads_to(at: Position, sums: Sequence[Sum], stages: int) -> bool:
    """Whether ``sums`` are those of all stages, in their order, of a step that ended ``at``."""
    if len(sums) != stages:
        return False
    was = sums[0].at
    whole = [(one.at, one.stage) for one in sums] == [(was, stage) for stage in range(stages)]
    near = (was.epoch, was.step + 1) == (at.epoch, at.step)
    return whole and near and next_chain(was.chain, was.epoch, was.step, sums) == at.chain


def step_outcome(sums: Sequence[Sum], nominal_tokens: int) -> StepOutcome:
    """What the SUMs of all stages, in stage order, say of their step.

    ``nominal_tokens``: tokens per microbatch (sequences x context). The last stage alone
    sees labels, so tokens and losses are read from its SUM.
    """
    tallies = sums[-1].tallies
    return StepOutcome(
        tokens=tallies.tokens,
        loss=_nats_per_token(tallies.loss, tallies.tokens, nominal_tokens),
        val_tokens=tallies.val_tokens,
        val_loss=_nats_per_token(tallies.val_loss, tallies.val_tokens, nominal_tokens),
        poisoned=sum(total.tallies.poisoned for total in sums),
        norms=tuple(norm for total in sums for norm in total.norms),
        skip=tallies.tokens == 0 or not all(total.finite for total in sums),
    )


def _nats_per_token(loss: int, tokens: int, nominal_tokens: int) -> float | None:
    # One correctly rounded division of integers: the same float on every machine.
    return loss * nominal_tokens / (tokens << _FIXED_POINT_BITS) if tokens else None
