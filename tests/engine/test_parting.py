"""A seat is left to somebody who has come as far, or not at all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.engine.parting import LOOKS, Parting
from p2ptrain.engine.roster import Roster
from p2ptrain.units import PeerId, Stage, Step
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.observe import events as ev

ME, HEIR = PeerId("me"), PeerId("heir")


class Node:
    """A peer with one seat of stage 1, as far as leaving is concerned."""

    def __init__(self) -> None:
        self.me, self.roster, self.draining = ME, Roster(ME), True
        self.seats: dict[Stage, Any] = {
            Stage(1): SimpleNamespace(
                stage=Stage(1),
                state="draining",
                parting=True,
                may_close=False,
                stepper=SimpleNamespace(machine=None),
            )
        }
        self.holdings = SimpleNamespace(leave=lambda seat: self.did.append(f"saves {seat.stage}"))
        self.spec = SimpleNamespace(cut=SimpleNamespace(stages=2))
        self.options = SimpleNamespace(drain_seconds=60.0)
        self.ended = SimpleNamespace(
            set=lambda: self.did.append("ended"), is_set=lambda: "ended" in self.did
        )
        self.did: list[str] = []
        self.said: list[ev.AnyEvent] = []
        self.emit = self.said.append

    def close_seat(self, stage: Stage, reason: str) -> None:
        del self.seats[stage]
        self.did.append(f"closed: {reason}")

    def go_on(self, seat: Any) -> None:
        seat.parting = False
        self.did.append("goes on")

    def statuses_changed(self) -> None:
        pass

    def hears(self, stage: int, state: Any) -> None:
        status = m.SeatStatus(
            stage=Stage(stage), state=state, version=Step(3), rate=1.0, queue=0, parked=0
        )
        self.roster.hear(HEIR, [status])


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def parting(node: Any) -> Parting:
    return Parting(node)


@pytest.mark.parametrize(("state", "may"), [("serving", True), ("joining", False)])
def test_a_seat_stops_when_an_heir_serves(
    node: Any, parting: Parting, state: str, *, may: bool
) -> None:
    node.hears(1, state)
    assert parting.may_part(node.seats[Stage(1)]) is may


def test_it_closes_when_the_heir_has_come_as_far(node: Any, parting: Parting) -> None:
    node.hears(1, "serving")
    parting.look()
    assert node.did == []
    node.seats[Stage(1)].may_close = True
    parting.look()
    assert node.did == ["closed: drained", "ended"]


def test_it_goes_on_when_the_heir_is_gone_for_longer_than_a_moment(
    node: Any, parting: Parting
) -> None:
    node.hears(0, "serving")  # somebody stays, elsewhere
    for _ in range(LOOKS - 1):
        parting.look()
    assert node.did == []
    parting.look()
    assert node.did == ["goes on"]


def test_an_heir_that_loads_again_is_waited_for(node: Any, parting: Parting) -> None:
    node.hears(1, "joining")
    for _ in range(LOOKS + 1):
        parting.look()
    assert node.did == []


def test_nobody_is_waited_for_when_all_leave(node: Any, parting: Parting) -> None:
    node.hears(1, "draining")
    parting.look()
    assert node.did == ["closed: drained", "ended"]


@pytest.mark.parametrize(
    ("leave", "words", "did"),
    [
        pytest.param(
            Parting.leave_in_vain, "only this peer serves stage 1: staying", [], id="stays"
        ),
        pytest.param(
            Parting.leave_anyway,
            "nobody has taken stage 1 over: leaving",
            ["ended"],
            id="time over",
        ),
    ],
)
def test_it_says_once_what_nobody_takes_over(
    node: Any, parting: Parting, leave: Callable[[Parting], None], words: str, did: list[str]
) -> None:
    node.hears(0, "serving")
    leave(parting)
    leave(parting)
    (said,) = node.said
    assert words in said.reason
    assert node.did == did


@pytest.mark.parametrize(("stage", "state"), [(1, "serving"), (0, "draining")])
def test_whose_stage_is_served_or_who_is_alone_leaves_without_a_word(
    node: Any, parting: Parting, stage: int, state: str
) -> None:
    node.hears(stage, state)
    parting.leave_anyway()
    assert (node.did, node.said) == (["ended"], [])


@pytest.mark.parametrize(("sums", "did"), [(1, ["saves 1", "ended"]), (2, [])])
def test_when_all_leave_a_step_that_ends_without_them_is_waited_for(
    node: Any, parting: Parting, sums: int, did: list[str]
) -> None:
    """Those who are gone took it, and saved what it led to."""
    seat = node.seats[Stage(1)]
    seat.parting = False
    seat.stepper.machine = SimpleNamespace(sums=dict.fromkeys(range(sums)))
    parting.leave_in_vain()
    assert node.did == did
