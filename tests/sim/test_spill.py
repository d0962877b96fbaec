"""The simulated disk takes time and refuses when told; a run made short of memory spills."""

from __future__ import annotations

import asyncio
import errno

import pytest

from p2ptrain.engine.surroundings import frames_of_a_step, retained_bytes_each
from p2ptrain.ports import DISTRUST_SECONDS
from p2ptrain.sim import loop
from p2ptrain.sim.spill import SECONDS, MemorySpill, disk_bytes, short_of_memory
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import Stage

SPEC = toy_spec(stages=3, microbatches=8, steps=1)


def test_every_call_takes_its_time_and_refusals_count() -> None:
    async def play() -> None:
        spill, clock = MemorySpill(bound_bytes=100), asyncio.get_running_loop()
        handle = await spill.put((b"frame",))
        assert clock.time() == pytest.approx(SECONDS)
        spill.refusal, spill.unreadable = errno.EROFS, True
        with pytest.raises(OSError, match="only"):
            await spill.put((b"frame",))
        with pytest.raises(OSError, match="error"):
            await spill.get(handle)
        assert (spill.refused, spill.used_bytes) == (2, len(b"frame"))

    loop.run(play())


def test_who_has_lost_a_frame_is_given_no_other_for_a_while() -> None:
    async def play() -> None:
        spill = MemorySpill(bound_bytes=100)
        handle = await spill.put((b"frame",))
        spill.unreadable = True
        with pytest.raises(OSError, match="error"):
            await spill.get(handle)
        await asyncio.sleep(DISTRUST_SECONDS - 1.0)
        with pytest.raises(OSError, match="given back"):
            await spill.put((b"frame",))
        await asyncio.sleep(1.0)
        await spill.put((b"frame",))

    loop.run(play())


def test_a_run_is_made_short_of_memory_and_its_disks_large_enough() -> None:
    short = short_of_memory(SPEC, 3)
    assert short.limits.retained_bytes == 3 * retained_bytes_each(SPEC, Stage(1))
    assert short.limits.retained_bytes < frames_of_a_step(SPEC, Stage(1)) < disk_bytes(SPEC)
