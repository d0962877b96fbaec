"""How fast one seat computes: what offers promise, heartbeats announce and the report adds up.

Intuition: one microbatch is one service, forward and backward together, wherever it waited
in between. The estimate follows the latest services and outlives the step.

Invariants:
    * only compute counts, never waiting: a seat must not look slow because others are;
    * before the first measurement of a peer all look equal (``rate`` 0: unknown), so that
      nobody is favoured for having computed nothing;
    * who comes among seats that have measured promises what they do: a longer guess would
      never be tried where faster seats offer too, and never be put right.

Refused: a rate from counted microbatches per wall-clock second. It measures the bottleneck
of the whole pipeline, which is the same for everybody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2ptrain.units import Seconds

SERVICE_SMOOTHING = 0.2  # as in routing: a fifth of each new sample
FIRST_SERVICE_SECONDS = 1.0  # before the first measurement; equal for all, so nobody is favoured
SERVICE_MIN_SECONDS = 1e-6  # a virtual service may take no time; a rate stays finite


class Pace:
    """One seat's service time."""

    def __init__(self) -> None:
        self.service_seconds: Seconds = FIRST_SERVICE_SECONDS
        self.computing_seconds: Seconds = 0.0  # of the device, for this seat in this step
        self._measured = self._inherited = False

    def begin(self) -> None:
        """A step begins: what was computed for the last is told."""
        self.computing_seconds = 0.0

    def suppose(self, seconds: Seconds) -> None:
        """What stage-mates take, as our guess until the first measurement."""
        if not (self._measured or self._inherited):
            self.service_seconds = seconds

    def inherit(self, rate: float) -> None:
        """Another seat of this peer computes ``rate`` microbatches a second; 0 says nothing.

        It is our rate until we know better: stages are cut to take about as long.
        """
        if rate > 0 and not self._measured:
            self.service_seconds, self._inherited = 1.0 / rate, True

    def observe(self, seconds: Seconds) -> None:
        """A microbatch took ``seconds`` of compute here, forward and backward together."""
        share = SERVICE_SMOOTHING if self._measured else 1.0
        self.service_seconds += share * (seconds - self.service_seconds)
        self._measured = True

    @property
    def rate(self) -> float:
        """Microbatches per second; 0 while unknown: others then take us for an average seat."""
        known = self._measured or self._inherited
        return 1.0 / max(self.service_seconds, SERVICE_MIN_SECONDS) if known else 0.0
