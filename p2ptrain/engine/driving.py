"""The round machine of one seat, driven: fed event by event, and what it says is done.

    event -> machine -> actions, performed in order -> what they cause is fed after them
    Reduce, FetchSum, Subtract, Commit -> the seat's one background job -> its end is an event

The machine (core/step) decides; nothing here does. It speaks of one job at a time, so a new
one cancels the last.

Invariants:
    * the actions of one event are all performed before the next event is fed, even if one
      of them causes it: the machine never sees a world that is half as it has said;
    * after Freeze the machine hears Quiet exactly once, when nothing computes any more;
    * a job that is over is no longer the seat's job when the machine hears of it, so that
      what it wants next does not cancel its own cause.

Refused: awaiting the machine's actions one by one in a task of its own. Messages would then
queue behind a reduction that they are meant to end.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from p2ptrain.core import rounds as r
from p2ptrain.core.agreement import Ack
from p2ptrain.engine import worker
from p2ptrain.engine.reduction import Reducer
from p2ptrain.errors import LinkError, MisbehaviourError
from p2ptrain.observe import events as ev
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from p2ptrain.core.agreement import Ballot, Plan, Sum
    from p2ptrain.core.step import StepMachine
    from p2ptrain.engine.committing import Committer
    from p2ptrain.engine.gossip import Gossip
    from p2ptrain.engine.pipeline import Pipeline
    from p2ptrain.engine.post import Post
    from p2ptrain.ports import StageCompute, Whole
    from p2ptrain.units import PeerId, Seconds, Stage

REDUCE_SECONDS = 15.0  # for the compute that is running and the round trips of a reduction
REDUCE_BYTES_PER_SECOND = 1.25e6  # 10 Mbit/s: slower lines cannot take part in exact steps
FETCH_SECONDS = 60.0  # one stage's sum over a slow link: 4 GB at 500 Mbit/s


class Driver:
    """Drives the machine of each step that :meth:`begin` hands over."""

    def __init__(  # noqa: PLR0913 - wired once, in stepping; a bundle would be unpacked here
        self,
        me: PeerId,
        pipeline: Pipeline,
        compute: StageCompute,
        gossip: Gossip,
        committer: Committer,
        *,
        post: Post,
        emit: ev.Emit,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
    ) -> None:
        self.machine: StepMachine | None = None
        self.reducer = Reducer(me, compute, post, unsent=self._unsent)
        self._me, self._pipeline, self._compute = me, pipeline, compute
        self._gossip, self._committer = gossip, committer
        self._post, self._emit, self._spawn = post, emit, spawn
        self._members: frozenset[PeerId] = frozenset()
        self._task: asyncio.Task[None] | None = None
        self._events: deque[r.Event | None] = deque()
        self._quiet_owed = False

    def begin(self, machine: StepMachine, members: frozenset[PeerId]) -> None:
        """Drive ``machine`` from now on. ``members``: all peers of the last step record."""
        self.machine, self._members = machine, members
        self._quiet_owed = False

    def close(self) -> None:
        """The seat is given up: nothing is said or waited for any more."""
        self._cancel()
        self.machine = None
        self._events.clear()

    def feed(self, event: r.Event | None, now: Seconds) -> None:
        """Feed one event (None: a deadline); what its actions cause waits until all are done.

        Between two steps, and when the seat is closed, nobody listens.
        """
        if self.machine is None:
            return
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events and self.machine is not None:
            machine = self.machine
            before = machine.round
            first = self._events[0]
            actions = machine.tick(now=now) if first is None else machine.handle(first, now=now)
            for action in actions:
                self._act(action, now)
            self._note_round(machine, before)
            self._let_pass(machine)
            if self._events:  # none, if an action has closed the seat
                self._events.popleft()

    def quiet(self, now: Seconds) -> None:
        """The pipeline may have become quiet: the machine waits for that after Freeze."""
        if not self._pipeline.quiet:
            return
        self._committer.quiet()
        if self._quiet_owed:
            self._quiet_owed = False
            self.feed(r.Quiet(), now)

    def _let_pass(self, machine: StepMachine) -> None:
        """With its sum known, a stage counts no more, but those beside may need what it made."""
        passing = machine.phase is r.Phase.NORM
        if passing and not self._pipeline.passing:
            self._pipeline.passing = True
            self._pipeline.on_change()
        self._pipeline.passing = passing

    # --- what the machine wants -------------------------------------------------------------

    def _note_round(self, machine: StepMachine, before: int) -> None:
        if machine.round != before:
            began = ev.RoundBegan(
                stage=self._compute.stage,
                step=machine.at.step,
                round=machine.round,
                leader=machine.leader or self._me,
                reason=machine.reason,
            )
            self._emit(began)
            self._gossip.tell(machine.leader)

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
            case r.WantSums(stages, everyone):
                self._want(stages, everyone=everyone)
            case r.Commit(sums):
                assert self.machine is not None
                self._gossip.due_at = None  # nobody waits for our count any more
                self._start(self._committer.commit(self.machine.at, sums))
            case r.Alarm(reason):
                self._emit(ev.Alarm(reason=reason))

    def _publish(self, whole: Sum) -> None:
        published = ev.SumPublished(
            stage=self._compute.stage,
            step=whole.at.step,
            digest=whole.digest,
            round=whole.round,
        )
        self._emit(published)
        # to everybody, and to ourselves: our other seats need it
        self._post.tell_all(self._members.union(self._post.everyone(), whole.members), whole)

    def _want(self, stages: tuple[Stage, ...], *, everyone: bool) -> None:
        assert self.machine is not None
        if everyone:
            self._post.tell_all(
                self._post.everyone(), m.WantSums(at=self.machine.at, stages=stages)
            )
            return
        asked = {peer for stage in stages for peer in self._post.seats(stage)}
        asked |= set(self._post.seats(self._compute.stage))
        self._post.tell_all(asked, m.WantSums(at=self.machine.at, stages=stages))

    # --- the one job ------------------------------------------------------------------------

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
            self.feed(r.ReduceFailed(ballot, f"no part reaches {peer}"), _now())

    async def _fetch(self, holder: PeerId, announced: Sum) -> None:
        try:
            whole = await self.reducer.fetch(holder, announced, deadline_seconds=FETCH_SECONDS)
        except (LinkError, MisbehaviourError, TimeoutError) as error:
            self._task = None
            spoilt = isinstance(error, MisbehaviourError)
            self.feed(r.FetchFailed(holder, str(error) or "no answer", spoilt), _now())
            return
        self._reduced(whole, announced.round)

    def _reduced(self, whole: Whole, round_: int) -> None:
        self._task = None  # what the machine wants next must not cancel its own cause
        outcome = r.Outcome(digest=whole.digest, norms=whole.norms, finite=whole.finite)
        self.feed(r.Reduced(outcome, round_), _now())


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
