"""The round machine, transition by transition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from p2ptrain.core.agreement import (
    Ack,
    Ballot,
    Bitmap,
    Go,
    Nack,
    Plan,
    Position,
    Share,
    Sum,
    Tallies,
)
from p2ptrain.core.choice import precedes
from p2ptrain.core.ledger import bytes_to_mask, mask_to_bytes
from p2ptrain.core.plans import NO_BALLOT, make_plan, shards
from p2ptrain.core.rounds import (
    AbortReduce,
    Action,
    Alarm,
    Caught,
    Commit,
    FetchFailed,
    FetchSum,
    Freeze,
    Live,
    Outcome,
    Phase,
    Publish,
    Quiet,
    Received,
    Reduce,
    Reduced,
    ReduceFailed,
    Seen,
    Send,
    StepLimits,
    Subtract,
    Unfreeze,
    WantSums,
)
from p2ptrain.core.schedule import keeper, leaders
from p2ptrain.core.step import StepMachine
from p2ptrain.units import Chain, Digest, Microbatch, PeerId, RunId, Slot, Stage, Step
from p2ptrain.wire.framing import CONTROL_BYTES, encode

if TYPE_CHECKING:
    from collections.abc import Callable

RUN = RunId("run")
AT = Position(epoch=0, step=Step(2), chain=Chain(bytes(32)))
STAGE = Stage(1)
WIDTH, FULL = 4, 0b1111
ELEMENTS = 10
LIMITS = StepLimits(plan_seconds=1.0, ack_seconds=2.0, reduce_seconds=4.0, norm_seconds=8.0)
OUTCOME = Outcome(digest=Digest(b"s" * 32), norms=(1.0, 2.0), finite=True)
# Named by their place in the rendezvous order of round 0, so that ANN leads first.
ANN, BOB, EVE = leaders(RUN, AT.step, STAGE, 0, [PeerId("x"), PeerId("y"), PeerId("z")])


def machine(
    me: PeerId,
    *others: PeerId,
    members: tuple[PeerId, ...] | None = None,
    stages: int = 3,
    canonical: bool = False,
    seal: Callable[[Sum], Sum] = lambda whole: whole,
) -> StepMachine:
    here = (me, *others) if members is None else members
    seat = StepMachine(
        run=RUN,
        me=me,
        incarnation=1,
        at=AT,
        stage=STAGE,
        stages=stages,
        members=here,
        expected=FULL,
        width=WIDTH,
        elements=ELEMENTS,
        limits=LIMITS,
        now=0.0,
        canonical=canonical,
        seal=seal,
    )
    assert seat.handle(Live(frozenset({me, *others})), now=0.0) == ()
    return seat


def bitmap(peer: PeerId, mask: int, *, seq: int = 1, incarnation: int = 1) -> Bitmap:
    return Bitmap(
        peer=peer,
        incarnation=incarnation,
        at=AT,
        stage=STAGE,
        seq=seq,
        slots=mask_to_bytes(mask, WIDTH),
        tallies=Tallies(tokens=mask.bit_count()),
        signature=b"",
    )


def plan_of(leader: PeerId, *bitmaps: Bitmap, round_: int = 0, rank: int = 0) -> Plan:
    ordered = sorted(bitmaps, key=lambda one: one.peer)
    cuts = shards(ELEMENTS, [one.peer for one in ordered])
    return make_plan(AT, STAGE, (round_, rank), ordered, cuts)


def total(stage: int, *, digest: bytes = b"s" * 32, round_: int = 0) -> Sum:
    return Sum(
        at=AT,
        stage=Stage(stage),
        digest=Digest(digest),
        norms=OUTCOME.norms,
        finite=True,
        tallies=Tallies(tokens=4),
        cover=(),
        members=(ANN, BOB, EVE),
        round=round_,
    )


def sent(actions: tuple[Action, ...], kind: type) -> list[tuple[PeerId, ...]]:
    return [a.to for a in actions if isinstance(a, Send) and isinstance(a.message, kind)]


def the_plan(actions: tuple[Action, ...]) -> Plan:
    (plan,) = [a.message for a in actions if isinstance(a, Send) and isinstance(a.message, Plan)]
    return plan


def ack(plan: Plan) -> Ack:
    return Ack(at=AT, stage=STAGE, ballot=plan.ballot)


def go(plan: Plan) -> Go:
    return Go(at=AT, stage=STAGE, ballot=plan.ballot)


def leading(now: float = 0.0) -> tuple[StepMachine, Plan]:
    """ANN has planned with BOB, and is quiet."""
    seat = machine(ANN, BOB)
    seat.handle(Seen(bitmap(ANN, 0b0011)), now=now)
    plan = the_plan(seat.handle(Seen(bitmap(BOB, 0b1100)), now=now))
    assert seat.handle(Quiet(), now=now) == ()
    return seat, plan


def following(*, acked: bool = True) -> tuple[StepMachine, Plan]:
    """BOB has ANN's plan, frozen and acked."""
    seat = machine(BOB, ANN)
    seat.handle(Seen(bitmap(BOB, 0b1100)), now=0.0)
    plan = plan_of(ANN, bitmap(ANN, 0b0011), bitmap(BOB, 0b1100))
    assert seat.handle(Received(ANN, plan), now=0.0) == (Freeze(),)
    if acked:
        assert seat.handle(Quiet(), now=0.0) == (Send((ANN,), ack(plan)),)
    return seat, plan


