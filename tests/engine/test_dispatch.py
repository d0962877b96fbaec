"""Every message finds its seat; who speaks to a seat that is not here is told so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.core.agreement import Bitmap, Position, Sum, Tallies
from p2ptrain.engine.dispatch import Dispatcher
from p2ptrain.units import Chain, Digest, PeerId, Slot, Stage, Step
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

PEER = PeerId("peer")
AT = Position(epoch=0, step=Step(3), chain=Chain(bytes(32)))


class Recorder:
    """Stands for a part of a seat: remembers what it was called with."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self._name, self._calls = name, calls

    def __getattr__(self, method: str) -> Callable[..., None]:
        def called(*_: Any) -> None:
            self._calls.append(f"{self._name}.{method}")

        return called


@pytest.fixture
def calls() -> list[str]:
    return []


@pytest.fixture
def dispatcher(calls: list[str], post: Any) -> Dispatcher:
    """Of a peer with seats of the stages 0, 1 and 2."""

    def seat(stage: int) -> Any:
        custodian = Recorder(f"{stage}.custodian", calls)
        stepper = Recorder(f"{stage}.stepper", calls)
        stepper.reducer = Recorder(f"{stage}.reducer", calls)  # type: ignore[attr-defined]
        stepper.known_sums = lambda at: SUMS if at == AT and stage == 1 else {}  # type: ignore[attr-defined]
        pipeline = Recorder(f"{stage}.pipeline", calls)
        pipeline.custodian = custodian  # type: ignore[attr-defined]
        depositing = Recorder(f"{stage}.depositing", calls)
        depositing.on = True  # type: ignore[attr-defined]
        depositing.wanting = Recorder(f"{stage}.wanting", calls)  # type: ignore[attr-defined]
        return SimpleNamespace(
            stage=Stage(stage),
            depositing=depositing,
            pipeline_of=lambda at: pipeline if at == AT else None,
            stepper=stepper,
            refresh_sources=lambda _now: calls.append(f"{stage}.sources"),
        )

    return Dispatcher({Stage(stage): seat(stage) for stage in range(3)}, post)


def a_sum(stage: int) -> Sum:
    return Sum(
        at=AT,
        stage=Stage(stage),
        digest=Digest(bytes(32)),
        norms=(),
        finite=True,
        tallies=Tallies(),
        cover=(),
        members=(),
        round=0,
    )


SUMS = {Stage(0): a_sum(0), Stage(4): a_sum(4)}


def about(kind: type, stage: int, **fields: Any) -> Any:
    return kind(at=AT, slot=Slot(0), stage=Stage(stage), **fields)


OFFER = {"attempt": 0, "delay_seconds": 0.0, "service_seconds": 0.0, "lease_seconds": 0.0}


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (about(m.Ask, 1, attempt=0, replay=False), ["1.pipeline.ask"]),
        (about(m.Decline, 1, attempt=0), ["1.pipeline.decline"]),
        (about(m.Recall, 1), ["1.pipeline.recall"]),
        (about(m.Where, 1), ["1.pipeline.where"]),
        (about(m.Offer, 1, **OFFER), ["0.custodian.answered"]),
        (about(m.Repath, 1), ["2.pipeline.repath"]),
        (
            about(m.Accepted, 1, what="forward"),
            ["0.custodian.hear", "2.custodian.hear"],
        ),
        (about(m.Whereabouts, 1, state="none"), ["0.custodian.hear", "2.custodian.hear"]),
    ],
)
def test_each_message_of_the_flow_reaches_its_seat(
    dispatcher: Dispatcher, calls: list[str], message: Any, expected: list[str]
) -> None:
    dispatcher.flow(PEER, message, 0.0)
    assert calls == expected


BARE, WANTED = (about(m.Whereabouts, 1, state=state) for state in ("bare", "wanted"))


def test_a_seat_says_that_a_slot_is_bare_and_that_it_is_wanted_below(
    dispatcher: Dispatcher, calls: list[str], post: Any
) -> None:
    post.serving[1] = (PEER,)
    dispatcher.flow(PEER, BARE, 0.0)
    assert calls == ["0.custodian.hear", "2.custodian.hear"]
    calls.clear()
    dispatcher.flow(PEER, WANTED, 0.0)
    assert calls == ["0.wanting.asked", "0.custodian.hear", "2.custodian.hear"]


