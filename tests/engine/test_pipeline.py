"""One seat's microbatches: every message at every moment has one safe answer."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from p2ptrain.core.agreement import Tallies
from p2ptrain.core.schedule import step_slots
from p2ptrain.observe import events as ev
from p2ptrain.units import Chain, Microbatch, PeerId, Slot, Stage, Step
from p2ptrain.wire import messages as m

BELOW, OTHER = PeerId("below"), PeerId("other")
MakeBench = Callable[..., Any]


def ask(bench: Any, slot: int, *, replay: bool = False, **changes: Any) -> m.Ask:
    message = m.Ask(at=bench.at, slot=Slot(slot), stage=bench.stage, attempt=0, replay=replay)
    return msgspec.structs.replace(message, **changes)


def forward(bench: Any, slot: int, *, replay: bool = False, **changes: Any) -> m.Forward:
    message = m.Forward(
        at=bench.at,
        slot=Slot(slot),
        stage=bench.stage,
        attempt=0,
        replay=replay,
        path=(BELOW,) * bench.stage,
    )
    return msgspec.structs.replace(message, **changes)


def gradient(bench: Any, slot: int) -> m.Gradient:
    return m.Gradient(at=bench.at, slot=Slot(slot), stage=bench.stage)


def arrive(bench: Any, slot: int, *, replay: bool = False) -> None:
    frame = memoryview(b"token" + b"input")
    bench.pipeline.forward(BELOW, forward(bench, slot, replay=replay), frame, 0.0)


def compute(bench: Any) -> Any:
    """What the worker does with a forward, without any arithmetic."""
    item = bench.pipeline.next_job()
    item.state = "computing"
    bench.pipeline.book.started(item.work)
    bench.pipeline.book.computed(item.work)
    item.state = "parked"
    return item


def state(bench: Any, slot: int) -> str:
    where = m.Where(at=bench.at, slot=Slot(slot), stage=bench.stage)
    bench.pipeline.where(BELOW, where)
    return str(bench.post.last(m.Whereabouts).state)


def test_an_offer_says_what_to_expect_and_the_frame_takes_its_slot(bench: MakeBench) -> None:
    seat = bench()
    seat.pipeline.ask(BELOW, ask(seat, 3), 0.0)
    offer = seat.post.last(m.Offer)
    assert offer.delay_seconds == 0.5 + seat.pipeline.pace.service_seconds
    assert offer.lease_seconds == seat.spec.limits.lease_seconds
    arrive(seat, 3)
    assert seat.post.last(m.Accepted).what == "forward"
    assert state(seat, 3) == "queued"


def test_a_full_queue_is_busy_but_for_replays(bench: MakeBench) -> None:
    seat = bench()
    for slot in range(5):
        seat.pipeline.ask(BELOW, ask(seat, slot), 0.0)
    assert seat.post.last(m.Busy).reason == "queue"
    seat.pipeline.ask(BELOW, ask(seat, 5, replay=True), 0.0)
    assert seat.post.last(m.Offer).slot == 5


def test_replays_do_not_outgrow_the_parked_bound(bench: MakeBench) -> None:
    seat = bench(parked=2)
    for slot in range(4):
        arrive(seat, slot, replay=True)
    compute(seat)
    compute(seat)
    assert seat.pipeline.book.parked == 2
    assert seat.pipeline.next_job() is None
    assert seat.pipeline.book.parked_bound == 2


def test_a_returned_gradient_makes_room(bench: MakeBench) -> None:
    seat = bench(parked=1)
    arrive(seat, 0)
    arrive(seat, 1)
    compute(seat)
    assert seat.pipeline.next_job() is None
    seat.pipeline.gradient(OTHER, gradient(seat, 0), memoryview(b"g"), 1.0)
    item = seat.pipeline.next_job()
    assert item.returned
    seat.pipeline.book.returned(item.work)
    seat.pipeline.counts(item, Tallies())
    assert seat.pipeline.next_job().work.slot == 1


def test_what_cannot_be_retained_is_refused_before_it_is_sent(bench: MakeBench) -> None:
    seat = bench(retained=250)  # two of a hundred bytes
    for slot in range(3):
        seat.pipeline.ask(BELOW, ask(seat, slot), 0.0)
    assert [offer.slot for offer in seat.post.all(m.Offer)] == [0, 1]
    assert seat.post.last(m.Busy).reason == "queue"
    arrive(seat, 0)
    arrive(seat, 1)  # what was offered is taken
    assert len(seat.post.all(m.Accepted)) == 2
    arrive(seat, 2)  # what was not is not
    assert seat.post.last(m.Whereabouts).state == "none"


def test_stage_0_sources_no_more_than_it_can_retain(bench: MakeBench) -> None:
    seat = bench(stage=0, retained=250)
    taken = [
        seat.pipeline.source(Microbatch(Step(0), Slot(slot)), replay=False) for slot in range(3)
    ]
    assert taken == [True, True, False]


def test_a_slot_that_the_step_does_not_have_is_refused(bench: MakeBench) -> None:
    seat = bench()
    seat.pipeline.ask(BELOW, ask(seat, 11), 0.0)
    assert seat.post.last(m.Busy).reason == "unknown"
    arrive(seat, 11)
    assert seat.post.last(m.Whereabouts).state == "none"
    assert seat.pipeline.next_job() is None


@pytest.mark.parametrize(
    ("step", "epoch", "reason"), [(1, 0, "behind"), (0, 1, "foreign"), (1, 1, "foreign")]
)
def test_an_ask_from_elsewhere_in_history_is_busy(
    bench: MakeBench, step: int, epoch: int, reason: str
) -> None:
    seat = bench()
    at = msgspec.structs.replace(seat.at, step=Step(step), epoch=epoch)
    seat.pipeline.ask(BELOW, ask(seat, 0, at=at), 0.0)
    assert seat.post.last(m.Busy).reason == reason


def test_a_frame_of_another_chain_is_not_taken(bench: MakeBench) -> None:
    seat = bench()
    at = msgspec.structs.replace(seat.at, chain=Chain(bytes(32)))
    seat.pipeline.forward(BELOW, forward(seat, 0, at=at), memoryview(b"tokeninput"), 0.0)
    assert seat.post.last(m.Whereabouts).state == "none"
    assert seat.pipeline.drained


def test_a_frame_said_twice_is_taken_once(bench: MakeBench) -> None:
    seat = bench()
    arrive(seat, 0)
    arrive(seat, 0)
    assert seat.post.last(m.Whereabouts).state == "queued"
    assert seat.pipeline.book.queue == 1


def test_while_frozen_nothing_is_offered_or_begun_and_nothing_offered_is_lost(
    bench: MakeBench,
) -> None:
    seat = bench()
    seat.pipeline.ask(BELOW, ask(seat, 0), 0.0)
    seat.pipeline.frozen = True
    seat.pipeline.ask(BELOW, ask(seat, 1), 0.0)
    assert seat.post.last(m.Busy).reason == "queue"
    arrive(seat, 0)
    assert seat.post.last(m.Accepted).slot == 0
    assert seat.pipeline.next_job() is None
    seat.pipeline.frozen = False
    assert seat.pipeline.next_job().work.slot == 0


def test_a_draining_seat_takes_nothing_new(bench: MakeBench) -> None:
    seat = bench()
    seat.pipeline.draining = True
    seat.pipeline.ask(BELOW, ask(seat, 0), 0.0)
    assert seat.post.last(m.Busy).reason == "draining"
    arrive(seat, 0)
    assert seat.post.last(m.Whereabouts).state == "none"


def test_a_peer_whose_other_seat_has_much_to_do_has_no_spare_time(bench: MakeBench) -> None:
    seat = bench()
    service = seat.pipeline.pace.service_seconds
    seat.backlog.seconds = 3 * service
    seat.pipeline.ask(BELOW, ask(seat, 0, replay=True, spare=True), 0.0)
    assert seat.post.last(m.Busy).reason == "queue"
    seat.backlog.seconds = 0.0
    seat.pipeline.ask(BELOW, ask(seat, 0, replay=True, spare=True), 1.0)
    assert seat.post.last(m.Offer).slot == 0


def test_recall_gives_back_what_has_not_begun(bench: MakeBench) -> None:
    seat = bench()
    arrive(seat, 0)
    arrive(seat, 1)
    compute(seat)
    for slot, expected in ((0, "parked"), (1, "none")):
        seat.pipeline.recall(BELOW, m.Recall(at=seat.at, slot=Slot(slot), stage=Stage(1)))
        assert seat.post.last(m.Whereabouts).state == expected
    assert seat.pipeline.book.queue == 0


def test_a_gradient_that_comes_before_its_forward_has_ended_is_kept(bench: MakeBench) -> None:
    seat = bench()
    arrive(seat, 0, replay=True)
    item = seat.pipeline.next_job()
    item.state = "computing"
    seat.pipeline.gradient(OTHER, gradient(seat, 0), memoryview(b"early"), 0.0)
    assert seat.post.last(m.Accepted).what == "gradient"
    assert not item.returned
    item.state = "parked"
    assert item.returned


def test_a_second_gradient_changes_nothing(bench: MakeBench) -> None:
    seat = bench()
    arrive(seat, 0)
    item = compute(seat)
    for payload in (b"one", b"two"):
        seat.pipeline.gradient(OTHER, gradient(seat, 0), memoryview(payload), 0.0)
    assert bytes(item.gradient) == b"one"
    assert state(seat, 0) == "computing"  # it no longer waits for one


def test_a_gradient_for_what_is_not_here_is_not_accepted(bench: MakeBench) -> None:
    seat = bench()
    seat.pipeline.gradient(OTHER, gradient(seat, 0), memoryview(b"g"), 0.0)
    assert seat.post.last(m.Whereabouts).state == "none"


def test_replays_go_before_older_slots_of_the_same_step(bench: MakeBench) -> None:
    seat = bench()
    arrive(seat, 0)
    arrive(seat, 5, replay=True)
    assert seat.pipeline.next_job().work.slot == 5


def test_what_others_counted_is_dropped_and_what_is_ours_stays(bench: MakeBench) -> None:
    seat = bench()
    arrive(seat, 0)
    arrive(seat, 1)
    item = compute(seat)
    item.gradient = b"g"
    seat.pipeline.counted_elsewhere(0b11)
    assert seat.pipeline.holds(Microbatch(Step(0), Slot(0)))  # its gradient is here: too late
    assert not seat.pipeline.holds(Microbatch(Step(0), Slot(1)))
    assert seat.pipeline.book.queue == 0


def test_who_only_passes_computes_for_a_dead_neighbour_what_mates_have_counted(
    bench: MakeBench,
) -> None:
    seat = bench()
    seat.pipeline.frozen = seat.pipeline.passing = True
    arrive(seat, 0, replay=True)
    seat.pipeline.counted_elsewhere(0b1)
    assert seat.pipeline.next_job().work.slot == 0


def test_counting_and_taking_back(bench: MakeBench) -> None:
    seat = bench()
    arrive(seat, 2)
    item = compute(seat)
    seat.pipeline.counts(item, Tallies(loss=5, tokens=1))
    assert seat.pipeline.counted == 0b100
    assert [i.work.slot for i in seat.pipeline.counted_items(0b111)] == [2]
    seat.pipeline.uncounts(item, Tallies(loss=-5, tokens=-1))
    assert (seat.pipeline.counted, seat.pipeline.tallies) == (0, Tallies())
    assert {type(event) for event in seat.events} >= {ev.SlotCounted, ev.Subtracted}


def test_a_new_step_forgets_the_last(bench: MakeBench) -> None:
    seat = bench()
    arrive(seat, 0)
    nxt = msgspec.structs.replace(seat.at, step=Step(1))
    seat.pipeline.begin(nxt, step_slots(seat.spec, Step(1)), parked_bound=8)
    assert seat.pipeline.next_job() is None
    assert seat.pipeline.book.queue == 0
    seat.pipeline.ask(BELOW, ask(seat, 0), 0.0)  # of the last step
    assert seat.post.last(m.Whereabouts).state == "committed"


def test_a_replay_below_redirects_the_gradient(bench: MakeBench) -> None:
    seat = bench()
    arrive(seat, 0)
    seat.pipeline.repath(OTHER, m.Repath(at=seat.at, slot=Slot(0), stage=Stage(0)), 0.0)
    item = seat.pipeline.next_job()
    assert (item.sender, item.path) == (OTHER, (OTHER,))


# --- a step that is over ----------------------------------------------------------------------


def test_what_is_left_behind_only_passes_and_what_stays_is_empty(bench: MakeBench) -> None:
    seat = bench()
    arrive(seat, 0)
    arrive(seat, 1)
    seat.pipeline.counts(compute(seat), Tallies(tokens=1))
    book = seat.pipeline.book
    over = seat.pipeline.leave(passing=True)
    assert (over.at, over.book, over.custodian) == (seat.at, book, seat.custodian)
    assert (over.frozen, over.passing, over.sign(Microbatch(seat.at.step, Slot(0))), over.past) == (
        True,
        True,
        0,
        None,
    )
    assert over.holds(Microbatch(Step(0), Slot(0)))
    assert not seat.pipeline.holds(Microbatch(Step(0), Slot(0)))
    assert seat.pipeline.book.queue == seat.pipeline.book.parked == 0
    assert seat.pipeline.custodian is not seat.custodian
    seat.pipeline.where(BELOW, m.Where(at=seat.at, slot=Slot(0), stage=Stage(1)))
    assert seat.post.last(m.Whereabouts).state == "none"


def test_without_its_weights_what_is_left_behind_computes_nothing(bench: MakeBench) -> None:
    seat = bench()
    arrive(seat, 0)
    over = seat.pipeline.leave(passing=False)
    assert over.next_job() is None


def test_a_seat_stands_still_when_the_last_step_computes_no_more_either(bench: MakeBench) -> None:
    seat = bench()
    over = seat.pipeline.leave(passing=True)
    seat.pipeline.past = SimpleNamespace(pipeline=over, retained_bytes=7)
    over.running = 1
    assert seat.pipeline.quiet
    assert not seat.pipeline.still
    over.running = 0
    assert seat.pipeline.still
    assert seat.pipeline.retained_bytes == 7  # both steps share one bound


def test_a_seat_that_was_to_go_and_stays_takes_microbatches_again(bench: MakeBench) -> None:
    seat = bench()
    seat.pipeline.draining = True
    nxt = msgspec.structs.replace(seat.at, step=Step(1))
    seat.pipeline.begin(nxt, step_slots(seat.spec, Step(1)), parked_bound=8)
    message = m.Ask(at=nxt, slot=Slot(0), stage=Stage(1), attempt=0, replay=False)
    seat.pipeline.ask(BELOW, message, 0.0)
    assert seat.post.last(m.Offer).at == nxt
