"""When replicas take over one state, and in which order they are asked for it."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.core.adoption import adoption_order, adopts_at, differs_at, waits
from p2ptrain.core.agreement import Position
from p2ptrain.run import Checkpoint, Optimizer, RunSpec, Sync
from p2ptrain.units import Chain, PeerId, Stage, Step

SPEC = RunSpec(
    sync=Sync(agreement="canonical", canonical_steps=4),
    optimizer=Optimizer(steps=10),
    checkpoint=Checkpoint(every_steps=0),
)
AT = Position(epoch=0, step=Step(4), chain=Chain(b"c" * 32))
PEERS = tuple(PeerId(name) for name in ("a", "b", "c", "d"))


@pytest.mark.parametrize(
    ("version", "due"), [(0, False), (3, False), (4, True), (8, True), (9, False), (10, True)]
)
def test_states_are_adopted_now_and_then_and_after_the_last_update(
    version: int, *, due: bool
) -> None:
    assert adopts_at(SPEC, Step(version)) is due


def test_in_one_arithmetic_nothing_is_adopted() -> None:
    assert not adopts_at(msgspec.structs.replace(SPEC, sync=Sync()), Step(10))


def test_a_difference_is_adopted_where_the_run_says_so_and_another_follows() -> None:
    versions = [Step(version) for version in range(11)]
    assert not any(differs_at(SPEC, version) for version in versions)
    sync = msgspec.structs.replace(SPEC.sync, adoption="int8")
    lossy = msgspec.structs.replace(SPEC, sync=sync)
    assert [version for version in versions if differs_at(lossy, version)] == [4, 8]
    assert adopts_at(lossy, Step(10))


def test_the_order_is_the_same_whoever_asks_and_whatever_order_the_record_has() -> None:
    order = adoption_order(AT, Stage(1), PEERS)
    assert sorted(order) == sorted(PEERS)
    assert adoption_order(AT, Stage(1), reversed(PEERS)) == order
    without_first = [peer for peer in PEERS if peer != order[0]]
    assert adoption_order(AT, Stage(1), without_first) == order[1:]


def test_every_replica_comes_first_now_and_then() -> None:
    first = {
        adoption_order(msgspec.structs.replace(AT, step=Step(step)), Stage(0), PEERS)[0]
        for step in range(40)
    }
    assert first == set(PEERS)


def test_of_two_that_ask_each_other_the_later_in_the_order_waits() -> None:
    assert waits(PEERS, PeerId("c"), on=PeerId("b"), asked=[PeerId("a"), PeerId("c")])
    assert not waits(PEERS, PeerId("b"), on=PeerId("c"), asked=[PeerId("b")])


def test_who_comes_later_than_all_whom_another_asks_waits_for_it() -> None:
    assert waits(PEERS, PeerId("b"), on=PeerId("d"), asked=[PeerId("a")])
    assert not waits(PEERS, PeerId("b"), on=PeerId("d"), asked=[PeerId("a"), PeerId("c")])
    assert not waits(PEERS, PeerId("b"), on=PeerId("d"), asked=[])


def test_strangers_wait_for_everybody_but_strangers() -> None:
    assert waits(PEERS, PeerId("joiner"), on=PeerId("d"), asked=[])
    assert not waits(PEERS, PeerId("joiner"), on=PeerId("buddy"), asked=[])
    assert waits(PEERS, PeerId("joiner"), on=PeerId("buddy"), asked=[PeerId("a")])


@given(asked=st.lists(st.sets(st.integers(0, 5)), min_size=6, max_size=6))
def test_whoever_asks_whom_nobody_waits_in_a_circle(asked: list[set[int]]) -> None:
    everybody = [*PEERS, PeerId("a joiner"), PeerId("another")]
    asks = {
        peer: {everybody[n] for n in numbers} - {peer}
        for peer, numbers in zip(everybody, asked, strict=True)
    }
    waiting = {
        peer: {on for on in asks[peer] if waits(PEERS, peer, on=on, asked=asks[on])}
        for peer in everybody
    }
    for one, other in ((one, other) for one in PEERS for other in PEERS if one < other):
        if one in asks[other] and other in asks[one]:
            assert one in waiting[other]
            assert other not in waiting[one]
    while free := [peer for peer in waiting if not waiting[peer] & waiting.keys()]:
        for peer in free:
            del waiting[peer]
    assert not waiting
