"""A seat keeps its two bounds, and one place per microbatch, under every history."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from p2ptrain.core.offers import Declined, Held, OfferBook, Offered, parked_bound
from p2ptrain.run import Limits
from p2ptrain.units import Microbatch, Slot, Step

LIMITS = Limits(queue_slots=4, replay_slots=2, lease_seconds=10.0)


def work(slot: int, step: int = 0) -> Microbatch:
    return Microbatch(Step(step), Slot(slot))


def book(bound: int = 8) -> OfferBook:
    return OfferBook(LIMITS, parked_bound=bound)


def park(seat: OfferBook, *slots: int) -> None:
    for slot in slots:
        assert seat.arrived(work(slot), now=0.0)
        assert seat.started(work(slot))
        assert seat.computed(work(slot))


def test_the_way_of_a_microbatch() -> None:
    seat = book()
    assert seat.ask(work(0), replay=False, now=1.0) == Offered(expires_at=11.0, ahead=0)
    assert (seat.state(work(0)), seat.due_at) == ("reserved", 11.0)
    assert seat.arrived(work(0), now=2.0)
    assert (seat.state(work(0)), seat.due_at, seat.waiting()) == ("queued", None, (work(0),))
    assert seat.started(work(0))
    assert (seat.queue, seat.parked) == (1, 0)
    assert seat.computed(work(0))
    assert (seat.queue, seat.parked, seat.state(work(0))) == (0, 1, "parked")
    assert seat.returned(work(0))
    assert (seat.queue, seat.parked, seat.state(work(0))) == (0, 0, "none")


def test_four_are_taken_and_two_more_if_they_are_replays() -> None:
    seat = book()
    for slot in range(4):
        assert isinstance(seat.ask(work(slot), replay=False, now=0.0), Offered)
    refused = seat.ask(work(4), replay=False, now=0.0, service_seconds=0.5)
    assert isinstance(refused, Declined)
    assert (refused.reason, refused.retry_seconds) == ("queue", 0.5)
    for slot in (4, 5):
        assert isinstance(seat.ask(work(slot), replay=True, now=0.0), Offered)
    assert isinstance(seat.ask(work(6), replay=True, now=0.0), Declined)


def test_replays_leave_ordinary_slots_when_they_are_many() -> None:
    seat = book()
    for slot in range(3):
        assert isinstance(seat.ask(work(slot), replay=True, now=0.0), Offered)
    taken = [isinstance(seat.ask(work(slot), replay=False, now=0.0), Offered) for slot in (3, 4, 5)]
    assert taken == [True, True, True]
    assert isinstance(seat.ask(work(6), replay=False, now=0.0), Declined)


def test_asking_again_renews_the_lease_and_takes_no_second_slot() -> None:
    seat = book()
    seat.ask(work(0), replay=False, now=0.0)
    assert seat.ask(work(0), replay=False, now=9.0) == Offered(expires_at=19.0, ahead=0)
    assert (seat.queue, seat.expire(now=18.9), seat.expire(now=19.0)) == (1, (), (work(0),))
    assert seat.queue == 0


def test_what_is_held_is_said_so() -> None:
    seat = book()
    seat.arrived(work(0), now=0.0)
    assert seat.ask(work(0), replay=False, now=0.0) == Held(state="queued")
    seat.started(work(0))
    assert seat.ask(work(0), replay=True, now=0.0) == Held(state="computing")
    seat.computed(work(0))
    assert seat.ask(work(0), replay=False, now=0.0) == Held(state="parked")


def test_a_late_frame_is_taken_while_there_is_room() -> None:
    seat = book()
    for slot in range(2):
        seat.ask(work(slot), replay=False, now=0.0)
    for slot in range(10, 14):  # the leases of 0 and 1 lapse, four others take the slots
        seat.ask(work(slot), replay=False, now=10.0)
    assert not seat.arrived(work(0), now=10.0)
    assert seat.decline(work(10))
    assert seat.arrived(work(1), now=10.0)
    assert not seat.arrived(work(1), now=10.0)


def test_parked_at_its_bound_stops_forwards_and_then_the_askers() -> None:
    seat = book(bound=2)
    park(seat, 0, 1)
    assert not seat.may_start()
    assert seat.may_start(parks=False)
    for slot in range(2, 6):
        assert isinstance(seat.ask(work(slot), replay=False, now=0.0), Offered)
    refused = seat.ask(work(6), replay=False, now=0.0)
    assert isinstance(refused, Declined)
    assert refused.reason == "parked"
    assert seat.returned(work(0))
    assert seat.may_start()


def test_a_forward_being_computed_already_counts_as_parked() -> None:
    seat = book(bound=1)
    seat.arrived(work(0), now=0.0)
    seat.started(work(0))
    assert not seat.may_start()


def test_evaluation_parks_nothing() -> None:
    seat = book()
    seat.arrived(work(0), now=0.0)
    seat.started(work(0))
    assert seat.computed(work(0), parks=False)
    assert (seat.queue, seat.parked) == (0, 0)


def test_stage_0_sources_up_to_the_parked_bound_and_uses_no_queue_slot() -> None:
    seat = book(bound=6)
    assert [seat.source(work(slot)) for slot in range(8)] == [True] * 6 + [False] * 2
    assert not seat.source(work(0))
    assert seat.queue == 0
    assert isinstance(seat.ask(work(9), replay=True, now=0.0), Offered)
    for slot in range(6):
        assert seat.may_start()
        assert seat.started(work(slot))
        assert seat.computed(work(slot))
    assert not seat.source(work(7))
    assert seat.returned(work(3))
    assert seat.source(work(7))


def test_the_oldest_step_begins_first_then_replays_then_slots() -> None:
    seat = book()
    for slot, step, replay in ((1, 1, False), (3, 0, False), (2, 0, False), (5, 0, True)):
        seat.arrived(work(slot, step), replay=replay, now=0.0)
    assert seat.waiting() == (work(5), work(2), work(3), work(1, 1))
    answer = seat.ask(work(4), replay=False, now=0.0)
    assert isinstance(answer, Offered)
    assert answer.ahead == 3


def test_a_lowered_bound_is_reached_by_draining() -> None:
    seat = book(bound=3)
    park(seat, 0, 1, 2)
    seat.set_parked_bound(1)
    fills = [(seat.parked, seat.parked_bound)]
    for slot in range(3):
        assert not seat.may_start()
        seat.returned(work(slot))
        fills.append((seat.parked, seat.parked_bound))
    assert fills == [(3, 3), (2, 2), (1, 1), (0, 1)]
    assert seat.may_start()


def test_what_will_not_park_is_sourced_though_the_window_is_full() -> None:
    seat = book(1)
    assert seat.source(work(0))
    assert not seat.source(work(1))
    assert seat.source(work(1), parks=False)


def test_clear_forgets_everything() -> None:
    seat = book()
    park(seat, 0)
    seat.ask(work(1), replay=False, now=0.0)
    seat.clear()
    assert (seat.queue, seat.parked, seat.due_at) == (0, 0, None)


@pytest.mark.parametrize(
    ("stage", "share", "replicas", "bound"),
    [(0, 1.0, 1, 16), (3, 1.0, 1, 4), (0, 1 / 3, 3, 16), (0, 0.75, 2, 24), (3, 0.001, 2, 1)],
)
def test_the_parked_bound_follows_depth_and_rate(
    stage: int, share: float, replicas: int, bound: int
) -> None:
    assert bound == parked_bound(
        stages=4, stage=stage, share=share, replicas=replicas, total_slots=24, window_per_stage=4
    )


CALLS = ("ask", "replay", "arrived", "decline", "source", "begin", "computed", "evaluated")
calls = st.tuples(
    st.sampled_from([*CALLS, "returned", "forget", "rebound", "later"]), st.integers(0, 11)
)


def apply(seat: OfferBook, call: str, number: int, now: float) -> None:
    target = work(number)
    match call:
        case "ask" | "replay":
            seat.ask(target, replay=call == "replay", now=now)
        case "arrived":
            seat.arrived(target, now=now)
        case "begin":
            if seat.may_start():
                seat.started(target)
        case "computed" | "evaluated":
            seat.computed(target, parks=call == "computed")
        case "rebound":
            seat.set_parked_bound(number)
        case "later":
            seat.expire(now=now)
        case _:
            getattr(seat, call)(target)


@settings(max_examples=200)
@given(st.lists(calls, max_size=60))
def test_every_history_keeps_the_bounds_and_one_place_each(history: list[tuple[str, int]]) -> None:
    seat = book(bound=3)
    for now, (call, number) in enumerate(history):
        parked_before, ceiling = seat.parked, seat.parked_bound
        apply(seat, call, number, float(now))
        states = [seat.state(work(slot)) for slot in range(12)]
        ordinary = LIMITS.queue_slots
        assert seat.queue <= seat.queue_bound == ordinary + LIMITS.replay_slots
        assert states.count("parked") == seat.parked <= max(seat.parked_bound, 1)
        assert seat.parked <= max(parked_before, ceiling)
        assert len(seat.waiting()) == states.count("queued")
        assert (seat.due_at is not None) == ("reserved" in states)
    seat.expire(now=1e9)
    for slot in range(12):
        seat.forget(work(slot))
    assert (seat.queue, seat.parked, seat.due_at) == (0, 0, None)
