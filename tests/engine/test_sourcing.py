"""Who takes what from the data: the owner at once, others after a standstill."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from p2ptrain.core.schedule import owners, step_slots
from p2ptrain.engine.sourcing import PATIENCE_SECONDS, Sourcer
from p2ptrain.observe import events as ev
from p2ptrain.units import Microbatch, PeerId, RunId, Slot, Step

ME, OTHER = PeerId("me"), PeerId("other")
RUN = RunId("0" * 32)
BOTH = frozenset({ME, OTHER})
MakeBench = Callable[..., Any]


def begun(seat: Any, members: tuple[PeerId, ...] = (ME, OTHER)) -> Sourcer:
    sourcer = Sourcer(RUN, ME, seat.pipeline)
    slots = step_slots(seat.spec, Step(0))
    sourcer.begin(seat.at, slots, members, now=0.0, last_seconds=0.0)
    return sourcer


def sourced(seat: Any) -> set[int]:
    return {event.slot for event in seat.events if isinstance(event, ev.Sourced)}


def mine() -> set[int]:
    weighted = [(ME, 1.0), (OTHER, 1.0)]
    return {
        slot for slot in range(8) if owners(RUN, Microbatch(Step(0), Slot(slot)), weighted)[0] == ME
    }


def test_every_owner_takes_its_own(bench: MakeBench) -> None:
    seat = bench(stage=0)
    begun(seat).refresh(BOTH, 0, 0.0)
    assert sourced(seat) == mine()
    assert 0 < len(mine()) < 8


def test_the_next_in_order_takes_a_dead_owners(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    sourcer.refresh(BOTH, 0, 0.0)
    sourcer.refresh(frozenset({ME}), 0, 1.0)
    assert sourced(seat) == set(range(8))
    orders = {event.slot: event.order for event in seat.events if isinstance(event, ev.Sourced)}
    assert {slot for slot, order in orders.items() if order} == set(range(8)) - mine()


def test_a_stuck_owner_is_relieved_after_a_standstill_and_not_before(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    sourcer.refresh(BOTH, 0, 0.0)
    assert sourcer.due_at == PATIENCE_SECONDS
    theirs = sorted(set(range(8)) - mine())
    done = 1 << theirs[0]
    sourcer.refresh(BOTH, done, 10.0)  # it counts: slow, but not stuck
    sourcer.refresh(BOTH, done, 20.0)
    assert sourced(seat) == mine()
    sourcer.refresh(BOTH, done, 10.0 + PATIENCE_SECONDS)
    assert sourced(seat) == set(range(8)) - {theirs[0]}


def test_the_parked_bound_is_the_window(bench: MakeBench) -> None:
    seat = bench(stage=0, parked=2)
    sourcer = begun(seat, (ME,))
    sourcer.refresh(frozenset({ME}), 0, 0.0)
    assert sourced(seat) == {0, 1}
    seat.pipeline.counted_elsewhere(0b1)
    sourcer.feed()
    assert sourced(seat) == {0, 1, 2}


def test_what_was_counted_and_lost_is_sourced_again_as_a_replay(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat, (ME,))
    sourcer.refresh(frozenset({ME}), 0xFF, 0.0)
    assert sourced(seat) == set()
    sourcer.refresh(frozenset({ME}), 0xFE, 1.0)
    (event,) = [event for event in seat.events if isinstance(event, ev.Sourced)]
    assert (event.slot, event.order) == (0, 1)


def test_a_stopped_sourcer_takes_nothing(bench: MakeBench) -> None:
    seat = bench(stage=0)
    sourcer = begun(seat)
    sourcer.stop()
    sourcer.refresh(BOTH, 0, 100.0)
    assert sourced(seat) == set()
    assert sourcer.due_at is None
