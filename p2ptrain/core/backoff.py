"""How long to leave something alone that has just failed.

Each failure doubles the pause, up to a ceiling; a success forgets them all. Every pause
is drawn at random from its upper half, so that those who failed together do not come
back together.

Invariants: every pause lies in [first x (1 - jitter), ceiling]; after ``attempts_max``
failures without a success `exhausted` stays true, and the caller gives up.

The alternative refused: jitter over the whole of 0..pause ("full jitter"). It spreads
best, but may come back at once, and for a peer that hangs a retry is not free: it costs
a whole deadline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

    from p2ptrain.units import Seconds

FIRST_SECONDS = 0.5  # a lost packet or a short stall of a busy machine is over by then
CEILING_SECONDS = 30.0  # as long as a directory record may be out of date
FACTOR = 2.0
JITTER = 0.5  # half of the pause is drawn: peers that failed together spread over it


class Backoff:
    """Pauses between attempts at one thing: call `failed` or `succeeded` after each."""

    def __init__(
        self,
        rng: random.Random,
        *,
        first_seconds: Seconds = FIRST_SECONDS,
        ceiling_seconds: Seconds = CEILING_SECONDS,
        attempts_max: int | None = None,
    ) -> None:
        self._rng = rng
        self._first_seconds = first_seconds
        self._ceiling_seconds = ceiling_seconds
        self._attempts_max = attempts_max
        self._pause_seconds = first_seconds
        self._failures = 0

    @property
    def failures(self) -> int:
        """Failures since the last success."""
        return self._failures

    @property
    def exhausted(self) -> bool:
        """Whether as many attempts have failed as were allowed (never, without a limit)."""
        return self._attempts_max is not None and self._failures >= self._attempts_max

    def failed(self) -> Seconds:
        """Count a failure; return how long to wait before the next attempt."""
        self._failures += 1
        pause = min(self._pause_seconds, self._ceiling_seconds)
        self._pause_seconds = min(pause * FACTOR, self._ceiling_seconds)
        return pause * (1.0 - JITTER * self._rng.random())

    def succeeded(self) -> None:
        """Forget all failures."""
        self._failures = 0
        self._pause_seconds = self._first_seconds
