"""A leader's plan: which accumulators are summed, and who sums which elements.

A plan is bound to its ballot by the digest, so one ballot can never stand for two covers.

Invariants of a sound plan (checked by every member before it acks): its shares' slots are
disjoint and together exactly the step's; peers are distinct; shards tile 0..elements in order.

Refused: letting members trust the leader. A plan with an overlap or a gap would be a wrong
sum that every replica agrees on.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from p2ptrain.core.agreement import Ballot, Counted, Plan, Share, Sum
from p2ptrain.core.canonical import digest
from p2ptrain.core.ledger import bytes_to_mask, sum_tallies
from p2ptrain.units import Digest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from p2ptrain.core.agreement import Bitmap, Position
    from p2ptrain.core.rounds import Outcome
    from p2ptrain.units import PeerId, Stage

MAX_ROUND = 1 << 31
"""No honest stage reaches it (68 years of one-second rounds); it keeps rounds encodable."""

SHARD_ELEMENTS = 1 << 14
"""Least elements of a shard (128 KiB of int64): below, latency and not rate is what it costs."""

NO_BALLOT = Ballot(round=0, rank=0, digest=Digest(bytes(32)))
"""Below every real ballot: what a seat that promised nothing reports."""


def shards(
    elements: int,
    members: Sequence[PeerId],
    weights: Mapping[PeerId, float] | None = None,
    *,
    least: int = 1,
) -> tuple[tuple[int, int], ...]:
    """Cut 0..elements into one (start, stop) per member, sized by weight, in order.

    A member without a weight counts 1. No more members get a shard than there are times
    ``least`` elements: small ones cost a round trip each and save nothing. The leader alone
    computes them; others read the plan.
    """
    given = weights or {}
    owners = max(1, elements // least)
    sizes = [max(0.0, given.get(peer, 1.0)) for peer in members]
    if not math.isfinite(sum(sizes)) or sum(sizes) <= 0.0:
        sizes = [1.0] * len(members)
    heaviest = sorted(range(len(sizes)), key=lambda place: (-sizes[place], place))[:owners]
    sizes = [size if place in heaviest else 0.0 for place, size in enumerate(sizes)]
    total, bounds, before = sum(sizes), [0], 0.0
    for size in sizes:
        before += size
        bounds.append(min(elements, math.floor(elements * before / total)))
    bounds[-1] = elements
    return tuple(pairwise(bounds))


def make_plan(
    at: Position,
    stage: Stage,
    ranked: tuple[int, int],
    bitmaps: Sequence[Bitmap],
    cuts: Sequence[tuple[int, int]],
) -> Plan:
    """The plan of a leader; ``ranked``: its round and its rank in that round.

    ``bitmaps`` are the members', which must cover the step without overlap, and ``cuts``
    their shards, in the same order.
    """
    shares = tuple(
        Share(
            peer=bitmap.peer,
            incarnation=bitmap.incarnation,
            seq=bitmap.seq,
            slots=bitmap.slots,
            tallies=bitmap.tallies,
            start=start,
            stop=stop,
            pace=bitmap.pace,
        )
        for bitmap, (start, stop) in zip(bitmaps, cuts, strict=True)
    )
    round_, rank = ranked
    ballot = Ballot(round=round_, rank=rank, digest=plan_digest(at, stage, ranked, shares))
    return Plan(at=at, stage=stage, ballot=ballot, shares=shares)


def plan_digest(
    at: Position, stage: Stage, ranked: tuple[int, int], shares: Sequence[Share]
) -> Digest:
    """What stands in the ballot of a plan with exactly these contents."""
    fields: list[bytes | str | float] = [at.epoch, at.step, at.chain, stage, *ranked]
    for share in shares:
        tallies = share.tallies
        fields += [share.peer, share.incarnation, share.seq, share.slots, share.start, share.stop]
        fields += [tallies.loss, tallies.tokens, tallies.val_loss, tallies.val_tokens]
        fields += [tallies.poisoned, share.pace]
    return digest("p2ptrain plan", *fields)


def plan_fault(plan: Plan, *, expected: int, elements: int) -> str | None:
    """Why nobody may act on ``plan``, whatever their own bitmap says; None if it is sound."""
    ballot = plan.ballot
    ranked = (ballot.round, ballot.rank)
    if not (0 <= ballot.round < MAX_ROUND and ballot.rank >= 0):
        return f"ballot {ranked} is out of range"
    if plan_digest(plan.at, plan.stage, ranked, plan.shares) != ballot.digest:
        return "the ballot's digest is of another plan"
    if len({share.peer for share in plan.shares}) != len(plan.shares):
        return "a peer stands twice in the plan"
    masks = [bytes_to_mask(share.slots) for share in plan.shares]
    union = 0
    for mask in masks:
        union |= mask
    if union != expected or sum(mask.bit_count() for mask in masks) != expected.bit_count():
        return "the shares are no disjoint cover of the step"
    bounds = [0, *(bound for share in plan.shares for bound in (share.start, share.stop)), elements]
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    if bounds != sorted(bounds) or any(stop != start for stop, start in pairs):
        return "the shards do not tile the accumulator"
    return None


def sum_of(plan: Plan, outcome: Outcome) -> Sum:
    """The SUM that a finished reduction of ``plan`` makes known."""
    tallies = sum_tallies(share.tallies for share in plan.shares)
    return Sum(
        at=plan.at,
        stage=plan.stage,
        digest=outcome.digest,
        norms=outcome.norms,
        finite=outcome.finite and not tallies.poisoned,
        tallies=tallies,
        cover=tuple(
            Counted(peer=share.peer, slots=share.slots)
            for share in plan.shares
            if bytes_to_mask(share.slots)
        ),
        members=tuple(share.peer for share in plan.shares),
        round=plan.ballot.round,
        paces=tuple(share.pace for share in plan.shares),
    )


def in_plan(plan: Plan, peer: PeerId) -> Share | None:
    """The share of ``peer``, if it is a member."""
    return next((share for share in plan.shares if share.peer == peer), None)
