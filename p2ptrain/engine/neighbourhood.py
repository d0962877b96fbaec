"""Who has a seat beside one of ours, whether they live, and what their coming and going means.

    heartbeat --> roster --> near? --> our seats: who serves, who is further
    anything heard / silence / a broken link --> membership --> our seats: lost, found

A peer is *near* while it serves a stage of ours or one beside it. Only its silence can cost
us anything, so only near peers are judged, and only they get our heartbeats. Everything that
changes near us reaches all of our seats from here, in one order.

Invariants:
    * nobody is judged who is not near; who stops being near is forgotten;
    * whoever is near and counts is judged, from then on if nothing more is heard of it;
    * our seats hear of a loss after the roster does, so that they route around it at once;
    * nothing here awaits, and a seat may close while it is told something.

Refused: each seat watching its own neighbours. Two seats of one peer would judge the same
silence twice, and could differ on who lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from p2ptrain.core.membership import Forgotten, Membership, Restored, Suspected
from p2ptrain.observe import events as ev

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from p2ptrain.core.membership import Event
    from p2ptrain.engine.roster import Roster
    from p2ptrain.engine.seat import SeatRuntime
    from p2ptrain.run import Limits
    from p2ptrain.units import PeerId, Seconds, Stage
    from p2ptrain.wire import messages as m


class Neighbourhood:
    """The peers around this peer's ``seats``; ``changed`` is called when they have news."""

    def __init__(
        self,
        roster: Roster,
        seats: Mapping[Stage, SeatRuntime],
        limits: Limits,
        *,
        emit: ev.Emit,
        changed: Callable[[], None],
    ) -> None:
        self._roster, self._seats = roster, seats
        self._emit, self._changed = emit, changed
        self._membership = Membership(limits)
        self._near: frozenset[PeerId] = frozenset()
        self.own_lag = self._membership.own_lag

    def is_near(self, peer: PeerId) -> bool:
        """Whether ``peer`` has a seat beside one of ours: that it lives matters."""
        return peer in self._near

    @property
    def false_suspicions(self) -> int:
        """How many suspicions were taken back."""
        return self._membership.false_suspicions

    @property
    def due_at(self) -> Seconds | None:
        """When :meth:`tick` must run next."""
        return self._membership.due_at

    def tick(self, now: Seconds) -> None:
        """Suspect whoever has been silent for too long."""
        for event in self._membership.tick(now=now):
            self._judged(event, now)

    # --- what comes from a peer -------------------------------------------------------------

    def heard(self, peer: PeerId, now: Seconds) -> None:
        """Anything at all has come from ``peer``."""
        if peer in self._near:
            for event in self._membership.heard(peer, now=now):
                self._judged(event, now)

    def told(self, peer: PeerId, message: m.Heartbeat, now: Seconds) -> bool:
        """Take a heartbeat over; whether it said anything that matters here."""
        was_near = peer in self._near
        self._roster.begun |= message.begun
        news = self._roster.hear(peer, message.seats)
        if news == "seats":
            self._find_near(now)
            if was_near or peer in self._near:  # else no machine of ours looks at it
                self.refresh(now)
        elif news == "versions" and peer in self._near:
            for seat in self._seats.values():
                if seat.position is not None:
                    seat.advanced(peer, [status.stage for status in message.seats], now)
        elif news == "reach" and peer in self._near:
            self.look_back(now)
        return news != "nothing"

    def look_back(self, now: Seconds) -> None:
        """How far others are has changed: our seats may need their last step no more."""
        for seat in list(self._seats.values()):
            seat.look_back(now)

    def left(self, peer: PeerId, now: Seconds) -> None:
        """``peer`` has said that it goes."""
        self._roster.left(peer)
        self._membership.forget(peer)
        if peer in self._near:  # nobody else holds anything of ours
            self._lost(peer, now)

    def up(self, peer: PeerId, incarnation: int | None, now: Seconds) -> None:
        """A link to ``peer`` is up; another ``incarnation`` has forgotten all that it held."""
        self.heard(peer, now)
        if incarnation is not None and self._roster.incarnated(peer, incarnation):
            for seat in self._seats.values():
                seat.stepper.restarted(peer)
            self._lost(peer, now)
        for seat in self._seats.values():
            seat.stepper.greet(peer)

    def down(self, peer: PeerId, now: Seconds) -> None:
        """The link to ``peer`` broke: a hint, not a verdict.

        Of who is far from our seats nobody will hear whether it lives: the directory's word
        counts again. Without a seat we have only just come: what was said is news.
        """
        self._membership.link_lost(peer, now=now)
        far = bool(self._seats) and peer not in self._near
        if not (far and self._roster.out_of_sight(peer)):
            self._roster.unreached(peer)
        for seat in self._seats.values():
            seat.link_down(peer, now)

    # --- what it means for our seats --------------------------------------------------------

    def refresh(self, now: Seconds) -> None:
        """Who serves what has changed, here or near us."""
        self._find_near(now)
        for seat in list(self._seats.values()):
            if seat.position is not None:
                seat.roster_changed(now)
        self._changed()

    def _find_near(self, now: Seconds) -> None:
        stages = {stage + offset for stage in self._seats for offset in (-1, 0, 1)}
        near = self._roster.near(stages)
        for peer in sorted(self._near - near):
            self._membership.forget(peer)
        for peer in sorted(near - self._near):
            if self._roster.counts(peer):  # it may have died before it became near
                self._membership.heard(peer, now=now)
        self._near = near

    def _judged(self, event: Event, now: Seconds) -> None:
        match event:
            case Suspected(peer=peer, silent_seconds=silent, vanished=vanished):
                self._emit(ev.Suspected(peer=peer, silent_seconds=silent))
                self._roster.lost(peer, vanished=vanished)
                self._lost(peer, now)
            case Restored(peer=peer):
                self._emit(ev.Restored(peer=peer))
                self._roster.found(peer)
                self._find_near(now)
                for seat in list(self._seats.values()):
                    seat.found(peer, now)
                self._changed()
            case Forgotten(peer=peer):
                self._roster.forget(peer)
                self._find_near(now)
                for seat in list(self._seats.values()):
                    seat.forget(peer)
            case _:
                assert_never(event)

    def _lost(self, peer: PeerId, now: Seconds) -> None:
        for seat in list(self._seats.values()):
            seat.lost(peer, now)
        self._changed()
