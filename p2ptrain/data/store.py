"""Blobs on disk by name: written whole or not at all, also when the power goes.

A blob is written to a temporary file, synced, renamed over the old one, and the folder is
synced; a torn write is only ever a temporary file, which the next start removes. Disk calls
run on a thread, because a full or slow disk must not stop the event loop.

A cancelled ``put`` may still take effect: the blob under its name is the old or the new one.

Refused: appending logs and databases. A peer keeps a handful of blobs, each replaced whole.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from p2ptrain.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from p2ptrain.ports import Buffer

_NAME = re.compile(r"[\w-][\w.-]{0,120}")
_UNFINISHED = ".unfinished"


class DiskStore:
    """Implements ``ports.Store`` in one folder, which it creates.

    Raises:
        UserError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for torn in folder.glob(f"*{_UNFINISHED}"):
                torn.unlink()
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise _unusable(folder, error) from error

    async def put(self, name: str, blob: Buffer) -> None:
        """Write durably, replacing. See ``ports.Store``."""
        await asyncio.to_thread(_write, self._path(name), blob)

    async def get(self, name: str) -> bytes | None:
        """The blob as last written whole, or None."""
        return await asyncio.to_thread(_read, self._path(name))

    async def names(self) -> Sequence[str]:
        """All names, sorted."""
        return await asyncio.to_thread(_names, self._folder)

    async def remove(self, name: str) -> None:
        """Forget a blob. See ``ports.Store``."""
        await asyncio.to_thread(self._path(name).unlink, missing_ok=True)

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name) or name.endswith(_UNFINISHED):
            raise ValueError(f"{name!r} cannot be a blob's name")
        return self._folder / name


@contextmanager
def sole_owner(folder: Path) -> Iterator[None]:
    """Own ``folder`` for the time of the ``with``; the kernel ends it with the process.

    Enter before a :class:`DiskStore` is made of it: that one removes unfinished blobs.

    Raises:
        UserError: it cannot be made, or another running peer keeps its checkpoints there: each
            would remove the other's.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"{folder} is in use by another running peer; "
                "give each a --checkpoint-dir of its own"
            ) from error
        yield
    finally:
        os.close(descriptor)


def _unusable(folder: Path, error: OSError) -> UserError:
    return UserError(f"{folder}: cannot keep files here ({error.strerror})")


def _write(path: Path, blob: Buffer) -> None:
    handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=_UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        Path(unfinished).replace(path)
    except OSError:
        Path(unfinished).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _names(folder: Path) -> list[str]:
    return sorted(
        path.name for path in folder.iterdir() if path.is_file() and path.suffix != _UNFINISHED
    )