# --- the straight way ------------------------------------------------------------------


def test_a_stage_of_one_needs_no_message() -> None:
    seat = StepMachine(
        run=RUN, me=ANN, incarnation=1, at=AT, stage=Stage(0), stages=1, members=(ANN,),
        expected=FULL, width=WIDTH, elements=ELEMENTS, limits=LIMITS, now=0.0,
    )  # fmt: skip
    own = msgspec.structs.replace(bitmap(ANN, FULL), stage=Stage(0))
    assert seat.handle(Seen(own), now=1.0) == (Freeze(),)
    (reduce,) = seat.handle(Quiet(), now=2.0)
    assert isinstance(reduce, Reduce)
    (share,) = reduce.plan.shares
    assert (share.peer, share.start, share.stop) == (ANN, 0, ELEMENTS)
    publish, commit = seat.handle(Reduced(OUTCOME, 0), now=3.0)
    assert isinstance(publish, Publish)
    assert commit == Commit((publish.sum,))
    assert (seat.phase, seat.due_at) == (Phase.COMMITTED, None)
    assert publish.sum.tallies == Tallies(tokens=4)
    assert [(one.peer, bytes_to_mask(one.slots)) for one in publish.sum.cover] == [(ANN, FULL)]


def test_the_leader_plans_collects_acks_and_goes() -> None:
    seat = machine(ANN, BOB)
    assert seat.handle(Seen(bitmap(ANN, 0b0011)), now=0.0) == ()
    assert seat.phase is Phase.COUNTING
    actions = seat.handle(Seen(bitmap(BOB, 0b1100)), now=5.0)
    plan = the_plan(actions)
    assert actions == (Send((BOB,), plan), Freeze())
    assert (seat.phase, seat.leader, seat.due_at) == (Phase.FROZEN, ANN, 7.0)
    assert sorted((share.peer, share.slots) for share in plan.shares) == sorted(
        [(ANN, b"\x03"), (BOB, b"\x0c")]
    )
    assert seat.handle(Received(BOB, ack(plan)), now=5.5) == ()
    assert seat.handle(Quiet(), now=6.0) == (Send((BOB,), go(plan)), Reduce(plan))
    assert (seat.phase, seat.due_at) == (Phase.REDUCING, 10.0)
    (publish,) = seat.handle(Reduced(OUTCOME, 0), now=7.0)
    assert isinstance(publish, Publish)
    assert (seat.phase, seat.due_at) == (Phase.NORM, 15.0)
    assert set(publish.sum.members) == {ANN, BOB}


def test_a_member_acks_when_quiet_reduces_on_go_and_keeps_the_sum_in_reserve() -> None:
    seat, plan = following()
    assert seat.handle(Received(ANN, plan), now=0.0) == (Send((ANN,), ack(plan)),)  # a duplicate
    assert seat.handle(Received(EVE, go(plan)), now=0.0) == ()  # not the leader's
    assert seat.handle(Received(ANN, go(plan)), now=0.0) == (Reduce(plan),)
    assert seat.handle(Received(ANN, go(plan)), now=0.0) == ()
    assert seat.handle(Reduced(OUTCOME, 0), now=1.0) == ()
    assert seat.phase is Phase.NORM
    held = seat.sums[STAGE]
    assert seat.handle(Received(EVE, plan), now=1.0) == (Send((EVE,), held),)
    assert seat.handle(Received(ANN, ack(plan)), now=1.0) == ()


def test_seats_that_counted_nothing_receive_and_unknown_ones_are_left_out() -> None:
    seat = machine(ANN, BOB, EVE)
    seat.handle(Seen(bitmap(BOB, 0, seq=0)), now=0.0)
    plan = the_plan(seat.handle(Seen(bitmap(ANN, FULL)), now=0.0))
    assert {share.peer: share.slots for share in plan.shares} == {ANN: b"\x0f", BOB: b"\x00"}


def test_a_seat_that_never_showed_a_bitmap_acks_as_an_empty_one() -> None:
    seat = machine(BOB, ANN)
    empty = msgspec.structs.replace(bitmap(BOB, 0, seq=0), tallies=Tallies())
    plan = plan_of(ANN, bitmap(ANN, FULL), empty)
    assert seat.handle(Received(ANN, plan), now=0.0) == (Freeze(),)


def test_a_leader_that_counted_nothing_leads() -> None:
    seat = machine(ANN, BOB)
    plan = the_plan(seat.handle(Seen(bitmap(BOB, FULL)), now=0.0))
    assert {share.peer: share.slots for share in plan.shares} == {ANN: b"\x00", BOB: b"\x0f"}


# --- leaders and rounds ---------------------------------------------------------------------


def test_no_plan_in_time_hands_the_lead_on_with_growing_deadlines() -> None:
    seat = machine(EVE, ANN, BOB)
    seat.handle(Seen(bitmap(EVE, FULL)), now=0.0)
    ranks = [leaders(RUN, AT.step, STAGE, r, [ANN, BOB, EVE]) for r in range(10)]
    turn = next(r for r in range(10) if ranks[r][0] == EVE)
    assert turn > 0
    assert (seat.phase, seat.leader, seat.due_at) == (Phase.PLANNING, ANN, 1.0)
    now, waits = 0.0, []
    for r in range(turn):
        assert (seat.phase, seat.round, seat.leader) == (Phase.PLANNING, r, ranks[r][0])
        assert seat.due_at is not None
        assert seat.tick(now=seat.due_at - 0.01) == ()
        waits.append(seat.due_at - now)
        now = seat.due_at
        actions = seat.tick(now=now)
    assert waits == pytest.approx([1.5**r for r in range(turn)])
    # The sum may exist: who holds it plans no more, nor resolves an overlap.
    assert actions[0] == WantSums((STAGE,))
    assert actions[-1] == Freeze()
    assert (seat.phase, seat.round, seat.leader) == (Phase.FROZEN, turn, EVE)


