"""A simulated disk: blobs by name, which survive the death of the process that wrote them.

Keep one ``MemoryStore`` per simulated machine and hand it to each incarnation of its
peer. ``full`` makes it refuse, as a full disk does, and ``refusal`` with any other error of
the system (EIO, EROFS): the old blob stays.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.ports import Buffer


class MemoryStore:
    """Implements ``ports.Store``."""

    def __init__(self) -> None:
        self.full = False
        self.refusal: int | None = None
        self.refused = 0
        self._blobs: dict[str, bytes] = {}

    async def put(self, name: str, blob: Buffer) -> None:
        """See ``ports.Store``."""
        self._allow()
        self._blobs[name] = bytes(blob)

    async def get(self, name: str) -> bytes | None:
        """See ``ports.Store``."""
        return self._blobs.get(name)

    async def names(self) -> Sequence[str]:
        """See ``ports.Store``."""
        return sorted(self._blobs)

    async def remove(self, name: str) -> None:
        """See ``ports.Store``; a full disk can still forget."""
        if self.refusal is not None:
            self._allow()
        self._blobs.pop(name, None)

    def copy_to(self, other: MemoryStore) -> None:
        """Somebody copies the disk as it is now."""
        other._blobs |= self._blobs

    def _allow(self) -> None:
        self.refused += self.full or self.refusal is not None
        if self.full:
            raise OSError(errno.ENOSPC, "the simulated disk is full")
        if self.refusal is not None:
            raise OSError(self.refusal, os.strerror(self.refusal))
