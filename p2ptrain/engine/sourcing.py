"""Which microbatches this seat of stage 0 takes from the data, and when.

    what is mine --window--> the pipeline
    nothing left --WantSlots--> a stage-mate that has --GiveSlots--> mine
    a mate asks --> what has not begun here goes to it
    giving the seat up --> nothing more is taken; all that has not begun waits for mates to ask

Every seat of stage 0 can source every microbatch; core/sourcing says whose each is. The
order is the same everywhere, so nobody needs to be asked before the end of one's share.
Views may differ for a while: then a microbatch is sourced twice (work lost, nothing else),
or by nobody, which patience cures: the k-th seat in order takes what is still missing after
k patiences without any progress of the stage.

Bounds: one question is under way at a time; who had nothing to give is left alone for a
while; a question that gets no answer is forgotten after ANSWER_SECONDS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core.ledger import bytes_to_mask, mask_to_bytes, slots_of
from p2ptrain.core.sourcing import Shares, part_for
from p2ptrain.units import Microbatch, Slot, Stage
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from p2ptrain.core.agreement import Position
    from p2ptrain.core.schedule import StepSlots
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.engine.post import Post
    from p2ptrain.units import PeerId, RunId, Seconds

PATIENCE_SECONDS = 15.0  # no progress for so long: a live owner is stuck (several suspicions)
ROUNDING = 1e-6  # of a patience: the timer may fire a float's last bit early
PATIENCE_STEPS = 3.0  # ... or three of the last step's durations, whichever is longer
ANSWER_SECONDS = 3.0  # a mate's loop answers, never behind compute
POOR_SECONDS = 5.0  # who had nothing to give is asked again after so long: a taker may have died
LOW_SLOTS = 2  # ask when so few are left to begin: the answer comes before they have


class Sourcer:
    """Feeds one stage-0 pipeline with the microbatches that are its own.

    ``rate``: the announced rate of a stage-mate or of this seat; 0 is unknown.
    """

    def __init__(
        self,
        run: RunId,
        me: PeerId,
        pipeline: Pipeline,
        post: Post,
        *,
        rate: Callable[[PeerId], float] = lambda _peer: 0.0,
    ) -> None:
        self._run, self._me, self._pipeline, self._post = run, me, pipeline, post
        self._rate = rate
        self._at: Position | None = None
        self._shares: Shares | None = None
        self._slots: StepSlots | None = None
        self._pending = 0  # mine to source and not here yet
        self._retiring = False
        self._live: frozenset[PeerId] = frozenset()
        self._union = 0  # counted by somebody who lives
        self._patience = PATIENCE_SECONDS
        self._moved_at = 0.0  # when a seat of the stage was last heard to have computed one
        self._counted = 0  # every slot that was ever counted in this step
        self._computed: dict[PeerId, int] = {}  # what each seat ever computed in this step
        self._asked: tuple[PeerId, Seconds] | None = None  # whom, and until when it may answer
        self._poor: dict[PeerId, Seconds] = {}  # who had nothing to give, and until when
        self.due_at: Seconds | None = None

    def begin(
        self,
        at: Position,
        slots: StepSlots,
        members: Sequence[tuple[PeerId, float]],
        *,
        now: Seconds,
        last_seconds: Seconds,
    ) -> None:
        """A new step. ``members``: (peer, weight) of stage 0 in the last step record."""
        self._at, self._slots = at, slots
        everybody = members or ((self._me, 1.0),)
        self._shares = Shares(self._run, self._me, at.step, list(slots), everybody)
        self._patience = max(PATIENCE_SECONDS, PATIENCE_STEPS * last_seconds)
        self._moved_at, self._counted, self._pending, self._union = now, 0, 0, 0
        self._computed = {}
        self._asked, self._poor = None, {}

    def stop(self) -> None:
        """Nothing is to be sourced until the next begin."""
        self._at = self._shares = self.due_at = None
        self._pending = 0

    def refresh(
        self,
        live: frozenset[PeerId],
        union: int,
        now: Seconds,
        *,
        computed: Iterable[tuple[PeerId, int]],
        retiring: bool = False,
    ) -> None:
        """Who lives, or what is counted, has changed: see what is ours to source now.

        ``computed``: by each live seat, of what it counts. ``retiring``: the seat is being given
        up, and mates serve on.
        """
        # Long steps are no sign of a stuck owner, nor is making good a loss; standstill is. A slot
        # counts once for each seat: whoever comes and goes, or lies, cannot delay this for ever.
        for peer, slots in computed:
            known = self._computed.get(peer, 0)
            if slots & ~known:
                self._moved_at, self._computed[peer] = now, known | slots
        self._counted |= union
        self._live, self._union = live, union
        shares = self._shares
        if shares is None:
            return
        shares.set_live(live)
        waited = int((now - self._moved_at) / self._patience + ROUNDING)
        self._retiring = retiring and not waited  # nobody asked, or who did stands still
        self._pending = shares.fallen_to(waited) if waited else shares.mine()
        self._pending &= ~union
        self.due_at = self._moved_at + (waited + 1) * self._patience
        if self._retiring:
            self._pipeline.shelf.drop_waiting(
                shares.givable(self._pipeline.shelf.sourced_waiting())
            )
        self.feed(now)

    def feed(self, now: Seconds) -> None:
        """Take as many as the bound allows, oldest first; near the end ask for more."""
        shares, at = self._shares, self._at
        if shares is None or at is None:
            return
        above = self._pipeline.custodian.duties.counted_there("forward")  # nobody waits for these
        through = self._source(shares, at, self._pending & ~above)
        self._source(shares, at, self._pending & above, spare=True)
        if through and not self._retiring:
            self._want(shares, at, now)

    def _source(self, shares: Shares, at: Position, slots: int, *, spare: bool = False) -> bool:
        """Take these until there is no room; False: some are left without."""
        left = shares.givable(self._pending) if self._retiring else 0
        for slot in slots_of(slots):
            work = Microbatch(at.step, Slot(slot))
            if not self._pipeline.holds(work):
                if left >> slot & 1:
                    continue
                again = not shares.is_first_choice(slot) or bool(self._counted >> slot & 1)
                if not self._pipeline.source(work, replay=again, spare=spare):
                    return False
            self._pending &= ~(1 << slot)
        return True

    # --- handing on ---------------------------------------------------------------------------

    def hear(self, peer: PeerId, message: m.WantSlots | m.GiveSlots, now: Seconds) -> None:
        """A stage-mate asks or answers; of another step, nothing is done."""
        if message.at != self._at:
            return
        if isinstance(message, m.WantSlots):
            self._hand_on(peer, message, now)
        else:
            self._take(peer, message, now)

    def _hand_on(self, peer: PeerId, message: m.WantSlots, now: Seconds) -> None:
        """A stage-mate has nothing left: hand it a part of what has not begun here."""
        shares, slots = self._shares, self._slots
        if shares is None or slots is None:
            return
        waiting = self._pipeline.shelf.sourced_waiting()
        unbegun = self._pending | waiting
        unbegun = unbegun & ~self._pipeline.custodian.duties.counted_there("forward") or unbegun
        part = 1.0 if self._retiring else part_for(self._rate(peer), self._rate(self._me))
        given = shares.give(peer, unbegun, room=message.room, part=part)
        self._pipeline.shelf.drop_waiting(given & waiting)
        self._pending &= ~given
        answer = m.GiveSlots(at=message.at, slots=mask_to_bytes(given, slots.width))
        self._post.tell(peer, answer)
        self.feed(now)

    def _take(self, peer: PeerId, message: m.GiveSlots, now: Seconds) -> None:
        """A stage-mate has handed us a part of its own."""
        if self._shares is None:
            return
        before = self._shares.mine()
        self._shares.take(bytes_to_mask(message.slots))
        new = self._shares.mine() & ~before
        if self._asked is not None and self._asked[0] == peer:
            self._asked = None
        if not new:
            self._poor[peer] = now + POOR_SECONDS
        self._pending |= new & ~self._union
        self.feed(now)

    def _want(self, shares: Shares, at: Position, now: Seconds) -> None:
        """Ask the mate with most left, if nothing waits here and there is place."""
        if self._asked is not None and now < self._asked[1]:
            return
        pipeline, room = self._pipeline, self._pipeline.book.source_room
        unbegun = pipeline.shelf.sourced_waiting()
        if pipeline.corpus is None or not room or unbegun.bit_count() > LOW_SLOTS:
            return
        self._poor = {peer: until for peer, until in self._poor.items() if until > now}
        mates = set(self._post.seats(Stage(0))) & self._live
        away = [peer for peer in shares.owners() if peer not in mates]
        # Who has some to spare of its own (core/sparing) helps only with what comes before that.
        done = self._union | (
            pipeline.custodian.duties.counted_there("forward") if self._pending else 0
        )
        richest = shares.richest(done, but=[*self._poor, *away])
        if richest is not None:
            self._asked = (richest, now + ANSWER_SECONDS)
            self._post.tell(richest, m.WantSlots(at=at, room=room))
