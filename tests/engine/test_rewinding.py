"""A seat that lost a frame begins its step again with its own state, and not for ever."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.core.rounds import Phase
from p2ptrain.engine.pulling import Pulled
from p2ptrain.engine.rewinding import REASON, TRIES_MOST, Rewinding
from p2ptrain.units import Chain, PeerId, Stage, Step

ME, STAGE = PeerId("me"), Stage(1)
MEMBERS = ((PeerId("below"),), (ME,))
TAKEN: Any = ("what led there",)


def position(step: int) -> Position:
    return Position(epoch=0, step=Step(step), chain=Chain(b"chain"))


class Seat:
    """A seat at step 5, one of whose frames is gone."""

    def __init__(self, *, torn: bool = True) -> None:
        self.at = position(5)
        self.finished = self.parting = False
        self.told: list[PeerId] = []
        self.stepper = SimpleNamespace(
            machine=SimpleNamespace(phase=Phase.COUNTING),
            greet=self.told.append,
            sums=SimpleNamespace(taken=lambda _at: TAKEN),
        )
        self.frames = SimpleNamespace(torn=torn)
        self.pipeline = SimpleNamespace(custodian=SimpleNamespace(frames=self.frames))
        self.compute = self
        self.saved = asyncio.Event()
        self.saved.set()

    def standing(self) -> tuple[Position, tuple[tuple[PeerId, ...], ...]]:
        return self.at, MEMBERS

    async def save(self) -> bytes:
        await self.saved.wait()
        return b"state"


class Node:
    """A peer with such a seat."""

    def __init__(self) -> None:
        self.me, self.draining, self.ended = ME, False, asyncio.Event()
        self.seat = Seat()
        self.seats: dict[Stage, Any] = {STAGE: self.seat}
        self.own: dict[Stage, Pulled] = {}
        self.said: list[str] = []
        self.links = SimpleNamespace(peers=lambda: (PeerId("below"), PeerId("mate")))

    def close_seat(self, stage: Stage, reason: str) -> None:
        del self.seats[stage]
        self.said.append(f"closed: {reason}")

    async def take(self, stage: Stage, reason: str) -> None:
        self.seats[stage] = Seat(torn=False)
        self.said.append(f"taken: {reason}")

    def give_up(self, reason: str) -> None:
        self.said.append(reason)
        self.ended.set()


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def rewinding(node: Any) -> Rewinding:
    return Rewinding(node, node, node.take)


BEGUN_AGAIN = [f"closed: {REASON}", f"taken: {REASON}"]


@pytest.mark.asyncio
async def test_it_begins_again_with_the_state_that_its_step_began_with(
    node: Node, rewinding: Rewinding
) -> None:
    await rewinding.look()
    assert node.said == BEGUN_AGAIN
    assert node.own[STAGE] == Pulled(
        at=position(5), members=MEMBERS, blob=b"state", sources=(ME,), taken=TAKEN
    )
    assert node.seats[STAGE].told == ["me", "below", "mate"]  # its bitmap is empty
    await rewinding.look()  # the new seat has all its frames
    assert node.said == BEGUN_AGAIN


@pytest.mark.asyncio
@pytest.mark.parametrize("why", ["whole", "draining", "over", "parting", "stepping"])
async def test_who_needs_no_frame_or_goes_is_left_alone(
    node: Node, rewinding: Rewinding, why: str
) -> None:
    node.draining = why == "draining"
    node.seat.frames.torn = why != "whole"
    node.seat.finished, node.seat.parting = why == "over", why == "parting"
    if why == "stepping":
        node.seat.stepper.machine.phase = Phase.COMMITTED
    await rewinding.look()
    assert (node.said, node.own) == ([], {})


@pytest.mark.asyncio
async def test_a_state_that_may_be_of_the_next_step_is_not_used(
    node: Node, rewinding: Rewinding
) -> None:
    node.seat.saved.clear()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(rewinding.look())
        await asyncio.sleep(0)
        node.seat.at = position(6)
        node.seat.saved.set()
    assert (node.said, node.own) == ([], {})


@pytest.mark.asyncio
async def test_a_disk_that_loses_frames_in_each_try_ends_the_peer(
    node: Node, rewinding: Rewinding
) -> None:
    for _ in range(TRIES_MOST):
        await rewinding.look()
        node.seats[STAGE] = Seat()
    assert node.said == BEGUN_AGAIN * TRIES_MOST
    await rewinding.look()
    await rewinding.look()
    assert node.said[2 * TRIES_MOST :] == ["stage 1: this peer's disk has lost frames 4 times"]


@pytest.mark.asyncio
async def test_tries_are_of_one_step(node: Node, rewinding: Rewinding) -> None:
    for step in range(TRIES_MOST + 2):
        node.seats[STAGE] = seat = Seat()
        seat.at = position(step)
        await rewinding.look()
    assert node.said == BEGUN_AGAIN * (TRIES_MOST + 2)
