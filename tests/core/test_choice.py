"""Of two names of one sum exactly one counts, unless somebody has stepped with both."""

from __future__ import annotations

import msgspec
import pytest

from p2ptrain.core.agreement import Position, Sum, Tallies
from p2ptrain.core.choice import precedes
from p2ptrain.units import Chain, Digest, Stage, Step


def total(digest: bytes, *, round_: int = 0, final: bool = False) -> Sum:
    return Sum(
        at=Position(epoch=0, step=Step(1), chain=Chain(bytes(32))),
        stage=Stage(0),
        digest=Digest(digest * 32),
        norms=(1.0,),
        finite=True,
        tallies=Tallies(),
        cover=(),
        members=(),
        round=round_,
        final=final,
    )


def test_the_lower_round_counts_whatever_the_digests() -> None:
    for digest in (b"a", b"b", b"c"):
        assert precedes(total(digest, round_=1), total(b"b", round_=2))
        assert not precedes(total(b"b", round_=2), total(digest, round_=1))


def test_of_one_round_the_digest_decides_and_a_sum_does_not_precede_itself() -> None:
    one, other = total(b"a"), total(b"b")
    assert precedes(one, other) != precedes(other, one)
    assert not precedes(one, one)


@pytest.mark.parametrize("round_", [0, 7])
def test_what_somebody_has_stepped_with_counts(round_: int) -> None:
    stepped = total(b"z", round_=round_, final=True)
    assert precedes(stepped, total(b"a"))
    assert not precedes(total(b"a"), stepped)
    other = msgspec.structs.replace(stepped, digest=Digest(b"y" * 32))
    assert not precedes(stepped, other)
    assert not precedes(other, stepped)
