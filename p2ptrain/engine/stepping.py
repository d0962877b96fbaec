"""Agreement of one seat with the others, step after step: what they say, what it says.

    bitmaps, plans, acks, SUMs --checked--> the round machine (driving)
    who lives, who has stepped --> who counts --> the machine, the neighbours' ledgers
    what mates and neighbours have counted --> what the pipeline may let go

The round machine decides, the driver does what it says, the committer steps. This file
knows what belongs to which position: the present one, the next (kept), the last (answered).

Invariants:
    * a bitmap goes out signed, and only after the accumulator holds what it says;
    * nothing of another history reaches the machine;
    * what comes one step early is kept, one step late answered, and nothing further is either.

Refused: letting the machine see messages of all positions: it is drawn for one step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from p2ptrain.core import rounds as r
from p2ptrain.core.agreement import Nack, Plan, Sum
from p2ptrain.core.schedule import step_slots
from p2ptrain.core.step import StepMachine
from p2ptrain.engine.committing import Committer
from p2ptrain.engine.driving import Driver, step_limits
from p2ptrain.engine.gossip import Gossip
from p2ptrain.engine.sums import Sums
from p2ptrain.units import Stage
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Iterable

    from p2ptrain.core.agreement import Ack, Bitmap, Go, Position
    from p2ptrain.core.duties import What
    from p2ptrain.engine.committing import Done
    from p2ptrain.engine.distrust import Distrust
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.engine.post import Post
    from p2ptrain.observe import events as ev
    from p2ptrain.ports import Buffer, Signer, StageCompute
    from p2ptrain.run import RunSpec
    from p2ptrain.units import PeerId, RunId, Seconds


class Stepper:
    """One seat's part in every step."""

    def __init__(  # noqa: PLR0913 - wired once, in seat; a bundle would be unpacked here
        self,
        *,
        run: RunId,
        spec: RunSpec,
        incarnation: int,
        signer: Signer,
        pipeline: Pipeline,
        compute: StageCompute,
        post: Post,
        emit: ev.Emit,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        live: Callable[[Stage, Position, tuple[PeerId, ...]], frozenset[PeerId]],
        committed: Callable[[Done], None],
        next_seq: Callable[[], int],
        distrust: Distrust,
    ) -> None:
        self.stage = compute.stage
        self._run, self._spec, self._incarnation = run, spec, incarnation
        self._signer, self._pipeline, self._compute = signer, pipeline, compute
        self._post, self._spawn, self._live = post, spawn, live
        self.gossip = Gossip(
            pipeline, post, signer, spec=spec, incarnation=incarnation, next_seq=next_seq
        )
        self._committer = Committer(spec, pipeline, compute, post, emit=emit, committed=committed)
        self._driver = Driver(
            signer.peer,
            pipeline,
            compute,
            self.gossip,
            self._committer,
            post=post,
            emit=emit,
            spawn=spawn,
        )
        self.reducer = self._driver.reducer
        self.sums = Sums(
            self.stage,
            self._driver,
            self._committer,
            post,
            signer=signer,
            incarnation=incarnation,
            distrust=distrust,
        )
        self._members: tuple[tuple[PeerId, ...], ...] = ()
        self._lives: dict[Stage, frozenset[PeerId]] = {}  # who counts, here and beside

    @property
    def machine(self) -> StepMachine | None:
        """The round machine of this step; None before the first and once the seat is closed."""
        return self._driver.machine

    @property
    def last(self) -> Done | None:
        """The last step that this seat has committed."""
        return self._committer.last

    @property
    def live(self) -> frozenset[PeerId]:
        """Seats of our stage that count with us, us among them."""
        return self._lives.get(self.stage, frozenset())

    @property
    def members(self) -> tuple[tuple[PeerId, ...], ...]:
        """Peers of the last step record, per stage."""
        return self._members

    @property
    def ahead(self) -> frozenset[PeerId]:
        """Seats of our stage that count in the step after this one already."""
        return self.gossip.ahead

    @property
    def at(self) -> Position:
        """The position this seat counts at."""
        assert self.machine is not None
        return self.machine.at

    def begin(self, at: Position, members: tuple[tuple[PeerId, ...], ...], now: Seconds) -> None:
        """Take up a step. ``members``: the last step record's peers, per stage."""
        slots = step_slots(self._spec, at.step)
        limits = step_limits(8 * self._compute.elements)
        canonical = self._spec.sync.agreement == "canonical"
        self._members = members
        machine = StepMachine(
            run=self._run,
            me=self._signer.peer,
            incarnation=self._incarnation,
            at=at,
            stage=self.stage,
            stages=self._spec.cut.stages,
            members=members[self.stage],
            expected=slots.mask,
            width=slots.width,
            elements=self._compute.elements,
            limits=limits,
            now=now,
            canonical=canonical,
            hold_seconds=limits.plan_seconds if self.last is None and at.step else 0.0,
            seal=self.sums.seal,
        )
        heard = self.sums.begin(at, canonical=canonical)
        early = self.gossip.begin(at)
        self._lives = {}
        self._driver.begin(machine, frozenset(peer for there in members for peer in there))
        self._committer.begin(now)
        self.refresh_live(now)
        for bitmap in early:
            self._admitted(bitmap, now)
        # an empty bitmap: plans have a place for whoever counted nothing, too
        self._driver.feed(r.Seen(self.gossip.renew()), now)
        self.gossip.tell(machine.leader)
        for peer, whole in heard:
            self.received(peer, whole, now)

    def close(self) -> None:
        """The seat is given up: nothing is said or waited for any more."""
        self._driver.close()
        self.gossip.close()

    # --- what others say --------------------------------------------------------------------

    def bitmap(self, bitmap: Bitmap, now: Seconds) -> None:
        """A bitmap of this stage or a neighbour's; ignored unless it is of our position."""
        if self.gossip.admits(bitmap):
            self._admitted(bitmap, now)

    def _admitted(self, bitmap: Bitmap, now: Seconds) -> None:
        ledgers = self.gossip.ledgers
        if bitmap.stage == self.stage:
            if bitmap.peer != self._signer.peer:
                self._driver.feed(r.Seen(bitmap), now)
                self._stage_changed()
        elif bitmap.stage in ledgers and ledgers[bitmap.stage].observe(bitmap):
            self._neighbour_changed(bitmap.stage, now)

    def received(self, peer: PeerId, message: Plan | Ack | Nack | Go | Sum, now: Seconds) -> None:
        """A message of the round, or a SUM of any stage; from strangers, nothing."""
        if not self._admits(peer, message, now):
            return
        if self.machine is not None and message.at == self.at:
            if isinstance(message, Nack):
                for bitmap in message.bitmaps:
                    self.bitmap(bitmap, now)
            self._driver.feed(r.Received(peer, message), now)
        elif isinstance(message, Sum):
            self.sums.elsewhere(peer, message)
        elif isinstance(message, Plan):
            self.sums.late(peer, message)

    def _admits(self, peer: PeerId, message: m.Control, now: Seconds) -> bool:
        """Whether ``peer`` has a seat, or had one at the last record; and who signed a SUM, too."""
        known = any(peer in there for there in self._members) or peer in self._post.everyone()
        if not known or not isinstance(message, Sum):
            return known
        if self.sums.admits(peer, message, self._members):
            return True
        if self.sums.distrusts(message.publisher):
            self._driver.feed(r.Caught(message.publisher), now)
        return False

    def known_sums(self, at: Position) -> dict[Stage, Sum]:
        """The SUMs that we know of a position, this one or the last."""
        return self.sums.known(at)

    def pull_sum(self, peer: PeerId, message: m.PullSum) -> None:
        """Send our stage's whole sum, if we still hold it."""
        if (whole := self.sums.gives(peer, message.at)) is None:
            reason = f"no sum of step {message.at.step} here"
            self._post.tell(peer, m.NoSuch(what="sum", stage=self.stage, reason=reason))
        else:
            held = lambda: self.sums.held(whole.at) == whole  # noqa: E731 - one word for it
            self._spawn(self.reducer.serve(peer, whole, held))

    def part(self, peer: PeerId, message: m.Part, payload: Buffer) -> None:
        """A part of a reduction."""
        self.reducer.part(peer, message, payload)

    # --- what this peer says ----------------------------------------------------------------

    def counted(self, now: Seconds) -> None:
        """The pipeline's accumulator has changed: sign a new bitmap, gossip it when due."""
        if self.machine is None:
            return
        self._driver.feed(r.Seen(self.gossip.renew()), now)
        self.gossip.counted(self.machine.leader, now)

    def advanced(self, peer: PeerId, stages: Iterable[Stage], now: Seconds) -> None:
        """``peer``, which serves ``stages``, has stepped: it may count from now on.

        It may have parted and gone on, unseen: in the last step record, and yet not counting.
        """
        near = [stage for stage in stages if abs(stage - self.stage) <= 1]
        if not all(peer in self._lives.get(stage, ()) for stage in near):
            self.refresh_live(now)

    def refresh_live(self, now: Seconds) -> None:
        """Who lives has changed (or may have): tell the machine and the ledgers."""
        if self.machine is None:
            return
        at = self.at
        live = self._live(self.stage, at, self._members[self.stage])
        if live != self.live:
            self._lives[self.stage] = live
            self._driver.feed(r.Live(live), now)
            self._stage_changed()
        for stage in sorted(self.gossip.ledgers):
            if 0 <= stage < self._spec.cut.stages:
                there = self._live(stage, at, self._members[stage])
                if there != self._lives.get(stage):
                    self._lives[stage] = there
                    self.gossip.ledgers[stage].set_live(there)
                    self._neighbour_changed(stage, now)

    def greet(self, peer: PeerId) -> None:
        """A link to ``peer`` is up (again): it may have missed our newest bitmap."""
        self.gossip.greet(peer)

    def restarted(self, peer: PeerId) -> None:
        """``peer`` is another incarnation: what it had counted is gone."""
        if self.machine is not None:
            self.machine.ledger.drop(peer)
        for ledger in self.gossip.ledgers.values():
            ledger.drop(peer)

    @property
    def due_at(self) -> Seconds | None:
        """When :meth:`tick` must run next."""
        machine, gossip = self._driver.machine, self.gossip.due_at
        round_ = None if machine is None else machine.due_at
        if gossip is None or round_ is None:
            return round_ if gossip is None else gossip
        return min(gossip, round_)

    def tick(self, now: Seconds) -> None:
        """Act on every deadline that has passed."""
        machine, gossip = self._driver.machine, self.gossip
        if gossip.due_at is not None and now >= gossip.due_at:
            gossip.spread(now)
        if machine is not None and machine.due_at is not None and now >= machine.due_at:
            self._driver.feed(None, now)

    def quiet(self, now: Seconds) -> None:
        """The pipeline may have become quiet: a freeze or a commit may wait for that."""
        self._driver.quiet(now)

    def ask_sums(self, peers: Iterable[PeerId]) -> None:
        """Ask seats that are past this step for its sums."""
        stages = tuple(Stage(stage) for stage in range(self._spec.cut.stages))
        self._post.tell_all(peers, m.WantSums(at=self.at, stages=stages))

    # --- what changes for the pipeline ------------------------------------------------------

    def _stage_changed(self) -> None:
        if self.machine is not None:
            mine = self._signer.peer
            others = 0
            for peer, mask in self.machine.ledger.cover():
                others |= mask if peer != mine else 0
            self._pipeline.counted_elsewhere(others)

    def _neighbour_changed(self, stage: Stage, now: Seconds) -> None:
        what: What = "forward" if stage > self.stage else "gradient"
        ledger = self.gossip.ledgers[stage]
        left = ledger.missing().bit_count()
        self._pipeline.custodian.tallied(what, ledger.union(), now, left=left)
