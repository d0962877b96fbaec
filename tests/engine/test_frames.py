"""Frames in memory and on disk: none is lost, none stays, and each comes back as it was."""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING

import pytest

from p2ptrain.engine.frames import Frames
from p2ptrain.observe import events as ev
from p2ptrain.sim import loop
from p2ptrain.sim.spill import MemorySpill
from p2ptrain.units import Microbatch, Slot, Stage, Step

if TYPE_CHECKING:
    from p2ptrain.engine.frames import Key

KEY: Key = (Microbatch(Step(0), Slot(1)), "forward")
OTHER: Key = (Microbatch(Step(0), Slot(1)), "gradient")
PARTS = (b"tokens", b"activations")
SIZE = len(b"tokensactivations")


class Kept:
    """Two frames of one microbatch at stage 2; ``said`` is what was told of reading."""

    def __init__(self) -> None:
        self.spill = MemorySpill(bound_bytes=1000)
        self.said: list[ev.AnyEvent] = []
        self.frames = Frames(Stage(2), self.spill, self.said.append)
        self.frames.keep(KEY, PARTS)
        self.frames.keep(OTHER, (b"gradient",))

    async def payload(self) -> tuple[object, ...]:
        found = self.frames.payload(KEY)
        return tuple(await found()) if callable(found) else found


def test_a_frame_goes_to_disk_and_is_read_from_there() -> None:
    async def play() -> None:
        kept = Kept()
        assert await kept.payload() == PARTS
        assert kept.said == []
        assert await kept.frames.put_out(KEY)
        assert (kept.frames.memory_bytes, kept.frames.spilled_bytes) == (8, SIZE)
        assert [key for key, _ in kept.frames.in_memory()] == [OTHER]
        for _ in range(2):
            assert await kept.payload() == PARTS
        read = ev.SpillRead(stage=Stage(2), step=Step(0), slot=Slot(1), what="forward")
        assert kept.said == [read, read]
        assert not await kept.frames.put_out(KEY)  # it is there

    loop.run(play())


def test_what_is_kept_stays_as_it_is() -> None:
    kept = Kept()
    kept.frames.keep(KEY, (b"another",))
    assert kept.frames.payload(KEY) == PARTS
    assert kept.frames.memory_bytes == SIZE + 8


def test_what_is_released_leaves_memory_and_disk() -> None:
    async def play() -> None:
        kept = Kept()
        await kept.frames.put_out(KEY)
        kept.frames.release(KEY)
        kept.frames.release(KEY)
        assert (kept.frames.memory_bytes, kept.frames.spilled_bytes) == (8, 0)
        assert kept.spill.used_bytes == 0
        await kept.frames.put_out(OTHER)
        kept.frames.clear()
        assert (kept.frames.memory_bytes, kept.spill.used_bytes) == (0, 0)

    loop.run(play())


def test_what_is_released_on_its_way_to_the_disk_does_not_stay_there() -> None:
    async def play() -> None:
        kept = Kept()
        async with asyncio.TaskGroup() as tasks:
            putting = tasks.create_task(kept.frames.put_out(KEY))
            await asyncio.sleep(0)
            kept.frames.clear()
        assert putting.result() is False
        assert (kept.frames.memory_bytes, kept.frames.spilled_bytes) == (0, 0)
        assert kept.spill.used_bytes == 0

    loop.run(play())


def test_a_disk_that_refuses_loses_nothing() -> None:
    async def play() -> None:
        kept = Kept()
        kept.spill.refusal = errno.ENOSPC
        with pytest.raises(OSError, match="space"):
            await kept.frames.put_out(KEY)
        assert await kept.payload() == PARTS
        assert kept.frames.memory_bytes == SIZE + 8

    loop.run(play())


def test_a_disk_that_gives_nothing_back_is_told_unless_nobody_needs_it_any_more() -> None:
    async def play() -> None:
        kept = Kept()
        await kept.frames.put_out(KEY)
        kept.spill.unreadable = True
        with pytest.raises(OSError, match="error"):
            await kept.payload()
        assert kept.frames.torn
        with pytest.raises(OSError, match="error"):
            await kept.payload()
        lost, alarm = kept.said  # once: it is tried again every moment
        assert lost == ev.SpillLost(stage=Stage(2), step=Step(0), slot=Slot(1), what="forward")
        assert isinstance(alarm, ev.Alarm)
        assert "the forward of 0/1 at stage 2 cannot be read back: Input/output" in alarm.reason
        late = kept.frames.payload(KEY)
        assert callable(late)
        kept.frames.release(KEY)
        with pytest.raises(OSError, match="error"):
            await late()
        assert kept.said == [lost, alarm]

    loop.run(play())


def test_what_a_process_lacks_for_a_moment_tears_nothing() -> None:
    async def play() -> None:
        kept = Kept()
        await kept.frames.put_out(KEY)
        kept.spill.shortage = errno.EMFILE
        with pytest.raises(OSError, match="open files"):
            await kept.payload()
        assert not kept.frames.torn
        kept.spill.shortage = None
        assert await kept.payload() == PARTS

    loop.run(play())


def test_what_nobody_needs_any_more_tears_nothing() -> None:
    async def play() -> None:
        kept = Kept()
        await kept.frames.put_out(KEY)
        kept.spill.unreadable = True
        late = kept.frames.payload(KEY)
        assert callable(late)
        kept.frames.release(KEY)
        with pytest.raises(OSError, match="error"):
            await late()
        assert (kept.said, kept.frames.torn) == ([], False)

    loop.run(play())


def test_a_cancelled_one_stays_in_memory() -> None:
    async def play() -> None:
        kept = Kept()
        async with asyncio.TaskGroup() as tasks:
            putting = tasks.create_task(kept.frames.put_out(KEY))
            await asyncio.sleep(0)
            putting.cancel()
        assert await kept.payload() == PARTS
        assert (kept.frames.memory_bytes, kept.spill.used_bytes) == (SIZE + 8, 0)

    loop.run(play())