def test_growth_is_capped() -> None:
    seat = machine(BOB, ANN, members=(ANN,))
    seat.handle(Seen(bitmap(BOB, FULL)), now=0.0)
    now = 0.0
    for _ in range(200):
        assert seat.due_at is not None
        wait, now = seat.due_at - now, seat.due_at
        seat.tick(now=now)
    assert wait == pytest.approx(8.0)


def test_a_dead_leader_is_replaced_at_once() -> None:
    seat = machine(BOB, ANN)
    seat.handle(Seen(bitmap(BOB, FULL)), now=0.0)
    assert seat.leader == ANN
    assert seat.handle(Live(frozenset({BOB})), now=0.5) == (Freeze(),)
    assert seat.leader == BOB


def test_joiners_lead_only_among_themselves() -> None:
    assert machine(ANN, BOB, members=(BOB,)).leader == BOB
    alone = machine(ANN, BOB, members=(EVE,))
    assert alone.leader == ANN
    assert alone.handle(Seen(bitmap(ANN, FULL)), now=0.0) == (Freeze(),)


def test_missing_acks_hand_the_lead_on() -> None:
    seat, plan = leading()
    actions = seat.tick(now=2.0)
    assert seat.round == 1
    assert plan.ballot.round == 0
    if seat.leader == ANN:
        assert the_plan(actions).ballot > plan.ballot
    else:
        assert actions == (Unfreeze(),)
        assert seat.phase is Phase.PLANNING


def test_a_failed_reduction_starts_the_next_round() -> None:
    seat, plan = following()
    seat.handle(Received(ANN, go(plan)), now=0.0)
    other = Ballot(round=0, rank=9, digest=plan.ballot.digest)
    assert seat.handle(ReduceFailed(other, "stale"), now=1.0) == ()
    assert seat.handle(ReduceFailed(plan.ballot, "link"), now=1.0) == ()
    assert seat.due_at == 2.0  # a pause, so that a broken link does not spin the rounds
    actions = seat.tick(now=2.0)
    assert (seat.round, seat.reason) == (1, "link")
    # BOB tells the leader, whom it keeps waiting; it does not know what ANN counted.
    (told, *rest) = actions
    assert isinstance(told, Send)
    assert (told.to, type(told.message)) == ((ANN,), Nack)
    assert rest == [Unfreeze()]
    assert seat.phase is Phase.COUNTING


def test_a_reduction_past_its_deadline_is_aborted() -> None:
    seat, plan = following()
    seat.handle(Received(ANN, go(plan)), now=0.0)
    assert seat.tick(now=3.9) == ()
    assert AbortReduce(plan.ballot) in seat.tick(now=4.0)
    assert seat.handle(Reduced(OUTCOME, 0), now=5.0) == ()  # too late


def test_a_leader_plans_anew_when_a_member_has_given_up() -> None:
    """A member that suspected another falsely gives up alone; nobody waits out the deadline."""
    seat, plan = leading()
    assert Send((BOB,), go(plan)) in seat.handle(Received(BOB, ack(plan)), now=0.0)
    gave_up = nack_of(plan, bitmap(BOB, 0b1100), highest=plan.ballot)
    again = the_plan(seat.handle(Received(BOB, gave_up), now=1.0))
    assert again.ballot > plan.ballot


def test_when_the_members_have_had_their_turn_everybody_leads() -> None:
    seat = machine(ANN, BOB, members=(BOB,))
    seat.handle(Seen(bitmap(ANN, 0b0011)), now=0.0)
    seat.handle(Seen(bitmap(BOB, 0b1100)), now=0.0)
    led = set()
    for _ in range(12):
        assert seat.due_at is not None
        seat.tick(now=seat.due_at)
        led.add(seat.leader)
        if seat.leader == ANN:
            break
    assert ANN in led


# --- views that differ -------------------------------------------------------------------------


def test_a_plan_that_is_not_my_bitmap_is_refused_with_all_i_hold() -> None:
    seat = machine(BOB, ANN)
    mine = bitmap(BOB, 0b1100, seq=2)
    seat.handle(Seen(mine), now=0.0)
    for stale in (
        bitmap(BOB, 0b1100),
        bitmap(BOB, 0b1000, seq=2),
        bitmap(BOB, 0b1100, seq=2, incarnation=2),
    ):
        rest = FULL & ~bytes_to_mask(stale.slots)
        plan = plan_of(ANN, bitmap(ANN, rest), stale)
        (refusal,) = seat.handle(Received(ANN, plan), now=0.0)
        assert refusal == Send(
            (ANN,),
            Nack(at=AT, stage=STAGE, ballot=plan.ballot, highest=NO_BALLOT, bitmaps=(mine,)),
        )
    assert seat.phase is Phase.COUNTING


