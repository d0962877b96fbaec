"""Ctrl-C while nothing has begun: the process goes at once, without a word.

Intuition: for its first seconds a command only imports. An interrupt there is raised in the
middle of somebody else's module, which prints it, swallows it or turns it into an
ImportError. There is nothing to clean up yet, so no exception is needed at all. The same
holds when the exit code is settled and only the interpreter's own farewell is left.

Invariant: outside these two times Ctrl-C raises KeyboardInterrupt, or means what the
running program says, as ever.

Refused: dying of the signal itself; a supervisor then sees -2 where the page says 130.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

INTERRUPTED_EXIT = 130
UNSAID_EXIT = 1


@contextmanager
def at_once() -> Iterator[None]:
    """Inside the ``with``, Ctrl-C ends the process. For imports only."""
    before = signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED_EXIT))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def settled(code: int) -> int:
    """Say what is still unsaid; from here on Ctrl-C only hurries the end. Return the exit code.

    It is ``code``, unless that is 0 and our last words went nowhere.
    """
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it was closed
        try:
            stream.flush()
        except OSError:  # a full disk, a reader who left: the interpreter must not try again
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or UNSAID_EXIT
    signal.signal(signal.SIGINT, lambda *_: os._exit(code))
    return code
