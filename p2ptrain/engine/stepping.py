"""Agreement of one seat with the others, step after step: feeds core/step, does what it says.

The round machine decides; this file gossips bitmaps, freezes the pipeline, runs reductions
as tasks, publishes sums, and commits. What a committed step leaves behind (its sums, the
whole integer sum) is kept until the next commit, for seats that are one step behind.

Invariants:
    * a bitmap goes out signed, and only after the accumulator holds what it says;
    * the machine's actions are performed in the order in which it gave them;
    * compute steps only when the pipeline is frozen and quiet.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from p2ptrain.core import rounds as r
from p2ptrain.core.agreement import Ack, Ballot, Bitmap, Go, Nack, Plan, Position, Sum
from p2ptrain.core.chain import next_chain, step_outcome
from p2ptrain.core.ledger import mask_to_bytes
from p2ptrain.core.schedule import step_slots
from p2ptrain.core.step import StepMachine
from p2ptrain.engine import worker
from p2ptrain.engine.gossip import Gossip
from p2ptrain.engine.reduction import Reducer
from p2ptrain.errors import LinkError, MisbehaviourError
from p2ptrain.observe import events as ev
from p2ptrain.ports import Update
from p2ptrain.units import Stage
from p2ptrain.wire import messages as m
from p2ptrain.wire.records import CommitRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from p2ptrain.core.chain import StepOutcome
    from p2ptrain.core.duties import What
    from p2ptrain.engine.custodian import Post
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.ports import Buffer, Signer, StageCompute, Whole
    from p2ptrain.run import RunSpec
    from p2ptrain.units import Chain, PeerId, RunId, Seconds

REDUCE_SECONDS = 15.0  # for the compute that is running and the round trips of a reduction
REDUCE_BYTES_PER_SECOND = 1.25e6  # 10 Mbit/s: slower lines cannot take part in exact steps
FETCH_SECONDS = 60.0  # one stage's sum over a slow link: 4 GB at 500 Mbit/s


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A step that this seat has committed."""

    at: Position
    sums: tuple[Sum, ...]
    outcome: StepOutcome
    chain: Chain  # after it

    def record(self) -> CommitRecord:
        """What the directory is told of it."""
        return CommitRecord(
            epoch=self.at.epoch,
            step=self.at.step,
            chain=self.chain,
            loss=self.outcome.loss,
            val_loss=self.outcome.val_loss,
        )


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
    ) -> None:
        self.stage = compute.stage
        self.reducer = Reducer(signer.peer, compute, post, unsent=self._unsent)
        self.machine: StepMachine | None = None
        self.last: Done | None = None  # what we can still give to seats one step behind
        self._run, self._spec, self._incarnation = run, spec, incarnation
        self._signer, self._pipeline, self._compute = signer, pipeline, compute
        self._post, self._emit, self._spawn = post, emit, spawn
        self._live, self._committed = live, committed
        self._gossip = Gossip(
            pipeline, post, signer, spec=spec, incarnation=incarnation, next_seq=next_seq
        )
        self._nominal_tokens = spec.batch.sequences * spec.model.context
        self._task: asyncio.Task[None] | None = None
        self._events: deque[r.Event | None] = deque()
        self._early_sums: dict[Stage, tuple[PeerId, Sum]] = {}
        self._quiet_owed = False
        self._became_quiet = asyncio.Event()
        self._began = 0.0
        self._members: tuple[tuple[PeerId, ...], ...] = ()
        self._lives: dict[Stage, frozenset[PeerId]] = {}  # who counts, here and beside
        self._last_commit: Seconds | None = None

    @property
    def live(self) -> frozenset[PeerId]:
        """Seats of our stage that count with us, us among them."""
        return self._lives.get(self.stage, frozenset())

    @property
    def members(self) -> tuple[tuple[PeerId, ...], ...]:
        """Peers of the last step record, per stage."""
        return self._members

    @property
    def at(self) -> Position:
        """The position this seat counts at."""
        assert self.machine is not None
        return self.machine.at

    def begin(self, at: Position, members: tuple[tuple[PeerId, ...], ...], now: Seconds) -> None:
        """Take up a step. ``members``: the last step record's peers, per stage."""
        slots = step_slots(self._spec, at.step)
        self._members = members
        self.machine = StepMachine(
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
            limits=step_limits(8 * self._compute.elements),
            now=now,
        )
        early = self._gossip.begin(at)
        self._quiet_owed, self._began, self._lives = False, now, {}
        self.refresh_live(now)
        for bitmap in early:
            self._admitted(bitmap, now)
        # an empty bitmap: plans have a place for whoever counted nothing, too
        self._handle(r.Seen(self._gossip.renew()), now)
        self._gossip.tell(self.machine.leader)
        sums, self._early_sums = self._early_sums, {}
        for _, (peer, whole) in sorted(sums.items()):
            self.received(peer, whole, now)

    def close(self) -> None:
        """The seat is given up: nothing is said or waited for any more."""
        self._cancel()
        self._gossip.close()
        self.machine = None
        self._events.clear()

    # --- what others say --------------------------------------------------------------------

    def bitmap(self, bitmap: Bitmap, now: Seconds) -> None:
        """A bitmap of this stage or a neighbour's; ignored unless it is of our position."""
        if self._gossip.admits(bitmap):
            self._admitted(bitmap, now)

    def _admitted(self, bitmap: Bitmap, now: Seconds) -> None:
        ledgers = self._gossip.ledgers
        if bitmap.stage == self.stage:
            if bitmap.peer != self._signer.peer:
                self._handle(r.Seen(bitmap), now)
                self._stage_changed()
        elif bitmap.stage in ledgers and ledgers[bitmap.stage].observe(bitmap):
            self._neighbour_changed(bitmap.stage, now)

    def received(self, peer: PeerId, message: Plan | Ack | Nack | Go | Sum, now: Seconds) -> None:
        """A message of the round, or a SUM of any stage."""
        if self.machine is not None and message.at == self.at:
            if isinstance(message, Nack):
                for bitmap in message.bitmaps:
                    self.bitmap(bitmap, now)
            self._handle(r.Received(peer, message), now)
        elif isinstance(message, Sum):
            if self.machine is not None and message.at.step == self.at.step + 1:
                self._early_sums[message.stage] = (peer, message)
        elif isinstance(message, Plan) and self.last is not None and message.at == self.last.at:
            self._post.tell(peer, self.last.sums[self.stage])  # the adopt rule, one step late

    def known_sums(self, at: Position) -> dict[Stage, Sum]:
        """The SUMs that we know of a position, this one or the last."""
        if self.machine is not None and at == self.at:
            return self.machine.sums
        if self.last is not None and at == self.last.at:
            return {whole.stage: whole for whole in self.last.sums}
        return {}

    def pull_sum(self, peer: PeerId, message: m.PullSum) -> None:
        """Send our stage's whole sum, if we still hold it."""
        whole = self._held_sum(message.at)
        if whole is None:
            reason = f"no sum of step {message.at.step} here"
            self._post.tell(peer, m.NoSuch(what="sum", stage=self.stage, reason=reason))
        else:
            self._spawn(self.reducer.serve(peer, whole))

    def part(self, peer: PeerId, message: m.Part, payload: Buffer) -> None:
        """A part of a reduction."""
        self.reducer.part(peer, message, payload)

    # --- what this peer says ----------------------------------------------------------------

    def counted(self, now: Seconds) -> None:
        """The pipeline's accumulator has changed: sign a new bitmap, gossip it when due."""
        if self.machine is None:
            return
        self._handle(r.Seen(self._gossip.renew()), now)
        self._gossip.counted(self.machine.leader, now)

    def advanced(self, peer: PeerId, stages: Iterable[Stage], now: Seconds) -> None:
        """``peer``, which serves ``stages``, has stepped: it may count from now on.

        Whoever is in the last step record counts wherever it stands, so nothing is new.
        """
        if self.machine is None:
            return
        near = [stage for stage in stages if abs(stage - self.stage) <= 1]
        if not all(peer in self._members[stage] for stage in near):
            self.refresh_live(now)

    def refresh_live(self, now: Seconds) -> None:
        """Who lives has changed (or may have): tell the machine and the ledgers."""
        if self.machine is None:
            return
        at = self.at
        live = self._live(self.stage, at, self._members[self.stage])
        if live != self.live:
            self._lives[self.stage] = live
            self._handle(r.Live(live), now)
            self._stage_changed()
        for stage in sorted(self._gossip.ledgers):
            if 0 <= stage < self._spec.cut.stages:
                there = self._live(stage, at, self._members[stage])
                if there != self._lives.get(stage):
                    self._lives[stage] = there
                    self._gossip.ledgers[stage].set_live(there)
                    self._neighbour_changed(stage, now)

    def greet(self, peer: PeerId) -> None:
        """A link to ``peer`` is up (again): it may have missed our newest bitmap."""
        self._gossip.greet(peer)

    def restarted(self, peer: PeerId) -> None:
        """``peer`` is another incarnation: what it had counted is gone."""
        if self.machine is not None:
            self.machine.ledger.drop(peer)
        for ledger in self._gossip.ledgers.values():
            ledger.drop(peer)

    @property
    def due_at(self) -> Seconds | None:
        """When :meth:`tick` must run next."""
        gossip, round_ = self._gossip.due_at, None if self.machine is None else self.machine.due_at
        if gossip is None or round_ is None:
            return round_ if gossip is None else gossip
        return min(gossip, round_)

    def tick(self, now: Seconds) -> None:
        """Act on every deadline that has passed."""
        machine, gossip = self.machine, self._gossip
        if gossip.due_at is not None and now >= gossip.due_at:
            gossip.spread(now)
        if machine is not None and machine.due_at is not None and now >= machine.due_at:
            self._handle(None, now)

    def quiet(self, now: Seconds) -> None:
        """The pipeline may have become quiet: the machine waits for that after Freeze."""
        if not self._pipeline.quiet:
            return
        self._became_quiet.set()
        if self._quiet_owed:
            self._quiet_owed = False
            self._handle(r.Quiet(), now)

    # --- doing ------------------------------------------------------------------------------

    def _handle(self, event: r.Event | None, now: Seconds) -> None:
        """Feed one event (None: a deadline); what its actions cause waits until all are done."""
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events and self.machine is not None:
            machine = self.machine
            before = machine.round
            first = self._events[0]
            actions = machine.tick(now=now) if first is None else machine.handle(first, now=now)
            self._perform(actions, now)
            self._note_round(machine, before)
            if self._events:  # none, if an action has closed the seat
                self._events.popleft()

    def _note_round(self, machine: StepMachine, before: int) -> None:
        if machine.round != before:
            began = ev.RoundBegan(
                stage=self.stage,
                step=machine.at.step,
                round=machine.round,
                leader=machine.leader or self._signer.peer,
                reason=machine.reason,
            )
            self._emit(began)
            self._gossip.tell(machine.leader)

    def _perform(self, actions: tuple[r.Action, ...], now: Seconds) -> None:
        for action in actions:
            self._act(action, now)

    def _act(self, action: r.Action, now: Seconds) -> None:  # noqa: C901, PLR0912 - one arm per action
        match action:
            case r.Send(to, message):
                if isinstance(message, Ack) and self.machine and self.machine.plan:
                    self.reducer.expect(self.machine.plan)
                self._post.tell_all(to, message)
            case r.Freeze():
                self._pipeline.frozen = True
                self._quiet_owed = True
                self.quiet(now)
            case r.Unfreeze():
                self._pipeline.frozen = False
                self._quiet_owed = False
                self._pipeline.on_change()
            case r.Subtract(mask):
                self._start(worker.subtract(self._pipeline, self._compute, mask))
            case r.Reduce(plan):
                self._start(self._reduce(plan))
            case r.AbortReduce():
                self._cancel()
            case r.FetchSum(holder, whole):
                self._start(self._fetch(holder, whole))
            case r.Publish(whole):
                self._publish(whole)
            case r.WantSums(stages):
                self._want(stages)
            case r.Commit(sums):
                self._gossip.due_at = None  # nobody waits for our count any more
                self._cancel()
                self._start(self._commit(sums))
            case r.Alarm(reason):
                self._emit(ev.Alarm(reason=reason))

    def _start(self, job: Coroutine[None, None, None]) -> None:
        """Run the seat's one background job; the machine never wants two at once."""
        self._cancel()
        self._task = self._spawn(job)

    def _cancel(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()
        self._task = None

    async def _reduce(self, plan: Plan) -> None:
        whole = await self.reducer.reduce(plan)
        self._reduced(whole, plan.ballot.round)

    def _unsent(self, ballot: Ballot, peer: PeerId) -> None:
        """A member cannot be given what it needs: this reduction will not end."""
        plan = self.machine.plan if self.machine is not None else None
        if plan is not None and plan.ballot == ballot:
            self._cancel()
            self._handle(r.ReduceFailed(ballot, f"no part reaches {peer}"), _now())

    async def _fetch(self, holder: PeerId, announced: Sum) -> None:
        try:
            whole = await self.reducer.fetch(holder, announced, deadline_seconds=FETCH_SECONDS)
        except (LinkError, MisbehaviourError, TimeoutError) as error:
            self._task = None
            self._handle(r.FetchFailed(holder, str(error) or "no answer"), _now())
            return
        self._reduced(whole, announced.round)

    def _reduced(self, whole: Whole, round_: int) -> None:
        self._task = None  # what the machine wants next must not cancel its own cause
        outcome = r.Outcome(digest=whole.digest, norms=whole.norms, finite=whole.finite)
        self._handle(r.Reduced(outcome, round_), _now())

    async def _commit(self, sums: tuple[Sum, ...]) -> None:
        """Step. Cancelled here, the seat is closing; its weights are not used again."""
        assert self.machine is not None
        at, pipeline = self.machine.at, self._pipeline
        pipeline.frozen = True
        while not pipeline.quiet:  # a job of this seat is being computed; it is wasted
            self._became_quiet.clear()
            await self._became_quiet.wait()
        outcome = step_outcome(sums, self._nominal_tokens)
        update = Update(step=at.step, tokens=outcome.tokens, norms=outcome.norms, skip=outcome.skip)
        await self._compute.step(update)
        chain = next_chain(at.chain, at.epoch, at.step, sums)
        self.last = Done(at=at, sums=sums, outcome=outcome, chain=chain)
        self._record(self.last)
        self._committed(self.last)

    def _record(self, done: Done) -> None:
        now, at, outcome = _now(), done.at, done.outcome
        own = done.sums[self.stage]
        slots = step_slots(self._spec, at.step)
        event = ev.StepCommitted(
            epoch=at.epoch,
            stage=self.stage,
            step=at.step,
            chain=done.chain,
            digest=own.digest,
            cover=own.cover,
            expected=mask_to_bytes(slots.mask, slots.width),
            loss=outcome.loss,
            val_loss=outcome.val_loss,
            skipped=outcome.skip,
            tokens=outcome.tokens,
            seconds=now - (self._last_commit if self._last_commit is not None else self._began),
        )
        activity = ev.Activity(
            stage=self.stage,
            step=at.step,
            seconds=event.seconds,
            computing_seconds=self._pipeline.computing_seconds,
            offers=self._pipeline.offers,
            busy=self._pipeline.busies,
        )
        self._last_commit = now
        self._emit(event)
        self._emit(activity)

    def _publish(self, whole: Sum) -> None:
        published = ev.SumPublished(
            stage=self.stage, step=whole.at.step, digest=whole.digest, round=whole.round
        )
        self._emit(published)
        # to everybody, and to ourselves: our other seats need it
        members = {peer for stage in self._members for peer in stage}
        self._post.tell_all(members.union(self._post.everyone(), whole.members), whole)

    def ask_sums(self, peers: Iterable[PeerId]) -> None:
        """Ask seats that are past this step for its sums."""
        stages = tuple(Stage(stage) for stage in range(self._spec.cut.stages))
        self._post.tell_all(peers, m.WantSums(at=self.at, stages=stages))

    def _want(self, stages: tuple[Stage, ...]) -> None:
        asked = {peer for stage in stages for peer in self._post.seats(stage)}
        asked |= set(self._post.seats(self.stage))
        self._post.tell_all(asked, m.WantSums(at=self.at, stages=stages))

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
        self._pipeline.custodian.tallied(what, self._gossip.ledgers[stage].union(), now)

    def _held_sum(self, at: Position) -> Sum | None:
        if self.last is not None and at == self.last.at:
            return self.last.sums[self.stage]
        machine = self.machine
        if machine is not None and at == machine.at and machine.phase is r.Phase.NORM:
            return machine.sums.get(self.stage)
        return None


def _now() -> Seconds:
    return asyncio.get_running_loop().time()


def step_limits(stage_bytes: int) -> r.StepLimits:
    """What a round waits for, in a stage whose sum takes ``stage_bytes``.

    A plan and its acks are control messages plus the compute that is running (seconds); a
    reduction sends and receives about the whole sum; NORM only asks around.
    """
    reduce_seconds = REDUCE_SECONDS + 2 * stage_bytes / REDUCE_BYTES_PER_SECOND
    return r.StepLimits(
        plan_seconds=5.0, ack_seconds=15.0, reduce_seconds=reduce_seconds, norm_seconds=5.0
    )