def test_a_lower_ballot_is_refused_and_a_higher_one_adopted() -> None:
    seat, plan = following()
    shares = (bitmap(ANN, 0b0011), bitmap(BOB, 0b1100))
    higher = plan_of(EVE, *shares, bitmap(EVE, 0), round_=1)
    assert seat.handle(Received(EVE, higher), now=1.0) == (Send((EVE,), ack(higher)),)
    assert (seat.round, seat.leader) == (1, EVE)
    (refusal,) = seat.handle(Received(ANN, plan), now=1.0)
    assert isinstance(refusal, Send)
    assert isinstance(refusal.message, Nack)
    assert refusal.message.highest == higher.ballot
    (refusal,) = seat.handle(Received(ANN, go(plan)), now=1.0)
    assert sent((refusal,), Nack) == [(ANN,)]


def test_a_higher_ballot_aborts_a_reduction() -> None:
    seat, plan = following()
    seat.handle(Received(ANN, go(plan)), now=0.0)
    higher = plan_of(ANN, bitmap(ANN, 0b0011), bitmap(BOB, 0b1100), round_=3)
    assert seat.handle(Received(ANN, higher), now=1.0) == (
        AbortReduce(plan.ballot),
        Send((ANN,), ack(higher)),
    )


def test_an_abandoned_ballot_is_never_acked_again() -> None:
    seat, plan = following()
    seat.tick(now=2.0)
    assert sent(seat.handle(Received(ANN, plan), now=2.1), Nack) == [(ANN,)]


def nack_of(plan: Plan, *bitmaps: Bitmap, highest: Ballot = NO_BALLOT) -> Nack:
    return Nack(at=AT, stage=STAGE, ballot=plan.ballot, highest=highest, bitmaps=bitmaps)


def test_a_leader_merges_a_nack_and_plans_above_it() -> None:
    seat, plan = leading()
    highest = Ballot(round=4, rank=0, digest=plan.ballot.digest)
    newer = bitmap(BOB, 0b1100, seq=2)
    again = the_plan(seat.handle(Received(BOB, nack_of(plan, newer, highest=highest)), now=1.0))
    assert (again.ballot.round, seat.leader) == (5, ANN)
    assert 2 in {share.seq for share in again.shares if share.peer == BOB}


def test_a_nack_that_teaches_nothing_changes_nothing() -> None:
    seat, plan = leading()
    assert seat.handle(Received(BOB, nack_of(plan)), now=1.0) == ()
    assert seat.phase is Phase.FROZEN


def test_a_nack_counts_also_if_its_bitmaps_were_seen_before_it() -> None:
    seat, plan = leading()
    newer = bitmap(BOB, 0b1100, seq=2)
    assert seat.handle(Seen(newer), now=1.0) == ()
    assert the_plan(seat.handle(Received(BOB, nack_of(plan, newer)), now=1.0)).ballot.round == 1


def test_a_nack_that_shows_a_gap_sends_the_leader_back_to_counting() -> None:
    seat, plan = leading()
    actions = seat.handle(Received(BOB, nack_of(plan, bitmap(BOB, 0b1000, seq=2))), now=1.0)
    assert actions == (Unfreeze(),)
    assert seat.phase is Phase.COUNTING
    assert seat.ledger.missing() == 0b0100


def test_a_members_death_before_go_sends_everybody_back() -> None:
    seat, _ = leading()
    assert seat.handle(Live(frozenset({ANN})), now=1.0) == (Unfreeze(),)
    assert seat.phase is Phase.COUNTING
    member, _ = following()
    assert member.handle(Live(frozenset({BOB})), now=1.0) == (Unfreeze(),)
    assert member.phase is Phase.COUNTING


def test_a_members_death_after_go_shortens_the_wait_for_the_sum() -> None:
    seat, plan = following()
    seat.handle(Received(ANN, go(plan)), now=0.0)
    assert seat.handle(Live(frozenset({BOB, EVE})), now=1.0) == ()
    assert (seat.phase, seat.due_at) == (Phase.REDUCING, 2.0)
    told, *rest = seat.tick(now=2.0)
    assert isinstance(told, Send)  # ANN may live after all, and wait for BOB's parts
    assert rest == [AbortReduce(plan.ballot), Unfreeze()]
    assert seat.reason == f"{ANN} left while reducing"
    lucky, plan = following()
    lucky.handle(Received(ANN, go(plan)), now=0.0)
    lucky.handle(Live(frozenset({BOB, EVE})), now=1.0)
    lucky.handle(Reduced(OUTCOME, 0), now=1.5)
    assert lucky.phase is Phase.NORM


def test_an_accumulation_that_was_running_ends_before_the_ack() -> None:
    seat, plan = following(acked=False)
    actions = seat.handle(Seen(bitmap(BOB, 0b1101, seq=2)), now=0.5)
    assert sent(actions, Nack) == [(ANN,)]
    assert actions[-1] == Unfreeze()
    leader = machine(ANN, BOB)
    leader.handle(Seen(bitmap(ANN, 0b0011)), now=0.0)
    leader.handle(Seen(bitmap(BOB, 0b1100)), now=0.0)
    again = the_plan(leader.handle(Seen(bitmap(ANN, 0b0011, seq=2)), now=0.5))
    assert again.ballot > plan.ballot


def forged(plan: Plan, **changes: object) -> Plan:
    shares = list(plan.shares)
    shares[0] = msgspec.structs.replace(shares[0], **changes)
    return msgspec.structs.replace(plan, shares=tuple(shares))


