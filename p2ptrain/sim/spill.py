"""A simulated disk for frames that memory has no room for; it dies with its process.

Every call takes ``SECONDS`` of virtual time, so that much can happen while a frame is on its
way. ``refusal`` makes it refuse to write with an error of the system (ENOSPC, EROFS, EIO),
``unreadable`` to give back, for good, ``shortage`` for a moment; all count in ``refused``.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import math
import os
from typing import TYPE_CHECKING

import msgspec

from p2ptrain.engine.surroundings import frames_of_a_step, retained_bytes_each
from p2ptrain.ports import DISTRUST_SECONDS
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.ports import Buffer
    from p2ptrain.run import RunSpec
    from p2ptrain.sim.scenario import Scenario
    from p2ptrain.units import Bytes

MEMORIES: tuple[int | None, ...] = (None,) * 21 + (2, 3, 6)
"""Of 24 random swarms three are short of memory, for the frames of so many microbatches a seat."""

SPILLED_STEPS = 4
"""A random swarm's disks hold the frames of so many: two steps, of two seats."""

SECONDS = 0.002
"""A megabyte to a fast disk; more than a turn of the loop."""


class MemorySpill:
    """Implements ``ports.Spill``."""

    def __init__(self, *, bound_bytes: Bytes) -> None:
        self.bound_bytes = bound_bytes
        self.used_bytes: Bytes = 0
        self.refusal: int | None = None
        self.shortage: int | None = None
        self.unreadable = False
        self._distrusted_until = -math.inf
        self.refused = 0
        self._handles = itertools.count()
        self._frames: dict[int, tuple[bytes, ...]] = {}

    async def put(self, parts: Sequence[Buffer]) -> int:
        """See ``ports.Spill``."""
        frame = tuple(bytes(part) for part in parts)
        size_bytes = sum(map(len, frame))
        if self.used_bytes + size_bytes > self.bound_bytes:
            raise OSError(errno.EDQUOT, "the simulated bound is reached")
        if asyncio.get_running_loop().time() < self._distrusted_until:
            raise OSError(errno.EIO, "it has not given back a frame")
        self.used_bytes += size_bytes
        try:
            await asyncio.sleep(SECONDS)
            self._allow(self.refusal)
        except BaseException:
            self.used_bytes -= size_bytes
            raise
        handle = next(self._handles)
        self._frames[handle] = frame
        return handle

    async def get(self, handle: int) -> tuple[bytes, ...]:
        """See ``ports.Spill``."""
        await asyncio.sleep(SECONDS)
        if self.unreadable:
            self._distrusted_until = asyncio.get_running_loop().time() + DISTRUST_SECONDS
        self._allow(errno.EIO if self.unreadable else self.shortage)
        if handle not in self._frames:
            raise FileNotFoundError(errno.ENOENT, "no such frame is kept")
        return self._frames[handle]

    def drop(self, handle: int) -> None:
        """See ``ports.Spill``."""
        self.used_bytes -= sum(map(len, self._frames.pop(handle, ())))

    def _allow(self, refusal: int | None) -> None:
        if refusal is not None:
            self.refused += 1
            raise OSError(refusal, os.strerror(refusal))


def short_of_memory(spec: RunSpec, microbatches: int | None) -> RunSpec:
    """The same run with memory for the frames of so many microbatches a seat (None: as is)."""
    if microbatches is None:
        return spec
    each = max(retained_bytes_each(spec, Stage(stage)) for stage in range(spec.cut.stages))
    limits = msgspec.structs.replace(spec.limits, retained_bytes=microbatches * each)
    return msgspec.structs.replace(spec, limits=limits)


def disk_bytes(spec: RunSpec) -> Bytes:
    """What a peer may have to spill, and some more."""
    stages = range(spec.cut.stages)
    return SPILLED_STEPS * max(frames_of_a_step(spec, Stage(stage)) for stage in stages)


def spill_of(scenario: Scenario) -> MemorySpill | None:
    """The disk of one start of a peer."""
    size = scenario.spill_bytes
    return None if size is None else MemorySpill(bound_bytes=size)
