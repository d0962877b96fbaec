"""What a seat keeps of the step it has just committed, for stages that are not through it yet.

    commit(t) here --> all of t goes to a pipeline of its own, which only passes
        |    frames upwards: until every live seat of all stages above has committed t
        |    frames downwards: likewise below; weights t-1: until both are let go
        `--- a member of a stage is lost before: what it had counted is sent again, and what
             died with the seat that kept it is computed again

A SUM that everybody has heard of may still be held by one seat alone. If that seat dies, its
stage must count again what died with it, from frames that its neighbours sent it; and if one
of those has died as well, from what its stage-mates make of the same microbatch once more,
although they have stepped: with the weights that the step began with (DESIGN 5).

Intuition: only the seat that lacks something knows so, and asks upwards for gradients by
sending its input again. Inputs nobody asks for: whoever sent them sees that their counter is
gone. Each stage passes both on, down to the data and up to the loss.

Invariants:
    * at most one step is kept: nobody commits t + 1 before every stage has committed t;
    * what is computed here is added to nothing;
    * what a lost seat had counted is known from the cover in its stage's SUM; no bitmap
      of a past step is listened to;
    * how far the stages are that we do not hear goes from stage to stage in heartbeats, each
      way on its own, so that nobody waits in a circle;
    * nothing here awaits.

Refused: publishing a SUM only when two seats hold it. It costs a round trip in every step,
and a stage with one replica would still lose its step with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.ledger import bytes_to_mask, slots_of
from p2ptrain.core.resuming import Holding
from p2ptrain.units import Microbatch, Slot, Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.agreement import Position, Sum
    from p2ptrain.core.duties import What
    from p2ptrain.engine.committing import Done
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.engine.roster import Roster, Way
    from p2ptrain.units import Bytes, PeerId, Seconds

WAYS: dict[What, Way] = {"forward": "above", "gradient": "below"}


class Past:
    """The last step of one seat: a pipeline that passes, and who may still need it.

    ``settled_now`` is called once, when nobody needs the weights any more.
    """

    def __init__(self, done: Done, pipeline: Pipeline, roster: Roster) -> None:
        self.at: Position = done.at
        self.pipeline = pipeline
        self.custodian = pipeline.custodian
        self._roster = roster
        self._stage = pipeline.stage
        self._sums = done.sums
        self._lost = 0  # stage 0: slots to take from the data again
        self.settled_now: Callable[[], object] = lambda: None
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

    def awaits(self, stage: Stage) -> bool:
        """Whether a stage beside ours may still need something of this step from here."""
        return any(whole.stage == stage for whole in self._awaited.values())

    def handed_over(self, me: PeerId) -> bool:
        """Whether a stage-mate has come through the step as well: its sum outlives us."""
        return any(
            view.version > self.at.step and view.peer != me
            for view in self._roster.present(self._stage)
        )

    # --- what changes -----------------------------------------------------------------------

    def begin(self, now: Seconds) -> None:
        """All of it is counted, as the SUMs say; then look who lives.

        What is parked here still may be what a seat below waits for: it has not stepped, and
        took ours for the copy that will send it its gradient.
        """
        self.custodian.conclude(self.pipeline.shelf.parked() if self._stage else 0, now)
        self.refresh(now)

    def refresh(self, now: Seconds) -> None:
        """Who lives, or how far they are, may have changed."""
        if not self._awaited:
            return
        for what, whole in list(self._awaited.items()):
            if self._through(what, Stage(whole.stage)):
                del self._awaited[what]
                self.custodian.release(what)
            else:
                self._count_out(what, whole, now)
        if self._awaited:
            self._source()
        else:
            self.stop()
            self.settled_now()

    def lost(self, peer: PeerId, now: Seconds) -> None:
        """``peer`` is gone: what it held of this step goes another way."""
        self.refresh(now)
        self.custodian.lost(peer, now)

    def stop(self) -> None:
        """Begin to compute nothing more: the weights go."""
        self.pipeline.passing, self.pipeline.draining = False, True

    def changed(self) -> None:
        """There may be room in the pipeline."""
        for slot in slots_of(self._lost):
            work = Microbatch(self.at.step, Slot(slot))
            if not self.pipeline.holds(work) and not self.pipeline.source(work, replay=True):
                return
            self._lost &= ~(1 << slot)

    @property
    def due_at(self) -> Seconds | None:
        """When :meth:`tick` must run next."""
        first, second = self.custodian.due_at, self.pipeline.book.due_at
        if first is None or (second is not None and second < first):
            return second
        return first

    def tick(self, now: Seconds) -> None:
        """Act on every deadline that has passed."""
        self.custodian.tick(now)
        self.pipeline.book.expire(now=now)

    # --- who needs what ---------------------------------------------------------------------

    def _through(self, what: What, there: Stage) -> bool:
        """Whether every live seat of a stage and of all beyond has committed, newcomers too.

        Else the only one that has could die while another still fetches its sum. A stage that
        nobody serves is not through: it may come back from a disk.
        """
        least = self._roster.least(there, WAYS[what])
        return least > self.at.step and bool(self._roster.present(there))

    def _gone(self, whole: Sum) -> dict[PeerId, int]:
        """The slots that members of a stage had counted who are there no more."""
        live = self._roster.at(Stage(whole.stage), self.at, whole.members)
        return {c.peer: bytes_to_mask(c.slots) for c in whole.cover if c.peer not in live}

    def lacking_above(self) -> int:
        """What the stage above had counted and may have to count again."""
        above = self._awaited.get("forward")
        return 0 if above is None else union(self._gone(above))

    def _count_out(self, what: What, whole: Sum, now: Seconds) -> None:
        for peer, slots in self._gone(whole).items():
            if (what, peer) not in self._missed:
                self._missed.add((what, peer))
                self.custodian.count_out(what, slots, now)

    def _source(self) -> None:
        """Stage 0: what neither the seat that sent it nor the one that counted it has any more.

        All of us take it: it is rare, and whoever has it already says so before it is sent.
        """
        above = self._awaited.get("forward")
        if self._stage == 0 and above is not None and self.pipeline.passing:
            self._lost |= union(self._gone(self._sums[0])) & union(self._gone(above))
            self.changed()


def let_go(stage: Stage, last: Done | None, past: Past | None) -> list[Holding]:
    """The stages beside a seat of ``stage`` that it cannot help to count its last step again.

    It had heard that all of them had taken it. Who came later never kept anything of it.
    """
    if last is None or last.learned:
        return []
    beside = (Stage(one) for one in (stage - 1, stage + 1) if 0 <= one < len(last.sums))
    gone = [one for one in beside if past is None or not past.awaits(one)]
    return [Holding(stage=one, at=last.at) for one in gone]


def union(slots: dict[PeerId, int]) -> int:
    """All slots that any of these had counted."""
    total = 0
    for mask in slots.values():
        total |= mask
    return total