def test_unsound_plans_are_ignored() -> None:
    seat = machine(BOB, ANN)
    mine = bitmap(BOB, 0b1100)
    seat.handle(Seen(mine), now=0.0)
    overlap = plan_of(ANN, bitmap(ANN, 0b0111), mine)
    gap = plan_of(ANN, bitmap(ANN, 0b0001), mine)
    stranger = plan_of(ANN, bitmap(EVE, 0b0011), mine)
    without_me = plan_of(ANN, bitmap(ANN, FULL))
    tampered = forged(plan_of(ANN, bitmap(ANN, 0b0011), mine), seq=9)
    foreign = msgspec.structs.replace(
        plan_of(ANN, bitmap(ANN, 0b0011), mine), at=msgspec.structs.replace(AT, epoch=1)
    )
    for plan in (overlap, gap, stranger, without_me, tampered, foreign):
        assert seat.handle(Received(ANN, plan), now=0.0) == ()
    assert seat.phase is Phase.COUNTING


# --- overlaps --------------------------------------------------------------------------------


def test_the_loser_of_an_overlap_subtracts_once() -> None:
    work = Microbatch(AT.step, Slot(1))
    kept = keeper(RUN, STAGE, work, (ANN, BOB))
    loser = ANN if kept == BOB else BOB
    for me in (ANN, BOB):
        seat = machine(me, *({ANN, BOB} - {me}))
        other = ANN if me == BOB else BOB
        seat.handle(Seen(bitmap(me, 0b0011)), now=0.0)
        actions = seat.handle(Seen(bitmap(other, 0b1110)), now=0.0)
        assert actions == ((Subtract(0b0010),) if me == loser else ())
        assert seat.handle(Seen(bitmap(other, 0b1110, seq=2)), now=0.0) == ()
    assert seat.phase is Phase.PLANNING


def test_a_leader_waits_until_the_overlap_is_gone() -> None:
    seat = machine(ANN, BOB)
    seat.handle(Seen(bitmap(ANN, 0b0011)), now=0.0)
    seat.handle(Seen(bitmap(BOB, 0b1110)), now=0.0)
    assert seat.phase is Phase.PLANNING
    kept = keeper(RUN, STAGE, Microbatch(AT.step, Slot(1)), (ANN, BOB))
    smaller = bitmap(ANN, 0b0001, seq=2) if kept == BOB else bitmap(BOB, 0b1100, seq=2)
    plan = the_plan(seat.handle(Seen(smaller), now=0.5))
    assert sum(bytes_to_mask(share.slots) for share in plan.shares) == FULL


def test_a_slot_that_comes_back_is_subtracted_again() -> None:
    kept = keeper(RUN, STAGE, Microbatch(AT.step, Slot(1)), (ANN, BOB))
    me = ANN if kept == BOB else BOB
    seat = machine(me, kept)
    seat.handle(Seen(bitmap(kept, 0b0010)), now=0.0)
    assert seat.handle(Seen(bitmap(me, 0b0010)), now=0.0) == (Subtract(0b0010),)
    assert seat.handle(Seen(bitmap(me, 0, seq=2)), now=0.0) == ()
    assert seat.handle(Seen(bitmap(me, 0b0010, seq=3)), now=0.0) == (Subtract(0b0010),)


# --- the sum is unique: one holder is enough ----------------------------------------------


def test_whoever_hears_of_the_sum_fetches_it_and_falls_back_on_its_members() -> None:
    seat, plan = following()
    told = total(STAGE, round_=7)
    assert seat.handle(Received(EVE, told), now=1.0) == (FetchSum(EVE, told),)
    assert (seat.phase, seat.plan) == (Phase.REDUCING, None)
    assert seat.handle(Received(ANN, plan), now=1.0) == ()
    assert seat.handle(FetchFailed(ANN, "stale"), now=1.0) == ()
    assert seat.handle(FetchFailed(EVE, "gone"), now=1.0) == (FetchSum(ANN, told),)
    assert seat.handle(Reduced(OUTCOME, 7), now=2.0) == ()
    assert seat.phase is Phase.NORM
    assert seat.sums[STAGE] == told


def test_a_counting_seat_freezes_to_fetch_and_thaws_if_nobody_gives() -> None:
    seat = machine(BOB, ANN)
    seat.handle(Live(frozenset({ANN, BOB, EVE})), now=0.0)
    told = total(STAGE)
    assert seat.handle(Received(ANN, told), now=1.0) == (Freeze(), FetchSum(ANN, told))
    assert seat.due_at == 5.0
    assert seat.tick(now=5.0) == (FetchSum(EVE, told),)
    assert seat.handle(FetchFailed(EVE, "gone"), now=6.0) == ()
    assert seat.tick(now=7.0) == (Unfreeze(),)
    assert seat.phase is Phase.COUNTING


def test_a_holder_that_is_lost_is_waited_for_no_longer() -> None:
    seat = machine(BOB, ANN)
    seat.handle(Live(frozenset({ANN, BOB, EVE})), now=0.0)
    told = total(STAGE)
    seat.handle(Received(ANN, told), now=1.0)
    assert seat.handle(Live(frozenset({ANN, BOB})), now=1.5) == ()  # it was not asked yet
    assert seat.handle(Live(frozenset({BOB, EVE})), now=2.0) == ()
    assert seat.handle(FetchFailed(ANN, "late news"), now=2.5) == ()
    assert seat.tick(now=3.0) == (Unfreeze(),)
    assert seat.reason == "nobody gave the sum they announced"
    seat = machine(BOB, ANN)
    seat.handle(Live(frozenset({ANN, BOB, EVE})), now=0.0)
    seat.handle(Received(ANN, told), now=1.0)
    assert seat.handle(Live(frozenset({BOB, EVE})), now=2.0) == (FetchSum(EVE, told),)


