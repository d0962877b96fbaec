"""Stage 0 begins when enough have come, or when it hears that it had begun already."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.engine.beginning import LOOKS, Beginning
from p2ptrain.engine.roster import Roster
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Chain, PeerId, Stage, Step
from p2ptrain.wire import messages as m

SPEC = toy_spec(stages=2, microbatches=4, steps=3, replicas=2)


class Node:
    """A peer with one seat of stage 0, as far as the run's beginning is concerned."""

    def __init__(self) -> None:
        self.spec = SPEC
        self.roster = Roster(PeerId("me"))
        self.lineage = SimpleNamespace(root=SimpleNamespace(epoch=0))
        self.resumption = SimpleNamespace(waiting=False)
        self.sourcing = 0
        self.seat = SimpleNamespace(start_sourcing=self.source)
        self.seats: dict[Stage, Any] = {Stage(0): self.seat}
        self.beginning = Beginning(self)  # type: ignore[arg-type]  # what it looks at is here

    def source(self) -> None:
        self.sourcing += 1

    def hears(self, peer: str, stage: int, state: Any = "serving") -> None:
        status = m.SeatStatus(
            stage=Stage(stage), state=state, version=Step(0), rate=0.0, queue=0, parked=0
        )
        self.roster.hear(PeerId(peer), [status])

    def look(self, times: int = LOOKS) -> bool:
        """Whether the seats source after so many looks."""
        for _ in range(times):
            self.beginning.look()
        return self.beginning.here


@pytest.fixture
def node() -> Node:
    """Stage 0 has its two seats, stage 1 one of them."""
    assert SPEC.sync.start_replicas == 2
    node = Node()
    for peer, stage in (("me", 0), ("mate", 0), ("up", 1)):
        node.hears(peer, stage)
    return node


def at(step: int) -> Position:
    return Position(epoch=0, step=Step(step), chain=Chain(bytes(32)))


def test_it_begins_when_every_stage_has_its_replicas_in_two_looks(node: Node) -> None:
    assert not node.look(10)
    node.hears("up too", 1)
    assert not node.look(1)
    node.hears("up too", 1, "joining")
    assert not node.look(1)
    node.hears("up too", 1)
    assert not node.look(1)
    assert node.look(1)
    assert node.beginning.known
    assert node.look(10)
    assert node.sourcing == 1


def test_who_hears_that_it_has_begun_needs_one_of_each(node: Node) -> None:
    node.roster.left(PeerId("mate"))
    node.roster.begun = True
    assert node.beginning.known  # it says so on, and does nothing yet
    assert node.sourcing == 0
    assert node.look()


def test_one_of_each_it_needs(node: Node) -> None:
    node.roster.left(PeerId("up"))
    node.roster.begun = True
    assert not node.look(10)


def test_a_run_that_fell_back_had_begun(node: Node) -> None:
    node.lineage.root.epoch = 1
    assert node.look()
    node.beginning.begin_anew()
    assert not node.beginning.here
    assert node.look()


def test_without_a_seat_there_is_nothing_to_begin(node: Node) -> None:
    node.seats.clear()
    node.roster.begun = True
    assert not node.look(10)


@pytest.mark.parametrize(
    ("step", "waiting", "sources"),
    [
        pytest.param(0, None, 0, id="the first step"),
        pytest.param(3, None, 1, id="a later one"),
        pytest.param(3, "for others", 0, id="of a run that was stopped and is not whole yet"),
    ],
)
def test_a_seat_with_a_later_state_sources_at_once(
    node: Node, step: int, waiting: str | None, sources: int
) -> None:
    node.resumption.waiting = waiting
    node.beginning.opened(node.seat, at(step))
    assert node.beginning.here == bool(sources)
    assert node.sourcing == sources


def test_a_seat_that_is_opened_when_it_has_begun_sources_too(node: Node) -> None:
    node.roster.begun = True
    assert node.look()
    node.beginning.opened(node.seat, at(0))
    assert node.sourcing == 2
