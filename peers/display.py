"""Shows a running simulation: a live table on a terminal, a line now and then elsewhere.

Words go to stdout, or to stderr when stdout is to hold JSON. Refused: control characters
in a log file.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live

if TYPE_CHECKING:
    from p2ptrain.units import Seconds
    from peers.progress import Progress

LINE_SECONDS = 2.0
"""Between lines where there is no terminal: a log, not a flood."""

FRAMES_PER_SECOND = 4


class Display:
    """Use it as a context; the live table disappears with it."""

    def __init__(self, *, as_json: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(
            file=sys.stderr if as_json else sys.stdout, highlight=False, soft_wrap=True
        )
        self._live: Live | None = None
        self._told = ""
        self._pending = ""
        self._told_at: Seconds | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(
                console=self._console, refresh_per_second=FRAMES_PER_SECOND, transient=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._flush()

    def say(self, text: str) -> None:
        """One line, kept; the last state comes before it."""
        self._flush()
        self._console.print(text, markup=False)

    def show(self, progress: Progress, *, now: Seconds) -> None:
        """The state now; drawn or told only as often as somebody can read it."""
        if self._live is not None:
            self._live.update(progress.table())
            return
        self._pending = progress.line()
        if self._told_at is None or now - self._told_at >= LINE_SECONDS:
            self._told_at = now
            self._flush()

    def _flush(self) -> None:
        if self._pending != self._told:
            self._told = self._pending
            self._console.print(self._told, markup=False)
