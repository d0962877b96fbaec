"""The round machine: how one seat comes through one optimizer step with its stage.

    COUNTING  <---- union incomplete ----  any of the three below
       |  live bitmaps cover the step
    PLANNING  --- no plan by the deadline: ask for the sum, round + 1, next leader ---> PLANNING
       |  leader: its own plan; member: a plan with a higher ballot that states its bitmap
    FROZEN    --- mismatch, Nack, member gone, deadline: round + 1 ---> PLANNING
       |  Quiet -> Ack; all acks -> Go
    REDUCING  --- Nack, failure (after a pause), deadline: round + 1 ---> PLANNING
       |  whole sum (Reduced)           ^
       |                                '-- own stage's Sum heard, in any phase above: fetch it
    NORM      --- deadline: ask around, decide nothing ---> NORM
       |  SUMs of all stages
    COMMITTED

Where arithmetic differs (agreement "canonical") rounds may end in several sums. A SUM is then
the *name* under which the run remembers one of them, and of several names one counts
(core/choice), which every seat takes until it is COMMITTED; then it tells its own as final:

    NORM      --- own stage's Sum heard that counts more, a holder lives ---> REDUCING: fetch it
    any phase --- the same, no holder lives: keep the name, go on counting, or stay in NORM;
                  the whole sum that is here, or comes, is stepped with under that name
    NORM      --- a stage-mate was lost in this step, or a name gave way to another: ask
                  everybody what they have heard or stepped with; step a plan's time later, or
                  when all names are known to be final ---> NORM

Intuition: the sum is unique, so agreement is only about *when the accumulators stand still*
on a disjoint cover. Leaders of rising rounds propose one; a member promises at most one
plan a round and moves only upward; whoever finishes first ends the matter for all, because
one holder of the sum is enough (adopt rule). No vote, no majority, no failure detector that
must be right: a wrong suspicion costs work, never a wrong sum.

Invariants:
    * one ballot, one cover: the plan's digest is in the ballot;
    * a seat acks only what its accumulator is exactly, and only above all it promised;
    * without an active plan, the seat's round is above the round of its promise;
    * a slot is asked to be subtracted once per time it was counted;
    * Commit comes once, with the SUMs of all stages, and never after an Alarm;
    * canonical: seats of one chain have stepped with the same names. The integers behind a name
      may differ by rounding where its holders had died; core/adoption mends that.

Bounds: every phase but COMMITTED has a deadline (``due_at``); a Nack makes a leader plan
again only if it taught something; fetching tries each live holder once per SUM heard; a Subtract
is Seen before the compute is asked for anything else.

Refused: Paxos over replicas (any disjoint cover gives the same sum, or one that differs by
rounding, and a majority of two is both), and matchmaking of groups with equal views
(hivemind), which one newcomer can spoil. See DESIGN section 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from p2ptrain.core.accumulation import Accumulation
from p2ptrain.core.agreement import Ack, Bitmap, Go, Nack, Plan, Sum, Tallies
from p2ptrain.core.chain import sum_digest
from p2ptrain.core.choice import precedes
from p2ptrain.core.ledger import Ledger, mask_to_bytes
from p2ptrain.core.plans import (
    MAX_ROUND,
    NO_BALLOT,
    SHARD_ELEMENTS,
    in_plan,
    make_plan,
    plan_fault,
    shards,
    sum_of,
)
from p2ptrain.core.rounds import (
    AbortReduce,
    Alarm,
    Caught,
    Commit,
    FetchFailed,
    FetchSum,
    Live,
    Phase,
    Publish,
    Quiet,
    Received,
    Reduce,
    Reduced,
    ReduceFailed,
    Seen,
    Send,
    WantSums,
)
from p2ptrain.core.schedule import keeper, leaders
from p2ptrain.units import Microbatch, Slot, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from p2ptrain.core.agreement import Ballot, Position
    from p2ptrain.core.rounds import Action, Event, Outcome, StepLimits
    from p2ptrain.units import Digest, PeerId, RunId, Seconds

NACK_BYTES = 900 << 10
"""Of the bitmaps in a Nack: the longest control message (1 MiB) with room for the rest. Who is
left out is heard of by gossip."""

_LONGEST_GROWTH = 8.0
"""Views converge within a few heartbeats; longer deadlines would only delay recovery."""

_ASKS_A_HOLD = 8
"""Who holds a step back asks so often: as soon as others say that they have stepped, so does it."""

_LONGEST_GROWTH_ROUND = 64
"""Any growth above 1.04 has reached the cap by then; it keeps the power finite."""


class StepMachine:
    """Decide what one seat does next in one step.

    Feed it events with :meth:`handle`, let it look at the clock with :meth:`tick` no later
    than :attr:`due_at`, and do what the returned actions say, in order. Feed ``Live`` and the
    own bitmap (empty, seq 0, if nothing is counted yet) at the start. After COMMITTED keep it
    until the next step commits: it answers late plans with the sum.

    ``members``: this stage's peers in the last step record, the only membership that hashes
    use. ``expected``: the step's slots; ``width``: bits of a slot set (G + E); ``elements``:
    length of the accumulator; ``weights``: bandwidths that size the shards of own plans.
    ``canonical``: arithmetic differs among peers; ``hold_seconds``: then, how long others are
    given to tell names of the step that were heard before this seat was there. ``seal`` signs a
    SUM of this seat's own.
    ``reason`` says why the round was entered, for the log.
    """

    def __init__(  # noqa: PLR0913 - each is one fact of the step; a bundle would be unpacked here
        self,
        *,
        run: RunId,
        me: PeerId,
        incarnation: int,
        at: Position,
        stage: Stage,
        stages: int,
        members: tuple[PeerId, ...],
        expected: int,
        width: int,
        elements: int,
        limits: StepLimits,
        now: Seconds,
        weights: Mapping[PeerId, float] | None = None,
        canonical: bool = False,
        hold_seconds: Seconds = 0.0,
        seal: Callable[[Sum], Sum] = lambda total: total,
    ) -> None:
        self.at: Final = at
        self.stage: Final = stage
        self.ledger: Final = Ledger(expected)
        self.sums: Final[dict[Stage, Sum]] = {}
        self.phase = Phase.COUNTING
        self.round = 0
        self.reason = "the step begins"
        self.plan: Plan | None = None
        self.leader = me
        self.alarmed = False
        self.due_at: Seconds | None = now + limits.norm_seconds
        self._run, self._me = run, me
        self._stages, self._members = stages, members
        self._elements, self._limits, self._weights = elements, limits, weights
        self._mine = Accumulation(
            Bitmap(
                peer=me,
                incarnation=incarnation,
                at=at,
                stage=stage,
                seq=0,
                slots=mask_to_bytes(0, width),
                tallies=Tallies(),
                signature=b"",
            )
        )
        self._live = frozenset({me})
        self._promised = NO_BALLOT
        self._claimed_round = -1  # the round that I lead out of turn, after a Nack
        self._acked: set[PeerId] = set()
        self._told: Sum | None = None  # the own stage's SUM, while I do not hold the sum itself
        self._holders: list[PeerId] = []
        self._failure = ""  # why the reduction is not expected to end
        self._asks = 0
        self._canonical, self._seal = canonical, seal
        self._held: Digest | None = None  # of the whole sum that lies in compute
        self._lost: Sum | None = None  # canonical: the name that counts, and nobody can give
        self._hold_until = now + (hold_seconds if canonical else 0.0)
        self.ledger.set_live(self._live)
        self._elect()

    def handle(self, event: Event, *, now: Seconds) -> tuple[Action, ...]:  # noqa: C901, PLR0912 - one arm each
        """Take ``event`` into account and return what to do about it."""
        actions: tuple[Action, ...] = ()
        if self.alarmed:
            return actions
        match event:
            case Live(peers):
                actions = self._on_live(peers, now)
            case Seen(bitmap):
                actions = self._on_seen(bitmap, now)
            case Received(sender, message):
                actions = self._on_message(sender, message, now)
            case Quiet():
                actions = self._on_quiet(now)
            case Reduced(outcome, round_):
                actions = self._on_reduced(outcome, round_, now)
            case Caught(peer):
                actions = self._on_caught(peer, now)
            case ReduceFailed() | FetchFailed():
                actions = self._on_failure(event, now)
            case _:
                assert_never(event)
        return actions

    def tick(self, *, now: Seconds) -> tuple[Action, ...]:
        """Act on a deadline that has passed, if one has."""
        if self.due_at is None or now < self.due_at:
            return ()
        actions: tuple[Action, ...] = ()
        match self.phase:
            case Phase.COUNTING:  # a SUM may exist without me: a lost message must not strand me
                actions = self._ask((self.stage,), now)
            case Phase.PLANNING:
                # A stage-mate that holds the sum plans no more, nor resolves an overlap with me.
                asked = (WantSums((self.stage,), everyone=self._canonical),)
                actions = asked + self._next_round(f"no plan from {self.leader}", now)
            case Phase.FROZEN:
                actions = self._next_round(f"not all acked the plan of {self.leader}", now)
            case Phase.REDUCING:
                actions = self._on_reduce_deadline(now)
            case Phase.NORM:
                missing = [s for s in map(Stage, range(self._stages)) if s not in self.sums]
                actions = self._ask(tuple(missing), now) if missing else self._conclude(now)
            case Phase.COMMITTED:
                pass
            case _:
                assert_never(self.phase)
        return actions

    # --- views: who lives, who counted what ------------------------------------------

    def _on_live(self, peers: frozenset[PeerId], now: Seconds) -> tuple[Action, ...]:
        gone = self._live - peers - {self._me}
        self._live = peers | {self._me}
        self.ledger.set_live(self._live)
        asked = self._doubt(self.stage, now) if gone else ()
        current = self._holders[:1]
        self._holders = [peer for peer in self._holders if peer not in gone]
        if self.plan is None:
            self._elect()
            if self._fetching and self._holders[:1] != current:
                return asked + self._fetch(now)
        elif lost := sorted(share.peer for share in self.plan.shares if share.peer in gone):
            return asked + self._on_loss(f"{', '.join(lost)} left", now)
        return asked + self._review(now)

    def _doubt(self, stage: Stage, now: Seconds) -> tuple[Action, ...]:
        """Canonical: others may have stepped with a name of ``stage`` that is not here.

        Who is gone may have told it them before; and where there are two names, they may have
        stepped with the one that gives way.
        """
        if not self._canonical or self.phase is Phase.COMMITTED:
            return ()
        self._hold_until = now + self._limits.plan_seconds
        return (WantSums((stage,), everyone=True),)

    def _on_loss(self, reason: str, now: Seconds) -> tuple[Action, ...]:
        """A member of the plan is gone."""
        if self.phase is Phase.FROZEN:
            return self._next_round(f"{reason} before Go", now)
        if self.phase is Phase.REDUCING and self.due_at is not None:
            # It may have given all that I need: only shorten the deadline.
            soon = now + self._limits.plan_seconds * self._growth(self.round)
            self.due_at, self._failure = min(self.due_at, soon), f"{reason} while reducing"
        return ()

    def _on_seen(self, bitmap: Bitmap, now: Seconds) -> tuple[Action, ...]:
        if not self._observe(bitmap):
            return ()
        if self.phase is Phase.FROZEN and not self._mine.matches(self.plan):
            return self._retreat(now)
        return self._review(now)

    def _observe(self, bitmap: Bitmap) -> bool:
        mine = bitmap.peer == self._me
        if (bitmap.at, bitmap.stage) != (self.at, self.stage) or (
            mine and bitmap.incarnation != self._mine.own.incarnation
        ):
            return False  # foreign, or counted by a process of mine that is dead
        newer = self.ledger.observe(bitmap)
        if newer and mine:
            self._mine.show(bitmap)
        return newer

    def _review(self, now: Seconds) -> tuple[Action, ...]:
        """Look at the ledger again: lead, or wait and subtract what I lose."""
        if self.phase not in {Phase.COUNTING, Phase.PLANNING}:
            return ()
        if self._told is not None:  # fetch the sum, once what is being taken out is out
            return () if self._mine.subtracting else self._mine.freeze() + self._fetch(now)
        complete = not self.ledger.missing()
        if complete and self.phase is Phase.COUNTING:
            self._enter(Phase.PLANNING, self._limits.plan_seconds, now)
        elif not complete and self.phase is Phase.PLANNING:
            self._enter(Phase.COUNTING, self._limits.norm_seconds, now)
        losers = self.ledger.overlaps(self._keeper)
        if complete and self.leader == self._me and not losers and not self._mine.subtracting:
            return self._lead(now)
        return self._mine.thaw() + self._mine.subtract(losers.get(self._me, 0))

    def _keeper(self, slot: int, holders: tuple[PeerId, ...]) -> PeerId:
        return keeper(self._run, self.stage, Microbatch(self.at.step, Slot(slot)), holders)

    # --- rounds and leaders ------------------------------------------------------------

    def _next_round(
        self, reason: str, now: Seconds, *, above: int = 0, claim: bool = False
    ) -> tuple[Action, ...]:
        """Leave the plan, if any, for a round above this one and ``above``."""
        aborted = self._drop_plan()
        self.round, self.reason = min(max(self.round, above) + 1, MAX_ROUND - 1), reason
        self._claimed_round = self.round if claim else -1
        self._elect()
        # Through COUNTING, so that the review sets the deadline of the phase it finds.
        self._enter(Phase.COUNTING, self._limits.norm_seconds, now)
        return aborted + self._review(now)

    def _drop_plan(self) -> tuple[Action, ...]:
        plan, self.plan = self.plan, None
        reducing = plan is not None and self.phase is Phase.REDUCING
        return (AbortReduce(plan.ballot),) if plan is not None and reducing else ()

    def _elect(self) -> None:
        claimed = self._claimed_round == self.round
        self.leader = self._me if claimed else next(p for p in self._ranking() if p in self._live)

    def _ranking(self) -> tuple[PeerId, ...]:
        """Members of the last record first: seats that joined since lead only among themselves.

        Once every member has had its turn, all live seats take turns: a record of one silent
        member must not keep the others waiting for it for ever.
        """
        joined = sorted(self._live.difference(self._members))
        had_turns = self.round >= max(1, len(self._members))
        groups = (sorted(self._live),) if had_turns else (self._members, joined)
        return tuple(
            peer
            for group in groups
            for peer in leaders(self._run, self.at.step, self.stage, self.round, group)
        )

    def _lead(self, now: Seconds) -> tuple[Action, ...]:
        bitmaps = self._standing()
        cuts = shards(
            self._elements, [bitmap.peer for bitmap in bitmaps], self._weights, least=SHARD_ELEMENTS
        )
        ranked = (self.round, self._ranking().index(self._me))
        plan = make_plan(self.at, self.stage, ranked, bitmaps, cuts)
        return self._to_others(plan, plan) + self._adopt(self._me, plan, now)

    def _standing(self) -> list[Bitmap]:
        """The bitmaps that a plan of mine would name now, by peer."""
        known = (self.ledger.get(peer) for peer, _ in self.ledger.cover() if peer != self._me)
        standing = (self._mine.own, *(bitmap for bitmap in known if bitmap))
        return sorted(standing, key=lambda bitmap: bitmap.peer)

    def _adopt(self, leader: PeerId, plan: Plan, now: Seconds) -> tuple[Action, ...]:
        aborted = self._drop_plan()
        self.plan, self.leader, self._promised = plan, leader, plan.ballot
        self.round, self._acked = plan.ballot.round, set()
        self._enter(Phase.FROZEN, self._limits.ack_seconds, now)
        return aborted + (self._ack(now) if self._mine.still else self._mine.freeze())

    def _retreat(self, now: Seconds) -> tuple[Action, ...]:
        """The accumulator is not what the plan in force says: tell its leader, plan anew."""
        led = self.leader == self._me
        nack = () if led else self._nack(self.leader, self._promised)
        return nack + self._next_round("my bitmap changed under the plan", now, claim=led)

    # --- messages of a round -------------------------------------------------------------

    def _on_message(
        self, sender: PeerId, message: Plan | Ack | Nack | Go | Sum, now: Seconds
    ) -> tuple[Action, ...]:
        if message.at != self.at:
            return ()
        if isinstance(message, Sum):
            return self._on_sum(sender, message, now)
        if message.stage != self.stage:
            return ()
        if self.stage in self.sums:  # adopt rule: whoever still plans needs only this
            late = isinstance(message, Plan | Go)
            return (Send((sender,), self.told()[self.stage]),) if late else ()
        # Once told that the sum exists, no round matters any more.
        return self._on_round(sender, message, now) if self._told is None else ()

    def _on_round(
        self, sender: PeerId, message: Plan | Ack | Nack | Go, now: Seconds
    ) -> tuple[Action, ...]:
        match message:
            case Plan():
                return self._on_plan(sender, message, now)
            case Ack():
                return self._on_ack(sender, message.ballot, now)
            case Nack():
                return self._on_nack(sender, message, now)
            case Go():
                return self._on_go(sender, message.ballot, now)
        assert_never(message)

    def _on_plan(self, sender: PeerId, plan: Plan, now: Seconds) -> tuple[Action, ...]:
        outsider = in_plan(plan, self._me) is None or in_plan(plan, sender) is None
        if outsider or plan_fault(plan, expected=self.ledger.expected, elements=self._elements):
            return ()
        if self.plan is not None and plan.ballot == self.plan.ballot:
            return self._ack(now) if self.phase is Phase.FROZEN and self._mine.still else ()
        if plan.ballot <= self._promised or not self._mine.matches(plan):
            return self._nack(sender, plan.ballot)
        return self._adopt(sender, plan, now)

    def _on_quiet(self, now: Seconds) -> tuple[Action, ...]:
        self._mine.quiet()
        if self.phase is not Phase.FROZEN:
            return ()
        return self._ack(now) if self._mine.matches(self.plan) else self._retreat(now)

    def _ack(self, now: Seconds) -> tuple[Action, ...]:
        if self.leader == self._me:
            return self._on_ack(self._me, self._promised, now)
        ack = Ack(at=self.at, stage=self.stage, ballot=self._promised)
        return (Send((self.leader,), ack),)

    def _on_ack(self, sender: PeerId, ballot: Ballot, now: Seconds) -> tuple[Action, ...]:
        plan = self.plan
        leading = self.phase is Phase.FROZEN and self.leader == self._me
        if plan is None or not leading or ballot != plan.ballot or in_plan(plan, sender) is None:
            return ()
        self._acked.add(sender)
        if len(self._acked) < len(plan.shares):
            return ()
        go = Go(at=self.at, stage=self.stage, ballot=plan.ballot)
        return self._to_others(plan, go) + self._reduce(plan, now)

    def _on_go(self, sender: PeerId, ballot: Ballot, now: Seconds) -> tuple[Action, ...]:
        if self.plan is None or ballot != self.plan.ballot:
            return self._nack(sender, ballot)
        ready = self.phase is Phase.FROZEN and self._mine.still and sender == self.leader
        return self._reduce(self.plan, now) if ready else ()

    def _on_nack(self, sender: PeerId, nack: Nack, now: Seconds) -> tuple[Action, ...]:
        for bitmap in nack.bitmaps:
            self._observe(bitmap)
        if self.plan is None or self.leader != self._me or nack.ballot != self.plan.ballot:
            return self._review(now)
        planned = [(share.peer, share.incarnation, share.seq) for share in self.plan.shares]
        standing = [(one.peer, one.incarnation, one.seq) for one in self._standing()]
        if planned == standing and nack.highest < nack.ballot:
            return ()  # nothing to plan otherwise: the deadline hands on the lead
        return self._next_round(f"{sender} refused", now, above=nack.highest.round, claim=True)

    def _nack(self, to: PeerId, ballot: Ballot) -> tuple[Action, ...]:
        nack = Nack(
            at=self.at,
            stage=self.stage,
            ballot=ballot,
            highest=self._promised,
            bitmaps=self.ledger.shown(NACK_BYTES),
        )
        return (Send((to,), nack),)

    # --- the sum: reduced, or fetched from a holder --------------------------------------

    def _reduce(self, plan: Plan, now: Seconds) -> tuple[Action, ...]:
        self._failure = ""
        self._enter(Phase.REDUCING, self._limits.reduce_seconds, now)
        return (Reduce(plan),)

    def _on_sum(self, sender: PeerId, total: Sum, now: Seconds) -> tuple[Action, ...]:
        if not 0 <= total.stage < self._stages:
            return ()
        own = total.stage == self.stage
        known = self.sums.get(total.stage) or ((self._told or self._lost) if own else None)
        asked: tuple[Action, ...] = ()
        if known is not None and sum_digest(known) == sum_digest(total):
            if total.stage in self.sums or known is self._told:  # else its teller may hold it
                return self._confirm(known, total, now)
        elif known is not None and not self._canonical:
            return self._alarm(total, known)
        elif known is not None and (self.phase is Phase.COMMITTED or not precedes(total, known)):
            return self._object(sender, total)
        elif known is not None and not total.final:
            asked = self._doubt(total.stage, now)
        if not own:
            self.sums[total.stage] = total
            return asked + self._conclude(now)
        return asked + self._on_own_sum(sender, total, now)

    def _confirm(self, known: Sum, total: Sum, now: Seconds) -> tuple[Action, ...]:
        """Somebody has stepped with the name that counts: no other takes its place."""
        news = total.final and not known.final and self.phase is not Phase.COMMITTED
        if not news or not self._canonical:
            return ()
        if known is self._told:
            self._told = total
            return ()
        self.sums[total.stage] = total
        return self._conclude(now) if all(one.final for one in self.sums.values()) else ()

    def _object(self, sender: PeerId, total: Sum) -> tuple[Action, ...]:
        """Who tells another name than the one that counts has not heard of that."""
        if sender == self._me or total.final:  # of two final ones neither gives way
            return ()
        counts = self.told().get(total.stage)
        return (Send((sender,), counts),) if counts is not None else ()

    def told(self) -> dict[Stage, Sum]:
        """The SUMs that this seat tells others, by stage."""
        if not self._canonical or self.phase is not Phase.COMMITTED:
            return self.sums
        return {s: msgspec.structs.replace(one, final=True) for s, one in self.sums.items()}

    def _on_own_sum(self, sender: PeerId, total: Sum, now: Seconds) -> tuple[Action, ...]:
        """Somebody of our stage has it: fetch it, if any holder lives."""
        alive = self._live.union({sender} & set(total.members))
        holders = dict.fromkeys(peer for peer in (sender, *sorted(total.members)) if peer in alive)
        self._holders = [peer for peer in holders if peer != self._me]
        if self.phase is Phase.NORM and (self._held == total.digest or not self._holders):
            return self._settle(total, now)  # only the name is new
        if not self._holders:
            # It died with them: the stage counts again what they had counted.
            self._lost = total if self._canonical else None
            return ()
        self._told = total
        self.sums.pop(self.stage, None)  # canonical, in NORM: another whole sum than ours
        if self.phase is Phase.REDUCING and self.plan and self.plan.ballot.round == total.round:
            return ()  # the same reduction ends here any moment: R fetches would choke the sender
        if self._mine.subtracting:
            return ()  # no plan can be in force; the Seen that ends it leads on to the fetch
        return self._drop_plan() + self._mine.freeze() + self._fetch(now)

    def _fetch(self, now: Seconds) -> tuple[Action, ...]:
        if self._told is None or not self._holders:
            told, self._told = self._told, None
            if told is not None and self._canonical:
                self._lost = told
                if self._held is not None:
                    return self._settle(told, now)
            return self._pause("nobody gave the sum they announced", now)
        self._enter(Phase.REDUCING, self._limits.reduce_seconds, now)
        return (FetchSum(self._holders[0], self._told),)

    @property
    def _fetching(self) -> bool:
        """Whether a holder of the sum has been asked for it."""
        return self.phase is Phase.REDUCING and self.plan is None and self._told is not None

    def _pause(self, reason: str, now: Seconds) -> tuple[Action, ...]:
        """No way to the sum is left: let a plan's time pass, or broken links spin the rounds."""
        self._failure = reason
        self._enter(Phase.REDUCING, self._limits.plan_seconds, now)
        return ()

    def _on_reduced(self, outcome: Outcome, round_: int, now: Seconds) -> tuple[Action, ...]:
        plan, told = self.plan, self._told
        if plan is not None:
            expected_round, total = plan.ballot.round, sum_of(plan, outcome)
        elif told is not None:
            finite = outcome.finite and not told.tallies.poisoned
            total = msgspec.structs.replace(
                told, digest=outcome.digest, norms=outcome.norms, finite=finite
            )
            expected_round = told.round
        else:
            return ()
        if self.phase is not Phase.REDUCING or round_ != expected_round:
            return ()
        self._held = outcome.digest
        if told is not None and sum_digest(told) != sum_digest(total):
            if not self._canonical:
                return self._alarm(total, told)
            if outcome.digest != told.digest and precedes(told, total):
                self.plan = None  # it has ended: nothing to abort
                return self._fetch(now)
            total = told if outcome.digest == told.digest or precedes(told, total) else total
        if self._lost is not None and precedes(self._lost, total):
            total = self._lost
        leading = plan is not None and self.leader == self._me
        settled = self._settle(total, now)
        return (Publish(self.sums[self.stage]), *settled) if leading else settled

    def _settle(self, total: Sum, now: Seconds) -> tuple[Action, ...]:
        """The whole sum is here, under this name."""
        total = total if total.publisher else self._seal(total)
        self.sums[self.stage], self._told, self._asks = total, None, 0
        self._enter(Phase.NORM, self._limits.norm_seconds, now)
        return self._conclude(now)

    def _on_caught(self, peer: PeerId, now: Seconds) -> tuple[Action, ...]:
        """Forget what ``peer`` said of sums that are not here: another will say it."""
        if self.phase is Phase.COMMITTED:
            return ()
        for stage in [s for s, one in self.sums.items() if one.publisher == peer]:
            if stage != self.stage:  # ours was compared with what we hold
                del self.sums[stage]
        if self._lost is not None and self._lost.publisher == peer:
            self._lost = None
        if self._told is None or self._told.publisher != peer:
            return ()
        fetching = self._fetching
        self._told, self._holders = None, []
        return self._pause(f"{peer} has lied of the sum", now) if fetching else ()

    def _on_failure(self, event: ReduceFailed | FetchFailed, now: Seconds) -> tuple[Action, ...]:
        """The way to the sum on which I am is closed; late news of another changes nothing."""
        if self.phase is not Phase.REDUCING:
            return ()
        if isinstance(event, FetchFailed):
            self._held = None if event.spoilt else self._held
            current = self.plan is None and self._holders[:1] == [event.holder]
            return self._try_next_holder(now) if current else ()
        if self.plan is None or event.ballot != self.plan.ballot:
            return ()
        self.plan = None  # it has ended: nothing to abort
        return self._fetch(now) if self._told else self._pause(event.reason, now)

    def _on_reduce_deadline(self, now: Seconds) -> tuple[Action, ...]:
        if self._told is None:
            # Who gave up alone says so: the others would wait for my parts till their deadline.
            alone = self.leader == self._me or self._promised == NO_BALLOT
            nack = () if alone else self._nack(self.leader, self._promised)
            reason = self._failure or "no whole sum in time"
            return nack + self._next_round(reason, now)
        return self._drop_plan() + self._fetch(now) if self.plan else self._try_next_holder(now)

    def _try_next_holder(self, now: Seconds) -> tuple[Action, ...]:
        self._holders = self._holders[1:]
        return self._fetch(now)

    # --- the barrier ---------------------------------------------------------------------

    def holds(self, total: Sum) -> bool:
        """Whether the integers in compute are those that ``total`` names."""
        whole = self.phase in (Phase.NORM, Phase.COMMITTED)
        return whole and self._held == total.digest

    def forget(self) -> None:
        """The integers in compute are about to go."""
        self._held = None

    def _conclude(self, now: Seconds) -> tuple[Action, ...]:
        if self.phase is not Phase.NORM or len(self.sums) < self._stages:
            return ()
        open_ = tuple(s for s, one in sorted(self.sums.items()) if not one.final)
        if now < self._hold_until and open_:  # canonical: let answers come
            pause = self._limits.plan_seconds / _ASKS_A_HOLD
            self.due_at = min(self._hold_until, now + pause)
            return (WantSums(open_, everyone=True),)
        self.phase, self.due_at = Phase.COMMITTED, None
        return (Commit(tuple(self.sums[stage] for stage in sorted(self.sums))),)

    def _ask(self, stages: tuple[Stage, ...], now: Seconds) -> tuple[Action, ...]:
        self._asks += 1
        self.due_at = now + self._limits.norm_seconds * self._growth(self._asks)
        return (WantSums(stages),)

    def _alarm(self, other: Sum, known: Sum) -> tuple[Action, ...]:
        self.alarmed, self.due_at = True, None
        who = " and ".join(one.publisher or self._me for one in (known, other))
        reason = f"two SUMs for stage {other.stage} of step {self.at.step}, signed by {who}"
        return (Alarm(reason),)

    # --- small change ----------------------------------------------------------------------

    def _enter(self, phase: Phase, seconds: Seconds, now: Seconds) -> None:
        self.phase, self.due_at = phase, now + seconds * self._growth(self.round)

    def _growth(self, turn: int) -> float:
        power = self._limits.round_growth ** min(turn, _LONGEST_GROWTH_ROUND)
        return min(power, _LONGEST_GROWTH)

    def _to_others(self, plan: Plan, message: Plan | Go) -> tuple[Action, ...]:
        others = tuple(share.peer for share in plan.shares if share.peer != self._me)
        return (Send(others, message),) if others else ()
