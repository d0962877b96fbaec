"""Of two steps from one position all choose the same one, from whichever they come."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from p2ptrain.core.agreement import Position, Sum, Tallies
from p2ptrain.core.chain import next_chain
from p2ptrain.core.forks import other_name
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step

AT = Position(epoch=0, step=Step(3), chain=Chain(b"c" * 32))


def step(name: str, *, finite: bool = True) -> tuple[Sum, ...]:
    """A step of two stages; steps of other names differ in the sum of the first."""
    first = Sum(
        at=AT,
        stage=Stage(0),
        digest=Digest(name.encode() * 32),
        norms=(1.0,),
        finite=finite,
        tallies=Tallies(),
        cover=(),
        members=(PeerId("ann"),),
        round=0,
        final=True,
    )
    tallies = Tallies(loss=1 << 40, tokens=64)
    return first, msgspec.structs.replace(first, stage=Stage(1), finite=True, tallies=tallies)


def told(sums: tuple[Sum, ...]) -> dict[Stage, Sum]:
    return {one.stage: one for one in sums}


def chain_of(sums: tuple[Sum, ...]) -> Chain:
    return next_chain(AT.chain, AT.epoch, AT.step, sums)


STEPS = sorted((step(name) for name in "abc"), key=chain_of)


def found(mine: tuple[Sum, ...], *others: tuple[Sum, ...]) -> tuple[Sum, ...]:
    """With what we end that stepped with ``mine``, and hear of ``others``."""
    other = other_name(AT, mine, map(told, others), nominal_tokens=16)
    if other is None:
        return mine
    assert other[0] == chain_of(other[1])
    return other[1]


def test_all_come_to_the_smallest_chain_in_whatever_order_they_hear() -> None:
    for mine, *others in itertools.permutations(STEPS):
        assert found(mine, *others) == STEPS[0]


def test_who_stands_on_it_stays() -> None:
    assert found(STEPS[0], STEPS[0]) is STEPS[0]
    assert found(STEPS[0]) is STEPS[0]


def test_what_is_not_told_of_every_stage_is_no_step() -> None:
    half = {Stage(0): STEPS[0][0]}
    assert other_name(AT, STEPS[1], [half], nominal_tokens=16) is None


@pytest.mark.parametrize("mine", [True, False])
def test_who_has_stepped_does_not_take_over_that_it_has_not_nor_the_reverse(*, mine: bool) -> None:
    """Their weights differ by more than rounding."""
    own = max((step(name, finite=mine) for name in "defgh"), key=chain_of)
    other = min((step(name, finite=not mine) for name in "defgh"), key=chain_of)
    assert chain_of(other) < chain_of(own)
    assert found(own, other) is own
