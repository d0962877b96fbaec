"""What a seat keeps of the step it has just committed, for stages that are not through it yet.

    commit(t) here --> frames of t are kept --> every live seat of the receiving stage has
                             |                  committed t: they are let go
                             `-- a member is lost before: what it had counted is sent again

A SUM that everybody has heard of may still be held by one seat alone. If that seat dies, its
stage must count again what died with it, from the frames that its neighbours sent it: so
these outlive the neighbours' own commit (DESIGN 5: a seat keeps what it sent for step t
until it holds the receiving stage's commit).

Invariants:
    * at most one step is kept: nobody commits t + 1 before every stage has committed t;
    * what the lost seat had counted is known from the cover in its stage's SUM; no bitmap
      of a past step is listened to;
    * nothing here awaits.

Refused: publishing a SUM only when two seats hold it. It costs a round trip in every step,
and a stage with one replica would still lose its step with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.ledger import bytes_to_mask
from p2ptrain.units import Stage

if TYPE_CHECKING:
    from p2ptrain.core.agreement import Position, Sum
    from p2ptrain.core.duties import What
    from p2ptrain.engine.committing import Done
    from p2ptrain.engine.custodian import Custodian
    from p2ptrain.engine.roster import Roster
    from p2ptrain.units import Bytes, PeerId, Seconds


class Past:
    """The last step of one seat: its frames in custody, and which microbatches it counted."""

    def __init__(self, done: Done, custodian: Custodian, counted: int, roster: Roster) -> None:
        self.at: Position = done.at
        self.counted = counted
        self.custodian = custodian
        self._roster = roster
        self._stage = custodian.stage
        self._sums = done.sums
        self._awaited: dict[What, Sum] = {}
        self._missed: set[tuple[What, PeerId]] = set()
        if self._stage + 1 < len(done.sums):
            self._awaited["forward"] = done.sums[self._stage + 1]
        if self._stage > 0:
            self._awaited["gradient"] = done.sums[self._stage - 1]

    @property
    def retained_bytes(self) -> Bytes:
        """What the kept frames take in memory."""
        return self.custodian.frames.memory_bytes

    @property
    def settled(self) -> bool:
        """Whether no other stage can need anything of this step from here."""
        return not self._awaited

    def handed_over(self, me: PeerId) -> bool:
        """Whether a stage-mate has come through the step as well: its sum outlives us."""
        return any(
            view.version > self.at.step and view.peer != me
            for view in self._roster.present(self._stage)
        )

    def begin(self, now: Seconds) -> None:
        """All of it is counted, as the SUMs say; then look who lives."""
        self.custodian.conclude(now)
        self.refresh(now)

    def refresh(self, now: Seconds) -> None:
        """Who lives, or how far they are, may have changed."""
        for what, whole in list(self._awaited.items()):
            if self._through(whole):
                del self._awaited[what]
                self.custodian.release(what)
            else:
                self._count_out(what, whole, now)

    def lost(self, peer: PeerId, now: Seconds) -> None:
        """``peer`` is gone: what it held of this step goes another way."""
        self.refresh(now)
        self.custodian.lost(peer, now)

    def _through(self, whole: Sum) -> bool:
        """Whether every live seat of a stage has committed, newcomers too.

        Else the only one that has could die while another still fetches its sum.
        """
        views = self._roster.present(Stage(whole.stage))
        return bool(views) and all(view.version > self.at.step for view in views)

    def _count_out(self, what: What, whole: Sum, now: Seconds) -> None:
        live = self._roster.at(Stage(whole.stage), self.at, whole.members)
        for counted in whole.cover:
            gone = counted.peer not in live
            if gone and (what, counted.peer) not in self._missed:
                self._missed.add((what, counted.peer))
                self.custodian.count_out(what, bytes_to_mask(counted.slots), now)
