"""Checkpoints are saved when due, found again whole, and never otherwise."""

from __future__ import annotations

import asyncio
import errno
import random
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.core.agreement import Position
from p2ptrain.core.resuming import Holding
from p2ptrain.engine.archive import Archive
from p2ptrain.observe import events as ev
from p2ptrain.sim.loop import run
from p2ptrain.sim.store import MemoryStore
from p2ptrain.units import Chain, PeerId, RunId, Stage, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from p2ptrain.ports import Buffer, Store

RUN, OTHER, STAGE = RunId("a" * 32), RunId("b" * 32), Stage(1)
TORN_WRITES = 10_000
MOST_STATE_BYTES = 3000


def at(step: int) -> Position:
    return Position(epoch=0, step=Step(step), chain=Chain(bytes((step,)) * 32))


class Seat:
    """Stands at a step; ``meanwhile`` happens while it is saved."""

    def __init__(self, step: int = 0, state: bytes = b"") -> None:
        self.stage, self.finished, self.compute = STAGE, False, self
        self.state = state
        self.position = at(step)
        self.meanwhile: Callable[[], None] = lambda: None
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def version(self) -> Step:
        return self.position.step

    def standing(self) -> tuple[Position, tuple[tuple[PeerId, ...], ...]]:
        return self.position, ((PeerId("ann"),), (PeerId("bob"),))

    async def save(self) -> bytes:
        saved = self.state or f"state {self.version}".encode()
        await self.gate.wait()
        self.meanwhile()
        return saved


class Bench:
    """An archive of one seat, with what it said."""

    def __init__(
        self, group: asyncio.TaskGroup, store: Store | None = None, every: int = 10
    ) -> None:
        self.store = MemoryStore() if store is None else store
        self.events: list[ev.AnyEvent] = []
        self.seat = Seat()
        self.jobs: list[asyncio.Task[None]] = []

        def spawn(job: Coroutine[None, None, None]) -> asyncio.Task[None]:
            self.jobs.append(group.create_task(job))
            return self.jobs[-1]

        self.archive = Archive(self.store, RUN, every, emit=self.events.append, spawn=spawn)

    async def step(self, step: int) -> None:
        self.seat.position = at(step)
        self.archive.stepped(self.seat)  # type: ignore[arg-type]  # what it uses
        await self.idle()

    async def idle(self) -> None:
        while self.jobs:
            await self.jobs.pop()

    @property
    def alarms(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, ev.Alarm)]

    @property
    def saved(self) -> list[int]:
        return [e.version for e in self.events if isinstance(e, ev.CheckpointSaved)]


def play(story: Callable[[Bench], Coroutine[None, None, None]], **given: int) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            await story(Bench(group, **given))  # type: ignore[arg-type]  # every: an int

    run(main())


def test_every_tenth_step_is_saved_and_two_stay() -> None:
    async def story(bench: Bench) -> None:
        for step in range(1, 41):
            await bench.step(step)
        assert bench.saved == [10, 20, 30, 40]
        assert await bench.archive.survey() == (
            Holding(stage=STAGE, at=at(40)),
            Holding(stage=STAGE, at=at(30)),
        )
        assert len(await bench.store.names()) == 4
        assert await bench.archive.read(STAGE, at(40)) == b"state 40"
        assert await bench.archive.read(STAGE, at(20)) is None
        assert await bench.archive.read(Stage(0), at(40)) is None
        assert bench.alarms == []

    play(story)


def test_the_last_step_is_saved_whatever_its_number_and_none_where_none_are_wanted() -> None:
    async def last(bench: Bench) -> None:
        bench.seat.finished = True
        await bench.step(13)
        assert bench.saved == [13]

    async def none(bench: Bench) -> None:
        await bench.step(10)
        assert bench.saved == []

    play(last)
    play(none, every=0)


def test_a_state_during_which_a_step_was_taken_is_dropped() -> None:
    async def story(bench: Bench) -> None:
        def overtake() -> None:
            bench.seat.position = at(11)

        bench.seat.meanwhile = overtake
        await bench.step(10)
        assert (bench.saved, list(await bench.store.names())) == ([], [])

    play(story)


def test_a_disk_slower_than_the_steps_skips_a_checkpoint() -> None:
    async def story(bench: Bench) -> None:
        bench.seat.gate.clear()
        bench.seat.position = at(10)
        bench.archive.stepped(bench.seat)  # type: ignore[arg-type]  # what it uses
        await asyncio.sleep(0)
        bench.archive.stepped(bench.seat)  # type: ignore[arg-type]  # likewise
        assert "still being written" in bench.alarms[0]
        bench.seat.gate.set()
        await bench.idle()
        assert bench.saved == [10]

    play(story)


def test_who_leaves_is_saved_where_it_stands_at_last_however_slow_the_disk_is() -> None:
    async def story(bench: Bench) -> None:
        seat: Any = bench.seat
        seat.gate.clear()
        for step in (11, 12, 12):
            seat.position = at(step)
            bench.archive.leave(seat)
            await asyncio.sleep(0)
        seat.gate.set()
        await bench.idle()
        assert (bench.saved, bench.alarms) == ([12], [])

    play(story)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_costs_the_checkpoint_and_an_alarm(error: int) -> None:
    async def story(bench: Bench) -> None:
        await bench.step(10)
        assert isinstance(bench.store, MemoryStore)
        bench.store.refusal = error
        await bench.step(20)
        assert len(bench.alarms) == 1
        assert "no checkpoint of stage 1 at step 20" in bench.alarms[0]
        assert bench.store.refused
        assert await bench.archive.survey() == (Holding(stage=STAGE, at=at(10)),)
        bench.store.refusal = None
        await bench.step(30)
        assert bench.saved == [10, 30]

    play(story)


