"""A guard pulls what is due, once, and is stopped by nothing that goes wrong."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.core.agreement import Position
from p2ptrain.core.assignment import SeatView
from p2ptrain.engine.buddies import Buddies
from p2ptrain.engine.pulling import Pulled
from p2ptrain.errors import LinkError
from p2ptrain.observe import events as ev
from p2ptrain.run import Checkpoint, digest
from p2ptrain.sim.loop import run
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Chain, PeerId, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Coroutine

SPEC = msgspec.structs.replace(
    toy_spec(stages=2, microbatches=4, steps=50), checkpoint=Checkpoint(every_steps=2)
)
ME, ANN, BOB = PeerId("me"), PeerId("ann"), PeerId("bob")


def view(peer: PeerId, stage: int, state: str = "serving") -> SeatView:
    return SeatView(peer=peer, stage=Stage(stage), state=state, rate=1.0, version=Step(0))  # type: ignore[arg-type]  # a literal


class Roster:
    def __init__(self, views: list[SeatView]) -> None:
        self._views = views

    def views(self) -> list[SeatView]:
        return self._views


@dataclass
class Seat:
    version: Step
    finished: bool


@dataclass
class Node:
    """What buddies see of their node; it remembers what was pulled and kept."""

    views: list[SeatView]
    events: list[ev.AnyEvent] = field(default_factory=list)
    pulled: list[tuple[Stage, list[PeerId], int, int]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    refusal: LinkError | None = None
    room: bool = True

    def __post_init__(self) -> None:
        self.me, self.run_id, self.spec = ME, digest(SPEC), SPEC
        self.snapshots = self
        self.roster = Roster(self.views)
        self.emit = self.events.append
        self.gate = asyncio.Event()
        self.gate.set()
        self.buddies = Buddies(self, self)  # type: ignore[arg-type]  # what they use

    def spawn(self, job: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(job)

    async def pull(
        self, stage: Stage, donors: tuple[PeerId, ...], *, version: Step, owners: int
    ) -> Pulled:
        self.pulled.append((stage, sorted(donors), version, owners))
        await self.gate.wait()
        if self.refusal is not None:
            raise self.refusal
        there = Position(epoch=0, step=version, chain=Chain(b"c" * 32))
        return Pulled(at=there, members=(), blob=b"state", sources=donors)

    async def keep(self, _stage: Stage, pulled: Pulled) -> bool:
        self.kept.append(pulled.at.step)
        return self.room

    async def stepped(self, step: int, *, finished: bool = False) -> None:
        self.buddies.stepped(Seat(Step(step), finished))  # type: ignore[arg-type]  # likewise
        await asyncio.sleep(0.1)


GUARD = [view(ME, 1), view(ANN, 0), view(BOB, 0)]


def test_a_guard_pulls_what_is_due_once_and_tells_what_it_keeps() -> None:
    async def main() -> None:
        node = Node(GUARD)
        for step in (1, 2, 2, 3, 4):
            await node.stepped(step)
        await node.stepped(6, finished=True)
        assert node.pulled == [(Stage(0), [ANN, BOB], step, 2) for step in (2, 4)]
        assert node.events == [
            ev.StateKept(stage=Stage(0), version=Step(step), size_bytes=5) for step in (2, 4)
        ]

    run(main())


def test_who_serves_the_stage_itself_is_no_guard_of_it() -> None:
    async def main() -> None:
        node = Node([view(ME, 0), view(ME, 1), view(ANN, 0)])
        await node.stepped(2)
        assert node.pulled == []

    run(main())


def test_a_slow_line_skips_steps_and_nothing_else() -> None:
    async def main() -> None:
        node = Node(GUARD)
        node.gate.clear()
        await node.stepped(2)
        await node.stepped(4)
        node.gate.set()
        await asyncio.sleep(0.1)
        await node.stepped(6)
        assert ([version for *_, version, _ in node.pulled], node.kept) == ([2, 6], [2, 6])

    run(main())


def test_what_cannot_be_had_or_kept_costs_that_copy_alone() -> None:
    async def main() -> None:
        node = Node(GUARD)
        node.refusal = LinkError("nobody gives it")
        await node.stepped(2)
        node.refusal, node.room = None, False
        await node.stepped(4)
        node.room = True
        await node.stepped(6)
        assert node.kept == [4, 6]
        assert [event.version for event in node.events if isinstance(event, ev.StateKept)] == [6]

    run(main())
