"""Where a peer without a disk keeps states: a store in memory, within a bound.

It holds what a lost stage, or a run that falls back, begins again from: the peer's own
states of the last two due steps, and those of the stages that it guards (core/buddies).

Invariant: never more than ``most_bytes``; what would go beyond is refused as a full disk
refuses, and what was there stays.

Refused: a share of what the seats leave free. How much that is changes with every seat, and
states that were safe would have to go at the moment when a stage is lost and taken over.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from p2ptrain.ports import Buffer
    from p2ptrain.units import Bytes

ATTIC_BYTES: Final = 1 << 30
"""As much as retained frames may take: two states each of three stages of ten million
parameters. Larger stages need a folder for checkpoints, and are told so."""


class Attic:
    """Implements ``ports.Store``; gone with its process."""

    def __init__(self, most_bytes: Bytes = ATTIC_BYTES) -> None:
        self._most_bytes = most_bytes
        self._blobs: dict[str, bytes] = {}

    async def put(self, name: str, blob: Buffer) -> None:
        """See ``ports.Store``."""
        others = sum(len(held) for other, held in self._blobs.items() if other != name)
        if others + len(blob) > self._most_bytes:
            why = f"{self._most_bytes >> 20} MB are kept for states (--checkpoint-dir keeps more)"
            raise OSError(errno.ENOSPC, f"no memory left of the {why}")
        self._blobs[name] = bytes(blob)

    async def get(self, name: str) -> bytes | None:
        """See ``ports.Store``."""
        return self._blobs.get(name)

    async def names(self) -> Sequence[str]:
        """See ``ports.Store``."""
        return sorted(self._blobs)

    async def remove(self, name: str) -> None:
        """See ``ports.Store``."""
        self._blobs.pop(name, None)
