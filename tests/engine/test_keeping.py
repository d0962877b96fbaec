"""Snapshots are saved for who wants them, at the step that they want, and of no other."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING

from p2ptrain.core.agreement import Position, Sum, Tallies
from p2ptrain.core.download import AHEAD_MOST
from p2ptrain.engine.keeping import Keeper
from p2ptrain.engine.transfers import Snapshots
from p2ptrain.sim.loop import run
from p2ptrain.units import Chain, Digest, PeerId, Stage, Step
from p2ptrain.wire.messages import NoSuch, StageManifest, WantManifest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from p2ptrain.wire.messages import Control

ANN, BOB, STAGE = PeerId("ann"), PeerId("bob"), Stage(1)


def at(step: int) -> Position:
    return Position(epoch=0, step=Step(step), chain=Chain(bytes((step,)) * 32))


class Links:
    def __init__(self) -> None:
        self.said: list[tuple[PeerId, Control]] = []

    def send(self, peer: PeerId, message: Control) -> None:
        self.said.append((peer, message))


class Stepper:
    members = ((ANN,), (BOB,))
    sums = SimpleNamespace(taken=lambda at: (whole(at),))


def whole(at: Position) -> Sum:
    """What led to ``at``, to tell it by."""
    return Sum(
        at=at,
        stage=STAGE,
        digest=Digest(bytes(32)),
        norms=(),
        finite=True,
        tallies=Tallies(),
        cover=(),
        members=(),
        round=0,
    )


class Seat:
    """Stands at a step; saving takes a second, and says which step it saved."""

    def __init__(self, step: int | None) -> None:
        self.stage, self.finished, self.stepper, self.compute = STAGE, False, Stepper(), self
        self.adopting = False
        self.position = None if step is None else at(step)
        self.saves = 0

    @property
    def version(self) -> Step:
        return self.standing()[0].step

    def standing(self) -> tuple[Position, tuple[tuple[PeerId, ...], ...]]:
        assert self.position is not None
        return self.position, self.stepper.members

    async def save(self) -> bytes:
        self.saves += 1
        assert self.position is not None
        before = self.position.step
        await asyncio.sleep(1.0)
        return f"state {before}".encode()


class Bench:
    """A keeper of one seat, with everything that it said."""

    def __init__(self, step: int | None, group: asyncio.TaskGroup) -> None:
        self.links, self.seat = Links(), Seat(step)
        snapshots = Snapshots(self.links, lambda _event: None)  # type: ignore[arg-type]  # what it uses
        self.keeper = Keeper(self.links, snapshots, group.create_task)  # type: ignore[arg-type]  # likewise

    def want(self, peer: PeerId, step: int) -> None:
        message = WantManifest(stage=STAGE, version=Step(step))
        self.keeper.wanted(self.seat, peer, message)  # type: ignore[arg-type]  # what it uses

    def step(self, step: int) -> None:
        self.seat.position = at(step)
        self.keeper.stepped(self.seat)  # type: ignore[arg-type]  # likewise

    def told(self) -> list[tuple[PeerId, int | str]]:
        return [
            (peer, message.version if isinstance(message, StageManifest) else message.reason)
            for peer, message in self.links.said
            if isinstance(message, StageManifest | NoSuch)
        ]


def virtual(step: int | None, main: Callable[[Bench], Coroutine[None, None, None]]) -> None:
    async def around() -> None:
        async with asyncio.TaskGroup() as group:
            await main(Bench(step, group))

    run(around())


def test_what_is_wanted_now_is_saved_once_for_all_who_want_it() -> None:
    async def main(bench: Bench) -> None:
        bench.want(ANN, 5)
        bench.want(BOB, 4)
        await asyncio.sleep(3.0)
        assert bench.told() == [(ANN, 5), (BOB, 5)]
        bench.want(ANN, 5)
        await asyncio.sleep(0.5)
        assert bench.told()[2:] == [(ANN, 5)]
        assert bench.seat.saves == 1

    virtual(5, main)


def test_what_led_to_a_state_goes_with_it() -> None:
    async def main(bench: Bench) -> None:
        bench.want(ANN, 3)
        await asyncio.sleep(2.0)
        ((_, manifest),) = bench.links.said
        assert isinstance(manifest, StageManifest)
        assert manifest.taken == (whole(at(3)),)

    virtual(3, main)


def test_a_step_that_is_still_to_come_is_saved_when_it_begins() -> None:
    async def main(bench: Bench) -> None:
        bench.want(ANN, 7)
        await asyncio.sleep(5.0)
        bench.step(6)
        await asyncio.sleep(5.0)
        assert (bench.told(), bench.seat.saves) == ([], 0)
        bench.step(7)
        await asyncio.sleep(1.5)
        assert bench.told() == [(ANN, 7)]

    virtual(5, main)


def test_a_state_that_a_commit_overtook_is_saved_again() -> None:
    async def main(bench: Bench) -> None:
        bench.want(ANN, 5)
        await asyncio.sleep(0.5)
        bench.step(6)
        await asyncio.sleep(3.0)
        assert bench.told() == [(ANN, 6)]
        assert bench.seat.saves == 2

    virtual(5, main)


def test_the_newest_wish_of_a_peer_counts() -> None:
    async def main(bench: Bench) -> None:
        bench.want(ANN, 6)
        bench.want(ANN, 8)
        bench.step(6)
        await asyncio.sleep(3.0)
        assert bench.told() == []
        bench.step(9)
        await asyncio.sleep(3.0)
        assert bench.told() == [(ANN, 9)]

    virtual(5, main)


def test_who_can_get_nothing_is_told_why() -> None:
    async def main(bench: Bench) -> None:
        bench.want(ANN, 5 + AHEAD_MOST + 1)
        bench.want(ANN, 6)
        bench.keeper.closed(STAGE, "given away")
        bench.want(BOB, 6)
        bench.seat.finished = True
        bench.step(6)
        bench.want(ANN, 6)
        assert bench.told() == [
            (ANN, "this peer is at step 5"),
            (ANN, "given away"),
            (BOB, "the run is complete"),
            (ANN, "the run is complete"),
        ]
        assert bench.seat.saves == 0

    virtual(5, main)


def test_who_is_loading_itself_gives_nothing() -> None:
    async def main(bench: Bench) -> None:
        bench.want(ANN, 0)
        assert bench.told() == [(ANN, "this peer is loading that stage itself")]

    virtual(None, main)
