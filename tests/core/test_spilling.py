"""What leaves memory: nothing while there is room; then what is needed least, to make room."""

import hypothesis.strategies as st
from hypothesis import given

from p2ptrain.core.duties import State
from p2ptrain.core.spilling import HIGH_SHARE, Frame, excess_bytes, leaves_first
from p2ptrain.units import Microbatch, Slot, Step

BOUND = 100


def frame(slot: int, state: State | None = State.COUNTED, step: int = 3) -> Frame:
    return Frame(Microbatch(Step(step), Slot(slot)), "forward", state, 10)


def test_nothing_leaves_while_there_is_room() -> None:
    assert excess_bytes(memory_bytes=75, coming_bytes=25, bound_bytes=BOUND) == 0
    assert excess_bytes(memory_bytes=0, coming_bytes=200, bound_bytes=BOUND) == 0


def test_much_in_memory_makes_way_in_time_and_want_of_room_at_once() -> None:
    assert excess_bytes(memory_bytes=76, coming_bytes=10, bound_bytes=BOUND) == 26
    assert excess_bytes(memory_bytes=60, coming_bytes=41, bound_bytes=BOUND) == 10
    assert excess_bytes(memory_bytes=60, coming_bytes=70, bound_bytes=BOUND) == 30
    assert excess_bytes(memory_bytes=60, coming_bytes=120, bound_bytes=BOUND) == 60


def test_what_has_begun_goes_on_until_half_is_free() -> None:
    assert excess_bytes(memory_bytes=60, coming_bytes=0, bound_bytes=BOUND, begun=True) == 10
    assert excess_bytes(memory_bytes=50, coming_bytes=0, bound_bytes=BOUND, begun=True) == 0


@given(st.integers(0, 200), st.integers(0, 200))
def test_when_the_excess_has_left_there_is_room_or_the_coming_alone_fills_the_bound(
    memory: int, coming: int
) -> None:
    left = memory - excess_bytes(memory_bytes=memory, coming_bytes=coming, bound_bytes=BOUND)
    assert 0 <= left <= memory
    assert left + coming <= BOUND or (left == 0 and coming > BOUND)
    assert left <= HIGH_SHARE * BOUND


def test_what_is_counted_leaves_first_and_what_is_being_sent_last() -> None:
    counted, held, asking, sent = (
        frame(slot, state)
        for slot, state in enumerate((State.COUNTED, State.HELD, State.ASKING, State.SENT))
    )
    assert leaves_first([sent, asking, held, counted]) == counted
    assert leaves_first([sent, asking, held]) == held
    assert leaves_first([sent, asking]) == asking
    assert leaves_first([sent]) == sent
    assert leaves_first([]) is None
    assert leaves_first([counted, frame(9, None)]) == frame(9, None)


def test_of_equals_the_oldest_leaves_first() -> None:
    assert leaves_first([frame(2), frame(1), frame(7, step=2)]) == frame(7, step=2)
    assert leaves_first([frame(2), frame(1)]) == frame(1)


def test_every_state_of_custody_has_its_place() -> None:
    for state in State:
        assert leaves_first([frame(0, state)]) == frame(0, state)
