"""Who takes what from the data: the owner at once, others after a standstill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from p2ptrain.core.ledger import bytes_to_mask, slots_of
from p2ptrain.core.schedule import owners, step_slots
from p2ptrain.core.sourcing import weighted
from p2ptrain.engine.sourcing import ANSWER_SECONDS, PATIENCE_SECONDS, POOR_SECONDS, Sourcer
from p2ptrain.observe import events as ev
from p2ptrain.units import Microbatch, PeerId, RunId, Slot, Step
from p2ptrain.wire import messages as m

ME, OTHER, GONE = PeerId("me"), PeerId("other"), PeerId("gone")
RUN = RunId("0" * 32)
BOTH = frozenset({ME, OTHER})
MakeBench = Callable[..., Any]


def begun(seat: Any, members: tuple[PeerId, ...] = (ME, OTHER)) -> Sourcer:
    sourcer = Sourcer(RUN, ME, seat.pipeline, seat.post)
    slots = step_slots(seat.spec, Step(0))
    sourcer.begin(seat.at, slots, weighted(members, ()), now=0.0, last_seconds=0.0)
    return sourcer


def refresh(
    sourcer: Sourcer,
    live: frozenset[PeerId],
    union: int,
    now: float,
    *,
    by: PeerId = OTHER,
    retiring: bool = False,
) -> None:
    """All of ``union`` was computed ``by`` one seat."""
    sourcer.refresh(live, union, now, computed=((by, union),), retiring=retiring)


def sourced(seat: Any) -> set[int]:
    return {event.slot for event in seat.events if isinstance(event, ev.Sourced)}


def mine() -> set[int]:
    weighted = [(ME, 1.0), (OTHER, 1.0)]
    return {
        slot for slot in range(8) if owners(RUN, Microbatch(Step(0), Slot(slot)), weighted)[0] == ME
    }


def test_every_owner_takes_its_own(bench: MakeBench) -> None:
    seat = bench(stage=0)
    refresh(begun(seat), BOTH, 0, 0.0)
    assert sourced(seat) == mine()
    assert 0 < len(mine()) < 8


def test_the_next_in_order_takes_a_dead_owners(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    refresh(sourcer, BOTH, 0, 0.0)
    refresh(sourcer, frozenset({ME}), 0, 1.0)
    assert sourced(seat) == set(range(8))
    orders = {event.slot: event.order for event in seat.events if isinstance(event, ev.Sourced)}
    assert {slot for slot, order in orders.items() if order} == set(range(8)) - mine()


def test_a_stuck_owner_is_relieved_after_a_standstill_and_not_before(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    refresh(sourcer, BOTH, 0, 0.0)
    assert sourcer.due_at == PATIENCE_SECONDS
    theirs = sorted(set(range(8)) - mine())
    done = 1 << theirs[0]
    refresh(sourcer, BOTH, done, 10.0)  # it counts: slow, but not stuck
    refresh(sourcer, BOTH, done, 20.0)
    assert sourced(seat) == mine()
    refresh(sourcer, BOTH, done, 10.0 + PATIENCE_SECONDS)
    assert sourced(seat) == set(range(8)) - {theirs[0]}


def test_owners_that_make_good_a_loss_are_not_stuck(bench: MakeBench) -> None:
    """Nothing is counted for the first time then; each of several mates took all that was left."""
    seat = bench(stage=0)
    sourcer = begun(seat)
    done = counted(set(range(8)) - mine())
    again = done & -done
    refresh(sourcer, BOTH, done, 0.0, by=GONE)
    refresh(sourcer, BOTH, 0, 10.0)
    for now in (12.0, 11.0 + PATIENCE_SECONDS):
        refresh(sourcer, BOTH, again, now)
        assert sourced(seat) == mine()
    refresh(sourcer, BOTH, again, 12.0 + PATIENCE_SECONDS)
    assert sourced(seat) == set(range(8)) - set(slots_of(again))


def test_who_comes_and_goes_or_counts_now_this_and_now_that_delays_nobody(
    bench: MakeBench,
) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    one, other, *_ = sorted(set(range(8)) - mine())
    refresh(sourcer, BOTH, 1 << one, 0.0)
    for now in range(1, int(PATIENCE_SECONDS)):  # the other for the first time at 1
        refresh(sourcer, BOTH, 1 << (one, other)[now % 2], float(now))
    assert sourced(seat) == mine()
    refresh(sourcer, BOTH, 0, 1.0 + PATIENCE_SECONDS)
    assert sourced(seat) == set(range(8))


def test_what_was_borrowed_was_not_computed(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    refresh(sourcer, BOTH, 0, 0.0)
    sourcer.refresh(BOTH, 0b11, 5.0, computed=())
    assert sourcer.due_at == PATIENCE_SECONDS


def test_the_parked_bound_is_the_window(bench: MakeBench) -> None:
    seat = bench(stage=0, parked=2)
    sourcer = begun(seat, (ME,))
    refresh(sourcer, frozenset({ME}), 0, 0.0)
    assert sourced(seat) == {0, 1}
    seat.pipeline.counted_elsewhere(0b1)
    sourcer.feed(0.0)
    assert sourced(seat) == {0, 1, 2}


def test_what_was_counted_and_lost_is_sourced_again_as_a_replay(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat, (ME,))
    refresh(sourcer, frozenset({ME}), 0xFF, 0.0)
    assert sourced(seat) == set()
    refresh(sourcer, frozenset({ME}), 0xFE, 1.0)
    (event,) = [event for event in seat.events if isinstance(event, ev.Sourced)]
    assert (event.slot, event.order) == (0, 1)


def test_what_the_stage_above_has_counted_is_sourced_after_all_else_and_in_spare_time(
    bench: MakeBench,
) -> None:
    seat = bench(stage=0, parked=2)
    sourcer = begun(seat, (ME,))
    seat.pipeline.custodian.tallied("forward", 0b111, 0.0)
    refresh(sourcer, frozenset({ME}), 0, 0.0)
    assert sourced(seat) == {3, 4}  # the window is full, and what is in it can begin
    for slot in (3, 4):
        seat.pipeline.shelf.get(Microbatch(Step(0), Slot(slot))).state = "computing"
    sourcer.feed(0.0)
    assert sourced(seat) == {0, 3, 4}
    assert seat.pipeline.next_job().spare
    seat.pipeline.next_job().state = "computing"
    sourcer.feed(0.0)
    assert sourced(seat) == {0, 1, 3, 4}


def test_who_has_some_to_do_in_spare_time_takes_none_of_that_of_a_mate(bench: MakeBench) -> None:
    """All that is left is counted above: handed over and over, it would all end with one."""
    seat = bench(stage=0)
    seat.post.serving[0] = (ME, OTHER)
    seat.pipeline.custodian.tallied("forward", 0xFF, 0.0)
    refresh(begun(seat), BOTH, 0, 0.0)
    assert sourced(seat) < mine()
    assert seat.post.all(m.WantSlots) == []


def test_what_can_begin_at_once_is_handed_on_before_what_waits_for_spare_time(
    bench: MakeBench,
) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    own = sorted(mine())
    seat.pipeline.custodian.tallied("forward", counted(set(own[-1:])), 0.0)
    refresh(sourcer, BOTH, 0, 0.0)
    sourcer.hear(OTHER, m.WantSlots(at=seat.at, room=1), 0.0)
    assert set(slots_of(bytes_to_mask(seat.post.last(m.GiveSlots).slots))) == {own[-2]}


def test_a_stopped_sourcer_takes_nothing(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    sourcer.stop()
    refresh(sourcer, BOTH, 0, 100.0)
    assert sourced(seat) == set()
    assert sourcer.due_at is None


# --- handing on ---------------------------------------------------------------------------------


def theirs() -> set[int]:
    return set(range(8)) - mine()


def counted(slots: set[int]) -> int:
    return sum(1 << slot for slot in slots)


def test_who_has_nothing_left_asks_the_mate_that_has(bench: MakeBench) -> None:
    seat = bench(stage=0, parked=3)
    seat.post.serving[0] = (ME, OTHER)
    sourcer = begun(seat)
    refresh(sourcer, BOTH, counted(mine()), 0.0)
    assert seat.post.told == [(OTHER, m.WantSlots(at=seat.at, room=3))]
    slots = sorted(theirs())[-2:]
    sourcer.hear(OTHER, m.GiveSlots(at=seat.at, slots=bytes([counted(set(slots))])), 0.1)
    assert sourced(seat) == set(slots)
    assert all(not event.order for event in seat.events if isinstance(event, ev.Sourced))


def test_one_question_at_a_time_and_the_poor_are_left_alone(bench: MakeBench) -> None:
    seat = bench(stage=0)
    seat.post.serving[0] = (ME, OTHER)
    sourcer = begun(seat)
    refresh(sourcer, BOTH, counted(mine()), 0.0)
    sourcer.feed(ANSWER_SECONDS / 2)
    assert len(seat.post.told) == 1
    sourcer.hear(OTHER, m.GiveSlots(at=seat.at, slots=b"\0"), ANSWER_SECONDS / 2)
    sourcer.feed(ANSWER_SECONDS)
    assert len(seat.post.told) == 1
    sourcer.feed(ANSWER_SECONDS / 2 + POOR_SECONDS)
    assert len(seat.post.told) == 2


def test_an_answer_that_does_not_come_is_asked_for_again(bench: MakeBench) -> None:
    seat = bench(stage=0)
    seat.post.serving[0] = (ME, OTHER)
    sourcer = begun(seat)
    refresh(sourcer, BOTH, counted(mine()), 0.0)
    sourcer.feed(ANSWER_SECONDS)
    assert len(seat.post.told) == 2


def test_nobody_is_asked_while_there_is_no_place(bench: MakeBench) -> None:
    seat = bench(stage=0, parked=1)
    seat.post.serving[0] = (ME, OTHER)
    sourcer = begun(seat)
    refresh(sourcer, BOTH, counted(mine()) & ~(counted(mine()) & -counted(mine())), 0.0)
    assert len(sourced(seat)) == 1
    assert seat.post.told == []


def test_what_has_not_begun_is_handed_on_and_not_begun_then(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    refresh(sourcer, BOTH, 0, 0.0)  # all of it waits for its forward
    sourcer.hear(OTHER, m.WantSlots(at=seat.at, room=8), 0.1)
    (peer, answer) = seat.post.told[-1]
    given = set(slots_of(bytes_to_mask(answer.slots)))
    assert peer == OTHER
    assert given == set(sorted(mine())[-len(given) :])
    assert len(given) == round(len(mine()) / 2)
    assert {slot for slot in mine() if seat.pipeline.holds(Microbatch(Step(0), Slot(slot)))} == (
        mine() - given
    )
    refresh(sourcer, BOTH, 0, 0.2)
    assert not any(seat.pipeline.holds(Microbatch(Step(0), Slot(slot))) for slot in given)
    refresh(sourcer, frozenset({ME}), 0, 0.3)  # the taker is gone
    assert all(seat.pipeline.holds(Microbatch(Step(0), Slot(slot))) for slot in range(8))


def test_a_seat_that_is_given_up_takes_nothing_more_and_hands_all_on(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    refresh(sourcer, BOTH, 0, 0.0)
    begun_here = seat.pipeline.next_job()
    begun_here.state = "computing"
    refresh(sourcer, BOTH, 0, 0.1, retiring=True)
    rest = mine() - {begun_here.work.slot}
    assert not any(seat.pipeline.holds(Microbatch(Step(0), Slot(slot))) for slot in rest)
    assert seat.post.told == []  # nor does it ask for more
    sourcer.hear(OTHER, m.WantSlots(at=seat.at, room=8), 0.2)
    assert set(slots_of(bytes_to_mask(seat.post.told[-1][1].slots))) == rest
    refresh(sourcer, frozenset({ME}), 0, 0.3)  # nobody is left to take it
    assert all(seat.pipeline.holds(Microbatch(Step(0), Slot(slot))) for slot in range(8))


def test_a_seat_that_is_given_up_takes_its_own_after_all_if_its_mates_stand_still(
    bench: MakeBench,
) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    refresh(sourcer, BOTH, 0, 0.0, retiring=True)
    assert sourced(seat) == set()
    refresh(sourcer, BOTH, 0, PATIENCE_SECONDS, retiring=True)
    assert sourced(seat) == set(range(8))


def test_what_was_handed_to_a_seat_that_is_given_up_is_computed_there(bench: MakeBench) -> None:
    seat = bench(stage=0)
    seat.post.serving[0] = (ME, OTHER)
    sourcer = begun(seat)
    refresh(sourcer, BOTH, counted(mine()), 0.0)
    slot = max(theirs())
    refresh(sourcer, BOTH, counted(mine()), 0.1, retiring=True)
    sourcer.hear(OTHER, m.GiveSlots(at=seat.at, slots=bytes([1 << slot])), 0.2)
    assert seat.pipeline.holds(Microbatch(Step(0), Slot(slot)))


def test_what_is_computing_is_not_handed_on(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    refresh(sourcer, BOTH, 0, 0.0)
    while (job := seat.pipeline.next_job()) is not None:
        job.state = "computing"
    sourcer.hear(OTHER, m.WantSlots(at=seat.at, room=8), 0.1)
    (_, answer) = seat.post.told[-1]
    assert bytes_to_mask(answer.slots) == 0


def test_words_of_another_step_are_not_heard(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    other = msgspec.structs.replace(seat.at, step=Step(1))
    sourcer.hear(OTHER, m.WantSlots(at=other, room=8), 0.0)
    sourcer.hear(OTHER, m.GiveSlots(at=other, slots=b"\xff"), 0.0)
    assert seat.post.told == []
    assert sourced(seat) == set()
