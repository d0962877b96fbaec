"""What the virtual loop runs: calls, which are its handles, and tasks with a number.

A swarm makes ten thousand handles and a thousand tasks in each second of ours. asyncio's
handles ask their loop for its debug mode when they are made, and its list of all tasks is
of the whole process, ended ones among them; both were a tenth of a run.

Invariants: nothing here depends on an address or a clock; an ended task is kept for no
longer than as many others begin.

Refused: weak references to the tasks. When garbage is collected would then decide how many
tasks a process is said to leave behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, ContextVar
from typing import Any

import msgspec

from p2ptrain.units import Seconds

owner: ContextVar[str] = ContextVar("owner", default="")
"""Which simulated process the running callback belongs to; see ``loop``."""

SWEEP_TASKS = 64
"""Ended tasks of a process are forgotten once they may be as many as the others and this many."""


class Call(msgspec.Struct):
    """A callback that is ready, or waits for its time; does all that is asked of a handle."""

    callback: Callable[..., object]
    args: tuple[Any, ...]
    context: Context
    at: Seconds = 0.0
    on_cancel: Callable[[], None] | None = None  # who counts the cancelled
    off: bool = False

    def cancel(self) -> None:
        """Never run it."""
        if not self.off:
            self.off = True
            self.callback, self.args = _nothing, ()  # what they hold may go
            if self.on_cancel is not None:
                self.on_cancel()

    def cancelled(self) -> bool:
        """Whether it was."""
        return self.off

    def when(self) -> Seconds:
        """Its time, if it waits for one."""
        return self.at


class NumberedTask(asyncio.Task[Any]):
    """A task hashed by its number within the loop, not by its address."""

    def __init__(self, number: int, *args: Any, **kwargs: Any) -> None:
        self.number = number  # first: asyncio puts it in a set at once
        super().__init__(*args, **kwargs)

    def __hash__(self) -> int:
        return self.number


class Tasks:
    """The tasks of one process that have not ended, and some that have."""

    def __init__(self) -> None:
        self._some: list[NumberedTask] = []
        self._sweep_at = SWEEP_TASKS

    def add(self, task: NumberedTask) -> None:
        """One more."""
        self._some.append(task)
        if len(self._some) > self._sweep_at:
            self._sweep_at = 2 * len(self.going()) + SWEEP_TASKS

    def going(self) -> list[NumberedTask]:
        """Those that have not ended, oldest first."""
        self._some = [task for task in self._some if not task.done()]
        return self._some


def _nothing() -> None:
    """What a cancelled call does."""
