"""A seat is given up after everybody could hear of it, and kept where nobody else serves."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from p2ptrain.engine.handover import TELL_SECONDS, Handover
from p2ptrain.engine.roster import Roster
from p2ptrain.sim.loop import run
from p2ptrain.units import PeerId, Stage, Step
from p2ptrain.wire.messages import SeatStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ME, MATE = PeerId("me"), PeerId("mate")
HERE, THERE = Stage(0), Stage(1)


class Seat:
    def __init__(self, stage: Stage) -> None:
        self.stage, self.state, self.finished = stage, "serving", False


class Node:
    """Two seats of ours, and a mate that serves beside the first."""

    def __init__(self) -> None:
        self.me, self.draining = ME, False
        self.seats = {HERE: Seat(HERE), THERE: Seat(THERE)}
        self.claims: dict[Stage, float] = {}
        self.roster = Roster(ME)
        self.told = 0
        self.mate("serving")

    def mate(self, state: Any) -> None:
        status = SeatStatus(stage=HERE, state=state, version=Step(1), rate=1.0, queue=0, parked=0)
        self.roster.hear(MATE, (status,))

    def statuses_changed(self) -> None:
        self.told += 1


def virtual(main: Callable[[Node, Any], Awaitable[None]]) -> None:
    async def around() -> None:
        node = Node()
        await main(node, Handover(node))  # type: ignore[arg-type]  # what it uses

    run(around())


def test_a_seat_is_announced_and_ripe_when_all_can_know() -> None:
    async def main(node: Node, handover: Any) -> None:
        seat = node.seats[HERE]
        assert not handover.ripe(seat)
        handover.begin(seat)
        assert (seat.state, node.told, handover.under_way) == ("draining", 1, True)
        assert not handover.ripe(seat)
        await asyncio.sleep(TELL_SECONDS)
        assert handover.ripe(seat)
        assert not handover.ripe(node.seats[THERE])

    virtual(main)


def test_it_drains_on_over_boundaries_until_nobody_else_is_left() -> None:
    async def main(node: Node, handover: Any) -> None:
        seat = node.seats[HERE]
        handover.begin(seat)
        for mate, state in (("serving", "draining"), ("draining", "serving")):
            node.mate(mate)
            seat.state = "serving"  # as a seat begins every step
            handover.stepped(seat)
            assert seat.state == state
        assert not handover.under_way

    virtual(main)


def test_the_last_seat_is_kept_unless_another_is_claimed() -> None:
    async def main(node: Node, handover: Any) -> None:
        seat = node.seats[HERE]
        for claims, state in (({THERE: 1.0}, "draining"), ({}, "serving")):
            node.claims = claims
            handover.begin(seat)
            node.seats.pop(THERE, None)
            handover.closed(THERE)
            assert seat.state == state
            await asyncio.sleep(TELL_SECONDS)
            assert handover.ripe(seat) == bool(claims)

    virtual(main)