def test_a_sum_that_died_with_its_holders_is_no_reason_to_stop_counting() -> None:
    seat = machine(BOB, ANN)
    seat.handle(Live(frozenset({BOB})), now=0.0)
    neighbour = PeerId("of another stage")
    assert seat.handle(Received(neighbour, total(STAGE)), now=1.0) == ()
    assert seat.phase is Phase.COUNTING


def test_a_sum_heard_in_the_pause_after_a_failure_is_fetched() -> None:
    seat, plan = following()
    seat.handle(Received(ANN, go(plan)), now=0.0)
    seat.handle(ReduceFailed(plan.ballot, "link"), now=1.0)
    told = total(STAGE, round_=0)
    assert seat.handle(Received(ANN, told), now=1.5) == (FetchSum(ANN, told),)


def test_a_subtraction_under_way_ends_before_the_sum_is_fetched() -> None:
    kept = keeper(RUN, STAGE, Microbatch(AT.step, Slot(1)), (ANN, BOB))
    me = ANN if kept == BOB else BOB
    seat = machine(me, kept)
    seat.handle(Seen(bitmap(kept, 0b0010)), now=0.0)
    assert seat.handle(Seen(bitmap(me, 0b0011)), now=0.0) == (Subtract(0b0010),)
    told = total(STAGE)
    assert seat.handle(Received(kept, told), now=1.0) == ()
    assert seat.handle(Seen(bitmap(me, 0b0001, seq=2)), now=1.0) == (
        Freeze(),
        FetchSum(kept, told),
    )


def test_a_running_reduction_of_the_same_round_may_end_before_fetching() -> None:
    seat, plan = following()
    seat.handle(Received(ANN, go(plan)), now=0.0)
    told = total(STAGE, round_=0)
    assert seat.handle(Received(ANN, told), now=1.0) == ()
    assert seat.tick(now=4.0) == (AbortReduce(plan.ballot), FetchSum(ANN, told))
    quick, plan = following()
    quick.handle(Received(ANN, go(plan)), now=0.0)
    quick.handle(Received(ANN, told), now=1.0)
    assert quick.handle(Reduced(OUTCOME, 0), now=1.5) == ()
    assert quick.phase is Phase.NORM


# --- the barrier -----------------------------------------------------------------------------


def at_norm() -> StepMachine:
    seat, plan = following()
    seat.handle(Received(ANN, go(plan)), now=0.0)
    seat.handle(Reduced(OUTCOME, 0), now=0.0)
    return seat


def test_no_stage_steps_before_all_sums_are_known() -> None:
    seat = at_norm()
    assert seat.handle(Received(EVE, total(0)), now=1.0) == ()
    assert seat.handle(Received(EVE, total(0)), now=1.0) == ()
    assert seat.tick(now=8.0) == (WantSums((Stage(2),)),)
    assert seat.due_at == 8.0 + 12.0
    assert seat.tick(now=20.0) == (WantSums((Stage(2),)),)
    (commit,) = seat.handle(Received(EVE, total(2)), now=21.0)
    assert isinstance(commit, Commit)
    assert [one.stage for one in commit.sums] == [0, 1, 2]
    assert seat.phase is Phase.COMMITTED
    assert seat.tick(now=1e9) == ()
    assert seat.handle(Received(EVE, total(2)), now=22.0) == ()


def test_sums_of_other_stages_may_come_first() -> None:
    seat, plan = following()
    for stage in (0, 2):
        assert seat.handle(Received(EVE, total(stage)), now=0.0) == ()
    assert seat.handle(Received(EVE, total(3)), now=0.0) == ()  # there is no such stage
    seat.handle(Received(ANN, go(plan)), now=0.0)
    (commit,) = seat.handle(Reduced(OUTCOME, 0), now=0.0)
    assert isinstance(commit, Commit)


def test_a_counting_seat_asks_whether_the_sum_exists() -> None:
    seat = machine(BOB, ANN)
    assert seat.tick(now=7.9) == ()
    assert seat.tick(now=8.0) == (WantSums((STAGE,)),)


@pytest.mark.parametrize("stage", [0, 1])
def test_two_sums_for_one_stage_raise_an_alarm_and_nothing_commits(stage: int) -> None:
    seat = at_norm()
    seat.handle(Received(EVE, total(0)), now=1.0)
    seat.handle(Received(EVE, total(1)), now=1.0)
    (alarm,) = seat.handle(Received(EVE, total(stage, digest=b"x" * 32)), now=1.0)
    assert isinstance(alarm, Alarm)
    assert seat.alarmed
    assert seat.handle(Received(EVE, total(2)), now=2.0) == ()
    assert seat.tick(now=1e9) == ()
    assert seat.phase is Phase.NORM


def test_a_poisoned_microbatch_makes_the_sum_not_finite() -> None:
    seat = machine(ANN, stages=3)
    poisoned = msgspec.structs.replace(bitmap(ANN, FULL), tallies=Tallies(tokens=4, poisoned=1))
    seat.handle(Seen(poisoned), now=0.0)
    seat.handle(Quiet(), now=0.0)
    (publish,) = seat.handle(Reduced(OUTCOME, 0), now=0.0)
    assert isinstance(publish, Publish)
    assert not publish.sum.finite


