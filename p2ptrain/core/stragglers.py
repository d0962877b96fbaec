"""When a microbatch is late enough to be recalled.

Late means: later than this seat usually is, by a factor, and clear of its usual scatter.
The middle of what was seen lately (the median) is what to expect, for one hang must not
make the next one look normal; the median of the deviations says how much it scatters.
The queue at the moment of asking is known too, from the offer: the longer of the two
expectations counts.

Invariants: a deadline lies within [floor, ceiling]; it never shrinks when the offered or
an observed delay grows; memory is a window of `WINDOW_SAMPLES`.

The alternative refused: to hedge, sending a second copy after the deadline. A copy that
is computed twice costs work and an overlap to undo (DESIGN 4); a recall costs a message.
"""

from __future__ import annotations

import statistics
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2ptrain.units import PeerId, Seconds

WINDOW_SAMPLES = 32  # enough for a median that one hang cannot move, few enough to follow a load
FACTOR = 2.5  # simulated: 6% of forwards are late by this in calm, 9% under churn
DEVIATIONS = 6.0  # of the median deviation: four standard deviations if scatter is normal
FLOOR_SECONDS = 0.25  # garbage collection and scheduling delay a healthy peer this much
KNOWN_SAMPLES = 8  # enough for a median and a scatter; before, an operator's floor rules
KNOWN_FLOOR_SECONDS = 1.0  # a heartbeat: sooner, and a mere pause costs a recall
CEILING_SECONDS = 60.0  # a hung peer must not hold a step for longer than a minute
BACKWARD_SHARE = 2.0 / 3.0  # of a microbatch's operations are its backward's


class DelayEstimate:
    """What one kind of answer of one seat usually takes, from its last samples.

    Args:
        initial_seconds: what to expect before the first sample (from announced rates).
    """

    def __init__(self, initial_seconds: Seconds) -> None:
        self._initial_seconds = initial_seconds
        self._samples: deque[Seconds] = deque(maxlen=WINDOW_SAMPLES)

    def observe(self, seconds: Seconds) -> None:
        """Take in a delay: one that has ended, or the wait after which we gave up."""
        self._samples.append(max(0.0, seconds))

    @property
    def samples(self) -> int:
        """How many delays the estimate rests on."""
        return len(self._samples)

    def expected(self) -> Seconds:
        """The usual delay."""
        return statistics.median(self._samples) if self._samples else self._initial_seconds

    def deadline(self, factor: float = FACTOR) -> Seconds:
        """The delay after which an answer is late."""
        expected = self.expected()
        deviation = statistics.median(abs(s - expected) for s in self._samples or (expected,))
        return _bounded(max(factor * expected, expected + DEVIATIONS * deviation))


class Delays:
    """What every seat of the next stage usually takes, as one sender sees it.

    Bound: one window for each seat that took a frame of ours and is not forgotten.
    """

    def __init__(self) -> None:
        self._estimates: dict[PeerId, DelayEstimate] = {}

    def observe(self, peer: PeerId, seconds: Seconds) -> None:
        """``peer`` has computed a forward so long after accepting it (or we gave up then)."""
        self._estimates.setdefault(peer, DelayEstimate(seconds)).observe(seconds)

    def forget(self, peer: PeerId) -> None:
        """``peer`` is gone for good."""
        self._estimates.pop(peer, None)

    def deadline(
        self, peer: PeerId, offered_seconds: Seconds, *, floor_seconds: Seconds
    ) -> Seconds:
        """How long to wait for ``peer``; no less than the floor while we hardly know it."""
        estimate = self._estimates.get(peer)
        if estimate is None or estimate.samples < KNOWN_SAMPLES:
            return max(_bounded(FACTOR * offered_seconds), floor_seconds)
        return max(recall_deadline(offered_seconds, estimate), KNOWN_FLOOR_SECONDS)


def recall_deadline(offered_seconds: Seconds, estimate: DelayEstimate) -> Seconds:
    """How long after sending a forward to wait for its Computed before recalling it.

    Args:
        offered_seconds: the delay that the offer promised, with the queue as it was.
        estimate: of the time from sending to Computed, at this seat; it knows the link.
    """
    return max(_bounded(FACTOR * offered_seconds), estimate.deadline())


def expected_delay(*, ahead: int, backwards: int, service_seconds: Seconds) -> Seconds:
    """What an offer promises: seconds until the microbatch asked for is computed.

    Args:
        ahead: accepted forwards to be computed before it, the one at work included.
        backwards: gradients that wait at this seat.
        service_seconds: this seat's usual time for one microbatch, forward and backward:
            who accepts a forward will have its backward to do as well.
    """
    return (ahead + BACKWARD_SHARE * backwards + 1) * service_seconds


def _bounded(seconds: Seconds) -> Seconds:
    return min(max(seconds, FLOOR_SECONDS), CEILING_SECONDS)
