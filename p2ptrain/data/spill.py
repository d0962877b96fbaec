"""Frames on disk for as long as this process lives: a file each, on a thread of their own.

    folder (the caller's, of this process alone)/0, 1, 2, ...

Nothing is synced and nothing has a name that anybody could look for later: who dies has no
use for its frames. The folder's owner removes it, or sweeps it where a kill -9 left one.

Invariants:
    * disk calls run on one thread, in order: the loop never waits for the disk, a drop comes
      after the write that it undoes, and a full queue of writes cannot starve a read for long
      (a seat has one write on its way);
    * a frame comes back exactly as it was given, or not at all: its checksum stays in memory;
    * a put that failed or was cancelled leaves neither bytes nor their count;
    * a disk that has not given back one frame is given no other for a while; a process that
      lacks a descriptor or memory for a moment says nothing of its disk.

Refused: one large file with holes. A step's frames go all at once, and so do their files.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import math
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.ports import DISTRUST_SECONDS, SHORTAGES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from p2ptrain.ports import Buffer
    from p2ptrain.units import Bytes, Seconds


@dataclass(frozen=True, slots=True)
class _Blob:
    """What must come back: the parts' sizes, and a checksum of all."""

    sizes: tuple[Bytes, ...]
    checksum: int

    @property
    def size_bytes(self) -> Bytes:
        return sum(self.sizes)


class DiskSpill:
    """Implements ``ports.Spill`` in ``folder``, which must be there and empty. Close it."""

    def __init__(
        self, folder: Path, *, bound_bytes: Bytes, distrust_seconds: Seconds = DISTRUST_SECONDS
    ) -> None:
        self.bound_bytes = bound_bytes
        self.used_bytes: Bytes = 0
        self._folder = folder
        self._handles = itertools.count()
        self._blobs: dict[int, _Blob] = {}
        self._distrust_seconds, self._distrusted_until = distrust_seconds, -math.inf
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spill")

    async def put(self, parts: Sequence[Buffer]) -> int:
        """Put a frame away. See ``ports.Spill``."""
        handle, size_bytes = next(self._handles), sum(len(part) for part in parts)
        loop = asyncio.get_running_loop()
        if self.used_bytes + size_bytes > self.bound_bytes:
            raise OSError(errno.EDQUOT, "this peer's bound for spilled frames is reached")
        if loop.time() < self._distrusted_until:
            raise OSError(errno.EIO, "it has not given back a frame")
        self.used_bytes += size_bytes
        try:
            blob = await loop.run_in_executor(
                self._thread, _write, self._path(handle), tuple(parts)
            )
        except BaseException:
            self.used_bytes -= size_bytes
            self._remove(handle)
            raise
        self._blobs[handle] = blob
        return handle

    async def get(self, handle: int) -> tuple[bytes, ...]:
        """The parts as they were given. See ``ports.Spill``."""
        blob, loop = self._blobs.get(handle), asyncio.get_running_loop()
        if blob is None:
            raise FileNotFoundError(errno.ENOENT, "no such frame is kept")
        try:
            return await loop.run_in_executor(self._thread, _read, self._path(handle), blob)
        except OSError as error:
            if error.errno not in SHORTAGES:
                self._distrusted_until = loop.time() + self._distrust_seconds
            raise

    def drop(self, handle: int) -> None:
        """Forget a frame. See ``ports.Spill``."""
        blob = self._blobs.pop(handle, None)
        if blob is not None:
            self.used_bytes -= blob.size_bytes
            self._remove(handle)

    def close(self) -> None:
        """Wait for the disk; nothing is written afterwards."""
        self._thread.shutdown(cancel_futures=True)

    def _path(self, handle: int) -> Path:
        return self._folder / str(handle)

    def _remove(self, handle: int) -> None:
        with contextlib.suppress(RuntimeError):  # closed: the folder goes as a whole
            self._thread.submit(_unlink, self._path(handle))


def _write(path: Path, parts: tuple[Buffer, ...]) -> _Blob:
    checksum = 0
    with path.open("xb", buffering=0) as file:
        for part in parts:
            checksum = zlib.crc32(part, checksum)
            view = memoryview(part).cast("B")
            while view:  # a write may take less than it was given
                view = view[file.write(view) :]
    return _Blob(tuple(len(part) for part in parts), checksum)


def _read(path: Path, blob: _Blob) -> tuple[bytes, ...]:
    checksum, parts = 0, []
    with path.open("rb") as file:
        for size in blob.sizes:
            part = file.read(size)
            checksum = zlib.crc32(part, checksum)
            parts.append(part)
    if checksum != blob.checksum or [len(part) for part in parts] != list(blob.sizes):
        raise OSError(errno.EIO, "the disk does not give back what was written")
    return tuple(parts)


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):  # what stays goes with the folder
        path.unlink()
