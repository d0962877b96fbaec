"""Frames in custody: asked for, sent, kept, and sent again; nobody's lie reaches another step."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from p2ptrain.core.agreement import Position
from p2ptrain.core.routing import Router
from p2ptrain.engine.custodian import Custodian
from p2ptrain.observe import events as ev
from p2ptrain.units import Chain, Microbatch, PeerId, Slot, Stage, Step
from p2ptrain.wire import messages as m

ME, BELOW, ABOVE, NEW = PeerId("me"), PeerId("below"), PeerId("above"), PeerId("new")
WORK = Microbatch(Step(0), Slot(2))
MakeBench = Callable[..., Any]


def offer(seat: Any, *, lease: float = 10.0, **changes: Any) -> m.Offer:
    message = m.Offer(
        at=seat.at,
        slot=WORK.slot,
        stage=Stage(2),
        attempt=0,
        delay_seconds=0.1,
        service_seconds=0.1,
        lease_seconds=lease,
    )
    return msgspec.structs.replace(message, **changes)


def opened(seat: Any, *, replay: bool = False) -> Any:
    seat.custodian.open_forward(WORK, (BELOW, ME), replay=replay, returns=True, now=0.0)
    return seat


def sent(seat: Any) -> Any:
    opened(seat).custodian.forward_ready(WORK, (b"token", b"output"), 0.0)
    seat.custodian.answered(ABOVE, offer(seat), 0.0)
    return seat


def word(seat: Any, kind: type, **fields: Any) -> Any:
    return kind(at=seat.at, slot=WORK.slot, stage=Stage(2), **fields)


def test_asking_begins_with_the_forward_and_sending_with_its_end(bench: MakeBench) -> None:
    seat = opened(bench())
    assert seat.post.last(m.Ask).stage == 2
    seat.custodian.answered(ABOVE, offer(seat), 0.0)
    assert seat.post.sent == []
    seat.custodian.forward_ready(WORK, (b"token", b"output"), 0.1)
    (frame,) = seat.post.sent
    assert (frame.peer, frame.message.path, frame.payload) == (
        ABOVE,
        (BELOW, ME),
        (b"token", b"output"),
    )


def test_frames_are_kept_to_the_end_of_the_step(bench: MakeBench) -> None:
    seat = sent(bench())
    seat.custodian.hear(ABOVE, word(seat, m.Accepted, what="forward"), 0.1)
    seat.custodian.tallied("forward", 1 << WORK.slot, 0.2)
    assert seat.custodian.frames.memory_bytes == len(b"tokenoutput")
    seat.custodian.begin(msgspec.structs.replace(seat.at, step=Step(1)))
    assert seat.custodian.frames.memory_bytes == 0


def test_a_late_offer_of_the_last_step_is_declined_in_that_step(bench: MakeBench) -> None:
    """Declined at the new position, it would free a slot of somebody else's."""
    seat = opened(bench())
    old = offer(seat)
    seat.custodian.begin(msgspec.structs.replace(seat.at, step=Step(1)))
    seat.custodian.answered(ABOVE, old, 0.1)
    assert seat.post.last(m.Decline).at == old.at


def test_an_offer_to_a_seat_that_has_not_begun_is_declined(post: Any) -> None:
    custodian = Custodian(Stage(1), Router(random.Random(0)), post, lambda _event: None)
    at = Position(epoch=0, step=Step(0), chain=Chain(bytes(32)))
    message = m.Offer(
        at=at,
        slot=WORK.slot,
        stage=Stage(2),
        attempt=0,
        delay_seconds=0.0,
        service_seconds=0.0,
        lease_seconds=0.0,
    )
    custodian.answered(ABOVE, message, 0.0)
    assert post.last(m.Decline).slot == WORK.slot


def test_a_lease_of_nothing_keeps_the_clock_going(bench: MakeBench) -> None:
    seat = opened(bench())
    seat.post.serving[2] = (ABOVE,)
    seat.custodian.answered(ABOVE, offer(seat, lease=0.0), 3.0)
    for now in (3.0, 3.1, 3.2, 50.0):
        seat.custodian.tick(now)
        assert seat.custodian.due_at > now


def test_a_seat_that_closed_has_lost_what_it_held(bench: MakeBench) -> None:
    seat = sent(bench())
    seat.post.serving[2] = (NEW,)
    seat.router.set_seats({NEW: 1.0})
    seat.custodian.seats_changed(1.0)
    replayed = [event for event in seat.events if isinstance(event, ev.Replayed)]
    assert [event.peer for event in replayed] == [ABOVE]
    assert (seat.post.told[-1][0], seat.post.last(m.Ask).replay) == (NEW, True)


def test_a_gradient_goes_to_its_sender_and_follows_a_replay(bench: MakeBench) -> None:
    seat = bench()
    seat.custodian.send_gradient(WORK, BELOW, b"g", 0.0)
    assert (seat.post.sent[-1].peer, seat.post.sent[-1].message.stage) == (BELOW, 0)
    seat.custodian.lost(BELOW, 1.0)
    seat.custodian.repath(NEW, WORK, 2.0)
    assert seat.post.sent[-1].peer == NEW


def test_a_gradient_that_does_not_go_out_is_tried_again_and_is_no_replay(bench: MakeBench) -> None:
    seat = bench()
    seat.custodian.send_gradient(WORK, BELOW, b"g", 0.0)
    seat.post.sent[-1].failed(0.5)
    assert len(seat.post.sent) == 1
    seat.custodian.tick(seat.custodian.due_at)
    assert len(seat.post.sent) == 2
    assert seat.events == []


