"""A seat that fell behind asks for what it missed, or gives itself up and starts over."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.core.rounds import Phase
from p2ptrain.engine.laggards import APART_SECONDS, BEHIND_SECONDS, LOST_SECONDS, Laggards
from p2ptrain.engine.roster import Roster
from p2ptrain.units import PeerId, Stage, Step
from p2ptrain.wire import messages as m

ME, STAGE = PeerId("me"), Stage(1)


class Node:
    """A peer with one seat of stage 1 that stands at step 5."""

    def __init__(self) -> None:
        self.me, self.roster, self.draining = ME, Roster(ME), False
        self.spec = SimpleNamespace(sync=SimpleNamespace(agreement="bitwise"))
        self.asked: list[list[str]] = []
        self.closed: list[str] = []
        self.told: list[dict[Stage, float]] = []
        self.claims: dict[Stage, float] = {}
        self.seat = SimpleNamespace(
            stage=STAGE,
            version=5,
            finished=False,
            parting=False,
            stepper=SimpleNamespace(machine="counting", ask_sums=self.asked.append),
        )
        self.seats: dict[Stage, Any] = {STAGE: self.seat}

    def close_seat(self, stage: Stage, reason: str) -> None:
        del self.seats[stage]
        self.closed.append(reason)

    def statuses_changed(self) -> None:
        self.told.append(dict(self.claims))

    def hears(self, peer: str, version: int, stage: Stage = STAGE) -> None:
        status = m.SeatStatus(
            stage=stage, state="serving", version=Step(version), rate=1.0, queue=0, parked=0
        )
        self.roster.hear(PeerId(peer), [status])


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def laggards(node: Any) -> Laggards:
    return Laggards(node)


def test_who_is_with_the_others_is_left_alone(node: Node, laggards: Laggards) -> None:
    node.hears("mate", 5)
    assert [laggards.look(now) for now in (0.0, 100.0)] == [False, False]
    assert (node.asked, node.closed) == ([], [])


def test_one_step_behind_for_a_while_asks_those_that_went_on(
    node: Node, laggards: Laggards
) -> None:
    node.hears("mate", 6)
    node.hears("slow", 5)
    laggards.look(0.0)
    laggards.look(BEHIND_SECONDS - 0.01)
    assert node.asked == []
    assert not laggards.look(BEHIND_SECONDS)
    assert (node.asked, node.closed) == ([["mate"]], [])


def test_a_moment_behind_does_not_add_up(node: Node, laggards: Laggards) -> None:
    node.hears("mate", 6)
    laggards.look(0.0)
    node.seat.version = 6
    laggards.look(1.0)
    node.hears("mate", 7)
    laggards.look(BEHIND_SECONDS + 0.5)
    assert node.asked == []


def test_two_steps_behind_gives_up_and_comes_back_to_its_stage(
    node: Node, laggards: Laggards
) -> None:
    node.hears("mate", 7)
    assert not laggards.look(0.0)
    assert laggards.look(LOST_SECONDS)
    assert (node.closed, node.asked) == (["2 steps behind"], [])
    assert node.claims == {STAGE: 0.0}
    assert node.told == [{STAGE: 0.0}]  # or who has finished would not wait for us


def test_with_one_mate_a_step_ahead_it_waits_as_long_as_for_that_alone(
    node: Node, laggards: Laggards
) -> None:
    node.hears("mate", 6)
    node.hears("far", 7)
    laggards.look(0.0)
    assert not laggards.look(LOST_SECONDS)
    assert laggards.look(BEHIND_SECONDS)


@pytest.mark.parametrize(
    ("agreement", "phase", "closed"),
    [
        ("canonical", Phase.COUNTING, ["a step behind, under another name of the one before"]),
        ("canonical", Phase.COMMITTED, []),
        ("bitwise", Phase.COUNTING, []),
    ],
    ids=["apart", "about to step", "names do not part"],
)
def test_one_step_behind_for_ever_stands_apart_where_names_may_part(
    node: Node, laggards: Laggards, agreement: str, phase: Phase, closed: list[str]
) -> None:
    node.spec.sync.agreement = agreement
    node.seat.stepper.machine = SimpleNamespace(phase=phase)
    node.hears("mate", 6)
    now = 0.0
    while node.seats and now < 2 * APART_SECONDS:
        assert node.closed == []
        laggards.look(now)
        now += 1.0
    assert node.closed == closed
    assert now > APART_SECONDS
    assert len(node.asked) > 1


def test_to_catch_up_in_time_is_not_to_stand_apart(node: Node, laggards: Laggards) -> None:
    node.spec.sync.agreement = "canonical"
    node.seat.stepper.machine = SimpleNamespace(phase=Phase.COUNTING)
    for version in range(6, 30):
        node.hears("mate", version)
        laggards.look(2.0 * version)
        node.seat.version = version
        laggards.look(2.0 * version + 1.0)
    assert node.closed == []


@pytest.mark.parametrize(
    "state",
    [{"parting": True}, {"finished": True}, {"stepper": SimpleNamespace(machine=None)}],
)
def test_a_seat_that_leaves_has_ended_or_loads_is_not_judged(
    node: Node, laggards: Laggards, state: dict[str, Any]
) -> None:
    vars(node.seat).update(state)
    node.hears("mate", 9)
    assert [laggards.look(now) for now in (0.0, 100.0)] == [False, False]
    assert node.seats


def test_a_seat_that_opens_asks_at_once_and_is_not_spared_a_second_miss(
    node: Node, laggards: Laggards
) -> None:
    node.hears("mate", 7)
    laggards.opened(node.seat)  # type: ignore[arg-type]
    assert node.asked == [["mate"]]
    assert laggards.look(0.0)
    assert node.closed == ["2 steps behind"]


def test_where_arithmetic_differs_everybody_is_asked(node: Node, laggards: Laggards) -> None:
    node.spec.sync.agreement = "canonical"
    node.hears("mate", 5)
    node.hears("above", 5, Stage(2))
    laggards.opened(node.seat)  # type: ignore[arg-type]
    assert [sorted(asked) for asked in node.asked] == [["above", "mate"]]


def test_a_run_that_begins_again_has_nobody_behind(node: Node, laggards: Laggards) -> None:
    node.hears("mate", 6)
    laggards.look(0.0)
    laggards.begin_anew()
    laggards.look(BEHIND_SECONDS)
    assert node.asked == []


@pytest.mark.parametrize("beside", [Stage(0), Stage(2)])
def test_a_mate_that_says_more_than_the_stages_beside_allow_moves_nobody(
    node: Node, laggards: Laggards, beside: Stage
) -> None:
    """Nobody steps before all stages have their sums: one heartbeat must not empty a stage."""
    node.hears("near", 5, beside)
    node.hears("liar", 40)
    assert [laggards.look(now) for now in (0.0, 100.0)] == [False, False]
    assert (node.asked, node.closed) == ([], [])
    node.hears("near", 39, beside)  # it was true: the one beside was heard late
    laggards.look(101.0)
    assert laggards.look(101.0 + LOST_SECONDS)
    assert node.closed == ["35 steps behind"]
