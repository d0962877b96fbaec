"""Keeps the retained frames of one seat within their bound in memory, by the disk.

    memory is short --> a job: one frame after another to the disk, until half is free
                          `-- refused: an alarm, BUSY to all who ask, and again a little later

Invariants:
    * one frame of a seat is on its way to the disk at a time, on the disk's own thread;
    * where the disk is full, or at this peer's bound, frames stay in memory and the seat says
      BUSY (the shelf counts memory alone): nothing is dropped;
    * after ``stop`` no job is left.

Refused: to write every frame at once. Most runs never need the disk.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from p2ptrain.core.spilling import Frame, excess_bytes, leaves_first
from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from p2ptrain.engine.custodian import Custodian
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.ports import Spill
    from p2ptrain.units import Bytes

RETRY_SECONDS = 5.0  # a disk that was full is asked again so soon: somebody may have made room


class Spilling:
    """See the module. Call :meth:`look` whenever memory may be short."""

    def __init__(
        self,
        pipeline: Pipeline,
        custodians: Callable[[], Iterable[Custodian]],
        spill: Spill | None,
        bound_bytes: Bytes,
        *,
        emit: ev.Emit,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self._pipeline, self._custodians = pipeline, custodians
        self._spill, self._bound = spill, bound_bytes
        self._emit, self._spawn = emit, spawn
        self._job: asyncio.Task[None] | None = None
        self._refused = False

    def look(self) -> None:
        """Begin to put frames out if memory is short."""
        if self._job is None and self._next() is not None:
            self._job = self._spawn(self._relieve())

    def stop(self) -> None:
        """Nothing more comes: leave the frames where they are."""
        if self._job is not None:
            self._job.cancel()
            self._job = None

    async def _relieve(self) -> None:
        while (found := self._next()) is not None:
            custodian, frame = found
            try:
                put_out = await custodian.frames.put_out((frame.work, frame.what))
            except OSError as error:
                self._complain(error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._refused = False
            if put_out:
                self._tell(frame)
        self._job = None

    def _next(self) -> tuple[Custodian, Frame] | None:
        """Whose frame goes next; None if none need, or can."""
        spill, pipeline = self._spill, self._pipeline
        if spill is None or pipeline.draining:
            return None
        excess = excess_bytes(
            memory_bytes=pipeline.retained_bytes,
            coming_bytes=pipeline.shelf.coming_bytes(),
            bound_bytes=self._bound,
            begun=self._job is not None,
        )
        if not excess:
            return None
        owners = {
            frame: custodian for custodian in self._custodians() for frame in custodian.in_memory()
        }
        frame = leaves_first(owners)
        if frame is None or spill.used_bytes + frame.size_bytes > spill.bound_bytes:
            return None
        return owners[frame], frame

    def _tell(self, frame: Frame) -> None:
        spilled = ev.Spilled(
            stage=self._pipeline.stage,
            step=frame.work.step,
            slot=frame.work.slot,
            what=frame.what,
            size_bytes=frame.size_bytes,
        )
        self._emit(spilled)
        self._pipeline.on_change()

    def _complain(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            reason = f"frames of stage {self._pipeline.stage} cannot be spilled: {error.strerror}"
            self._emit(ev.Alarm(reason=f"{reason}; they stay in memory, and this seat says BUSY"))
