"""Every question gets one answer, worded for where the asker stands in history."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.core.chain import genesis_chain
from p2ptrain.core.offers import RETRY_MIN_SECONDS
from p2ptrain.engine.answers import BEHIND_RETRY_SECONDS, FOREIGN_RETRY_SECONDS, Answers
from p2ptrain.engine.pace import Pace
from p2ptrain.observe import events as ev
from p2ptrain.units import Chain, Microbatch, PeerId, RunId, Slot, Stage, Step
from p2ptrain.wire import messages as m

PEER = PeerId("peer")
AT = Position(epoch=1, step=Step(5), chain=genesis_chain(RunId("0" * 32)))
WORK = Microbatch(Step(5), Slot(2))


class Desk:
    """Answers of stage 1, which holds every microbatch parked."""

    def __init__(self, post: Any) -> None:
        self.post, self.pace = post, Pace()
        self.pace.observe(0.5)
        self.events: list[ev.AnyEvent] = []
        self.answers = Answers(
            Stage(1),
            self.pace,
            post=post,
            emit=self.events.append,
            held=lambda _work: "parked",
            backlog=lambda: 3.0,
        )


@pytest.fixture
def desk(post: Any) -> Desk:
    desk = Desk(post)
    desk.answers.begin(AT)
    return desk


def ask(**changes: Any) -> m.Ask:
    at = msgspec.structs.replace(AT, **changes)
    return m.Ask(at=at, slot=Slot(2), stage=Stage(1), attempt=7, replay=False)


def test_an_offer_promises_what_stands_in_front_and_one_service_more(desk: Desk) -> None:
    desk.answers.offer(PEER, ask(), 4.0)
    offer = desk.post.last(m.Offer)
    assert (offer.delay_seconds, offer.service_seconds, offer.lease_seconds) == (3.5, 0.5, 4.0)
    assert (offer.slot, offer.attempt) == (2, 7)
    assert desk.answers.offers == 1


def test_busy_says_why_and_when_again_and_is_an_event(desk: Desk) -> None:
    desk.answers.busy(PEER, ask(), "parked", 1.5)
    busy = desk.post.last(m.Busy)
    assert (busy.reason, busy.retry_seconds, busy.attempt) == ("parked", 1.5, 7)
    assert desk.events == [ev.BusySaid(stage=Stage(1), peer=PEER, reason="parked")]
    assert desk.answers.busies == 1


@pytest.mark.parametrize(
    ("changes", "reason", "retry"),
    [
        ({"step": Step(6)}, "behind", BEHIND_RETRY_SECONDS),
        ({"step": Step(9)}, "behind", BEHIND_RETRY_SECONDS),
        ({"chain": Chain(bytes(32))}, "foreign", FOREIGN_RETRY_SECONDS),
        ({"epoch": 2, "step": Step(6)}, "foreign", FOREIGN_RETRY_SECONDS),
        ({"epoch": 0, "step": Step(4)}, "foreign", FOREIGN_RETRY_SECONDS),
    ],
)
def test_who_stands_elsewhere_is_told_how_long_that_may_last(
    desk: Desk, changes: dict[str, Any], reason: str, retry: float
) -> None:
    desk.answers.elsewhere(PEER, ask(**changes))
    busy = desk.post.last(m.Busy)
    assert (busy.reason, busy.retry_seconds) == (reason, retry)
    assert len(desk.post.told) == 1


def test_who_asks_for_a_step_that_is_over_is_told_so(desk: Desk) -> None:
    desk.answers.elsewhere(PEER, ask(step=Step(4)))
    assert desk.post.last(m.Whereabouts).state == "committed"
    assert desk.answers.busies == 0


@pytest.mark.parametrize(
    ("service_seconds", "retry"),
    [(10.0, BEHIND_RETRY_SECONDS), (0.2, 0.05), (0.001, RETRY_MIN_SECONDS)],
)
def test_a_seat_without_a_position_is_behind_for_a_part_of_its_service(
    post: Any, service_seconds: float, retry: float
) -> None:
    desk = Desk(post)
    desk.pace.service_seconds = service_seconds
    desk.answers.elsewhere(PEER, ask())
    busy = desk.post.last(m.Busy)
    assert (busy.reason, busy.retry_seconds) == ("behind", pytest.approx(retry))


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({}, "parked"),
        ({"step": Step(4)}, "committed"),
        ({"step": Step(6)}, "none"),
        ({"chain": Chain(bytes(32))}, "none"),
    ],
)
def test_whereabouts_speak_of_the_position_that_was_meant(
    desk: Desk, changes: dict[str, Any], state: str
) -> None:
    at = msgspec.structs.replace(AT, **changes)
    desk.answers.whereabouts(PEER, WORK, at)
    said = desk.post.last(m.Whereabouts)
    assert (said.at, said.slot, said.state) == (at, 2, state)


def test_what_came_and_what_was_computed_is_reported(desk: Desk) -> None:
    frame = m.Gradient(at=AT, slot=Slot(2), stage=Stage(1))
    desk.answers.accepted(PEER, frame, "gradient")
    desk.answers.computed(PEER, WORK)
    assert desk.post.told == [
        (PEER, m.Accepted(at=AT, slot=Slot(2), stage=Stage(1), what="gradient")),
        (PEER, m.Computed(at=AT, slot=Slot(2), stage=Stage(1), service_seconds=0.5)),
    ]


def test_the_counters_are_of_one_step(desk: Desk) -> None:
    desk.answers.offer(PEER, ask(), 1.0)
    desk.answers.busy(PEER, ask(), "queue", 1.0)
    desk.answers.begin(msgspec.structs.replace(AT, step=Step(6)))
    assert (desk.answers.offers, desk.answers.busies) == (0, 0)
