"""What a program says to whoever started it, over an output that may go away.

Intuition: a reader who has left (``| head -1``, a closed terminal) ends a program on Unix;
so a peer is asked to leave, in order. A disk that fills up is no reason to lose a training
step: we fall silent, say so once on stderr, and go on.

Invariant: nothing that is said ever raises; after the first failure nothing more is tried.

Refused: logging's own answer to a broken stream, a traceback on stderr for every line.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class Voice(logging.Handler):
    """``say`` for the program's own lines, and a handler for its log, on one output.

    ``speak`` writes a line and may raise OSError. Set ``when_unheard``; it is called once, in
    whatever thread speaks, when the reader has gone.
    """

    def __init__(self, speak: Callable[[str], None]) -> None:
        super().__init__()
        self._speak = speak
        self._silent = False
        self._unheard = False
        self._when_unheard: Callable[[], None] | None = None

    def when_unheard(self, leave: Callable[[], None]) -> None:
        """Call ``leave`` when nobody listens any more; at once if that is so already."""
        self._when_unheard = leave
        if self._unheard:
            leave()

    def say(self, text: str) -> None:
        """Say ``text`` on a line of its own, if anybody can hear it."""
        if self._silent:
            return
        try:
            self._speak(text)
        except BrokenPipeError:
            self._fall_silent("nobody reads our output any more: leaving")
            self._unheard = True
            if self._when_unheard is not None:
                self._when_unheard()
        except OSError as error:
            self._fall_silent(f"our output cannot be written ({error.strerror}): silent from here")

    def emit(self, record: logging.LogRecord) -> None:
        """A line of the log."""
        self.say(self.format(record))

    def _fall_silent(self, reason: str) -> None:
        self._silent = True
        with contextlib.suppress(OSError):  # stderr may have gone the same way
            print(f"p2ptrain: {reason}", file=sys.stderr, flush=True)  # noqa: T201 -- last words