def test_a_failure_of_the_last_step_does_not_reach_this_one(bench: MakeBench) -> None:
    seat = sent(bench())
    late = seat.post.sent[-1].failed
    seat.custodian.begin(msgspec.structs.replace(seat.at, step=Step(1)))
    late(1.0)
    assert seat.custodian.due_at is None


def test_a_replay_asks_every_seat_what_it_has_and_tells_the_counter_its_path(
    bench: MakeBench,
) -> None:
    seat = opened(bench(), replay=True)
    assert seat.post.told == [(ABOVE, word(seat, m.Where))]
    seat.custodian.hear(ABOVE, word(seat, m.Whereabouts, state="counted"), 0.1)
    assert seat.post.last(m.Repath).stage == 1


def test_what_was_counted_above_already_is_looked_for_before_anybody_is_asked_to_compute_it(
    bench: MakeBench,
) -> None:
    """Whoever took it first is dead, and who takes it now is its next owner: to it, it is new."""
    seat = bench()
    seat.post.serving[2] = (ABOVE, NEW)
    seat.custodian.tallied("forward", 1 << WORK.slot, 0.0)
    opened(seat)
    assert seat.post.last(m.Where).slot == WORK.slot
    assert not [told for told in seat.post.told if isinstance(told[1], m.Ask)]
    seat.custodian.hear(NEW, word(seat, m.Whereabouts, state="counted"), 0.1)
    assert seat.post.last(m.Repath).slot == WORK.slot
    seat.custodian.begin(msgspec.structs.replace(seat.at, step=Step(1)))
    opened(seat)
    assert seat.post.last(m.Ask).slot == WORK.slot  # what is said of a step holds for it alone


def test_who_counted_it_is_told_the_path_though_a_mate_that_only_passes_has_it_too(
    bench: MakeBench,
) -> None:
    """That one parked it, and gets no gradient: where that is kept, the count is known to live."""
    seat = bench()
    seat.post.serving[2] = (ABOVE, NEW)
    seat.custodian.tallied("forward", 1 << WORK.slot, 0.0)
    opened(seat, replay=True).custodian.forward_ready(WORK, (b"token", b"output"), 0.0)
    seat.custodian.hear(NEW, word(seat, m.Whereabouts, state="parked"), 0.1)
    seat.custodian.hear(ABOVE, word(seat, m.Whereabouts, state="counted"), 0.1)
    repath = m.Repath(at=seat.at, slot=WORK.slot, stage=Stage(1))
    assert [peer for peer, told in seat.post.told if told == repath] == [ABOVE]
    seat.custodian.tallied("forward", 0, 5.0)  # its counter is dead: who else has it says so
    assert seat.post.last(m.Ask).replay


def test_what_is_computed_a_second_time_asks_for_its_gradient_again(bench: MakeBench) -> None:
    seat = sent(bench())
    seat.custodian.hear(ABOVE, word(seat, m.Computed, service_seconds=0.1), 0.1)
    seat.custodian.tallied("forward", 1 << WORK.slot, 0.2)
    seat.custodian.gradient_back(WORK, 0.3)
    seat.post.told.clear()
    opened(seat, replay=True)
    assert seat.post.last(m.Where).slot == WORK.slot
    seat.custodian.hear(ABOVE, word(seat, m.Whereabouts, state="counted"), 0.4)
    assert seat.post.last(m.Repath).slot == WORK.slot
    assert len(seat.post.sent) == 1


def test_what_only_the_steps_end_waits_for_says_so_until_the_step_is_over(
    bench: MakeBench,
) -> None:
    seat = sent(bench())
    seat.custodian.tallied("forward", 1 << WORK.slot, 0.2)
    assert seat.custodian.duties.counted_there("forward") == 1 << WORK.slot
    seat.custodian.gradient_back(WORK, 0.3)
    seat.custodian.tallied("forward", 0, 0.4)
    assert (seat.post.last(m.Ask).spare, seat.post.last(m.Ask).replay) == (True, True)
    seat.custodian.answered(ABOVE, offer(seat, attempt=1), 0.5)
    assert seat.post.sent[-1].message.spare
    seat.custodian.conclude(0, 1.0)
    seat.custodian.count_out("forward", 1 << WORK.slot, 2.0)
    assert not seat.post.last(m.Ask).spare


def test_a_recall_is_told_as_such(bench: MakeBench) -> None:
    seat = sent(bench())
    seat.custodian.hear(ABOVE, word(seat, m.Accepted, what="forward"), 0.1)
    seat.custodian.tick(20.0)
    assert seat.post.last(m.Recall).slot == WORK.slot
    seat.custodian.hear(ABOVE, word(seat, m.Whereabouts, state="none"), 20.1)
    (event,) = [event for event in seat.events if isinstance(event, ev.Recalled)]
    assert event.peer == ABOVE


def test_after_clear_nothing_is_due_and_nothing_is_said(bench: MakeBench) -> None:
    seat = sent(bench())
    seat.custodian.clear()
    said = len(seat.post.told)
    seat.custodian.lost(ABOVE, 1.0)
    seat.custodian.tick(100.0)
    assert seat.custodian.due_at is None
    assert len(seat.post.told) == said
