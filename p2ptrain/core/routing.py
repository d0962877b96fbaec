"""Which seat of the next stage to ask: turns by speed, then a veto by fresh delay.

Every seat has a clock of its own, its virtual time. The seat whose clock is furthest
behind is asked first, and its clock then moves on by its *service time*: a seat twice as
fast moves half as far and gets twice the turns (interleaved weighted round robin). That
gives the right shares, but learns only from answers, and a seat that has just become ten
times slower answers ten times more rarely. So one more seat, drawn at random by rate, is
asked beside it, and taken if the first is much the slower *now* (`settle`):

    delay(first) > veto_ratio x delay(alternative) + veto_services x service(first)

Near the end of a step that is not enough: a seat ten times slower takes ten times as long for
what it is given last, and everybody waits. So who would end after the rest of the stage's
work is taken only if the other would end even later (``set_left``).

Simulated at 16 stages x 8 replicas with 10% of peers ten times slower, as a fraction of
the capacity bound, calm / with churn: this rule .94/.69; turns alone .92/.41; SWARM's
turns on *response* time .73/.38 (2301.11913); random .11/.13 (DESIGN 4).

Invariants:
    * a seat that is refused, vetoed or silent has lost its turn: its clock has moved on;
    * a seat that was away, or is new, starts at the others' clock and is owed nothing;
      a new one at a random phase, so that senders do not all turn to it at once;
    * a timeout never makes a seat look faster.

The alternative refused: the least expected delay of all. On stale reports everyone picks
the same seat at once (.63/.54 in the same simulation).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from p2ptrain.core.backoff import Backoff

if TYPE_CHECKING:
    import random
    from collections.abc import Collection, Mapping

    from p2ptrain.units import PeerId, Seconds

NEWEST_WEIGHT = 0.2  # of a sample in the estimate: ten samples replace nine tenths of it
UNKNOWN_SERVICE_SECONDS = 1.0  # of a seat without a rate, where no seat has one
SERVICE_MIN_SECONDS = 1e-4  # nobody computes faster; a false claim of it takes all turns
SERVICE_MAX_SECONDS = 600.0  # nobody slower is of use; keeps one wild sample from ruling
ALONE_SECONDS = 1.0  # leave a seat alone at least so long; an Ask is cheap, a standstill not
QUEUE_SERVICES = 4.0  # in front of who gets the next free slot of a queue of four, itself one
BUSY_MAX_SECONDS = 5.0  # a seat may not send us away for longer than this at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Ask ``first`` and, if there is one, ``alternative``; then settle."""

    first: PeerId
    alternative: PeerId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """What an offer said: ``delay`` until computed, and ``service`` per microbatch."""

    delay: Seconds
    service: Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """Whose offer to take (None: nobody's), and why. Decline the other offer.

    ``retry_at``: when a seat will be free that is worth more than the offer.
    """

    take: Literal["first", "alternative"] | None
    reason: str
    retry_at: Seconds | None = None


@dataclass(slots=True)
class _Seat:
    service: Seconds
    clock: Seconds  # virtual: the sum of service times of the turns it has had
    backoff: Backoff
    measured: bool = False
    busy_until: Seconds = -math.inf
    shunned_until: Seconds = -math.inf  # after a timeout
    alone_until: Seconds = -math.inf  # ... where nobody else can be asked

    @property
    def resort_at(self) -> Seconds:
        """When it may be asked if nobody else can."""
        return max(self.busy_until, self.alone_until)


