"""When a peer that comes back may take a seat, and where; what it tells, and what it gives."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.core import checkpoint as c
from p2ptrain.core.agreement import Position
from p2ptrain.core.resuming import Holding
from p2ptrain.engine.resuming import EMPTY_SECONDS, SETTLE_LOOKS, UNHEARD_SECONDS, Resumption
from p2ptrain.engine.roster import Roster
from p2ptrain.engine.terms import NodeOptions
from p2ptrain.errors import LinkError
from p2ptrain.observe import events as ev
from p2ptrain.run import digest
from p2ptrain.sim.loop import run
from p2ptrain.sim.store import MemoryStore
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Chain, PeerId, Stage, Step
from p2ptrain.wire.messages import Held, SeatStatus, WantManifest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

SPEC = toy_spec(stages=2, microbatches=4, steps=50)
RUN = digest(SPEC)
ME, ANN, BOB = PeerId("me"), PeerId("ann"), PeerId("bob")


def at(step: int) -> Position:
    return Position(epoch=0, step=Step(step), chain=Chain(bytes((step,)) * 32))


def held(stage: int, *steps: int, waiting: bool = True) -> Held:
    holdings = tuple(Holding(stage=Stage(stage), at=at(step)) for step in steps)
    return Held(held=holdings, waiting=waiting)


@dataclass
class Listed:
    peer: PeerId


class Presence:
    def __init__(self, listed: list[PeerId]) -> None:
        self._listed = listed

    def seats(self) -> tuple[Listed, ...]:
        return tuple(Listed(peer) for peer in self._listed)


class Lineage:
    root = at(0)


@dataclass
class Node:
    """What a resumption sees of its node; it remembers what was done with it."""

    store: MemoryStore | None
    options: NodeOptions
    linked: list[PeerId] = field(default_factory=lambda: [ANN, BOB])
    listed: list[Any] = field(default_factory=list)
    seats: dict[Stage, Any] = field(default_factory=dict)
    claims: dict[Stage, float] = field(default_factory=dict)
    events: list[ev.AnyEvent] = field(default_factory=list)
    said: list[tuple[PeerId, Any]] = field(default_factory=list)
    offered: list[tuple[Stage, Position, bytes]] = field(default_factory=list)
    answered: list[PeerId] = field(default_factory=list)
    closed: list[Stage] = field(default_factory=list)
    at_end: bool = False

    def __post_init__(self) -> None:
        self.me, self.run_id, self.spec, self.rng = ME, RUN, SPEC, random.Random(0)
        self.world = self.links = self.mail = self.snapshots = self
        self.presence = Presence(self.listed)
        self.roster, self.lineage = Roster(ME), Lineage()
        self.emit = self.events.append

    def peers(self) -> tuple[PeerId, ...]:
        return tuple(self.linked)

    def tell(self, peer: PeerId, message: Any) -> None:
        self.said.append((peer, message))

    def tell_all(self, peers: tuple[PeerId, ...], message: Any) -> None:
        for peer in peers:
            self.tell(peer, message)

    def statuses_changed(self) -> None:
        pass

    def come_to_end(self) -> None:
        self.at_end = True

    def close_seat(self, stage: Stage, _reason: str) -> None:
        del self.seats[stage]
        self.closed.append(stage)

    def spawn(self, job: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(job)

    def holds(self, _stage: Stage, _version: Step) -> bool:
        return bool(self.offered)

    async def offer(self, stage: Stage, where: Position, _members: Any, blob: bytes) -> None:
        self.offered.append((stage, where, blob))

    def handle(self, peer: PeerId, _message: Any) -> None:
        self.answered.append(peer)


class Seated:
    """A seat that stands somewhere."""

    def __init__(self, step: int) -> None:
        self.stage, self.version, self.finished, self.position = (
            Stage(0),
            Step(step),
            False,
            at(step),
        )


async def saved(store: MemoryStore, stage: int, *steps: int) -> None:
    for step in steps:
        state = f"state {step}".encode()
        header = c.Header(
            format=c.FORMAT,
            run=RUN,
            stage=Stage(stage),
            at=at(step),
            members=((ANN,), (BOB,)),
            size_bytes=len(state),
            root=c.root(state),
        )
        mark = c.Mark(0, Step(step))
        await store.put(c.name_of(RUN, Stage(stage), mark, c.STATE_SUFFIX), state)
        await store.put(c.name_of(RUN, Stage(stage), mark, c.HEADER_SUFFIX), c.seal(header))


def play(
    story: Callable[[Node, Resumption], Coroutine[None, None, None]],
    *steps: int,
    stage: int = 0,
    resume: bool = True,
    listed: tuple[Any, ...] = (),
) -> None:
    """``story`` of a peer whose disk holds ``steps`` of ``stage``."""

    async def main() -> None:
        store = MemoryStore()
        await saved(store, stage, *steps)
        node = Node(store, NodeOptions(resume=resume), listed=list(listed))
        resumption = Resumption(node)  # type: ignore[arg-type]  # what it uses
        await resumption.begin()
        await story(node, resumption)

    run(main())


def looks(resumption: Resumption, count: int = SETTLE_LOOKS) -> bool:
    return [resumption.blocks() for _ in range(count)][-1]


def test_an_ordinary_peer_is_never_held_up_and_says_nothing() -> None:
    async def story(node: Node, resumption: Resumption) -> None:
        assert not resumption.blocks()
        resumption.up(ANN)
        assert (node.said, node.claims) == ([], {})

    play(story, 20, resume=False)


def test_it_waits_for_the_stages_that_it_lacks_and_says_so_once() -> None:
    async def story(node: Node, resumption: Resumption) -> None:
        assert looks(resumption, 10)
        assert node.said == [(ANN, held(0, 20, 10)), (BOB, held(0, 20, 10))]
        reasons = [event.reason for event in node.events if isinstance(event, ev.Alarm)]
        assert reasons == ["waiting to resume: nobody here holds a checkpoint of stage 1"]
        assert set(node.claims) == {0}  # where its own state is

    play(story, 10, 20)


def test_once_every_stage_is_held_and_the_view_has_settled_it_goes_on_from_there() -> None:
    async def story(node: Node, resumption: Resumption) -> None:
        resumption.heard(ANN, held(1, 10, 30))
        assert looks(resumption, SETTLE_LOOKS - 1)
        assert not resumption.blocks()
        assert resumption.origin == at(10)
        assert [e.version for e in node.events if isinstance(e, ev.Resumed)] == [10]
        pulled = await resumption.fetch(Stage(0))
        assert (pulled.at, pulled.blob, pulled.sources) == (at(10), b"state 10", (ME,))
        assert pulled.members == ((), ())
        node.pull = elsewhere  # type: ignore[attr-defined]
        with pytest.raises(LinkError, match="other"):
            await resumption.fetch(Stage(1))

    async def elsewhere(stage: Stage, donors: list[PeerId], *, version: Step) -> Any:
        assert (stage, donors, version) == (1, [ANN], 10)
        raise LinkError("pulled from the other")

    play(story, 10, 20)


def test_a_newer_origin_moves_seats_until_the_first_step() -> None:
    async def story(node: Node, resumption: Resumption) -> None:
        resumption.heard(ANN, held(1, 10))
        looks(resumption)
        node.seats[Stage(0)] = Seated(10)
        resumption.heard(BOB, held(1, 20))
        looks(resumption)
        assert (resumption.origin, node.closed) == (at(20), [Stage(0)])

        node.seats[Stage(0)] = Seated(21)
        resumption.stepped()
        resumption.heard(BOB, held(1, 20, 40))
        assert not looks(resumption)
        assert (resumption.origin, node.closed) == (None, [Stage(0)])
        assert node.said[-1] == (BOB, msgspec.structs.replace(held(0, 20, 10), waiting=False))

    play(story, 10, 20)


def test_who_is_gone_holds_nothing() -> None:
    async def story(_: Node, resumption: Resumption) -> None:
        resumption.heard(ANN, held(1, 20))
        resumption.down(ANN)
        assert looks(resumption)
        resumption.heard(ANN, held(1, 20))
        resumption.heard(ANN, held(1, 20, waiting=False))
        assert looks(resumption)

    play(story, 20)


def test_a_run_that_is_alive_is_joined() -> None:
    async def story(node: Node, resumption: Resumption) -> None:
        alive = SeatStatus(
            stage=Stage(1), state="serving", version=Step(3), rate=1.0, queue=0, parked=0
        )
        node.roster.hear(ANN, [alive])
        assert not looks(resumption)
        assert resumption.origin is None
        resumption.heard(ANN, held(1, 20))  # no: it stands there and waits like us
        assert not looks(resumption)
        assert resumption.origin == at(20)

    play(story, 20)


def test_nobody_with_anything_begins_anew_after_a_while() -> None:
    async def story(_: Node, resumption: Resumption) -> None:
        assert looks(resumption)
        await asyncio.sleep(EMPTY_SECONDS)
        assert not looks(resumption)
        assert resumption.anew

    play(story)


def test_a_peer_that_is_listed_and_silent_is_waited_for_but_not_for_ever() -> None:
    async def story(node: Node, resumption: Resumption) -> None:
        node.linked.remove(BOB)
        resumption.heard(ANN, held(1, 20))
        assert looks(resumption)
        await asyncio.sleep(UNHEARD_SECONDS)
        assert not looks(resumption)

    play(story, 20, listed=(BOB,))


def test_the_end_of_a_run_is_not_resumed() -> None:
    async def story(node: Node, resumption: Resumption) -> None:
        resumption.heard(ANN, held(1, 50))
        looks(resumption)
        assert node.at_end

    play(story, 50)


def test_a_state_of_another_stage_is_given_from_the_disk() -> None:
    async def story(node: Node, resumption: Resumption) -> None:
        assert not resumption.give(ANN, WantManifest(stage=Stage(1), version=Step(20)))
        resumption.heard(ANN, held(0, 20))
        looks(resumption)
        assert resumption.give(ANN, WantManifest(stage=Stage(1), version=Step(20)))
        assert not resumption.give(ANN, WantManifest(stage=Stage(1), version=Step(19)))
        assert not resumption.give(ANN, WantManifest(stage=Stage(0), version=Step(20)))
        await asyncio.sleep(1.0)
        assert node.offered == [(Stage(1), at(20), b"state 20")]
        assert node.answered == [ANN]

    play(story, 20, stage=1)
