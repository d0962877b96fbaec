"""A plan is sound, bound to its ballot, and cuts the accumulator completely."""

from __future__ import annotations

from itertools import pairwise

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from p2ptrain.core.agreement import Ballot, Bitmap, Plan, Position, Tallies
from p2ptrain.core.ledger import mask_to_bytes
from p2ptrain.core.plans import (
    MAX_ROUND,
    NO_BALLOT,
    in_plan,
    make_plan,
    plan_digest,
    plan_fault,
    shards,
    sum_of,
)
from p2ptrain.core.rounds import Outcome
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step

ANN, BOB, EVE = PeerId("ann"), PeerId("bob"), PeerId("eve")
AT = Position(epoch=0, step=Step(1), chain=Chain(bytes(32)))
FULL, ELEMENTS = 0b1111, 10


def bitmap(peer: PeerId, mask: int) -> Bitmap:
    return Bitmap(
        peer=peer, incarnation=1, at=AT, stage=Stage(0), seq=1, slots=mask_to_bytes(mask, 4),
        tallies=Tallies(loss=mask, tokens=mask.bit_count()), signature=b"",
    )  # fmt: skip


def plan_of(*bitmaps: Bitmap, cuts: list[tuple[int, int]] | None = None, round_: int = 0) -> Plan:
    return make_plan(
        AT, Stage(0), (round_, 0), bitmaps, cuts or shards(ELEMENTS, [b.peer for b in bitmaps])
    )


SOUND = plan_of(bitmap(ANN, 0b0011), bitmap(BOB, 0b1100), bitmap(EVE, 0))


def fault(plan: Plan) -> str | None:
    return plan_fault(plan, expected=FULL, elements=ELEMENTS)


def test_a_sound_plan() -> None:
    assert fault(SOUND) is None
    assert SOUND.ballot > NO_BALLOT
    assert in_plan(SOUND, BOB) == SOUND.shares[1]
    assert in_plan(SOUND, PeerId("nobody")) is None


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (plan_of(bitmap(ANN, 0b0111), bitmap(BOB, 0b1100)), "disjoint cover"),
        (plan_of(bitmap(ANN, 0b0011)), "disjoint cover"),
        (plan_of(bitmap(ANN, 0b0011), bitmap(ANN, 0b1100)), "twice"),
        (plan_of(bitmap(ANN, FULL), cuts=[(0, 9)]), "tile"),
        (plan_of(bitmap(ANN, FULL), cuts=[(1, 10)]), "tile"),
        (plan_of(bitmap(ANN, FULL), bitmap(BOB, 0), cuts=[(0, 6), (5, 10)]), "tile"),
        (plan_of(bitmap(ANN, FULL), bitmap(BOB, 0), cuts=[(0, 11), (11, 10)]), "tile"),
        (plan_of(bitmap(ANN, FULL), round_=MAX_ROUND), "range"),
        (plan_of(), "disjoint cover"),
    ],
)
def test_an_unsound_plan_is_told_what_is_wrong(plan: Plan, says: str) -> None:
    assert says in (fault(plan) or "")


@pytest.mark.parametrize("field", ["incarnation", "seq", "start", "stop"])
def test_the_ballot_binds_every_field(field: str) -> None:
    first = SOUND.shares[0]
    changed = msgspec.structs.replace(first, **{field: getattr(first, field) + 1})
    tampered = msgspec.structs.replace(SOUND, shares=(changed, *SOUND.shares[1:]))
    assert "digest" in (fault(tampered) or "")


def test_the_ballot_binds_its_round() -> None:
    moved = Ballot(round=1, rank=0, digest=SOUND.ballot.digest)
    assert "digest" in (fault(msgspec.structs.replace(SOUND, ballot=moved)) or "")
    assert plan_digest(AT, Stage(0), (0, 0), SOUND.shares) == SOUND.ballot.digest


members = st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True).map(
    lambda names: [PeerId(name) for name in names]
)


@given(members, st.integers(0, 1000), st.lists(st.floats(0, 1e12), min_size=8, max_size=8))
@settings(max_examples=100, deadline=None)
def test_shards_tile_the_accumulator(peers: list[PeerId], size: int, rates: list[float]) -> None:
    cuts = shards(size, peers, dict(zip(peers, rates, strict=False)))
    assert len(cuts) == len(peers)
    assert (cuts[0][0], cuts[-1][1]) == (0, size)
    assert all(start <= stop for start, stop in cuts)
    assert all(left[1] == right[0] for left, right in pairwise(cuts))


def test_shards_follow_weights() -> None:
    assert shards(9, [ANN, BOB, EVE]) == ((0, 3), (3, 6), (6, 9))
    assert shards(8, [ANN, BOB], {ANN: 3.0}) == ((0, 6), (6, 8))
    assert shards(8, [ANN, BOB], {ANN: 0.0, BOB: 0.0}) == ((0, 4), (4, 8))
    assert shards(8, [ANN, BOB], {ANN: float("inf")}) == ((0, 4), (4, 8))


def test_the_sum_of_a_plan() -> None:
    total = sum_of(SOUND, Outcome(digest=Digest(b"d" * 32), norms=(1.0,), finite=True))
    assert total.tallies == Tallies(loss=0b1111, tokens=4)
    assert [one.peer for one in total.cover] == [ANN, BOB]
    assert total.members == (ANN, BOB, EVE)
    assert total.finite