@pytest.mark.parametrize("message", [BARE, WANTED], ids=["bare", "wanted"])
@pytest.mark.parametrize("seated", [True, False])
def test_nothing_is_bare_where_nobody_leaves_deposits_or_with_a_stranger(
    dispatcher: Dispatcher, calls: list[str], post: Any, message: Any, *, seated: bool
) -> None:
    post.serving[1] = (PEER,) if seated else ()
    for seat in dispatcher._seats.values():
        seat.depositing.on = not seated  # type: ignore[misc]
    dispatcher.flow(PEER, message, 0.0)
    assert calls == []


@pytest.mark.parametrize(
    "message", [about(m.Recall, 7), about(m.Where, 7)], ids=lambda message: type(message).__name__
)
def test_a_seat_that_is_not_here_has_nothing(
    dispatcher: Dispatcher, post: Any, message: Any
) -> None:
    dispatcher.flow(PEER, message, 0.0)
    assert post.told == [(PEER, about(m.Whereabouts, 7, state="none"))]


def test_a_seat_that_is_not_here_makes_no_offer(dispatcher: Dispatcher, post: Any) -> None:
    dispatcher.flow(PEER, about(m.Ask, 7, attempt=2, replay=False), 0.0)
    assert (post.last(m.Busy).reason, post.last(m.Busy).attempt) == ("unknown", 2)
    dispatcher.flow(PEER, about(m.Decline, 7, attempt=2), 0.0)
    assert len(post.told) == 1


def test_frames_for_a_seat_that_is_not_here_go_back_to_their_senders_care(
    dispatcher: Dispatcher, post: Any
) -> None:
    frame = about(m.Forward, 7, attempt=0, replay=False, path=(PEER,) * 7)
    for message in (frame, about(m.Gradient, 7)):
        dispatcher.frame(PEER, message, memoryview(b""), 0.0)
    assert [state.state for state in post.all(m.Whereabouts)] == ["none", "none"]


def test_a_bitmap_reaches_its_stage_and_both_neighbours(
    dispatcher: Dispatcher, calls: list[str]
) -> None:
    bitmap = Bitmap(
        peer=PEER,
        incarnation=1,
        at=AT,
        stage=Stage(1),
        seq=1,
        slots=b"",
        tallies=Tallies(),
        signature=b"",
    )
    dispatcher.round(PEER, bitmap, 0.0)
    assert [call for call in calls if "stepper" in call] == [
        f"{stage}.stepper.bitmap" for stage in range(3)
    ]


def test_a_sum_reaches_every_seat(dispatcher: Dispatcher, calls: list[str]) -> None:
    dispatcher.round(PEER, a_sum(4), 0.0)
    assert calls == [f"{stage}.stepper.received" for stage in range(3)]


def test_whichever_seat_knows_a_sum_tells_it(dispatcher: Dispatcher, post: Any) -> None:
    wanted = m.WantSums(at=AT, stages=(Stage(0), Stage(1), Stage(4)))
    dispatcher.round(PEER, wanted, 0.0)
    assert [message.stage for message in post.all(Sum)] == [0, 4]


def test_a_sum_is_told_once_however_often_one_message_asks(
    dispatcher: Dispatcher, post: Any
) -> None:
    dispatcher.round(PEER, m.WantSums(at=AT, stages=(Stage(4),) * 1000), 0.0)
    assert [message.stage for message in post.all(Sum)] == [4]


def test_no_seat_no_sum(dispatcher: Dispatcher, post: Any, calls: list[str]) -> None:
    dispatcher.round(PEER, m.PullSum(at=AT, stage=Stage(7)), 0.0)
    assert post.last(m.NoSuch).what == "sum"
    dispatcher.round(PEER, m.NoSuch(what="sum", stage=Stage(1), reason="none"), 0.0)
    assert calls == ["1.reducer.refused"]