def test_a_foreign_runs_checkpoints_are_neither_used_nor_touched() -> None:
    async def story(bench: Bench) -> None:
        await bench.step(10)
        theirs = Archive(
            bench.store,
            OTHER,
            10,
            emit=bench.events.append,
            spawn=asyncio.get_running_loop().create_task,
        )
        assert await theirs.survey() == ()
        for step in (20, 30, 40):
            await bench.step(step)
        assert bench.alarms == []

    play(story)


async def _tear_the_state(store: MemoryStore, step: int) -> None:
    for name in await store.names():
        if name.endswith(f"step-{step}.safetensors"):
            await store.put(name, b"torn")


def test_a_state_that_turned_out_torn_is_not_offered_again_until_it_is_saved_again() -> None:
    """Else whoever looks for a lost stage hears for ever that this one can be restored."""

    async def story(bench: Bench) -> None:
        for step in (10, 20):
            await bench.step(step)
        assert isinstance(bench.store, MemoryStore)
        await _tear_the_state(bench.store, 20)
        assert await bench.archive.holdings() == [
            Holding(stage=STAGE, at=at(20)),  # its header is whole, and no state was read
            Holding(stage=STAGE, at=at(10)),
        ]
        assert await bench.archive.read(STAGE, at(20)) is None
        assert await bench.archive.holdings() == [Holding(stage=STAGE, at=at(10))]
        await bench.step(20)
        assert await bench.archive.positions(STAGE) == [at(20), at(10)]
        assert await bench.archive.read(STAGE, at(20)) == b"state 20"

    play(story)


# --- torn writes --------------------------------------------------------------------------


class DiedError(Exception):
    """The machine, in the middle of a write."""


class DyingDisk(MemoryStore):
    """Dies at the ``last`` write, and lies about what it had done: any prefix, any bit."""

    def __init__(self, rng: random.Random, last: int) -> None:
        super().__init__()
        self.kinds: list[str] = []
        self._rng, self._left = rng, last

    async def put(self, name: str, blob: Buffer) -> None:
        self._left -= 1
        if self._left > 0:
            await super().put(name, blob)
            return
        await self._tear(name, bytes(blob))
        raise DiedError

    async def remove(self, name: str) -> None:
        self._left -= 1
        if self._left == 0:
            raise DiedError
        await super().remove(name)

    async def _tear(self, name: str, blob: bytes) -> None:
        kind = self._rng.choice(("nothing", "cut", "flipped", "zeroed", "swapped", "old tail"))
        self.kinds.append(kind)
        where = self._rng.randrange(len(blob))
        before = await self.get(name) or b""
        names = await self.names()
        torn = {
            "nothing": before,
            "cut": blob[:where],
            "flipped": blob[:where]
            + bytes((blob[where] ^ 1 << self._rng.randrange(8),))
            + blob[where + 1 :],
            "zeroed": blob[:where] + bytes(len(blob) - where),
            "swapped": (await self.get(self._rng.choice(names)) or b"") if names else b"",
            "old tail": blob[:where] + before[where:],
        }[kind]
        if torn or kind != "nothing":
            await super().put(name, torn)


def test_ten_thousand_torn_writes_and_none_is_loaded() -> None:
    """Whatever the disk holds after a death, what is loaded is what was saved for that step."""
    rng = random.Random(20_261_122)
    kinds: dict[str, int] = {}
    found = torn = 0

    async def life(group: asyncio.TaskGroup) -> None:
        nonlocal found, torn
        disk = DyingDisk(rng, last=rng.randrange(1, 10))
        bench = Bench(group, store=disk)
        states: dict[int, bytes] = {}
        step = 0
        try:
            while True:
                step += 10 if step == 0 or rng.random() < 0.8 else -10 if step > 10 else 0
                same = states.get(step)  # a run that fell back comes to the same state again
                states[step] = same or rng.randbytes(rng.randrange(1, MOST_STATE_BYTES))
                bench.seat.state = states[step]
                await bench.step(step)
        except DiedError:
            pass
        after = Bench(group, store=disk)
        for holding in await after.archive.survey():
            found += 1
            state = await after.archive.read(holding.stage, holding.at)
            assert state == states[holding.at.step]
        torn += any("torn" in alarm or "of" in alarm for alarm in after.alarms)
        for kind in disk.kinds:
            kinds[kind] = kinds.get(kind, 0) + 1

    async def main() -> None:
        for _ in range(TORN_WRITES):
            await life(GroupOfOne())  # type: ignore[arg-type]  # deaths must not end the others

    asyncio.run(main())  # no clock is needed, and the virtual one takes this for a standstill
    assert min(kinds.values()) > TORN_WRITES // 20  # each kind of tear was tried
    assert found > TORN_WRITES // 2  # and older checkpoints survived it
    assert torn > TORN_WRITES // 10  # and broken ones were met


class GroupOfOne:
    """Runs a job like a task group, but leaves its failure to whoever awaits it."""

    def create_task(self, job: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(job)
