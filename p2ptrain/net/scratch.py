"""A folder for what passes (sockets, keys, frames), gone when we are, or when the next comes.

Intuition: an orderly end removes the folder; a kill -9 cannot. The kernel, though, drops a
lock with its process, so whoever starts next can tell the dead's folders and sweeps them.

Invariant: a folder whose owner lives is never touched, also across containers that share
/tmp; only our own user's folders are.

Refused: process ids in names (they are reused, and differ between containers).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX: Final = "p2ptrain-"
LOCK: Final = "lock"

SOCKET_PATH_BYTES: Final = 107  # of a Unix socket's path, as the kernel bounds it
INSIDE_BYTES: Final = 36  # of it for the folder's own name and a socket's in it
SHORT_BASE: Final = Path("/tmp")  # noqa: S108 - a private folder is made in it, as by tempfile


@contextmanager
def scratch_folder(base: Path | None = None) -> Iterator[Path]:
    """Make a private folder for the time of the ``with``; sweep those of the dead first.

    In ``base``, which is made if missing; None: where sockets may lie.

    Raises:
        OSError: the folder cannot be made.
    """
    if base is None:
        base = _base()
    base.mkdir(parents=True, exist_ok=True)
    _sweep(base)
    made = tempfile.TemporaryDirectory(prefix=PREFIX, dir=base, ignore_cleanup_errors=True)
    with made as name:
        lock = os.open(Path(name) / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(lock)


def _base() -> Path:
    """Where people want temporary files, unless no socket would fit into so long a path."""
    wanted = Path(tempfile.gettempdir())
    fits = len(os.fsencode(wanted)) + INSIDE_BYTES <= SOCKET_PATH_BYTES
    return wanted if fits or not SHORT_BASE.is_dir() else SHORT_BASE


def _sweep(base: Path) -> None:
    for folder in base.glob(f"{PREFIX}*"):
        # No lock yet: just being made. Not ours, or gone meanwhile: not our business.
        with suppress(OSError):
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if folder.stat().st_uid == os.getuid():
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
