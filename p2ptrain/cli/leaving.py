"""Ctrl-C while nothing has begun: the process goes at once, without a word.

Intuition: for its first seconds a command only imports. An interrupt there is raised in the
middle of somebody else's module, which prints it, swallows it or turns it into an
ImportError. There is nothing to clean up yet, so no exception is needed at all. And once
the exit code is settled, nothing of ours is left either.

Invariant: between these two times Ctrl-C raises KeyboardInterrupt, or means what the
running program says, as ever.

Refused: dying of the signal itself; a supervisor then sees -2 where the page says 130.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

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


def leave(code: int) -> NoReturn:
    """Say what is still unsaid and end the process: with ``code``, or 1 if the words were lost.

    The interpreter's own farewell is left out. Every program has closed what it opened, and
    that farewell waits for a thread in the middle of a long product, walks all of torch once
    more (a second), and does not bear a Ctrl-C.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where it was closed
        try:
            stream.flush()
        except OSError:  # a full disk, a reader who left
            code = code or UNSAID_EXIT
    os._exit(code)
