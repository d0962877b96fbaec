"""Peers find each other through the directory, and do without it once they have."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from typing import TYPE_CHECKING

from p2ptrain.engine.presence import (
    SPONSORS,
    WITHDRAW_GAP_SECONDS,
    WITHDRAW_TRIES,
    Announcer,
    Presence,
)
from p2ptrain.errors import DirectoryError
from p2ptrain.observe.events import Alarm, AnyEvent
from p2ptrain.run import Cut, RunSpec, digest, encode
from p2ptrain.sim.directory import SimDirectory, SimTable
from p2ptrain.sim.loop import VirtualTimeLoop, owner, run
from p2ptrain.sim.signer import SimSigner
from p2ptrain.units import Chain, PeerId, Stage, Step
from p2ptrain.wire.messages import SeatStatus
from p2ptrain.wire.records import (
    RUNS_KEY,
    CommitRecord,
    SeatRecord,
    commit_key,
    decode_record,
    spec_key,
    stage_key,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from p2ptrain.ports import Directory

ANN, BOB, EVE = PeerId("ann"), PeerId("bob"), PeerId("eve")
SPEC = RunSpec(cut=Cut(stages=3))
RUN = digest(SPEC)
SECRET = b"secret"


class World:
    def __init__(self) -> None:
        self.table = SimTable(seed=1)
        self.events: list[AnyEvent] = []

    def directory(self, peer: PeerId):
        return self.table.directory(signer(peer))

    def presence(
        self, peer: PeerId, incarnation: int = 1, directory: Directory | None = None
    ) -> Presence:
        return Presence(
            directory or self.directory(peer),
            SPEC,
            Announcer(run=RUN, peer=peer, incarnation=incarnation, addresses=(f"/p2p/{peer}",)),
            rng=random.Random(peer),
            emit=self.events.append,
        )


def signer(peer: PeerId) -> SimSigner:
    return SimSigner(peer, seed=1)


def status(stage: int, state: str = "serving", version: int = 0, rate: float = 2.0) -> SeatStatus:
    return SeatStatus(
        stage=Stage(stage),
        state=state,  # type: ignore[arg-type]  # the tests name the three states
        version=Step(version),
        rate=rate,
        queue=0,
        parked=0,
    )


def commit(step: int) -> CommitRecord:
    return CommitRecord(epoch=0, step=Step(step), chain=Chain(bytes((step,)) * 32))


def seen(presence: Presence) -> list[tuple[str, int, str]]:
    return [(view.peer, view.stage, view.state) for view in presence.seats()]


@contextlib.asynccontextmanager
async def running(*presences: Presence) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(each.run()) for each in presences]
        yield
        for each in runs:
            each.cancel()


def virtual(main: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    def test() -> None:
        run(main(), ceiling_seconds=5000.0)

    test.__name__, test.__doc__ = main.__name__, main.__doc__
    return test


@virtual
async def test_peers_that_start_together_find_each_other_within_seconds() -> None:
    world = World()
    ann, bob = world.presence(ANN), world.presence(BOB)
    changes = []
    ann.on_change = lambda: changes.append(seen(ann))
    async with running(ann, bob):
        async with asyncio.timeout(3.0):
            await ann.ready.wait()
        assert seen(ann) == []
        ann.announce([status(0)])
        bob.announce([status(1, "joining"), status(2)])
        await asyncio.sleep(5.0)
        assert seen(ann) == [("bob", 1, "joining"), ("bob", 2, "serving")]
        assert seen(bob) == [("ann", 0, "serving")]
        assert changes
        assert changes[-1] == seen(ann)


@virtual
async def test_a_change_is_announced_at_once_and_a_refresh_keeps_records_alive() -> None:
    world = World()
    ann, bob = world.presence(ANN), world.presence(BOB)
    async with running(ann, bob):
        ann.announce([status(0), status(1), status(2)])
        await asyncio.sleep(400.0)
        assert len(seen(bob)) == 3
        ann.announce([status(0, "parted"), status(2, "draining")])
        bob.announce([status(1)])
        await asyncio.sleep(5.0)
        assert seen(bob) == [("ann", 0, "draining"), ("ann", 2, "draining")]


@virtual
async def test_a_rate_is_announced_as_soon_as_it_is_known() -> None:
    """Who is far hears it from the directory alone, and takes us for usual until then."""
    world = World()
    ann, bob = world.presence(ANN), world.presence(BOB)
    async with running(ann, bob):
        ann.announce([status(0, rate=0.0)])
        await asyncio.sleep(5.0)
        ann.announce([status(0, rate=3.0)])
        await asyncio.sleep(2.0)
        records = await world.directory(EVE).read(stage_key(RUN, Stage(0)))
        assert [decode_record(each.value, SeatRecord).rate for each in records] == [3.0]


@virtual
async def test_the_first_commit_is_told_at_once_and_later_ones_with_the_refresh() -> None:
    world = World()
    ann, bob = world.presence(ANN), world.presence(BOB)
    async with running(ann, bob):
        ann.announce([status(0)])
        await asyncio.sleep(20.0)
        ann.committed(Stage(0), commit(0))
        await asyncio.sleep(2.0)
        (record,) = await world.directory(EVE).read(stage_key(RUN, Stage(0)))
        assert decode_record(record.value, SeatRecord).version == 1
        ann.announce([status(0, version=0)])  # an older status does not take it back
        for step in range(1, 6):
            ann.committed(Stage(0), commit(step))
        await asyncio.sleep(30.0)
        (record,) = await world.directory(EVE).read(stage_key(RUN, Stage(0)))
        assert decode_record(record.value, SeatRecord).version == 6
        (record,) = await world.directory(EVE).read(commit_key(RUN, Stage(0)))
        assert decode_record(record.value, CommitRecord) == commit(5)


@virtual
async def test_a_dead_directory_takes_nothing_away() -> None:
    world = World()
    ann, bob = world.presence(ANN), world.presence(BOB)
    async with running(ann, bob):
        bob.announce([status(1)])
        await asyncio.sleep(5.0)
        world.table.down = True
        await asyncio.sleep(300.0)
        assert seen(ann) == [("bob", 1, "serving")]
        alarms = [event.reason for event in world.events if isinstance(event, Alarm)]
        assert "the directory does not answer; going on with 1 known seats" in alarms
        assert len(alarms) == 2  # once a peer
        world.table.down = False
        bob.announce([status(2)])
        await asyncio.sleep(60.0)
        assert seen(ann) == [("bob", 2, "serving")]


@virtual
async def test_a_peer_is_ready_only_when_everything_was_read() -> None:
    world = World()
    world.table.down = True
    ann = world.presence(ANN)
    async with running(ann):
        await asyncio.sleep(60.0)
        assert not ann.ready.is_set()
        world.table.down = False
        await asyncio.sleep(30.0)
        assert ann.ready.is_set()


async def announced(world: World, ann: Presence) -> None:
    ann.announce([status(0), status(2)])
    await asyncio.sleep(5.0)
    assert world.table.serving(ANN, 1) == 2


async def seconds_to_withdraw(ann: Presence) -> float:
    clock = asyncio.get_running_loop()
    began = clock.time()
    await ann.withdraw()
    return clock.time() - began


@virtual
async def test_leaving_is_told() -> None:
    world = World()
    ann, bob = world.presence(ANN), world.presence(BOB)
    async with running(bob):
        async with running(ann):
            ann.announce([status(0)])
            await asyncio.sleep(5.0)
            assert seen(bob) == [("ann", 0, "serving")]
            assert await seconds_to_withdraw(ann) < 1.0
        await asyncio.sleep(5.0)
        assert seen(bob) == []


@virtual
async def test_who_leaves_while_its_p2pd_stands_still_is_heard_when_that_goes_on() -> None:
    """No call that set out before is answered; one that sets out afterwards is."""
    world = World()
    ann = world.presence(ANN)
    async with running(ann):
        await announced(world, ann)
        world.table.unplug(ANN)
        asyncio.get_running_loop().call_later(4.2, world.table.plug, ANN)
        assert 4.2 < await seconds_to_withdraw(ann) < 6.0
        assert world.table.serving(ANN, 1) == 0


@virtual
async def test_who_stands_still_while_it_leaves_is_heard_when_it_goes_on() -> None:
    """Long as it was, it has lost one try: what it waits for is told in its own seconds."""
    world, clock = World(), asyncio.get_running_loop()
    ann = world.presence(ANN)
    assert isinstance(clock, VirtualTimeLoop)
    async with running(ann):
        await announced(world, ann)
        world.table.unplug(ANN)
        its_own = contextvars.copy_context()
        its_own.run(owner.set, "ann")
        leaving = clock.create_task(ann.withdraw(), context=its_own)
        for _ in range(2):
            await asyncio.sleep(1.5)
            clock.freeze("ann")
            await asyncio.sleep(10.0)
            clock.thaw("ann")
        assert world.table.serving(ANN, 1) == 2
        world.table.plug(ANN)
        await leaving
        assert world.table.serving(ANN, 1) == 0


class Poor:
    """A directory that takes ``seconds`` more to store, and fails at once before ``up_at``."""

    def __init__(self, directory: SimDirectory, *, seconds: float = 0.0) -> None:
        self.up_at = 0.0
        self._directory, self._seconds = directory, seconds
        self.read = directory.read

    async def store(self, key: str, value: bytes, *, lifetime: float) -> bool:
        if asyncio.get_running_loop().time() < self.up_at:
            raise DirectoryError("p2pd is restarting")
        await asyncio.sleep(self._seconds)
        return await self._directory.store(key, value, lifetime=lifetime)


@virtual
async def test_who_leaves_while_its_p2pd_restarts_is_heard_when_that_is_up() -> None:
    world = World()
    poor = Poor(world.directory(ANN))
    ann = world.presence(ANN, directory=poor)
    async with running(ann):
        await announced(world, ann)
        poor.up_at = asyncio.get_running_loop().time() + 2.5
        assert 2.5 < await seconds_to_withdraw(ann) < 4.0
        assert world.table.serving(ANN, 1) == 0


@virtual
async def test_a_slow_directory_is_not_cut_short() -> None:
    world = World()
    ann = world.presence(ANN, directory=Poor(world.directory(ANN), seconds=2.0))
    async with running(ann):
        ann.announce([status(0), status(2)])
        await asyncio.sleep(30.0)
        assert 4.0 < await seconds_to_withdraw(ann) < 5.0  # one after the other
        assert world.table.serving(ANN, 1) == 0


@virtual
async def test_nobody_stays_for_a_directory_that_is_dead() -> None:
    world = World()
    ann = world.presence(ANN)
    async with running(ann):
        await announced(world, ann)
        world.table.down = True
        assert await seconds_to_withdraw(ann) == WITHDRAW_TRIES * WITHDRAW_GAP_SECONDS
    assert len(asyncio.all_tasks()) == 1  # this test: every call has been given up


@virtual
async def test_who_is_to_leave_at_once_does() -> None:
    world = World()
    ann = world.presence(ANN)
    async with running(ann):
        await announced(world, ann)
        world.table.down = True
        async with asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(ann.withdraw())
            await asyncio.sleep(2.5)
            leaving.cancel()
    assert len(asyncio.all_tasks()) == 1


@virtual
async def test_who_has_left_is_not_announced_again() -> None:
    """Neither by a look at the seats meanwhile, nor by what was being published."""
    world = World()
    ann = world.presence(ANN)
    async with running(ann):
        ann.announce([status(0), status(2)])
        await asyncio.sleep(0.01)  # now it publishes
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(ann.withdraw())
            await asyncio.sleep(0.3)
            ann.announce([status(0), status(2)])
        await asyncio.sleep(30.0)
        assert world.table.serving(ANN, 1) == 0


@virtual
async def test_a_restarted_peer_does_not_meet_its_own_ghost() -> None:
    world = World()
    old = world.presence(ANN)
    async with running(old):
        old.announce([status(0)])
        await asyncio.sleep(5.0)
    again = world.presence(ANN, incarnation=2)
    async with running(again):
        await asyncio.sleep(5.0)
        assert seen(again) == []


@virtual
async def test_only_a_few_publish_the_run() -> None:
    world = World()
    peers = [world.presence(PeerId(f"peer{index:02}")) for index in range(12)]
    async with contextlib.AsyncExitStack() as stack:
        for each in peers:
            await stack.enter_async_context(running(each))
            await asyncio.sleep(2.0)
        for _ in range(3):
            await asyncio.sleep(60.0)
            for key in (spec_key(RUN), RUNS_KEY):
                records = await world.directory(EVE).read(key)
                assert 1 <= len(records) <= SPONSORS
        assert records
        (one, *_) = await world.directory(EVE).read(spec_key(RUN))
        assert one.value == encode(SPEC)