def test_foreign_positions_and_dead_incarnations_change_nothing() -> None:
    seat = machine(BOB, ANN)
    elsewhere = msgspec.structs.replace(AT, step=Step(3))
    assert (
        seat.handle(Seen(msgspec.structs.replace(bitmap(ANN, FULL), at=elsewhere)), now=0.0) == ()
    )
    assert seat.handle(Seen(bitmap(BOB, FULL, incarnation=0)), now=0.0) == ()
    foreign = msgspec.structs.replace(total(0), at=elsewhere)
    assert seat.handle(Received(ANN, foreign), now=0.0) == ()
    assert seat.ledger.bitmaps() == ()
    assert seat.sums == {}


def test_shares_are_values_of_the_wire() -> None:
    plan = plan_of(ANN, bitmap(ANN, 0b0011), bitmap(BOB, 0b1100))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=Plan) == plan
    assert all(isinstance(share, Share) for share in plan.shares)


def test_a_flood_of_names_does_not_make_a_nack_that_cannot_be_sent() -> None:
    """Five thousand signed names and one Go ended the peer: its answer was too long to encode."""
    seat = machine(ANN, BOB)
    for number in range(5000):
        flood = msgspec.structs.replace(bitmap(PeerId(f"{number:052}"), 0), signature=bytes(64))
        seat.handle(Seen(flood), now=0.0)
    go = Go(at=AT, stage=STAGE, ballot=Ballot(round=0, rank=0, digest=Digest(bytes(32))))
    (answer,) = seat.handle(Received(EVE, go), now=0.1)
    assert isinstance(answer, Send)
    assert isinstance(answer.message, Nack)
    assert len(encode(answer.message)) <= CONTROL_BYTES


# --- where arithmetic differs ----------------------------------------------------------------


def summed(*, stages: int = 3) -> StepMachine:
    """ANN has summed alone what BOB had counted as well; BOB lives. In NORM under round 0."""
    seat = machine(ANN, BOB, canonical=True, stages=stages)
    seat.handle(Seen(bitmap(ANN, FULL)), now=0.0)
    seat.handle(Seen(bitmap(BOB, 0)), now=0.0)
    seat.handle(Quiet(), now=0.0)
    assert seat.plan is not None
    seat.handle(Received(BOB, ack(seat.plan)), now=0.0)
    seat.handle(Reduced(OUTCOME, 0), now=0.0)
    return seat


def lower(*, final: bool = False) -> Sum:
    """A SUM of the own stage that counts more than what ``summed`` has."""
    return next(
        msgspec.structs.replace(one, final=final)
        for one in (total(STAGE, digest=bytes([n]) * 32) for n in range(256))
        if precedes(one, summed().sums[STAGE])
    )


def test_another_name_of_another_stage_takes_its_place_if_it_counts_more() -> None:
    seat = machine(ANN, canonical=True)
    first, second = total(0, digest=b"a" * 32), total(0, digest=b"b" * 32)
    more, less = (first, second) if precedes(first, second) else (second, first)
    assert seat.handle(Received(BOB, less), now=0.0) == ()
    (asked,) = seat.handle(Received(BOB, more), now=0.0)
    assert asked == WantSums((Stage(0),), everyone=True)  # somebody may have stepped with less
    assert seat.sums[Stage(0)] == more
    (told,) = seat.handle(Received(EVE, less), now=0.0)
    assert told == Send((EVE,), more)
    assert seat.sums[Stage(0)] == more


def test_a_name_that_somebody_has_stepped_with_beats_all_others() -> None:
    seat = machine(ANN, canonical=True)
    stepped = msgspec.structs.replace(total(0, round_=9), final=True)
    seat.handle(Received(BOB, total(0, round_=0, digest=b"a" * 32)), now=0.0)
    seat.handle(Received(BOB, stepped), now=0.0)
    assert seat.sums[Stage(0)] == stepped
    assert not seat.alarmed


def test_in_norm_the_sum_that_counts_more_is_fetched_from_a_holder() -> None:
    seat, other = summed(), lower()
    assert seat.phase is Phase.NORM
    assert seat.handle(Received(BOB, other), now=1.0)[-1] == FetchSum(BOB, other)
    assert seat.phase is Phase.REDUCING
    outcome = Outcome(digest=other.digest, norms=(9.0,), finite=True)
    seat.handle(Reduced(outcome, other.round), now=2.0)
    assert seat.phase is Phase.NORM
    assert seat.sums[STAGE] == other
    assert seat.holds(other)


def test_a_name_that_nobody_can_give_is_taken_with_the_whole_sum_that_is_here() -> None:
    seat, other = summed(), lower()
    seat.handle(Received(BOB, other), now=1.0)
    seat.handle(FetchFailed(BOB, "no such sum"), now=2.0)
    if seat.phase is Phase.REDUCING:  # EVE, a member of it, is not alive
        seat.handle(FetchFailed(EVE, "gone"), now=2.0)
    assert seat.phase is Phase.NORM
    assert seat.sums[STAGE] == other
    assert not seat.holds(other)  # and is not given to others as what it is not


