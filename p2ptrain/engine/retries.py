"""When a peer that could not be reached may be tried again.

Invariants: at most MOST_PEERS are remembered (the one that failed longest ago is forgotten
first, and may then be tried at once); a peer that was reached is forgotten, and so is one
that nobody has tried for FORGET_SECONDS after its pause.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.backoff import Backoff

if TYPE_CHECKING:
    import random

    from p2ptrain.units import PeerId, Seconds

MOST_PEERS = 4096  # as many as there can be links
FORGET_SECONDS = 120.0  # who still wants it tries at the end of every pause, of a minute at most


class Retries:
    """A pause per peer that grows with its failures in a row."""

    def __init__(
        self, rng: random.Random, *, first_seconds: Seconds, most_seconds: Seconds
    ) -> None:
        self._rng = rng
        self._first_seconds = first_seconds
        self._most_seconds = most_seconds
        self._peers: dict[PeerId, tuple[Backoff, Seconds]] = {}  # and not before

    def wait_seconds(self, peer: PeerId, *, now: Seconds) -> Seconds:
        """How long ``peer`` is to be left alone from ``now`` on."""
        entry = self._peers.get(peer)
        return max(0.0, entry[1] - now) if entry is not None else 0.0

    def failed(self, peer: PeerId, *, now: Seconds) -> None:
        """Note that ``peer`` could not be reached."""
        entry = self._peers.pop(peer, None)
        backoff = entry[0] if entry is not None else self._fresh()
        self._peers[peer] = (backoff, now + backoff.failed())
        while self._peers:  # in order of their last failures
            oldest = next(iter(self._peers))
            if len(self._peers) <= MOST_PEERS and self._peers[oldest][1] + FORGET_SECONDS > now:
                break
            del self._peers[oldest]

    def reached(self, peer: PeerId) -> None:
        """Note that ``peer`` was reached."""
        self._peers.pop(peer, None)

    def _fresh(self) -> Backoff:
        return Backoff(
            self._rng, first_seconds=self._first_seconds, ceiling_seconds=self._most_seconds
        )
