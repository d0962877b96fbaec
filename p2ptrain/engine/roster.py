"""Who serves what, as this peer knows it at first hand, with the directory as a hint.

Heartbeats, commits and departures come from the peers themselves; what the directory
lists is only used to find peers, to choose a stage, and for the rates of those who are far
and send no heartbeats. A peer is live while membership has heard from it lately.

Invariants: versions only grow within an incarnation and an epoch; a new incarnation starts
afresh; who is of another epoch than we serves nothing here until it is of ours; of who
is gone nothing stays for longer than the directory lists it, but how far it had come (departed)
and its last incarnation (an old process of a restarted peer must not be taken for it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from p2ptrain.core.assignment import SeatView
from p2ptrain.engine.departed import Departed
from p2ptrain.engine.listing import at_listed_rates
from p2ptrain.units import Stage, Step

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from p2ptrain.core.agreement import Position
    from p2ptrain.units import PeerId
    from p2ptrain.wire.messages import SeatStatus

INCARNATIONS_MOST = 4096  # as many as there can be links; who was met longest ago goes first

News = Literal["seats", "versions", "reach", "nothing"]
"""Who serves what; or only how far they are: who was behind may count with us now; or how far
those behind them are."""

Way = Literal["above", "below"]


class Roster:
    """Seats by stage; ours among them. ``begun``: somebody has said that the run has."""

    def __init__(self, me: PeerId) -> None:
        self.begun = False
        self._me = me
        self._epoch, self.departed = 0, Departed()
        self._heard: dict[PeerId, dict[Stage, SeatView]] = {}
        self._listed: tuple[SeatView, ...] = ()
        self._dead: dict[PeerId, bool] = {}  # and whether it has vanished
        self._unreached: set[PeerId] = set()  # listed, but no link could be opened
        self._incarnations: dict[PeerId, int] = {}
        self._present: dict[Stage, tuple[SeatView, ...]] = {}  # as asked since the last change
        self._views: tuple[SeatView, ...] | None = None  # likewise
        self._order: list[tuple[Stage, PeerId]] | None = None  # of all seats, whatever their rates
        self._hints: dict[tuple[Stage, PeerId], SeatView] = {}  # of those, as the directory says
        self._beyond: dict[tuple[Stage, Way], Step] = {}  # the most that seats of a stage said

    def hear(self, peer: PeerId, statuses: Iterable[SeatStatus]) -> News:
        """Take over what ``peer`` says of its seats, and tell what is new.

        Rates change all the time and alone are no news.
        """
        self._reached(peer)
        before = self._heard.get(peer, {})
        after: dict[Stage, SeatView] = {}
        for status in statuses:
            known = before.get(status.stage)
            version, parted = status.version, status.state == "parted"
            if known is not None and known.epoch == status.epoch and version < known.version:
                version, parted = known.version, known.parted  # said before what we know
            view = SeatView(
                peer=peer,
                stage=status.stage,
                state="draining" if status.state == "parted" else status.state,
                rate=status.rate,
                version=version,
                least_above=status.least_above,
                least_below=status.least_below,
                epoch=status.epoch,
                parted=parted,
            )
            after[status.stage] = known if known == view else view
        was_dead = peer in self._dead  # who speaks is alive, whatever was thought of it
        if after == before and not was_dead:
            return "nothing"
        closed = before.values() if before.keys() - after.keys() else ()
        self.departed.note(peer, filter(self._ours, closed))
        self._heard[peer] = after
        self._dead.pop(peer, None)
        for stage in (*before, *after):
            self._refresh(stage, before.get(stage), after.get(stage), back=was_dead)
            self._hints.pop((stage, peer), None)
        changed = was_dead or {(s.stage, s.state, s.epoch, s.parted) for s in before.values()} != {
            (s.stage, s.state, s.epoch, s.parted) for s in after.values()
        }
        self._views, self._order = None, None if changed else self._order
        if changed:
            return "seats"
        if any(seat.version != before[stage].version for stage, seat in after.items()):
            return "versions"
        reached = any(reach_of(seat) != reach_of(before[stage]) for stage, seat in after.items())
        return "reach" if reached else "nothing"

    def begin_anew(self, epoch: int) -> None:
        """We are of another lineage now: whoever is not yet serves nothing."""
        self._epoch, self.departed = epoch, Departed()
        self._beyond.clear()
        self._forget()

    def incarnated(self, peer: PeerId, incarnation: int) -> bool:
        """Whether ``peer`` has restarted since we last met it."""
        known = self._incarnations.pop(peer, None)
        self._incarnations[peer] = incarnation
        if len(self._incarnations) > INCARNATIONS_MOST:
            del self._incarnations[next(iter(self._incarnations))]
        if known is None or known == incarnation:
            return False
        self.departed.note(peer, filter(self._ours, self._heard.pop(peer, {}).values()))
        self._forget()
        return True

    def counts(self, peer: PeerId) -> bool:
        """Whether ``peer`` has told us of its seats, and is not taken for dead."""
        return peer in self._heard and peer not in self._dead

    def has_met(self, peer: PeerId) -> bool:
        """Whether ``peer`` is us, has been heard, or could not be reached lately."""
        met = (self._heard, self._dead, self._unreached, self._incarnations)
        return peer == self._me or any(peer in known for known in met)

    def lost(self, peer: PeerId, *, vanished: bool = False) -> None:
        """``peer`` is suspected: it does not count until it is heard again."""
        self._dead[peer] = vanished
        self._forget()

    def vanished(self, stage: Stage) -> bool:
        """Whether all who served ``stage`` last died, and none only fell silent."""
        dead = self._dead.items()
        how = [gone for peer, gone in dead if stage in self._heard.get(peer, ())]
        return bool(how) and all(how)

    def found(self, peer: PeerId) -> None:
        """``peer`` was suspected falsely."""
        self._dead.pop(peer, None)
        self._forget()

    def forget(self, peer: PeerId) -> None:
        """``peer`` would come back as a stranger; how far it had come stays known."""
        self.departed.note(peer, filter(self._ours, self._heard.pop(peer, {}).values()))
        self._prune()
        self._forget()

    def out_of_sight(self, peer: PeerId) -> bool:
        """Nobody listens to ``peer`` any more: whether we had its own word until now."""
        ours = self.counts(peer)
        if ours:
            self.forget(peer)
        return ours

    def unreached(self, peer: PeerId) -> None:
        """No link to ``peer`` could be opened: its record may outlive it by a minute.

        Until it is heard it does not count, or newcomers would go where the dead are not.
        """
        if peer not in self._heard and peer not in self._unreached:
            self._unreached.add(peer)
            self._views = self._order = None

    def left(self, peer: PeerId) -> None:
        """``peer`` went in an orderly way; how far it had come stays known."""
        self._dead[peer] = False
        self.departed.note(peer, filter(self._ours, self._heard.pop(peer, {}).values()))
        self._forget()
        self._listed = tuple(seat for seat in self._listed if seat.peer != peer)

    def list(self, seats: Iterable[SeatView]) -> None:
        """What the directory lists, whole."""
        if (listed := tuple(seats)) != self._listed:
            self._listed = listed
            self._prune()
            self._forget()

    def serving(self, stage: Stage) -> tuple[SeatView, ...]:
        """Live seats of ``stage`` that we have heard of at first hand, by peer."""
        return tuple(seat for seat in self.present(stage) if seat.state == "serving")

    def present(self, stage: Stage) -> tuple[SeatView, ...]:
        """Live seats of ``stage`` that count: serving, or draining until the step's end."""
        if stage not in self._present:
            here = [(peer, views[stage]) for peer, views in self._heard.items() if stage in views]
            self._present[stage] = tuple(
                view
                for peer, view in sorted(here)
                if peer not in self._dead and view.state != "joining" and self._ours(view)
            )
        return self._present[stage]

    def at(self, stage: Stage, at: Position, members: tuple[PeerId, ...]) -> frozenset[PeerId]:
        """Live seats that count at ``at``: there, in the last record and on their way, or past it.

        A seat that is past the step, or has parted then, stands for what it counted in it.
        """
        return frozenset(
            seat.peer
            for seat in self.present(stage)
            if seat.version > at.step
            or (not seat.parted and (seat.version == at.step or seat.peer in members))
        )

    def least(self, stage: Stage, way: Way) -> Step:
        """The least version of ``stage`` and of all stages beyond it, as far as is known.

        Of what lies beyond, every seat there knows something, none too much: the most is true,
        and stays so when the one who said it has left.
        """
        views = self.present(stage)
        far = (view.least_above if way == "above" else view.least_below for view in views)
        beyond = self._beyond[stage, way] = max((self._beyond.get((stage, way), Step(0)), *far))
        return min((beyond, *(view.version for view in views)))

    def beside(self, stage: Stage, stages: int, own: Step) -> dict[Way, Step]:
        """How far all stages are on each side of ``stage``; ``own`` where there are none."""
        above = self.least(Stage(stage + 1), "above") if stage + 1 < stages else own
        return {"above": above, "below": self.least(Stage(stage - 1), "below") if stage else own}

    def views(self) -> tuple[SeatView, ...]:
        """Seats of our epoch, first hand over directory, without the dead; by stage and peer."""
        if self._views is None:
            self._views = tuple(view for view in self.of_all_epochs() if self._ours(view))
        return self._views

    def of_all_epochs(self) -> tuple[SeatView, ...]:
        """Everything known of the living, whatever lineage they are of; by stage and peer."""
        hints, heard, order = self._hints, self._heard, self._order
        if order is None:
            known = heard.keys() | self._dead.keys() | self._unreached
            listed = (seat for seat in self._listed if seat.peer not in known)
            hints = self._hints = {(seat.stage, seat.peer): seat for seat in listed}
            living = [(peer, views) for peer, views in heard.items() if peer not in self._dead]
            told = [(stage, peer) for peer, views in living for stage in views]
            order = self._order = sorted([*hints, *told])
            near = {stage + offset for stage in heard.get(self._me, {}) for offset in (-1, 0, 1)}
            far = {peer: views for peer, views in living if near and near.isdisjoint(views)}
            hints.update({(s.stage, s.peer): s for s in at_listed_rates(self._listed, far)})
        return tuple([hints[key] if key in hints else heard[key[1]][key[0]] for key in order])

    def furthest(self) -> Step:
        """The highest version that a peer has told us itself; the directory's word is a hint."""
        told = (view for views in self._heard.values() for view in views.values())
        return max((self.departed.furthest, *(view.version for view in told if self._ours(view))))

    def callable_seats(self) -> tuple[SeatView, ...]:
        """Whom to open links to: also who could not be reached, or was lost, while it is listed.

        Two sides of a partition have lost each other, and their links; only the directory, which
        heals with it, still names the others.
        """
        gone = self._unreached | self._dead.keys()
        return (*self.of_all_epochs(), *(seat for seat in self._listed if seat.peer in gone))

    def serves(self, peer: PeerId, stage: Stage) -> bool:
        """Whether ``peer`` has said, or the directory says, that it has a seat of ``stage``."""
        listed = any(seat.peer == peer and seat.stage == stage for seat in self._listed)
        return listed or stage in self._heard.get(peer, {})

    def everyone(self) -> tuple[PeerId, ...]:
        """All peers with a seat, without us, of whatever lineage."""
        return tuple(sorted({seat.peer for seat in self.of_all_epochs()} - {self._me}))

    def covered(self, stages: int, replicas: int) -> bool:
        """Whether every stage has at least ``replicas`` serving seats, as far as is known."""
        counts = [0] * stages
        for seat in self.views():
            if seat.state == "serving" and seat.stage < stages:
                counts[seat.stage] += 1
        return min(counts) >= replicas

    def near(self, stages: Collection[int]) -> frozenset[PeerId]:
        """Who has a seat of ``stages``, suspects included: only who is listened to comes back."""
        wanted = frozenset(stages)
        heard = {peer for peer, views in self._heard.items() if not wanted.isdisjoint(views)}
        listed = {seat.peer for seat in self._listed if seat.stage in stages}
        strangers = listed - self._heard.keys() - self._dead.keys()
        return frozenset((heard | strangers) - {self._me})

    def _refresh(
        self, stage: Stage, before: SeatView | None, after: SeatView | None, *, back: bool
    ) -> None:
        """Keep the list of ``stage``: put a seat that stays in its own place, else forget it."""
        listed = self._present.get(stage)
        if listed is None:
            return
        same = before and after and (before.state, before.epoch) == (after.state, after.epoch)
        if back or not same or after is None:
            del self._present[stage]
        elif before is not after:
            self._present[stage] = tuple(after if view is before else view for view in listed)

    def _reached(self, peer: PeerId) -> None:
        if peer in self._unreached:
            self._unreached.discard(peer)
            self._order = None

    def _prune(self) -> None:
        """A mark on who is not known and not listed says nothing."""
        listed = {seat.peer for seat in self._listed}
        known = listed | self._heard.keys()
        self._dead = {peer: gone for peer, gone in self._dead.items() if peer in known}
        self._unreached &= listed

    def _ours(self, view: SeatView) -> bool:
        """Who only comes is on its way to our lineage; what it loads is checked."""
        return view.epoch == self._epoch or view.state == "joining"

    def _forget(self) -> None:
        self._present.clear()
        self._views = self._order = None


def reach_of(seat: SeatView) -> tuple[Step, Step]:
    """How far the stages on both sides are, it says."""
    return seat.least_above, seat.least_below
