"""Several sources of one download: how fast each gives, how long to wait, whom to ask next.

A source has a few chunks on order and gives them in turn. The time from one to the next is
its rate; what it is waited for follows from that rate, so that a slow line is no failure
and a dead one is noticed soon. A chunk goes to whoever would have it here first, given what
is on order there already: a slow source gets few, and none at the end while a fast one
would be done sooner with all of them.

Invariants:
    * at most WINDOW chunks are on order at one source, IN_FLIGHT at all: so much memory;
    * a source that stalls is set aside, comes back when it gives something after all or
      nobody else is left, and is given up after STRIKES.

Refused: the chunks dealt out evenly at the beginning. The slowest source then decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from p2ptrain.units import Bytes, PeerId, Seconds

WINDOW: Final = 4
"""Chunks on order at one source: hides the round trip."""

UNPROVED_WINDOW: Final = 1
"""At a source that has given nothing yet: a dead one holds up one chunk."""

IN_FLIGHT: Final = 8
"""Chunks on order in all: 32 MiB beside the state itself."""

FIRST_SECONDS: Final = 30.0
"""Without a measurement: 4 MiB at 2 Mbit/s take 17 s; slower is not worth waiting for."""

LEAST_SECONDS: Final = 3.0
"""A pause of the network or of a busy process is over by then."""

PATIENCE: Final = 4.0
"""Times the expected time: sources serve others as well, and the frames of training."""

STRIKES: Final = 2
"""Stalls in one download: once may be an accident."""

NEWEST: Final = 0.5
"""Weight of the newest measurement: lines change within a download."""


class Source:
    """One peer that gives chunks of what is being downloaded."""

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.aside = False
        self.strikes = 0
        self.given = 0  # chunks that counted
        self.rate: float | None = None  # bytes per second
        self._on_order: dict[int, Bytes] = {}  # chunk and size, in the order of asking
        self._owed: dict[int, Bytes] = {}  # those, and what it was set aside for
        self._since: Seconds = 0.0  # when it began on the first of what is on order

    @property
    def on_order(self) -> tuple[int, ...]:
        """Chunks asked for that have not come, oldest first."""
        return tuple(self._on_order)

    @property
    def has_room(self) -> bool:
        """Whether one more may be asked for."""
        window = UNPROVED_WINDOW if self.rate is None else WINDOW
        return not self.aside and len(self._on_order) < window

    def owes(self, index: int) -> bool:
        """Whether chunk ``index`` was ever asked for here, and has not come."""
        return index in self._owed

    def ask(self, index: int, size_bytes: Bytes, *, now: Seconds) -> None:
        """Note that chunk ``index`` is being asked for."""
        if not self._on_order:
            self._since = now
        self._on_order[index] = self._owed[index] = size_bytes

    def came(self, index: int, *, now: Seconds) -> None:
        """Chunk ``index`` is here and right, late perhaps: the source is in use (again)."""
        size_bytes = self._owed.pop(index)
        if self._on_order.pop(index, None) is not None:
            seconds = max(now - self._since, 1e-6)  # the clock may not have moved
            measured = size_bytes / seconds
            self.rate = measured if self.rate is None else self._blend(measured)
        self._since = now
        self.aside = False
        self.given += 1

    def forget(self, index: int) -> None:
        """Chunk ``index`` is not wanted from here any more."""
        self._on_order.pop(index, None)
        self._owed.pop(index, None)

    def begin_anew(self) -> None:
        """Something else is being downloaded; what it was seen to be capable of stays."""
        self._on_order.clear()
        self._owed.clear()
        self.given = 0

    def set_aside(self) -> tuple[int, ...]:
        """It stalls: returns what others must be asked for now."""
        orphans = self.on_order
        self._on_order.clear()
        self.aside = True
        self.strikes += 1
        return orphans

    @property
    def due_at(self) -> Seconds | None:
        """When it stalls, if nothing comes before."""
        if not self._on_order:
            return None
        if self.rate is None:
            return self._since + FIRST_SECONDS
        size_bytes = next(iter(self._on_order.values()))
        expected = PATIENCE * size_bytes / self.rate
        return self._since + min(FIRST_SECONDS, max(LEAST_SECONDS, expected))

    def ready_in(self, size_bytes: Bytes) -> Seconds:
        """How long until one more chunk would be here, by the measured rate."""
        assert self.rate is not None
        return (sum(self._on_order.values()) + size_bytes) / self.rate

    def _blend(self, measured: float) -> float:
        assert self.rate is not None
        return NEWEST * measured + (1.0 - NEWEST) * self.rate


def next_source(sources: Iterable[Source], size_bytes: Bytes) -> Source | None:
    """Whom to ask for one more chunk of ``size_bytes``; None: wait for what is on order.

    Every source is tried with one chunk first: what it can do is not known otherwise.
    """
    usable = [source for source in sources if not source.aside]
    if not usable or sum(len(source.on_order) for source in usable) >= IN_FLIGHT:
        return None
    unproved = [source for source in usable if source.rate is None and source.has_room]
    if unproved:
        return min(unproved, key=lambda source: source.peer)
    proved = [source for source in usable if source.rate is not None]
    first = min(proved, key=lambda one: (one.ready_in(size_bytes), one.peer), default=None)
    return first if first is not None and first.has_room else None
