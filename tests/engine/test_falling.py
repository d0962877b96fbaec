"""A lost stage is waited for, then asked about, then fallen back for, or the run is given up."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.core.chain import genesis_chain
from p2ptrain.core.resuming import Holding
from p2ptrain.engine.falling import (
    GIVE_UP_SECONDS,
    NOTED_SECONDS,
    PATIENCE_SECONDS,
    STUCK_SECONDS,
    VANISHED_SECONDS,
    Falling,
)
from p2ptrain.engine.roster import Roster
from p2ptrain.engine.surroundings import genesis
from p2ptrain.observe import events as ev
from p2ptrain.run import Checkpoint, digest
from p2ptrain.sim.loop import run
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Chain, PeerId, Stage, Step
from p2ptrain.wire.messages import Held, SeatStatus

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

SPEC = msgspec.structs.replace(
    toy_spec(stages=2, microbatches=4, steps=50), checkpoint=Checkpoint(every_steps=2)
)
RUN = digest(SPEC)
ME, ANN, BOB = PeerId("me"), PeerId("ann"), PeerId("bob")
WAITS = ev.Alarm(reason="nobody serves stage 1: training waits")
LATE = Step(9)  # too late to begin again from the seed


def holding(stage: int, step: int) -> Holding:
    at = Position(epoch=0, step=Step(step), chain=Chain(bytes((step,)) * 32))
    return Holding(stage=Stage(stage), at=at)


def serving(stage: int) -> SeatStatus:
    return SeatStatus(
        stage=Stage(stage), state="serving", version=LATE, rate=1.0, queue=0, parked=0
    )


@dataclass
class Node:
    """What falling sees of its node; it remembers what was declared, and why it was given up."""

    others: dict[PeerId, tuple[Holding, ...]] = field(default_factory=dict)
    own: tuple[Holding, ...] = ()
    gone: tuple[Holding, ...] = ()
    linked: tuple[PeerId, ...] = (BOB,)
    asked: int = 0
    declared: list[Position] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    events: list[ev.AnyEvent] = field(default_factory=list)
    past: dict[Step, Chain] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run_id, self.spec, self.roster = RUN, SPEC, Roster(ME)
        self.root = genesis(genesis_chain(RUN))
        self.lineage = self.holdings = self.links = self
        self.seats: dict[Stage, Any] = {}
        self.emit = self.events.append
        self.give_up = self.given_up.append
        self.roster.hear(ME, [serving(0)])
        self.falling = Falling(self)  # type: ignore[arg-type]  # what it uses

    def open(self, _peer: PeerId) -> None:
        pass

    def peers(self) -> tuple[PeerId, ...]:
        return self.linked

    async def of_others(self) -> dict[PeerId, Held]:
        self.asked += 1
        await asyncio.sleep(0.1)
        told = self.others.items()
        return {peer: Held(held=held, waiting=False, let_go=self.gone) for peer, held in told}

    def let_go(self, others: Mapping[PeerId, Held]) -> tuple[Holding, ...]:
        return tuple(one for word in others.values() for one in word.let_go)

    async def ours(self) -> tuple[Holding, ...]:
        return self.own

    def declare(self, at: Position, _reason: str) -> None:
        self.declared.append(at)

    def spawn(self, job: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(job)

    async def looks(self, seconds: float, version: Step = LATE) -> None:
        for _ in range(int(seconds)):
            self.falling.look(version, asyncio.get_running_loop().time())
            await asyncio.sleep(1.0)


def play(story: Any) -> None:
    async def main() -> None:
        await story(Node())

    run(main())


def test_a_stage_that_comes_back_is_nobodys_matter() -> None:
    async def story(node: Node) -> None:
        await node.looks(PATIENCE_SECONDS)
        node.roster.hear(ANN, [serving(1)])
        await node.looks(5)
        node.roster.lost(ANN)
        await node.looks(PATIENCE_SECONDS)
        assert (node.asked, node.events) == (0, [WAITS, WAITS])

    play(story)


def test_that_training_waits_is_said_once_when_it_is_no_moment() -> None:
    async def story(node: Node) -> None:
        await node.looks(NOTED_SECONDS)
        assert node.events == []
        await node.looks(PATIENCE_SECONDS - NOTED_SECONDS)
        assert node.events == [WAITS]

    play(story)


def test_the_run_falls_back_to_what_all_together_hold() -> None:
    async def story(node: Node) -> None:
        node.own = (holding(0, 6), holding(0, 4))
        node.others = {ANN: (holding(1, 4), holding(1, 2))}
        await node.looks(PATIENCE_SECONDS + 1)
        assert [(at.epoch, at.step) for at in node.declared] == [(1, 4)]

    play(story)


@pytest.mark.parametrize(
    ("vanished", "linked", "patience"),
    [
        pytest.param((True, True), (BOB,), VANISHED_SECONDS, id="both were killed"),
        pytest.param((True, False), (BOB,), PATIENCE_SECONDS, id="one may only sleep"),
        pytest.param((True, True), (), PATIENCE_SECONDS, id="our own line may be cut"),
    ],
)
def test_who_died_is_not_waited_for_as_long_as_who_fell_silent(
    vanished: tuple[bool, bool], linked: tuple[PeerId, ...], patience: float
) -> None:
    async def story() -> None:
        node = Node(others={ANN: (holding(0, 4), holding(1, 4))}, linked=linked)
        for peer, how in zip((PeerId("one"), PeerId("two")), vanished, strict=True):
            node.roster.hear(peer, [serving(1)])
            node.roster.lost(peer, vanished=how)
        await node.looks(patience)
        assert node.declared == []
        await node.looks(1)
        assert len(node.declared) == 1

    run(story())


def test_what_can_be_restored_is_waited_for() -> None:
    async def story(node: Node) -> None:
        node.others = {ANN: (holding(1, 9),)}
        await node.looks(GIVE_UP_SECONDS + 10)
        assert (node.declared, node.given_up, node.events) == ([], [], [WAITS])

    play(story)


def test_what_can_be_restored_and_not_counted_on_from_is_not_waited_for() -> None:
    async def story(node: Node) -> None:
        node.own = (holding(0, 8),)
        node.others, node.gone = {ANN: (holding(1, 8),)}, (holding(1, 8),)
        await node.looks(PATIENCE_SECONDS + 1)
        assert [(at.epoch, at.step) for at in node.declared] == [(1, 8)]

    play(story)


def test_a_short_run_begins_again_from_its_seed() -> None:
    async def story(node: Node) -> None:
        await node.looks(PATIENCE_SECONDS + 1, Step(4))
        assert node.declared == [msgspec.structs.replace(node.root, epoch=1)]

    play(story)


def test_a_run_of_which_nothing_is_left_is_given_up_after_a_while_and_told_once_before() -> None:
    async def story(node: Node) -> None:
        await node.looks(GIVE_UP_SECONDS)
        why = "stage 1 is lost: nobody here holds a checkpoint"
        assert node.events == [WAITS, ev.Alarm(reason=f"{why}; waiting for somebody who holds it")]
        assert node.given_up == []
        await node.looks(2)
        assert node.given_up[0] == why

    play(story)


def test_a_view_that_has_changed_while_others_were_asked_decides_nothing() -> None:
    async def story(node: Node) -> None:
        node.others = {ANN: (holding(0, 4), holding(1, 4))}
        await node.looks(PATIENCE_SECONDS)
        node.falling.look(LATE, asyncio.get_running_loop().time())
        node.roster.hear(ANN, [serving(1)])
        await asyncio.sleep(1.0)
        assert (node.asked, node.declared) == (1, [])

    play(story)


def test_a_stage_that_stands_a_step_behind_and_counts_nothing_is_as_good_as_lost() -> None:
    """It had taken that step before it was lost: nobody keeps the frames to count it again."""

    async def story(node: Node) -> None:
        node.roster.hear(ANN, [serving(1)])
        node.own = (holding(0, 8), holding(0, 4))
        node.others = {ANN: (holding(1, 4),)}
        pipeline = SimpleNamespace(counted=0)
        behind = SimpleNamespace(version=Step(8), position=node.root, pipeline=pipeline)
        node.seats[Stage(0)] = behind
        node.roster.incarnated(ME, 1)
        node.roster.incarnated(ME, 2)
        node.roster.hear(ME, [msgspec.structs.replace(serving(0), version=Step(8))])
        await node.looks(STUCK_SECONDS)
        pipeline.counted = 1
        await node.looks(STUCK_SECONDS)
        assert node.declared == []
        await node.looks(1)
        assert [(at.epoch, at.step) for at in node.declared] == [(1, 4)]

    play(story)


def test_a_position_at_which_nobody_has_been_is_not_declared() -> None:
    """One who has a link and no seat may say that it holds everything."""

    async def story() -> None:
        true = (holding(0, 6), holding(1, 6))
        node = Node(others={ANN: (holding(0, 8), holding(1, 8))}, own=true)
        node.past = {Step(8): Chain(b"x" * 32), Step(6): true[0].at.chain}
        await node.looks(PATIENCE_SECONDS + 3.0)
        assert {at.step for at in node.declared} == {6}

    run(story())