def test_a_name_whose_holders_have_died_names_what_the_stage_counts_again() -> None:
    seat = machine(ANN, canonical=True)
    gone = msgspec.structs.replace(total(STAGE, digest=b"g" * 32), members=(BOB,), final=True)
    assert seat.handle(Received(EVE, gone), now=0.0) == ()
    seat.handle(Seen(bitmap(ANN, FULL)), now=0.0)
    seat.handle(Quiet(), now=0.0)
    seat.handle(Reduced(OUTCOME, 0), now=0.0)
    assert seat.phase is Phase.NORM
    assert seat.sums[STAGE] == gone


def test_a_name_that_was_taken_is_not_fetched_when_it_is_told_again() -> None:
    seat = machine(ANN, BOB, stages=2, canonical=True)
    lost = msgspec.structs.replace(total(STAGE, digest=b"g" * 32), members=(EVE,), final=True)
    seat.handle(Received(EVE, msgspec.structs.replace(lost, members=())), now=0.0)
    seat.handle(Live(frozenset({ANN})), now=0.0)
    seat.handle(Seen(bitmap(ANN, FULL)), now=0.0)
    seat.handle(Quiet(), now=0.0)
    seat.handle(Reduced(OUTCOME, seat.round), now=0.0)
    assert seat.phase is Phase.NORM
    assert seat.sums[STAGE].digest == lost.digest
    assert seat.handle(Received(EVE, lost), now=0.0) == ()
    assert seat.phase is Phase.NORM
    seat.handle(Received(EVE, total(0)), now=0.0)
    seat.tick(now=LIMITS.plan_seconds)
    assert seat.phase is Phase.COMMITTED
    assert seat.handle(Received(EVE, lost), now=9.0) == ()
    assert seat.phase is Phase.COMMITTED


def test_who_lost_a_mate_asks_everybody_and_steps_a_plan_later() -> None:
    seat = summed(stages=2)
    actions = seat.handle(Live(frozenset({ANN})), now=1.0)
    assert WantSums((STAGE,), everyone=True) in actions
    asked = (WantSums((Stage(0), STAGE), everyone=True),)
    assert seat.handle(Received(EVE, total(0)), now=1.0) == asked
    assert seat.due_at is not None
    assert seat.tick(now=seat.due_at) == asked
    (commit,) = seat.tick(now=1.0 + LIMITS.plan_seconds)
    assert isinstance(commit, Commit)


def test_who_holds_back_steps_as_soon_as_others_say_that_they_have() -> None:
    seat = summed(stages=2)
    seat.handle(Live(frozenset({ANN})), now=1.0)
    seat.handle(Received(EVE, total(0)), now=1.0)
    mine = msgspec.structs.replace(seat.sums[STAGE], final=True)
    assert seat.handle(Received(EVE, mine), now=1.0) == ()
    below = msgspec.structs.replace(total(0), final=True)
    (commit,) = seat.handle(Received(EVE, below), now=1.0)
    assert isinstance(commit, Commit)


def test_who_has_stepped_tells_its_name_as_final_and_keeps_it() -> None:
    seat, other = summed(stages=2), lower()
    (commit,) = seat.handle(Received(EVE, total(0)), now=1.0)
    assert isinstance(commit, Commit)
    (told,) = seat.handle(Received(BOB, other), now=1.0)
    assert isinstance(told, Send)
    assert isinstance(told.message, Sum)
    assert told.message.final
    assert told.message.digest == OUTCOME.digest
    assert seat.handle(Received(BOB, lower(final=True)), now=1.0) == ()  # a fork: chains will tell


# --- who signed what -------------------------------------------------------------------------


def test_what_this_seat_has_summed_is_sealed_before_anybody_hears_of_it() -> None:
    seat = machine(ANN, seal=lambda one: msgspec.structs.replace(one, publisher=ANN))
    seat.handle(Seen(bitmap(ANN, FULL)), now=0.0)
    seat.handle(Quiet(), now=0.0)
    (publish,) = seat.handle(Reduced(OUTCOME, 0), now=0.0)
    assert isinstance(publish, Publish)
    assert publish.sum.publisher == ANN
    assert seat.sums[STAGE] == publish.sum


def by(publisher: PeerId, whole: Sum) -> Sum:
    return msgspec.structs.replace(whole, publisher=publisher)


def test_two_sums_name_who_signed_them() -> None:
    seat = machine(ANN)
    seat.handle(Received(BOB, by(BOB, total(0))), now=0.0)
    (alarm,) = seat.handle(Received(EVE, by(EVE, total(0, digest=b"x" * 32))), now=0.0)
    assert isinstance(alarm, Alarm)
    assert alarm.reason.endswith(f"signed by {BOB} and {EVE}")


def test_what_a_liar_said_of_other_stages_is_forgotten_and_asked_for_again() -> None:
    seat = machine(ANN, stages=3)
    seat.handle(Received(BOB, by(BOB, total(0))), now=0.0)
    seat.handle(Received(EVE, by(EVE, total(2))), now=0.0)
    assert seat.handle(Caught(BOB), now=0.0) == ()
    assert set(seat.sums) == {Stage(2)}


def test_the_sum_that_a_liar_announced_is_not_fetched_any_more() -> None:
    seat = machine(ANN, BOB)
    (_, fetch) = seat.handle(Received(BOB, by(BOB, total(STAGE))), now=0.0)
    assert isinstance(fetch, FetchSum)
    seat.handle(Caught(BOB), now=0.0)
    assert seat.handle(FetchFailed(BOB, "late"), now=0.0) == ()
    seat.tick(now=LIMITS.plan_seconds)
    assert seat.phase is Phase.COUNTING
