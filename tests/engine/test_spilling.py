"""Memory kept within its bound by a disk; where the disk refuses, by BUSY and an alarm."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from typing import Any

from p2ptrain.engine.custodian import Custodian
from p2ptrain.engine.spilling import RETRY_SECONDS, Spilling
from p2ptrain.observe import events as ev
from p2ptrain.sim import loop
from p2ptrain.sim.spill import MemorySpill
from p2ptrain.units import Microbatch, PeerId, Slot, Step

MakeBench = Callable[..., Any]

ME, BELOW = PeerId("me"), PeerId("below")
EACH = 100  # what the bench sets aside for a microbatch
BOUND = 4 * EACH


class Short:
    """A bench whose pipeline has a disk; ``crowd`` fills its memory with counted frames."""

    def __init__(self, bench: MakeBench, tasks: asyncio.TaskGroup, *, disk: int = 10_000) -> None:
        self.spill = MemorySpill(bound_bytes=disk)
        self.seat = bench(retained=BOUND)
        pipeline = self.seat.pipeline
        pipeline.custodian = Custodian(
            self.seat.stage, self.seat.router, self.seat.post, self.seat.events.append,
            spill=self.spill,
        )  # fmt: skip
        pipeline.custodian.begin(self.seat.at)
        self.frames = pipeline.custodian.frames
        self.spilling = Spilling(
            pipeline,
            lambda: (pipeline.custodian,),
            self.spill,
            BOUND,
            emit=self.seat.events.append,
            spawn=tasks.create_task,
        )
        pipeline.on_change = pipeline.shelf.on_short = self.spilling.look

    def crowd(self, count: int) -> None:
        custodian = self.seat.pipeline.custodian
        for slot in range(count):
            work = Microbatch(Step(0), Slot(slot))
            custodian.send_gradient(work, BELOW, bytes(EACH), 0.0)
        custodian.tallied("gradient", 0xFF, 0.0)

    def said(self, kind: type) -> list[Any]:
        return [event for event in self.seat.events if isinstance(event, kind)]


def play(scene: Callable[[asyncio.TaskGroup], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as tasks:
            await scene(tasks)

    loop.run(main())


def test_memory_that_fills_goes_to_the_disk_the_oldest_first(bench: MakeBench) -> None:
    async def scene(tasks: asyncio.TaskGroup) -> None:
        short = Short(bench, tasks)
        short.crowd(4)
        short.spilling.look()
        short.spilling.look()  # one job is enough
        await asyncio.sleep(1.0)
        assert [spilled.slot for spilled in short.said(ev.Spilled)] == [0, 1]
        assert (short.frames.memory_bytes, short.frames.spilled_bytes) == (2 * EACH, 2 * EACH)

    play(scene)


def test_little_in_memory_stays_there(bench: MakeBench) -> None:
    async def scene(tasks: asyncio.TaskGroup) -> None:
        short = Short(bench, tasks)
        short.crowd(3)
        short.spilling.look()
        await asyncio.sleep(1.0)
        assert short.said(ev.Spilled) == []

    play(scene)


def test_at_the_disks_bound_frames_stay_in_memory_without_an_alarm(bench: MakeBench) -> None:
    async def scene(tasks: asyncio.TaskGroup) -> None:
        short = Short(bench, tasks, disk=EACH)
        short.crowd(4)
        short.spilling.look()
        await asyncio.sleep(1.0)
        assert (short.frames.memory_bytes, short.spill.used_bytes) == (3 * EACH, EACH)
        assert short.said(ev.Alarm) == []

    play(scene)


def test_a_disk_that_refuses_is_told_once_and_tried_again(bench: MakeBench) -> None:
    async def scene(tasks: asyncio.TaskGroup) -> None:
        short = Short(bench, tasks)
        short.spill.refusal = errno.ENOSPC
        short.crowd(4)
        short.spilling.look()
        await asyncio.sleep(2.5 * RETRY_SECONDS)
        assert (short.spill.refused, short.frames.memory_bytes) == (3, 4 * EACH)
        (alarm,) = short.said(ev.Alarm)
        assert "cannot be spilled: No space left" in alarm.reason
        short.spill.refusal = None
        await asyncio.sleep(RETRY_SECONDS)
        assert short.frames.memory_bytes == 2 * EACH

    play(scene)


def test_a_seat_that_stops_leaves_no_job(bench: MakeBench) -> None:
    async def scene(tasks: asyncio.TaskGroup) -> None:
        short = Short(bench, tasks)
        short.spill.refusal = errno.EROFS
        short.crowd(4)
        short.spilling.look()
        await asyncio.sleep(1.0)
        short.seat.pipeline.draining = True
        short.spilling.stop()
        short.spilling.look()
        refused = short.spill.refused
        await asyncio.sleep(10 * RETRY_SECONDS)
        assert short.spill.refused == refused

    play(scene)


def test_want_of_room_begins_it(bench: MakeBench) -> None:
    """Though memory is not full: what has been taken on will fill it."""

    async def scene(tasks: asyncio.TaskGroup) -> None:
        short = Short(bench, tasks)
        short.crowd(3)
        pipeline = short.seat.pipeline
        pipeline.source(Microbatch(Step(0), Slot(6)), replay=False)
        assert not pipeline.source(Microbatch(Step(0), Slot(7)), replay=False)
        await asyncio.sleep(1.0)
        assert pipeline.source(Microbatch(Step(0), Slot(7)), replay=False)
        assert len(short.said(ev.Spilled)) == 1

    play(scene)