class Router:
    """One sender's turns among the seats of one next stage."""

    def __init__(
        self, rng: random.Random, *, veto_ratio: float = 1.5, veto_services: float = 0.5
    ) -> None:
        self._rng = rng
        self._veto_ratio = veto_ratio
        self._veto_services = veto_services
        self._seats: dict[PeerId, _Seat] = {}
        self._clock: Seconds = 0.0  # of the last turn given
        self._left: int | None = None  # microbatches that the next stage has not counted

    def set_seats(self, rates: Mapping[PeerId, float]) -> None:
        """Take over who serves the next stage.

        Args:
            rates: announced microbatches per second. They seed the estimate of a new
                seat, so that nobody must be tried first; what we measured ourselves
                stays. A rate that is no positive number means unknown: like the others.
        """
        self._seats = {peer: self._seats[peer] for peer in self._seats if peer in rates}
        known = [1.0 / rate for rate in rates.values() if rate > 0.0 and math.isfinite(rate)]
        usual = statistics.median(known) if known else UNKNOWN_SERVICE_SECONDS
        for peer in sorted(rates):
            rate = rates[peer]
            service = _sane(1.0 / rate if rate > 0.0 and math.isfinite(rate) else usual)
            seat = self._seats.get(peer)
            if seat is None:
                phase = self._rng.random() * service
                self._seats[peer] = _Seat(service, self._clock + phase, Backoff(self._rng))
            elif not seat.measured:
                seat.service = service

    def set_left(self, microbatches: int) -> None:
        """So many of this step's are not counted by the next stage yet."""
        self._left = microbatches

    def choose(self, *, exclude: Collection[PeerId] = (), now: Seconds) -> Choice | None:
        """Give the next turn; None if no seat can be asked now (see `retry_at`).

        Who has timed out is asked before its pause is over if there is nobody else.
        """
        open_seats = {peer: seat for peer, seat, at in self._returns(exclude, now) if at <= now}
        if not open_seats:
            return None
        for seat in open_seats.values():
            seat.clock = max(seat.clock, self._clock)
        first = min(open_seats, key=lambda peer: (open_seats[peer].clock, peer))
        chosen = open_seats.pop(first)
        self._clock = chosen.clock
        chosen.clock += chosen.service
        return Choice(first=first, alternative=self._draw(open_seats))

    def settle(
        self,
        first: Quote | None,
        alternative: Quote | None,
        *,
        now: Seconds,
        patient: bool = False,
        asked: Collection[PeerId] | None = None,
    ) -> Settlement:
        """Choose between two answers; None: BUSY, silent or not asked.

        Taking the alternative costs it no turn: alternatives are drawn by rate already.

        Args:
            first: of the seat whose turn it is.
            alternative: of the seat drawn beside it.
            now: the time.
            patient: let one offer alone pass the same veto against the seats that are busy,
                or were when we asked; else all that a fast seat cannot take at once goes to
                the slowest.
            asked: who was asked; None: all that are not busy now.
        """
        lone = first or alternative
        if lone is None:
            return Settlement(take=None, reason="nobody offers")
        if first is None or alternative is None:
            at, free = self._first_free(asked, now)
            if patient and free is not None and self._much_slower(lone, free):
                reason = f"{lone.delay:.3g} s against a busy seat's {free.delay:.3g} s"
                return Settlement(take=None, reason=reason, retry_at=at)
            take: Literal["first", "alternative"] = "alternative" if first is None else "first"
            return Settlement(take=take, reason="it alone offers")
        if self._much_slower(first, alternative):
            reason = f"veto: {first.delay:.3g} s against {alternative.delay:.3g} s"
            return Settlement(take="alternative", reason=reason)
        return Settlement(take="first", reason="its turn, and not much slower")

    def _first_free(
        self, asked: Collection[PeerId] | None, now: Seconds
    ) -> tuple[Seconds, Quote | None]:
        """The seat without an offer that is worth most to wait for, and when to ask it."""
        frees = [
            (max(now, seat.busy_until), seat.service)
            for peer, seat in self._seats.items()
            if seat.shunned_until <= now
            and (now < seat.busy_until or (asked is not None and peer not in asked))
        ]
        waits = [(at - now + QUEUE_SERVICES * service, at, service) for at, service in frees]
        if not waits:
            return now, None
        delay, at, service = min(waits)
        return at, Quote(delay=delay, service=service)

    def _much_slower(self, quote: Quote, other: Quote) -> bool:
        ends = quote.delay + quote.service  # its forward, and some time later its backward
        if ends > self._rest_seconds():
            return ends > other.delay + other.service
        return quote.delay > self._veto_ratio * other.delay + self._veto_services * quote.service

    def _rest_seconds(self) -> Seconds:
        """How long the next stage still needs for this step, if all its seats work."""
        rate = sum(1.0 / seat.service for seat in self._seats.values())
        return math.inf if self._left is None or not rate else self._left / rate

    def observed(self, peer: PeerId, service_seconds: Seconds) -> None:
        """``peer`` has computed a microbatch in this time, queue and link not counted.

        It is the peer's own word: what is no positive number is ignored.
        """
        seat = self._seats.get(peer)
        if seat is not None and 0.0 < service_seconds < math.inf:
            self._feed(seat, service_seconds)
            seat.measured = True
            seat.backoff.succeeded()
            seat.shunned_until = seat.alone_until = -math.inf

    def timed_out(self, peer: PeerId, waited: Seconds, *, now: Seconds) -> None:
        """``peer`` has not answered for so long: believe it slower, and leave it alone.

        What was under way when its pause began fails with it, and makes it no longer.
        """
        seat = self._seats.get(peer)
        if seat is None:
            return
        self._feed(seat, max(seat.service, waited))
        if seat.shunned_until <= now:
            seat.shunned_until = now + seat.backoff.failed()
            seat.alone_until = min(seat.shunned_until, now + ALONE_SECONDS)

    def busy(self, peer: PeerId, retry_seconds: Seconds, *, now: Seconds) -> None:
        """``peer`` has no room: do not ask it before then. No harm to its estimate."""
        seat = self._seats.get(peer)
        if seat is not None:
            pause = min(max(retry_seconds, 0.0), BUSY_MAX_SECONDS)
            seat.busy_until = max(seat.busy_until, now + pause)

    def expected(self, peer: PeerId) -> Seconds:
        """Estimated seconds per microbatch of ``peer`` (a stranger: the usual)."""
        seat = self._seats.get(peer)
        if seat is not None:
            return seat.service
        services = [other.service for other in self._seats.values()]
        return statistics.median(services) if services else UNKNOWN_SERVICE_SECONDS

    def retry_at(self, *, exclude: Collection[PeerId] = (), now: Seconds) -> Seconds | None:
        """When the first seat can be asked again; None: there is none to wait for."""
        return min((at for _, _, at in self._returns(exclude, now)), default=None)

    def _returns(
        self, exclude: Collection[PeerId], now: Seconds
    ) -> list[tuple[PeerId, _Seat, Seconds]]:
        """When each seat may be asked again."""
        seats = [(peer, seat) for peer, seat in self._seats.items() if peer not in exclude]
        alone = all(seat.shunned_until > now for _, seat in seats)
        return [
            (peer, seat, seat.resort_at if alone else max(seat.busy_until, seat.shunned_until))
            for peer, seat in seats
        ]

    def _draw(self, seats: Mapping[PeerId, _Seat]) -> PeerId | None:
        if not seats:
            return None
        peers = sorted(seats)
        weights = [1.0 / seats[peer].service for peer in peers]
        return self._rng.choices(peers, weights)[0]

    @staticmethod
    def _feed(seat: _Seat, service_seconds: Seconds) -> None:
        seat.service += NEWEST_WEIGHT * (_sane(service_seconds) - seat.service)


def _sane(seconds: Seconds) -> Seconds:
    """Within what a seat of use can take."""
    return min(max(SERVICE_MIN_SECONDS, seconds), SERVICE_MAX_SECONDS)
