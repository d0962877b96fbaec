"""States beside the seats: who is asked for them, what is taken, what is given."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.core.assignment import SeatView
from p2ptrain.core.resuming import Holding
from p2ptrain.engine.archive import Archive
from p2ptrain.engine.holdings import ANSWER_SECONDS, Holdings
from p2ptrain.engine.pulling import Pulled
from p2ptrain.engine.roster import Roster
from p2ptrain.errors import LinkError
from p2ptrain.run import Checkpoint, digest
from p2ptrain.sim.loop import run
from p2ptrain.sim.store import MemoryStore
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Chain, PeerId, Stage, Step
from p2ptrain.wire.messages import Held, SeatStatus, WantHeld, WantManifest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from p2ptrain.observe import events as ev

SPEC = msgspec.structs.replace(
    toy_spec(stages=2, microbatches=4, steps=50), checkpoint=Checkpoint(every_steps=10)
)
RUN = digest(SPEC)
ME, ANN, BOB = PeerId("me"), PeerId("ann"), PeerId("bob")
MEMBERS = ((ANN,), (BOB,))
STAGE = Stage(0)


def at(step: int) -> Position:
    return Position(epoch=0, step=Step(step), chain=Chain(bytes((step,)) * 32))


def held(*steps: int, stage: Stage = STAGE) -> Held:
    return Held(held=tuple(Holding(stage=stage, at=at(step)) for step in steps), waiting=False)


def state(step: int, source: PeerId = ME) -> Pulled:
    return Pulled(at=at(step), members=MEMBERS, blob=b"state %d" % step, sources=(source,))


@dataclass
class Resumption:
    waiting: bool = False


@dataclass
class Seat:
    """It has taken a step, and what it keeps of it somebody beside may still need."""

    last: Any
    past: Any
    members: tuple[tuple[PeerId, ...], ...] = MEMBERS

    def __post_init__(self) -> None:
        self.stepper = self.pipeline = self


class Lineage:
    root = Position(epoch=0, step=Step(0), chain=Chain(b"g" * 32))


@dataclass
class Node:
    """What holdings see of their node; ``answers``: what others say when asked."""

    answers: dict[PeerId, Held | None] = field(default_factory=dict)
    events: list[ev.AnyEvent] = field(default_factory=list)
    said: list[tuple[PeerId, Any]] = field(default_factory=list)
    pulled: list[tuple[tuple[PeerId, ...], int]] = field(default_factory=list)
    offered: list[tuple[Stage, Position, bytes]] = field(default_factory=list)
    answered: list[PeerId] = field(default_factory=list)
    jobs: int = 0

    def __post_init__(self) -> None:
        self.me, self.run_id, self.spec = ME, RUN, SPEC
        self.links = self.mail = self.snapshots = self
        self.resumption, self.lineage = Resumption(), Lineage()
        self.emit = self.events.append
        self.disk = MemoryStore()
        self.seats: dict[Stage, Any] = {}
        self.roster = Roster(ME)
        archive = Archive(self.disk, RUN, 10, emit=self.emit, spawn=self.spawn)
        self.holdings = Holdings(self, archive)  # type: ignore[arg-type]  # what they use

    def peers(self) -> tuple[PeerId, ...]:
        return tuple(self.answers)

    def tell(self, peer: PeerId, message: Any) -> None:
        self.said.append((peer, message))

    def tell_all(self, peers: list[PeerId], message: Any) -> None:
        assert message == WantHeld()
        for peer in peers:
            if (answer := self.answers[peer]) is not None:
                asyncio.get_running_loop().call_soon(self.holdings.heard, peer, answer)

    def spawn(self, job: Coroutine[None, None, None]) -> asyncio.Task[None]:
        self.jobs += 1
        return asyncio.get_running_loop().create_task(job)

    async def pull(
        self, _stage: Stage, donors: list[PeerId], *, version: Step, owners: int
    ) -> Pulled:
        assert owners == 1
        self.pulled.append((tuple(donors), version))
        return state(version, donors[0])

    def holds(self, _stage: Stage, _version: Step) -> bool:
        return bool(self.offered)

    async def offer(self, stage: Stage, where: Position, _members: Any, blob: bytes) -> None:
        self.offered.append((stage, where, blob))

    def handle(self, peer: PeerId, _message: Any) -> None:
        self.answered.append(peer)


def play(story: Callable[[Node], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        await story(Node())

    run(main())


def test_ours_is_taken_at_the_step_of_the_others_or_one_before() -> None:
    async def story(node: Node) -> None:
        for step in (10, 20):
            await node.holdings.memory.keep(STAGE, state(step))
        for version, step in ((20, 20), (21, 20), (10, 10)):
            assert await node.holdings.restore(STAGE, Step(version)) == state(step)
        with pytest.raises(LinkError, match="at step 22, and the newest anywhere is of step 20"):
            await node.holdings.restore(STAGE, Step(22))
        with pytest.raises(LinkError, match=r"left to take it from at step 20$"):
            await node.holdings.restore(Stage(1), Step(20))

    play(story)


def test_who_holds_it_is_asked_and_the_newest_that_fits_is_taken() -> None:
    async def story(node: Node) -> None:
        node.answers = {ANN: held(10, 19), BOB: held(19, 20)}
        assert await node.holdings.restore(STAGE, Step(20)) == state(20, BOB)
        assert node.pulled == [((BOB,), 20)]
        assert await node.holdings.restore(STAGE, Step(19)) == state(19, ANN)
        assert node.pulled[1:] == [((ANN, BOB), 19)]

    play(story)


def test_a_copy_of_the_step_before_is_of_no_use_once_somebody_beside_has_let_that_go() -> None:
    async def story(node: Node) -> None:
        last = SimpleNamespace(at=at(19), sums=("of stage 0", "of stage 1"), learned=False)
        awaited = SimpleNamespace(awaits=lambda stage: stage == STAGE)
        node.answers = {ANN: held(19)}
        node.seats = {Stage(1): Seat(last=last, past=awaited)}
        assert await node.holdings.restore(STAGE, Step(20)) == state(19, ANN)
        node.seats = {Stage(1): Seat(last=None, past=None)}  # has just come
        assert await node.holdings.restore(STAGE, Step(20)) == state(19, ANN)
        node.answers[BOB] = msgspec.structs.replace(held(), let_go=held(19).held)
        with pytest.raises(LinkError, match="at step 20, and the newest anywhere is of step 19"):
            await node.holdings.restore(STAGE, Step(20))
        del node.answers[BOB]
        node.seats = {Stage(1): Seat(last=last, past=None)}
        with pytest.raises(LinkError):
            await node.holdings.restore(STAGE, Step(20))
        node.holdings.asked(ANN)
        await asyncio.sleep(1.0)
        assert node.said[-1] == (ANN, msgspec.structs.replace(held(), let_go=held(19).held))

    play(story)


@pytest.mark.parametrize("listed", [True, False])
def test_that_frames_are_gone_is_believed_of_those_who_can_have_kept_them(*, listed: bool) -> None:
    """Who has a seat beside that stage, or had one in the last record; else it is a lie."""
    liar, newcomer = PeerId("liar"), PeerId("newcomer")

    async def story(node: Node) -> None:
        gone = msgspec.structs.replace(held(), let_go=held(19).held)
        node.seats = {Stage(1): Seat(last=None, past=None)}
        node.answers = {ANN: held(19), liar: gone}
        assert await node.holdings.restore(STAGE, Step(20)) == state(19, ANN)
        assert node.holdings.let_go({liar: gone}) == ()
        assert node.holdings.let_go({BOB: gone}) == gone.let_go
        for stage, believed in ((2, ()), (0, ()), (1, gone.let_go)):
            seat = SeatView(
                peer=newcomer, stage=Stage(stage), state="serving", rate=1.0, version=Step(20)
            )
            if listed:
                node.roster.list([seat])
            else:
                node.roster.hear(newcomer, [said_of(seat)])
            assert node.holdings.let_go({newcomer: gone}) == believed

    play(story)


def said_of(seat: SeatView) -> SeatStatus:
    return SeatStatus(
        stage=seat.stage, state="serving", version=seat.version, rate=1.0, queue=0, parked=0
    )


def test_who_does_not_answer_is_not_waited_for_for_ever() -> None:
    async def story(node: Node) -> None:
        loop = asyncio.get_running_loop()
        node.answers = {ANN: None, BOB: held(20)}
        assert await node.holdings.of_others() == {BOB: held(20)}
        assert loop.time() == ANSWER_SECONDS
        loop.call_later(1.0, node.holdings.down, ANN)
        assert await node.holdings.of_others() == {BOB: held(20)}
        assert loop.time() == ANSWER_SECONDS + 1.0
        node.holdings.down(BOB)
        node.answers = {}
        assert await node.holdings.of_others() == {}

    play(story)


def test_who_asks_hears_of_disk_and_memory_and_is_given_what_is_there() -> None:
    async def story(node: Node) -> None:
        await node.holdings.memory.keep(STAGE, state(10))
        node.holdings.asked(ANN)
        await asyncio.sleep(1.0)
        assert node.said == [(ANN, held(10))]
        node.holdings.give(ANN, WantManifest(stage=STAGE, version=Step(11)))
        node.holdings.give(BOB, WantManifest(stage=STAGE, version=Step(9)))
        await asyncio.sleep(1.0)
        assert node.offered == [(STAGE, at(10), b"state 10")]
        assert node.answered == [ANN, BOB]  # the first hears of nothing: see engine/serving

    play(story)


def test_the_memory_keeps_two_of_a_stage_and_tells_of_no_checkpoint() -> None:
    async def story(node: Node) -> None:
        for step in (10, 20, 30):
            await node.holdings.memory.keep(STAGE, state(step))
        assert await node.holdings.ours() == held(30, 20).held
        assert node.events == []

    play(story)


def test_who_asks_a_thousand_times_at_once_costs_one_look_and_gets_one_answer() -> None:
    async def story(node: Node) -> None:
        await node.holdings.memory.keep(STAGE, state(10))
        for _ in range(1000):
            for peer in (BOB, ANN):
                node.holdings.asked(peer)
                node.holdings.give(peer, WantManifest(stage=STAGE, version=Step(9)))
        assert node.jobs == 2
        await asyncio.sleep(1.0)
        assert node.said == [(ANN, held(10)), (BOB, held(10))]
        assert node.answered == [BOB, ANN]
        node.holdings.asked(ANN)
        node.holdings.give(ANN, WantManifest(stage=STAGE, version=Step(9)))
        await asyncio.sleep(1.0)
        assert (len(node.said), len(node.answered)) == (3, 3)
        node.holdings.give(BOB, WantManifest(stage=STAGE, version=Step(9)))
        node.holdings.asked(BOB)
        node.holdings.down(BOB)
        await asyncio.sleep(1.0)
        assert (len(node.said), len(node.answered)) == (3, 3)

    play(story)
