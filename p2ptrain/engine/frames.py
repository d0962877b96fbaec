"""The frames that one custodian keeps: in memory, or spilled to disk and read back on demand.

    keep -> in memory --put_out--> on disk        payload: the parts, or a way to fetch them
                  `---- release, clear ----> gone

Invariants:
    * a frame is in memory until the disk has it whole: a refusal loses nothing;
    * what is read back stays on disk: it is sent once more at most, and memory is short;
    * what is released is dropped from the disk, also while it is on its way there.

Refused: moving frames back into memory when there is room. The step is over before that pays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from p2ptrain.observe import events as ev
from p2ptrain.ports import SHORTAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from p2ptrain.core.duties import What
    from p2ptrain.engine.post import Payload
    from p2ptrain.ports import Buffer, Spill
    from p2ptrain.units import Bytes, Microbatch, Stage

    Key: TypeAlias = tuple[Microbatch, What]


@dataclass(slots=True)
class _Kept:
    """``parts`` is None once ``handle`` is not."""

    parts: tuple[Buffer, ...] | None
    size_bytes: Bytes
    handle: int | None = None


class Frames:
    """See the module. ``spill`` None: everything stays in memory.

    ``torn``: a frame that is needed could not be had back: see engine/rewinding.
    """

    def __init__(self, stage: Stage, spill: Spill | None, emit: ev.Emit) -> None:
        self.memory_bytes: Bytes = 0
        self.spilled_bytes: Bytes = 0
        self.spill = spill
        self.torn = False
        self._stage, self._emit = stage, emit
        self._kept: dict[Key, _Kept] = {}

    def keep(self, key: Key, parts: tuple[Buffer, ...]) -> None:
        """Keep a frame; what is kept already stays as it is."""
        if key not in self._kept:
            kept = _Kept(parts, sum(len(part) for part in parts))
            self._kept[key] = kept
            self.memory_bytes += kept.size_bytes

    def release(self, key: Key) -> None:
        """Let go of a frame; one that is not kept is no matter."""
        kept = self._kept.pop(key, None)
        if kept is None:
            return
        if kept.handle is None:
            self.memory_bytes -= kept.size_bytes
        else:
            self.spilled_bytes -= kept.size_bytes
            self._drop(kept.handle)

    def clear(self) -> None:
        """Let go of every frame."""
        for key in list(self._kept):
            self.release(key)

    def payload(self, key: Key) -> Payload:
        """What to send: the parts, or how they are had back from the disk."""
        kept = self._kept[key]
        if kept.parts is not None:
            return kept.parts

        async def fetch() -> tuple[Buffer, ...]:
            return await self._fetch(key, kept)

        return fetch

    # --- spilling ---------------------------------------------------------------------------

    def in_memory(self) -> Iterator[tuple[Key, Bytes]]:
        """What could be put out."""
        return ((key, kept.size_bytes) for key, kept in self._kept.items() if kept.handle is None)

    async def put_out(self, key: Key) -> bool:
        """Move a frame to the disk; False: it was released meanwhile.

        Cancelled, it stays in memory.

        Raises:
            OSError: the disk refused; it stays in memory.
        """
        kept = self._kept.get(key)
        if kept is None or kept.parts is None or self.spill is None:
            return False
        handle = await self.spill.put(kept.parts)
        if self._kept.get(key) is not kept:
            self._drop(handle)
            return False
        kept.parts, kept.handle = None, handle
        self.memory_bytes -= kept.size_bytes
        self.spilled_bytes += kept.size_bytes
        return True

    async def _fetch(self, key: Key, kept: _Kept) -> tuple[Buffer, ...]:
        assert self.spill is not None
        assert kept.handle is not None
        work, what = key
        try:
            parts = await self.spill.get(kept.handle)
        except OSError as error:
            lost = error.errno not in SHORTAGES
            if lost and self._kept.get(key) is kept and not self.torn:  # else nobody needs it
                self.torn = True
                where = f"the {what} of {work.step}/{work.slot} at stage {self._stage}"
                step, slot = work.step, work.slot
                self._emit(ev.SpillLost(stage=self._stage, step=step, slot=slot, what=what))
                self._emit(ev.Alarm(reason=f"{where} cannot be read back: {error.strerror}"))
            raise
        read = ev.SpillRead(stage=self._stage, step=work.step, slot=work.slot, what=what)
        self._emit(read)
        return parts

    def _drop(self, handle: int) -> None:
        if self.spill is not None:
            self.spill.drop(handle)
