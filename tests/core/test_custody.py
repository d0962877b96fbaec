"""Custody of a frame: one holder at a time, no offer forgotten, never without a deadline."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2ptrain.core import duties as d
from p2ptrain.core.custody import Custody, Way
from p2ptrain.core.routing import Quote, Router
from p2ptrain.core.sparing import ASKS_MOST, PAUSE_SECONDS, TURN_SECONDS
from p2ptrain.core.stragglers import Delays
from p2ptrain.units import Microbatch, PeerId, Slot, Step

WORK = Microbatch(Step(3), Slot(5))
A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
LIMITS = d.CustodyLimits()
QUOTE = Quote(delay=0.1, service=0.1)


def forward(*peers: PeerId, replay: bool = False) -> Custody:
    router = Router(random.Random(0))
    router.set_seats(dict.fromkeys(peers, 1.0))
    return Custody(
        WORK, LIMITS, way=Way(router=router, delays=Delays()), replay=replay, returns=True
    )


def gradient(target: PeerId = A) -> Custody:
    return Custody(WORK, LIMITS, target=target)


def offer(peer: PeerId, attempt: int = 0, lease: float = 10.0) -> d.Answered:
    return d.Answered(peer, attempt, QUOTE, lease)


def busy(peer: PeerId, attempt: int = 0, retry: float = 0.5) -> d.Answered:
    return d.Answered(peer, attempt, None, retry)


def sent(peer: PeerId = A) -> Custody:
    """A forward on its way to ``peer``, the only seat."""
    custody = forward(peer)
    custody.start(now=0.0)
    custody.handle(d.Ready(), now=0.0)
    assert custody.handle(offer(peer), now=0.0) == (d.SendFrame(peer, 0),)
    return custody


def held(peer: PeerId = A) -> Custody:
    custody = sent(peer)
    assert custody.handle(d.Arrived(peer), now=1.0) == ()
    return custody


def computed(peer: PeerId = A) -> Custody:
    custody = held(peer)
    custody.handle(d.Finished(peer, 0.1), now=2.0)
    assert custody.state is d.State.COMPUTED
    return custody


# --- the usual way ----------------------------------------------------------------------


def test_a_forward_is_asked_for_offered_sent_held_computed_counted() -> None:
    custody = computed()
    custody.handle(d.Tallied(live=True), now=3.0)
    assert custody.state is d.State.COUNTED
    custody.handle(d.Returned(), now=3.5)
    assert custody.due_at is None


def test_asking_goes_on_while_the_frame_is_computed() -> None:
    custody = forward(A)
    assert custody.start(now=0.0) == (d.AskSeat(A, 0),)
    assert custody.handle(offer(A), now=0.0) == ()
    assert custody.handle(d.Ready(), now=1.0) == (d.SendFrame(A, 0),)


def test_two_are_asked_one_is_taken_the_other_declined() -> None:
    custody = forward(A, B)
    asked = {action.peer for action in custody.start(now=0.0) if isinstance(action, d.AskSeat)}
    assert asked == {A, B}
    assert custody.handle(offer(A), now=0.0) == ()
    (declined,) = custody.handle(offer(B), now=0.0)
    assert isinstance(declined, d.DeclineOffer)
    assert {declined.peer, custody.holder} == {A, B}


def test_a_gradient_goes_straight_to_who_parked_the_input() -> None:
    custody = gradient()
    assert custody.start(now=0.0) == (d.SendFrame(A, 0),)
    custody.handle(d.Arrived(A), now=0.1)
    custody.handle(d.Tallied(live=True), now=0.2)
    assert custody.state is d.State.COUNTED


# --- asking ------------------------------------------------------------------------------


def test_busy_seats_are_asked_again_when_they_said_and_no_sooner() -> None:
    custody = forward(A)
    custody.start(now=0.0)
    assert custody.handle(busy(A, retry=0.5), now=0.0) == ()
    assert custody.due_at == 0.5
    assert custody.tick(now=0.5) == (d.AskSeat(A, 0),)


def test_a_seat_cannot_send_us_away_for_ever() -> None:
    custody = forward(A)
    custody.start(now=0.0)
    custody.handle(busy(A, retry=80_000.0), now=0.0)
    asked_at = next(now / 10 for now in range(100) if d.AskSeat(A, 0) in custody.tick(now=now / 10))
    assert asked_at <= 6.0


def test_with_nobody_to_ask_it_looks_again() -> None:
    custody = forward()
    assert custody.start(now=0.0) == ()
    assert custody.due_at == pytest.approx(LIMITS.retry_seconds)


def test_silence_is_settled_by_the_deadline_with_who_did_answer() -> None:
    custody = forward(A, B)
    custody.handle(d.Ready(), now=0.0)
    custody.start(now=0.0)
    custody.handle(offer(B), now=0.0)
    assert custody.tick(now=LIMITS.answer_seconds) == (d.SendFrame(B, 0),)


def test_an_offer_said_twice_is_not_declined() -> None:
    custody = forward(A, B)
    custody.start(now=0.0)
    custody.handle(offer(A), now=0.0)
    assert custody.handle(offer(A), now=0.0) == ()
    custody = sent()
    assert custody.handle(offer(A), now=0.0) == ()


def test_an_offer_that_nobody_asked_for_is_declined() -> None:
    custody = sent(A)
    assert custody.handle(offer(C), now=0.0) == (d.DeclineOffer(C, 0),)
    assert custody.handle(offer(C, attempt=7), now=0.0) == (d.DeclineOffer(C, 7),)


def test_a_lease_that_runs_out_while_we_compute_is_given_back_and_asked_for_anew() -> None:
    custody = forward(A)
    custody.start(now=0.0)
    custody.handle(offer(A, lease=10.0), now=0.0)
    assert custody.tick(now=10.0) == (d.DeclineOffer(A, 0), d.AskSeat(A, 0))


def test_a_lease_of_no_time_does_not_spin() -> None:
    custody = forward(A)
    custody.start(now=0.0)
    custody.handle(offer(A, lease=0.0), now=1.0)
    assert custody.due_at is not None
    assert custody.due_at > 1.0


def test_an_asked_seat_that_is_past_the_step_is_not_waited_for() -> None:
    custody = forward(A)
    custody.start(now=0.0)
    custody.handle(d.Located(A, "committed"), now=0.1)
    assert custody.state is d.State.IDLE


# --- at the holder -----------------------------------------------------------------------


def test_a_late_forward_is_recalled_and_goes_elsewhere_only_once_given_back() -> None:
    custody = held()
    assert custody.due_at == 1.0 + LIMITS.recall_floor_seconds
    assert custody.tick(now=6.0) == (d.RecallFrame(A),)
    actions = custody.handle(d.Located(A, "none"), now=6.1)
    assert actions[0] == d.Again(A, "recalled", recalled=True)
    assert custody.attempt == 1


def test_a_seat_that_began_keeps_the_forward() -> None:
    custody = held()
    custody.tick(now=6.0)
    assert custody.handle(d.Located(A, "computing"), now=6.1) == ()
    assert custody.state is d.State.HELD
    assert custody.due_at is not None
    assert custody.due_at >= 6.1 + LIMITS.answer_seconds


def test_a_live_holder_that_answers_no_recall_does_not_keep_the_microbatch_for_ever() -> None:
    custody = held()
    now, again = 6.0, ()
    while not any(isinstance(action, d.Again) for action in again):
        again = custody.tick(now=now)
        now += LIMITS.answer_seconds
    assert custody.attempt == 1
    assert now < 30.0


def test_a_holder_that_computed_is_asked_now_and_then_whether_it_still_has_it() -> None:
    custody = computed()
    assert custody.tick(now=2.0 + LIMITS.check_seconds) == (d.AskWhere(A),)
    custody.handle(d.Located(A, "parked"), now=12.1)
    assert custody.state is d.State.COMPUTED
    custody.tick(now=30.0)
    actions = custody.handle(d.Located(A, "none"), now=30.1)  # it closed its seat meanwhile
    assert isinstance(actions[0], d.Again)


def test_a_lost_holder_means_a_new_attempt() -> None:
    actions = computed().handle(d.Lost(A), now=3.0)
    assert actions[0] == d.Again(A, "the holder is lost", recalled=False)


def test_a_frame_that_bounces_is_not_sent_back_at_once() -> None:
    custody = sent()
    actions = custody.handle(d.Located(A, "none"), now=1.0)
    assert actions == (d.Again(A, "it bounced", recalled=False),)
    assert custody.due_at == pytest.approx(1.0 + LIMITS.retry_seconds)


def test_after_a_broken_link_the_holder_is_asked_before_anybody_else() -> None:
    custody = sent()
    assert custody.handle(d.LinkBroke(A), now=1.0) == (d.RecallFrame(A),)
    custody.handle(d.Located(A, "queued"), now=1.5)
    assert custody.state is d.State.HELD
    assert custody.attempt == 0


def test_a_frame_that_did_not_go_out_goes_another_way() -> None:
    custody = sent()
    custody.handle(d.SendFailed(A, 0), now=1.0)
    assert custody.attempt == 1
    custody = sent()
    assert custody.handle(d.SendFailed(A, 4), now=1.0) == ()  # news of another attempt
    assert custody.state is d.State.SENT


def test_recall_waits_by_what_the_seat_usually_takes() -> None:
    router, delays = Router(random.Random(0)), Delays()
    router.set_seats({A: 1.0})
    for _ in range(20):
        delays.observe(A, 4.0)
    custody = Custody(WORK, LIMITS, way=Way(router=router, delays=delays))
    custody.start(now=0.0)
    custody.handle(d.Ready(), now=0.0)
    custody.handle(offer(A), now=0.0)
    custody.handle(d.Arrived(A), now=0.0)
    assert custody.due_at == pytest.approx(10.0)  # two and a half times the usual


# --- counted, and not ---------------------------------------------------------------------


def test_computed_after_counted_changes_nothing() -> None:
    custody = held()
    custody.handle(d.Tallied(live=True), now=2.0)
    custody.handle(d.Finished(A, 0.1), now=2.1)
    assert custody.state is d.State.COUNTED


def test_a_count_that_vanishes_starts_a_new_attempt() -> None:
    custody = computed()
    custody.handle(d.Tallied(live=True), now=3.0)
    assert custody.handle(d.Lost(A), now=4.0) == ()  # the ledger decides
    actions = custody.handle(d.Tallied(live=False), now=4.0)
    assert actions[:1] == (d.Again(A, "not counted any more", recalled=False),)


def test_a_count_by_a_seat_we_never_chose_can_vanish_too() -> None:
    custody = forward(A, replay=True)
    custody.start(now=0.0, seats=(A,))
    custody.handle(d.Tallied(live=True), now=0.1)
    assert custody.handle(d.Tallied(live=False), now=0.2) == (d.AskSeat(A, 1),)


def test_counted_gives_unused_offers_back() -> None:
    custody = forward(A)
    custody.start(now=0.0)
    custody.handle(offer(A), now=0.0)
    assert custody.handle(d.Tallied(live=True), now=0.1)[0] == d.DeclineOffer(A, 0)


# --- replays --------------------------------------------------------------------------------


def test_a_replay_first_asks_who_has_it_and_begins_when_nobody_does() -> None:
    custody = forward(A, B, replay=True)
    assert custody.start(now=0.0, seats=(A, B)) == (d.AskWhere(None),)
    assert custody.handle(d.Located(A, "none"), now=0.1) == ()
    actions = custody.handle(d.Located(B, "none"), now=0.2)
    assert {action.peer for action in actions if isinstance(action, d.AskSeat)} == {A, B}


def test_a_replay_does_not_wait_for_the_dead() -> None:
    custody = forward(A, replay=True)
    custody.start(now=0.0, seats=(A,))
    assert custody.handle(d.Lost(A), now=0.1) == (d.AskSeat(A, 0),)


def test_a_replay_takes_a_seat_that_has_it_already() -> None:
    custody = forward(A, B, replay=True)
    custody.start(now=0.0, seats=(A, B))
    assert custody.handle(d.Located(B, "counted"), now=0.1) == (d.TellPath(B),)
    assert custody.holder == B
    assert custody.state is d.State.COMPUTED


def test_a_second_attempt_takes_it_too_and_returns_the_other_offer() -> None:
    custody = forward(A, B)
    custody.start(now=0.0)
    custody.handle(offer(A), now=0.0)
    assert custody.handle(d.Located(B, "parked"), now=0.1) == (d.DeclineOffer(A, 0), d.TellPath(B))


def test_a_replay_that_is_counted_already_still_tells_the_counter_its_path() -> None:
    custody = forward(A, B, replay=True)
    custody.start(now=0.0, seats=(A, B))
    assert custody.handle(d.Tallied(live=True), now=0.1) == (d.AskWhere(None),)
    assert custody.handle(d.Located(B, "counted"), now=0.2) == (d.TellPath(B),)
    custody.handle(d.Returned(), now=0.3)
    assert custody.due_at is None


def test_what_is_counted_before_it_begins_is_looked_for_with_its_counter_alone() -> None:
    custody = forward(A, B)
    assert custody.start(now=0.0, seats=(A, B), counted=True) == (d.AskWhere(None),)
    assert custody.state is d.State.COUNTED
    custody.handle(d.Ready(), now=0.1)
    assert custody.handle(d.Located(A, "parked"), now=0.2) == ()
    assert custody.handle(d.Located(B, "counted"), now=0.3) == (d.TellPath(B),)
    assert custody.due_at == LIMITS.check_seconds
    asked = custody.handle(d.Tallied(live=False), now=1.0)
    assert {type(action) for action in asked} == {d.AskSeat}
    assert custody.handle(d.Located(A, "parked"), now=1.1)[-1] == d.TellPath(A)


def test_a_gradient_that_does_not_return_is_looked_for() -> None:
    custody = computed()
    assert custody.handle(d.Tallied(live=True), now=3.0) == ()
    assert custody.tick(now=3.0 + LIMITS.check_seconds) == (d.AskWhere(None),)


# --- gradients ------------------------------------------------------------------------------


def lost_gradient() -> Custody:
    custody = gradient()
    custody.start(now=0.0)
    custody.handle(d.Arrived(A), now=0.1)
    custody.handle(d.Lost(A), now=1.0)
    assert custody.state is d.State.WAITING
    return custody


def test_a_gradient_waits_to_be_told_where_its_input_is_replayed() -> None:
    assert lost_gradient().handle(d.Moved(B), now=2.0) == (d.SendFrame(B, 0),)


def test_a_gradient_goes_to_a_seat_that_was_suspected_falsely() -> None:
    custody = lost_gradient()
    assert custody.handle(d.Found(B), now=2.0) == ()
    assert custody.handle(d.Found(A), now=2.0) == (d.SendFrame(A, 0),)


def test_a_gradient_that_is_still_waited_for_is_sent_again() -> None:
    custody = gradient()
    custody.start(now=0.0)
    custody.handle(d.Arrived(A), now=0.1)
    assert custody.tick(now=0.1 + LIMITS.check_seconds) == (d.AskWhere(A),)
    assert custody.handle(d.Located(A, "parked"), now=11.0) == (d.SendFrame(A, 0),)


def test_a_gradient_whose_seat_has_closed_waits_for_its_replay() -> None:
    custody = gradient()
    custody.start(now=0.0)
    custody.handle(d.Located(A, "none"), now=0.1)
    assert custody.state is d.State.WAITING


def test_where_a_counted_gradient_moved_is_remembered() -> None:
    custody = gradient()
    custody.start(now=0.0)
    custody.handle(d.Tallied(live=True), now=0.1)
    assert custody.handle(d.Moved(B), now=0.2) == ()
    assert custody.handle(d.Tallied(live=False), now=0.3) == (d.SendFrame(B, 0),)


def test_a_gradient_that_was_taken_out_again_is_owed_again() -> None:
    """Its keeper sent it elsewhere meanwhile, and waits to be told where the input is now."""
    custody = computed()
    custody.handle(d.Tallied(live=True), now=3.0)
    custody.handle(d.Returned(), now=3.5)
    assert custody.handle(d.Owed(), now=4.0) == (d.AskWhere(None),)
    assert custody.handle(d.Located(B, "counted"), now=4.1) == (d.TellPath(B),)
    assert custody.due_at is not None  # until it comes
    not_tallied = computed()
    not_tallied.handle(d.Returned(), now=3.5)
    assert not_tallied.handle(d.Owed(), now=4.0) == (d.TellPath(A),)
    assert not_tallied.handle(d.Located(A, "counted"), now=9.0) == (d.TellPath(A),)  # and again


# --- every history ----------------------------------------------------------------------------

PEERS = st.sampled_from([A, B, C])
HELD = st.sampled_from(["none", "queued", "computing", "parked", "counted", "committed"])
ATTEMPTS = st.integers(0, 3)
EVENTS = st.one_of(
    st.just(d.Ready()),
    st.just(d.Returned()),
    st.just(d.Owed()),
    st.builds(
        d.Answered,
        PEERS,
        ATTEMPTS,
        st.one_of(st.none(), st.just(QUOTE), st.just(Quote(delay=80_000.0, service=0.0))),
        st.sampled_from([0.0, 0.2, 10.0, 80_000.0]),
    ),
    st.builds(d.SendFailed, PEERS, ATTEMPTS),
    st.builds(d.LinkBroke, PEERS),
    st.builds(d.Arrived, PEERS),
    st.builds(d.Finished, PEERS, st.sampled_from([0.0, 0.1, 1000.0])),
    st.builds(d.Located, PEERS, HELD),
    st.builds(d.Moved, PEERS),
    st.builds(d.Lost, PEERS),
    st.builds(d.Found, PEERS),
    st.builds(d.Tallied, live=st.booleans()),
)
HISTORIES = st.lists(st.one_of(EVENTS, st.sampled_from([0.0, 0.5, 5.0])), max_size=40)


class Watch:
    """Checks what must hold after every event, from the actions alone and the deadline."""

    def __init__(self, custody: Custody) -> None:
        self.custody = custody
        self.now = self.ends_at = 0.0
        self.open_offers: Counter[tuple[PeerId, int]] = Counter()
        self.frames: dict[int, PeerId] = {}
        self.owed = custody.what == "forward"

    def see(self, actions: tuple[d.Action, ...]) -> None:
        for action in actions:
            match action:
                case d.DeclineOffer(peer, attempt):
                    self.open_offers.pop((peer, attempt), None)
                case d.SendFrame(peer, attempt):
                    self.open_offers.pop((peer, attempt), None)
                    if self.custody.what == "forward":
                        assert self.frames.setdefault(attempt, peer) == peer
                case _:
                    pass
        custody = self.custody
        counted = custody.state is d.State.COUNTED and not self.owed
        assert (custody.due_at is None) == (counted or custody.state is d.State.WAITING)
        if custody.due_at is not None:
            assert custody.due_at < self.now + 200.0
        if custody.state in (d.State.SENT, d.State.HELD, d.State.RECALLING, d.State.COMPUTED):
            assert custody.holder is not None

    def step(self, item: d.Event | float) -> None:
        if isinstance(item, float):
            self.now += item
            self.see(self.custody.tick(now=self.now))
            return
        if isinstance(item, d.Answered) and item.quote is not None:
            on_its_way = self.custody.state is d.State.SENT and self.custody.holder == item.peer
            if not (on_its_way and self.custody.attempt == item.attempt):
                self.open_offers[item.peer, item.attempt] += 1
        if isinstance(item, d.Located) and item.held not in ("none", "committed"):
            self.open_offers.pop((item.peer, self.custody.attempt), None)  # it holds it: taken up
        if isinstance(item, d.Returned | d.Owed) and self.custody.what == "forward":
            self.owed = isinstance(item, d.Owed)
        self.see(self.custody.handle(item, now=self.now))


@settings(max_examples=150, deadline=None)
@given(HISTORIES, st.booleans(), st.booleans())
def test_every_history_of_a_forward_has_a_deadline_and_forgets_no_offer(
    history: list[d.Event | float],
    replay: bool,  # noqa: FBT001 - drawn by hypothesis
    counted: bool,  # noqa: FBT001 - drawn by hypothesis
) -> None:
    watch = Watch(forward(A, B, C, replay=replay))
    watch.see(watch.custody.start(now=0.0, seats=(A, B, C), counted=counted))
    for item in history:
        watch.step(item)
    watch.step(d.Tallied(live=True))
    assert watch.custody.state is d.State.COUNTED
    assert not watch.open_offers


@settings(max_examples=100, deadline=None)
@given(HISTORIES)
def test_every_history_of_a_gradient_has_a_deadline_or_waits_to_be_told(
    history: list[d.Event | float],
) -> None:
    watch = Watch(gradient())
    watch.see(watch.custody.start(now=0.0))
    for item in history:
        if not isinstance(item, d.Answered | d.Ready | d.Owed):
            watch.step(item)
    watch.step(d.Tallied(live=True))
    assert watch.custody.state is d.State.COUNTED


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.sampled_from([A, B, C]))
def test_from_any_history_a_seat_that_keeps_its_word_gets_the_frame(
    history: list[d.Event | float], honest: PeerId
) -> None:
    """Liveness: whatever was said before, one honest seat and silence of the rest suffice."""
    watch = Watch(forward(A, B, C))
    watch.see(watch.custody.start(now=0.0))
    for item in [*history, d.Ready(), d.Tallied(live=True), d.Tallied(live=False)]:
        watch.step(item)
    for _ in range(2000):
        actions = watch.custody.tick(now=watch.now)
        watch.see(actions)
        for action in actions:
            if isinstance(action, d.AskSeat) and action.peer == honest:
                watch.step(offer(honest, action.attempt))
        if watch.custody.state is d.State.SENT:
            break
        watch.now += 0.5
    assert watch.custody.state is d.State.SENT
    assert watch.custody.holder == honest


def test_a_busy_seat_is_waited_for_as_long_as_the_slow_one_would_have_taken() -> None:
    router = Router(random.Random(0))
    router.set_seats({A: 10.0, B: 0.1})
    custody = Custody(WORK, LIMITS, way=Way(router=router, delays=Delays()))
    custody.start(now=0.0)
    custody.handle(d.Ready(), now=0.0)
    slow, now = Quote(delay=20.0, service=10.0), 0.0
    while custody.holder is None:
        custody.handle(d.Answered(A, 0, None, 0.4), now=now)
        custody.handle(d.Answered(B, 0, slow, 10.0), now=now)
        if custody.holder is None:
            assert custody.due_at is not None
            assert 0.0 < custody.due_at - now <= LIMITS.idle_seconds
            now = custody.due_at
            custody.tick(now=now)
    assert custody.holder == B
    assert 20.0 <= now < 21.0


def test_what_a_seat_takes_out_again_is_asked_for_soon_unless_another_had_counted_it() -> None:
    custody = computed()
    assert custody.handle(d.Located(A, "none"), now=2.0) == ()
    assert custody.due_at == 3.5
    assert custody.tick(now=3.5) == (d.AskWhere(A),)
    actions = custody.handle(d.Located(A, "none"), now=3.6)
    assert any(isinstance(action, d.AskSeat) for action in actions)
    counted = computed()
    counted.handle(d.Located(A, "none"), now=2.0)
    counted.handle(d.Tallied(live=True), now=3.0)
    assert counted.state is d.State.COUNTED


def test_who_asks_for_a_gradient_that_it_had_gets_it_again() -> None:
    custody = gradient()
    custody.start(now=0.0)
    custody.handle(d.Arrived(A), now=0.1)
    assert custody.handle(d.Moved(A), now=1.0) == (d.SendFrame(A, 0),)
    assert custody.handle(d.Moved(A), now=1.1) == ()  # it is on its way


# --- what only the step's end waits for -------------------------------------------------


def spared(*peers: PeerId) -> Custody:
    """Counted, its gradient back, and then who had counted it is lost."""
    custody = forward(*peers)
    custody.start(now=0.0)
    custody.handle(d.Ready(), now=0.0)
    (send,) = [
        action
        for peer in peers
        for action in custody.handle(offer(peer), now=0.0)
        if isinstance(action, d.SendFrame)
    ]
    custody.handle(d.Arrived(send.peer), now=1.0)
    custody.handle(d.Tallied(live=True), now=2.0)
    custody.handle(d.Returned(), now=2.5)
    assert not any(isinstance(a, d.Again) for a in custody.handle(d.Lost(send.peer), now=3.0))
    return custody


def test_what_was_counted_and_whose_gradient_is_back_is_spare_once_the_count_is_lost() -> None:
    custody = spared(A)
    actions = custody.handle(d.Tallied(live=False), now=3.0)
    assert d.AskSeat(A, 1) in actions
    assert custody.spare


def test_what_a_seat_below_waits_for_is_not_spare() -> None:
    custody = computed()
    custody.handle(d.Tallied(live=True), now=3.0)
    custody.handle(d.Tallied(live=False), now=4.0)
    assert not custody.spare
    again = spared(A)
    again.handle(d.Owed(), now=3.0)
    assert not again.spare


def test_busy_with_other_work_is_no_word_on_a_seats_room_for_others() -> None:
    router = Router(random.Random(0))
    router.set_seats({A: 1.0})
    way = Way(router=router, delays=Delays())
    custody = Custody(WORK, LIMITS, way=way, returns=True)
    custody.start(now=0.0)
    custody.handle(d.Returned(), now=0.0)
    custody.handle(busy(A, retry=5.0), now=0.1)
    assert custody.state is d.State.IDLE
    assert router.choose(now=0.2) is not None
    assert custody.due_at == pytest.approx(0.1 + PAUSE_SECONDS + TURN_SECONDS)


def test_few_spare_frames_of_a_seat_ask_at_a_time() -> None:
    router = Router(random.Random(0))
    router.set_seats({A: 1.0})
    way = Way(router=router, delays=Delays())
    duties = [
        Custody(Microbatch(Step(3), Slot(slot)), LIMITS, way=way, returns=True)
        for slot in range(ASKS_MOST + 1)
    ]
    for duty in duties:
        duty.start(now=0.0, counted=True)
        duty.handle(d.Returned(), now=0.0)
        duty.handle(d.Tallied(live=False), now=1.0)
    assert [duty.state for duty in duties] == [d.State.ASKING] * ASKS_MOST + [d.State.IDLE]
    duties[0].handle(offer(A, attempt=1), now=1.5)
    assert duties[-1].tick(now=1.0 + TURN_SECONDS) == (d.AskSeat(A, 1),)


def test_when_the_step_is_over_others_wait_for_all_of_them() -> None:
    router = Router(random.Random(0))
    router.set_seats({A: 1.0})
    way = Way(router=router, delays=Delays())
    custody = Custody(WORK, LIMITS, way=way, returns=True)
    custody.handle(d.Returned(), now=0.0)
    assert custody.spare
    way.spare.over = True
    assert not custody.spare


def duties(many: int, router: Router) -> list[Custody]:
    way = Way(router=router, delays=Delays())
    made = []
    for slot in range(many):
        duty = Custody(Microbatch(Step(0), Slot(slot)), LIMITS, way=way, returns=True)
        duty.start(now=0.0, counted=True)
        duty.handle(d.Ready(), now=0.0)
        duty.handle(d.Returned(), now=0.0)
        made.append(duty)
    return made


def router_of(*peers: PeerId) -> Router:
    router = Router(random.Random(0))
    router.set_seats(dict.fromkeys(peers, 10.0))
    return router


def test_a_frame_that_its_holder_has_bare_is_not_forgotten_with_it() -> None:
    """Nobody waits for it, so it is not sent there; and no bitmap may ever have told of it."""
    (duty,) = duties(1, router_of(A))
    duty.handle(d.Tallied(live=False), now=0.0)
    duty.handle(d.Answered(A, 1, QUOTE, 10.0), now=0.0)
    duty.handle(d.Arrived(A), now=0.1)
    duty.handle(d.Located(A, "bare"), now=1.0)
    assert (duty.holder, duty.due_at is None) == (A, False)
    duty.handle(d.Lost(A), now=2.0)
    assert duty.state in (d.State.IDLE, d.State.ASKING)


class IdleSeat:
    """Offers whenever nothing waits with it, and needs 0.1 s for each."""

    def __init__(self) -> None:
        self.now = self.ends_at = 0.0
        self.waiting: list[Custody] = []
        self.counted = 0

    def act(self, duty: Custody, actions: tuple[d.Action, ...]) -> None:
        for action in actions:
            if isinstance(action, d.AskSeat):
                answer = (busy if self.waiting else offer)(A, action.attempt, 0.1)
                self.act(duty, duty.handle(answer, now=self.now))
            elif isinstance(action, d.SendFrame):
                duty.handle(d.Arrived(A), now=self.now)
                self.waiting.append(duty)
                self.ends_at = self.now + 0.1

    def wait(self, duties: list[Custody]) -> None:
        """Until the next thing happens."""
        times = [duty.due_at for duty in duties if duty.due_at is not None]
        self.now = min([*times, *([self.ends_at] if self.waiting else [])])
        if self.waiting and self.now >= self.ends_at:
            done = self.waiting.pop()
            done.handle(d.Finished(A, 0.1), now=self.now)
            done.handle(d.Tallied(live=True), now=self.now)
            self.counted += 1
        for duty in duties:
            self.act(duty, duty.tick(now=self.now))


def test_an_idle_stage_of_fast_seats_is_not_kept_waiting() -> None:
    """All are told of the loss at once, and must not come at once again and again."""
    seat, made = IdleSeat(), duties(40, router_of(A))
    for duty in made:
        seat.act(duty, duty.handle(d.Tallied(live=False), now=0.0))
    while seat.counted < len(made):
        seat.wait(made)
    assert seat.now < 12.0  # 4 s of work; 78 s when they did


def test_a_spare_frame_that_waits_where_others_go_first_costs_that_seat_no_turn() -> None:
    router = router_of(A)
    (duty,) = duties(1, router)
    duty.handle(d.Tallied(live=False), now=0.0)
    duty.handle(d.Answered(A, 1, QUOTE, 10.0), now=0.0)
    duty.handle(d.Arrived(A), now=0.1)
    assert duty.state is d.State.HELD
    assert duty.due_at is not None
    before = router.expected(A)
    assert duty.tick(now=duty.due_at) == (d.RecallFrame(A),)
    assert (router.expected(A), router.choose(now=6.0) is not None) == (before, True)


def test_what_is_owed_after_all_is_asked_for_at_once() -> None:
    router = router_of(A)
    (duty,) = duties(1, router)
    duty.handle(d.Tallied(live=False), now=0.0)
    duty.handle(d.Answered(A, 1, None, 1.0), now=0.0)
    assert duty.handle(d.Owed(), now=0.1) == (d.AskSeat(A, 1),)


def test_a_seat_that_has_it_to_spare_hears_that_it_is_waited_for() -> None:
    router = router_of(A)
    (duty,) = duties(1, router)
    duty.handle(d.Tallied(live=False), now=0.0)
    duty.handle(d.Answered(A, 1, QUOTE, 10.0), now=0.0)
    duty.handle(d.Arrived(A), now=0.1)
    assert duty.handle(d.Owed(), now=0.2) == (d.TellPath(A),)


# --- counted by a seat that has no frame of it (core/deposits) ------------------------------


def counted_by_another(*, owed: bool = True) -> Custody:
    custody = forward(A, B)
    custody.start(now=0.0, counted=True)
    custody.handle(d.Ready(), now=0.0)
    if not owed:
        custody.handle(d.Returned(), now=0.0)
    return custody


def test_who_counts_it_and_lacks_its_gradient_is_sent_the_frame_if_it_is_waited_for() -> None:
    custody = counted_by_another()
    assert custody.handle(d.Located(A, "bare"), now=1.0) == (d.SendFrame(A, 1),)
    custody.handle(d.Arrived(A), now=1.5)
    custody.handle(d.Tallied(live=True), now=2.0)
    assert custody.handle(d.Located(A, "counted"), now=9.0) == (d.TellPath(A),)


def test_what_nobody_waits_for_is_sent_there_only_if_it_is_wanted() -> None:
    custody = counted_by_another(owed=False)
    assert custody.handle(d.Located(A, "bare"), now=1.0) == ()
    assert custody.handle(d.Located(A, "wanted"), now=2.0) == (d.SendFrame(A, 1),)
    assert custody.handle(d.Located(A, "wanted"), now=2.1) == ()  # it is on its way


def test_a_frame_that_is_not_ready_follows_when_it_is() -> None:
    custody = forward(A, replay=True)
    custody.start(now=0.0, seats=(A, B))
    assert custody.handle(d.Located(A, "bare"), now=0.5) == ()
    assert custody.handle(d.Ready(), now=1.0) == (d.SendFrame(A, 1),)


def test_so_it_does_if_it_was_found_counted_meanwhile() -> None:
    custody = forward(A, replay=True)
    custody.start(now=0.0, seats=(A, B))
    custody.handle(d.Located(A, "bare"), now=0.5)
    custody.handle(d.Tallied(live=True), now=0.6)
    assert custody.handle(d.Ready(), now=1.0) == (d.SendFrame(A, 2),)


def test_what_bounces_there_is_asked_about_again_and_goes_to_nobody_else() -> None:
    custody = counted_by_another()
    custody.handle(d.Located(A, "bare"), now=1.0)
    assert custody.handle(d.Located(A, "bare"), now=1.1) == ()
    assert custody.due_at == pytest.approx(1.1 + LIMITS.idle_seconds)
    assert custody.tick(now=3.0) == (d.AskWhere(A),)
    assert custody.handle(d.Located(A, "bare"), now=3.1) == (d.SendFrame(A, 2),)
    assert custody.handle(d.SendFailed(A, 2), now=3.2) == ()
    assert custody.tick(now=5.0) == (d.AskWhere(A),)


@pytest.mark.parametrize("owed", [True, False])
def test_who_counts_it_is_asked_now_and_then_where_no_bitmap_tells(*, owed: bool) -> None:
    """Of a step that is over: what had counted it may be gone the moment after it said so."""
    custody = counted_by_another(owed=owed)
    custody.handle(d.Located(A, "wanted"), now=1.0)
    custody.handle(d.Located(A, "bare"), now=1.1)
    assert custody.due_at is not None
    assert custody.tick(now=custody.due_at) == (d.AskWhere(A),)
    assert any(isinstance(a, d.AskSeat) for a in custody.handle(d.Lost(A), now=20.0))
    other = counted_by_another(owed=owed)
    other.handle(d.Located(A, "wanted"), now=1.0)
    other.handle(d.Arrived(A), now=1.1)
    other.handle(d.Finished(A, 0.1), now=1.2)
    assert other.due_at is not None
    other.tick(now=other.due_at)
    assert any(isinstance(a, d.AskSeat) for a in other.handle(d.Located(A, "none"), now=20.0))


def test_before_its_frame_is_ready_its_counter_may_be_lost() -> None:
    custody = forward(A, B, replay=True)
    custody.start(now=0.0, seats=(A, B))
    custody.handle(d.Located(A, "bare"), now=0.5)
    assert any(isinstance(a, d.AskSeat) for a in custody.handle(d.Lost(A), now=0.7))


def test_who_dropped_what_it_wanted_gets_it_again() -> None:
    custody = counted_by_another(owed=False)
    custody.handle(d.Located(A, "wanted"), now=1.0)
    custody.handle(d.Arrived(A), now=1.1)
    custody.handle(d.Located(A, "bare"), now=1.2)
    assert custody.handle(d.Located(A, "wanted"), now=4.0) == (d.SendFrame(A, 2),)


def test_when_it_does_not_count_it_any_more_the_frame_goes_its_usual_way() -> None:
    custody = counted_by_another()
    custody.handle(d.Located(A, "bare"), now=1.0)
    custody.handle(d.Tallied(live=True), now=1.5)
    assert any(isinstance(a, d.AskSeat) for a in custody.handle(d.Tallied(live=False), now=2.0))
    again = counted_by_another()
    again.handle(d.Located(A, "bare"), now=1.0)
    assert any(isinstance(a, d.AskSeat) for a in again.handle(d.Lost(A), now=2.0))


def test_for_who_waits_for_nothing_it_is_as_good_as_counted() -> None:
    custody = forward(A)
    custody.start(now=0.0)
    custody.handle(d.Returned(), now=0.0)
    custody.handle(d.Located(A, "bare"), now=0.1)
    assert (custody.state, custody.holder) == (d.State.COMPUTED, A)


def test_a_gradient_is_not_moved_by_it() -> None:
    custody = gradient()
    custody.start(now=0.0)
    custody.handle(d.Arrived(A), now=0.1)
    for held_ in ("bare", "wanted"):
        assert custody.handle(d.Located(A, held_), now=1.0) == ()
    assert custody.state is d.State.HELD
