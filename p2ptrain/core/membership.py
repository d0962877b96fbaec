"""Who is alive, judged from silence.

    (unknown) --heard--> LIVE --silent too long--> SUSPECTED --heard--> LIVE (Restored)
                                                 | silent for FORGET_SECONDS (Forgotten)
                         forget: from anywhere   `--> (unknown)

A peer that does anything at all is alive: traffic and heartbeats both count as being
heard, and only the want of *both* makes a suspect. The detector first doubts itself:
while our own loop lags, messages lie unread and healthy peers look silent, so the
patience grows by twice the worst recent lag (once for what lies unread here, once for a
peer on the same busy machine).

A broken link is a hint, not a verdict: a live peer opens it again at once. It shortens
the patience to `LOST_LINK_HEARTBEATS`; a killed process is then noticed in seconds.

Invariants:
    * a suspicion is told once, and taken back once if the peer is heard again;
    * nobody is suspected before suspect_seconds (after a broken link: two heartbeats)
      plus twice the lag of silence;
    * a suspected peer harms nothing if it lives: its counts are kept apart by bitmaps.

The alternative refused: leaving it to the transport. libp2p notices a silent peer after
40 s, and never one whose process is frozen but whose kernel answers (DESIGN 3).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from p2ptrain.run import Limits
    from p2ptrain.units import PeerId, Seconds

LAG_FACTOR = 2.0  # our unread messages, and the same delay at a peer on the same machine
LOST_LINK_HEARTBEATS = 2.0  # a live peer reopens at once: one heartbeat, and one to spare
FORGET_SECONDS = 300.0  # longer than any record of it lives, and than a run waits for a step
PEERS_MAX = 4096  # remembered; at the bound the longest silent suspect is forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspected:
    """``peer`` has been silent for so long: route around it, replay what it held.

    ``vanished``: since its link broke, as those of a process do that is killed. Who sleeps or is
    cut off falls silent, with its links up.
    """

    peer: PeerId
    silent_seconds: Seconds
    vanished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A suspect has been heard: the suspicion was false."""

    peer: PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """A suspect has been silent for so long that nothing of it is worth keeping.

    Should it come back, it comes as a stranger.
    """

    peer: PeerId


Event: TypeAlias = Suspected | Restored | Forgotten
"""A verdict: what `Membership` says about a peer."""


@dataclass(slots=True)
class _Known:
    heard_at: Seconds
    link_lost_at: Seconds = math.inf
    suspected: bool = False


class Membership:
    """Judge the peers heard of. Call :meth:`tick` no later than :attr:`due_at`.

    Report the own loop's lag at every heartbeat, *before* ticking: a loop that wakes late
    has its excuse on record before it judges anybody.
    """

    def __init__(self, limits: Limits) -> None:
        self._heartbeat_seconds = limits.heartbeat_seconds
        self._suspect_seconds = limits.suspect_seconds
        self._known: dict[PeerId, _Known] = {}
        # Lags as old as the silence that they could explain, one per heartbeat.
        heartbeats = math.ceil(limits.suspect_seconds / limits.heartbeat_seconds)
        self._lags: deque[Seconds] = deque([0.0], maxlen=heartbeats + 1)
        self._false_suspicions = 0
        self._due_at = math.inf  # no later than any deadline

    def heard(self, peer: PeerId, *, now: Seconds) -> tuple[Restored, ...]:
        """Anything at all has come from ``peer``."""
        known = self._known.get(peer)
        if known is None:
            self._make_room()
            known = self._known[peer] = _Known(now)
            self._hasten(known)
            return ()
        known.heard_at, known.link_lost_at = now, math.inf
        if not known.suspected:
            return ()
        known.suspected = False
        self._hasten(known)
        self._false_suspicions += 1
        return (Restored(peer=peer),)

    def link_lost(self, peer: PeerId, *, now: Seconds) -> None:
        """The link to ``peer`` broke: unless it is heard again soon, it is suspected."""
        known = self._known.get(peer)
        if known is not None:
            known.link_lost_at = min(known.link_lost_at, now)
            self._hasten(known)

    def own_lag(self, seconds: Seconds) -> None:
        """Our loop woke so much later than it had asked for; call at every heartbeat."""
        self._lags.append(max(0.0, seconds))
        self._due_at = self._earliest()  # an old excuse may have gone

    def forget(self, peer: PeerId) -> None:
        """``peer`` has left in an orderly way, or is out of every list: judge it no more."""
        self._known.pop(peer, None)

    def tick(self, *, now: Seconds) -> tuple[Suspected | Forgotten, ...]:
        """Name those whose silence has just become too long, in order of their names.

        Who is forgotten is named with the first suspicion or deadline after its time: nobody
        waits for that.
        """
        found: list[Suspected | Forgotten] = []
        for peer, known in sorted(self._known.items()):
            if known.suspected:
                if now - known.heard_at >= FORGET_SECONDS:
                    del self._known[peer]
                    found.append(Forgotten(peer=peer))
            elif now >= self._deadline(known):
                known.suspected = True
                silent, broken = now - known.heard_at, known.link_lost_at < math.inf
                found.append(Suspected(peer=peer, silent_seconds=silent, vanished=broken))
        self._due_at = self._earliest()
        return tuple(found)

    @property
    def due_at(self) -> Seconds | None:
        """When somebody may become suspect; None: nobody is under judgement.

        Early at times: what is heard only moves deadlines back, and is not worth a search.
        """
        return None if self._due_at == math.inf else self._due_at

    def live(self) -> frozenset[PeerId]:
        """Everybody heard of and not suspected (ourselves not included)."""
        return frozenset(peer for peer, known in self._known.items() if not known.suspected)

    @property
    def false_suspicions(self) -> int:
        """How many suspicions were taken back."""
        return self._false_suspicions

    def _deadline(self, known: _Known) -> Seconds:
        patience = LAG_FACTOR * max(self._lags)
        silent = known.heard_at + self._suspect_seconds
        broken = known.link_lost_at + LOST_LINK_HEARTBEATS * self._heartbeat_seconds
        return min(silent, broken) + patience

    def _earliest(self) -> Seconds:
        live = (known for known in self._known.values() if not known.suspected)
        return min(map(self._deadline, live), default=math.inf)

    def _hasten(self, known: _Known) -> None:
        self._due_at = min(self._due_at, self._deadline(known))

    def _make_room(self) -> None:
        if len(self._known) < PEERS_MAX:
            return
        silent = min(
            self._known.items(), key=lambda item: (not item[1].suspected, item[1].heard_at)
        )
        del self._known[silent[0]]
