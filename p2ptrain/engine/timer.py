"""One timer for all deadlines of a peer, and the measure of how late it goes off.

    run: tick everything -> the earliest deadline -> sleep until then, or until woken -> ...

Every machine names its own earliest deadline; the timer sleeps until the first of all. An
event may bring a deadline forward, so whoever handled one calls :meth:`Timer.rearm`. One that
moved back costs one early tick, which changes nothing.

How much later than asked the loop wakes is the *lag*: for so long messages lay unread here,
and peers looked silent that were not. It is told before anybody is judged by it (core/membership).

Invariants:
    * no deadline passes without a tick at that time, but for the loop's own lag;
    * a lag longer than a heartbeat is told before the tick that follows it.

Refused: a timer handle per deadline. Most deadlines are moved many times before they pass,
and a heap of cancelled handles is slower than asking a few machines for their earliest.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.units import Seconds


class Timer:
    """Calls ``tick(now)`` no later than ``due_at()``; tells ``own_lag`` how late it was.

    Lags are gathered and told once per ``heartbeat_seconds``, at worst ones.
    """

    def __init__(
        self,
        *,
        due_at: Callable[[], Seconds | None],
        tick: Callable[[Seconds], None],
        own_lag: Callable[[Seconds], None],
        heartbeat_seconds: Seconds,
    ) -> None:
        self.lag_seconds: Seconds = 0.0  # the worst since it was last told
        self._due_at, self._tick, self._own_lag = due_at, tick, own_lag
        self._heartbeat_seconds = heartbeat_seconds
        self._told_at = -math.inf
        self._armed_at: Seconds | None = None
        self._poke = asyncio.Event()

    async def run(self) -> None:
        """Tick until cancelled; cancelled, it leaves nothing behind that could fire."""
        loop = asyncio.get_running_loop()
        while True:
            self._tick(loop.time())
            due_at = self._armed_at = self._due_at()
            self._poke.clear()
            handle = None if due_at is None else loop.call_at(due_at, self._poke.set)
            try:
                await self._poke.wait()
            finally:
                if handle is not None:
                    handle.cancel()
            if due_at is not None:
                self._note_lag(loop.time() - due_at)

    def rearm(self) -> None:
        """Something has happened: any deadline may be nearer now."""
        if not self._poke.is_set():  # else the timer looks at everything anyway
            self.wake_by(self._due_at())

    def wake_by(self, due_at: Seconds | None) -> None:
        """Only this deadline may be nearer now."""
        if due_at is not None and (self._armed_at is None or due_at < self._armed_at):
            self._poke.set()

    def tell_lag(self, now: Seconds) -> Seconds:
        """Tell the worst lag since the last time, and return it; call it with every heartbeat."""
        worst = self.lag_seconds
        if now >= self._told_at + self._heartbeat_seconds:
            self._own_lag(worst)
            self.lag_seconds, self._told_at = 0.0, now
        return worst

    def _note_lag(self, seconds: Seconds) -> None:
        self.lag_seconds = max(self.lag_seconds, seconds)
        if seconds > self._heartbeat_seconds:
            self._own_lag(seconds)
