"""A move loads before it leaves, and leaves everything as it was if it cannot load."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

from p2ptrain.core.assignment import SeatView
from p2ptrain.engine.lifecycle import NodeOptions
from p2ptrain.engine.moving import Moves
from p2ptrain.sim.loop import run
from p2ptrain.units import PeerId, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

ME = PeerId("me")
FULL, WEAK = Stage(0), Stage(1)
SEAT_BYTES = 100


class Seat:
    def __init__(self, stage: Stage) -> None:
        self.stage, self.state, self.finished = stage, "serving", False
        self.position: int | None = 7
        self.rate = 2.0

    def status(self) -> Seat:
        return self


class Node:
    """One peer of three on the full stage; the weak one has a single seat."""

    def __init__(self, group: asyncio.TaskGroup, memory_bytes: int) -> None:
        self.me, self.draining, self.options = ME, False, NodeOptions()
        self.seats: dict[Stage, Seat] = {FULL: Seat(FULL)}
        self.claims: dict[Stage, float] = {}
        self.rng = random.Random(1)
        self.memory_bytes = memory_bytes
        self.spec = self.cut = self.world = self.compute = self.roster = self
        self.stages = 2
        self.spawn: Callable[[Coroutine[None, None, None]], Any] = group.create_task
        self.begun: list[Stage] = []
        self.under_way = False
        self.told = 0

    def views(self) -> tuple[SeatView, ...]:
        placed = [(ME, 0), (PeerId("a"), 0), (PeerId("b"), 0), (PeerId("c"), 1)]
        return tuple(
            SeatView(peer=p, stage=Stage(s), state="serving", rate=2.0, version=Step(3))
            for p, s in placed
        )

    def seat_bytes(self, _stage: Stage) -> int:
        return SEAT_BYTES

    def statuses_changed(self) -> None:
        self.told += 1

    def begin(self, seat: Seat) -> None:
        """As the handover, which it stands for."""
        self.begun.append(seat.stage)
        self.under_way = True


def virtual(
    main: Callable[[Node, Moves], Awaitable[None]], *, memory_bytes: int, loads: bool = True
) -> None:
    async def around() -> None:
        async with asyncio.TaskGroup() as group:
            node = Node(group, memory_bytes)

            async def take(stage: Stage, _reason: str) -> None:
                await asyncio.sleep(10.0)
                if loads:
                    node.seats[stage] = Seat(stage)

            await main(node, Moves(node, node, take))  # type: ignore[arg-type]  # what it uses

    run(around())


async def looking(moves: Moves, seconds: int) -> None:
    for _ in range(seconds):
        moves.look(asyncio.get_running_loop().time())
        await asyncio.sleep(1.0)


def test_with_room_the_old_seat_is_given_up_after_the_new_one_serves() -> None:
    async def main(node: Node, moves: Moves) -> None:
        await looking(moves, 70)
        assert set(node.seats) == {FULL, WEAK}
        assert node.begun == [FULL]
        assert node.claims == {}

    virtual(main, memory_bytes=2 * SEAT_BYTES)


def test_a_state_that_cannot_be_had_changes_nothing() -> None:
    async def main(node: Node, moves: Moves) -> None:
        await looking(moves, 300)
        assert set(node.seats) == {FULL}
        assert node.begun == []

    virtual(main, memory_bytes=2 * SEAT_BYTES, loads=False)


def test_without_room_the_new_seat_is_claimed_while_the_old_one_is_given_up() -> None:
    async def main(node: Node, moves: Moves) -> None:
        await looking(moves, 60)
        assert node.claims == {WEAK: 2.0}
        assert node.begun == [FULL]
        node.under_way = False  # nobody else was left
        await looking(moves, 1)
        assert node.claims == {}
        assert node.told == 1

    virtual(main, memory_bytes=SEAT_BYTES)


def test_who_drains_is_bound_or_holds_several_stays() -> None:
    async def main(node: Node, moves: Moves) -> None:
        node.draining = True
        await looking(moves, 100)
        node.draining, node.options = False, NodeOptions(stage=FULL)
        await looking(moves, 100)
        node.options, node.seats[WEAK] = NodeOptions(), Seat(WEAK)
        await looking(moves, 100)
        assert (node.begun, node.claims) == ([], {})

    virtual(main, memory_bytes=3 * SEAT_BYTES)


def test_room_is_what_the_seats_leave() -> None:
    async def main(node: Node, moves: Moves) -> None:
        assert not moves.room(WEAK)
        node.memory_bytes += 1
        assert moves.room(WEAK)

    virtual(main, memory_bytes=2 * SEAT_BYTES - 1)
