"""Turns follow speed, fresh delays veto, and who fails is left alone for a while."""

import math
import random
from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from p2ptrain.core.routing import ALONE_SECONDS, BUSY_MAX_SECONDS, Choice, Quote, Router
from p2ptrain.units import PeerId

ANN, BOB, EVE = PeerId("ann"), PeerId("bob"), PeerId("eve")


def router(rates: dict[PeerId, float], seed: int = 1) -> Router:
    made = Router(random.Random(seed))
    made.set_seats(rates)
    return made


def choice(made: Router, *, now: float = 0.0, exclude: tuple[PeerId, ...] = ()) -> Choice:
    chosen = made.choose(exclude=exclude, now=now)
    assert chosen is not None
    return chosen


def turns(made: Router, count: int) -> Counter[PeerId]:
    return Counter(choice(made).first for _ in range(count))


def test_nobody_to_ask() -> None:
    made = router({})
    assert made.choose(now=0.0) is None
    assert made.retry_at(now=0.0) is None


def test_a_single_seat_has_no_alternative() -> None:
    assert choice(router({ANN: 1.0})) == Choice(first=ANN, alternative=None)


def test_a_seat_ten_times_slower_gets_a_tenth_of_the_turns_from_the_first_on() -> None:
    given_turns = turns(router({ANN: 1.0, BOB: 1.0, EVE: 0.1}), 210)
    assert given_turns[EVE] == pytest.approx(10, abs=1)
    assert given_turns[ANN] == pytest.approx(100, abs=1)


def test_a_seat_that_turns_out_ten_times_slower_is_learnt() -> None:
    peers = [PeerId(f"peer{i}") for i in range(8)]
    slow, made = peers[0], router(dict.fromkeys(peers, 1.0))
    shares: Counter[PeerId] = Counter()
    for turn in range(1200):
        first = choice(made).first
        made.observed(first, 10.0 if first == slow else 1.0)
        if turn >= 400:
            shares[first] += 1
    others = [shares[peer] for peer in peers[1:]]
    assert max(others) - min(others) <= 2
    assert shares[slow] == pytest.approx(max(others) / 10, abs=3)


@settings(max_examples=40)
@given(st.lists(st.floats(0.05, 20.0), min_size=1, max_size=6), st.integers(0, 999))
def test_turns_are_proportional_to_rates(rates: list[float], seed: int) -> None:
    named = {PeerId(f"peer{i}"): rate for i, rate in enumerate(rates)}
    given_turns = turns(router(named, seed), 400)
    for peer, rate in named.items():
        assert abs(given_turns[peer] - 400 * rate / sum(rates)) <= len(rates)


def test_senders_do_not_all_turn_to_the_same_seat_first() -> None:
    rates = {PeerId(f"peer{i}"): 1.0 for i in range(8)}
    firsts = Counter(choice(router(rates, seed)).first for seed in range(400))
    assert max(firsts.values()) < 90
    assert len(firsts) == 8


def test_a_newcomer_gets_its_share_and_not_the_past() -> None:
    made = router({ANN: 1.0})
    turns(made, 100)
    made.set_seats({ANN: 1.0, BOB: 1.0})
    assert turns(made, 20)[BOB] == pytest.approx(10, abs=1)


def test_alternatives_are_drawn_by_rate_and_never_the_first() -> None:
    made = router({ANN: 1.0, BOB: 9.0, EVE: 9.0})
    drawn = Counter(
        chosen.alternative for chosen in (choice(made) for _ in range(400)) if chosen.first == EVE
    )
    assert drawn[EVE] == 0
    assert drawn[BOB] > 5 * drawn[ANN] > 0


@pytest.mark.parametrize(
    ("first", "alternative", "take"),
    [
        (None, None, None),
        (Quote(delay=9.0, service=1.0), None, "first"),
        (None, Quote(delay=9.0, service=1.0), "alternative"),
        (Quote(delay=2.0, service=1.0), Quote(delay=1.0, service=1.0), "first"),
        (Quote(delay=2.1, service=1.0), Quote(delay=1.0, service=1.0), "alternative"),
        (Quote(delay=2.1, service=1.0), Quote(delay=1.1, service=9.0), "first"),
    ],
)
def test_the_veto(first: Quote | None, alternative: Quote | None, take: str | None) -> None:
    settled = router({ANN: 1.0}).settle(first, alternative, now=0.0)
    assert settled.take == take
    assert settled.reason


def test_a_busy_seat_is_left_alone_shortly_and_thought_no_worse_of() -> None:
    made = router({ANN: 1.0, BOB: 1.0})
    made.busy(ANN, 2.0, now=10.0)
    assert {choice(made, now=11.9).first for _ in range(5)} == {BOB}
    assert made.expected(ANN) == 1.0
    assert turns_at(made, 12.0, 10)[ANN] == pytest.approx(5, abs=1)
    made.busy(ANN, math.inf, now=20.0)
    assert made.retry_at(exclude=[BOB], now=20.0) == 20.0 + BUSY_MAX_SECONDS


def turns_at(made: Router, now: float, count: int) -> Counter[PeerId]:
    return Counter(choice(made, now=now).first for _ in range(count))


def test_a_timeout_feeds_the_estimate_and_opens_a_backoff() -> None:
    made = router({ANN: 1.0, BOB: 1.0})
    made.timed_out(ANN, 11.0, now=0.0)
    assert made.expected(ANN) == pytest.approx(3.0)
    assert choice(made, now=0.1) == Choice(first=BOB, alternative=None)
    assert made.choose(exclude=[BOB], now=0.1) is None
    again = made.retry_at(exclude=[BOB], now=0.1)
    assert again is not None
    assert 0.0 < again <= 0.5
    assert choice(made, now=again, exclude=(BOB,)).first == ANN


def test_a_quick_timeout_never_makes_a_seat_look_faster() -> None:
    made = router({ANN: 1.0})
    made.timed_out(ANN, 0.01, now=0.0)
    assert made.expected(ANN) == 1.0


def test_repeated_timeouts_back_off_further_until_an_answer() -> None:
    made = router({ANN: 1.0, BOB: 1.0})
    for turn, most in enumerate((0.5, 1.0, 2.0, 4.0)):
        assert most / 2 <= away(made, 100.0 * turn) <= most
    made.observed(ANN, 1.0)
    assert away(made, 900.0) <= 0.5


def away(made: Router, start: float) -> float:
    """How long ANN is left alone after a timeout, in the upper half of what it may be."""
    made.timed_out(ANN, 1.0, now=start)
    return next(
        seconds / 8
        for seconds in range(1, 800)
        if choice(made, now=start + seconds / 8).alternative is not None
    )


def test_what_was_under_way_when_a_seat_was_given_up_on_makes_the_pause_no_longer() -> None:
    made = router({ANN: 1.0, BOB: 1.0})
    for _ in range(8):
        made.timed_out(ANN, 1.0, now=0.0)
    assert choice(made, now=0.5).alternative is not None


def test_an_answer_ends_the_pause() -> None:
    made = router({ANN: 1.0, BOB: 1.0})
    made.timed_out(ANN, 1.0, now=0.0)
    made.observed(ANN, 1.0)
    assert choice(made, now=0.0).alternative is not None


def test_where_nobody_else_is_left_a_seat_is_asked_again_soon() -> None:
    made = router({ANN: 1.0})
    for turn in range(10):
        made.timed_out(ANN, 1.0, now=40.0 * turn)
    assert made.choose(now=360.2) is None
    again = made.retry_at(now=360.2)
    assert again is not None
    assert again <= 360.0 + ALONE_SECONDS
    assert choice(made, now=again).first == ANN


def test_seats_that_are_gone_are_not_asked_and_strangers_change_nothing() -> None:
    made = router({ANN: 1.0, BOB: 2.0})
    made.set_seats({BOB: 2.0})
    made.observed(ANN, 5.0)
    made.busy(ANN, 5.0, now=0.0)
    made.timed_out(ANN, 5.0, now=0.0)
    assert set(turns(made, 10)) == {BOB}
    assert made.expected(ANN) == 0.5


def test_our_own_measurements_outlive_announcements() -> None:
    made = router({ANN: 1.0, BOB: 1.0})
    for _ in range(50):
        made.observed(ANN, 4.0)
    made.set_seats({ANN: 10.0, BOB: 10.0})
    assert made.expected(ANN) == pytest.approx(4.0, rel=0.01)
    assert made.expected(BOB) == pytest.approx(0.1)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_an_unknown_rate_counts_as_usual(rate: float) -> None:
    assert router({ANN: 4.0, BOB: rate}).expected(BOB) == 0.25


def test_a_claim_that_is_no_number_is_ignored() -> None:
    made = router({ANN: 1.0})
    for claim in (math.nan, math.inf, 0.0, -3.0):
        made.observed(ANN, claim)
    assert made.expected(ANN) == 1.0


@given(st.floats(), st.integers(0, 99))
def test_no_sample_breaks_the_turns(sample: float, seed: int) -> None:
    made = router({ANN: 1.0, BOB: 1.0}, seed)
    for _ in range(20):
        made.observed(ANN, sample)
        made.timed_out(BOB, sample, now=-100.0)
    assert 0.0 < made.expected(ANN) < 1000.0
    assert 1.0 <= made.expected(BOB) < 1000.0
    assert turns(made, 50).total() == 50


# --- one offer beside a BUSY ------------------------------------------------------------------


def test_a_slow_seat_is_not_given_what_a_fast_one_will_take_sooner() -> None:
    made = router({ANN: 1.0, BOB: 0.1})
    made.busy(ANN, 1.0, now=5.0)
    idle, loaded = Quote(delay=10.0, service=10.0), Quote(delay=20.0, service=10.0)
    assert made.settle(None, idle, now=5.0, patient=True).take == "alternative"
    assert made.settle(idle, None, now=5.0, patient=True).take == "first"
    for answers in ((None, loaded), (loaded, None)):
        settled = made.settle(*answers, now=5.0, patient=True)
        assert (settled.take, settled.retry_at) == (None, 6.0)
        assert made.settle(*answers, now=5.0).take is not None
        assert made.settle(*answers, now=6.0, patient=True).take is not None


def test_a_seat_that_has_timed_out_is_not_waited_for() -> None:
    made = router({ANN: 1.0, BOB: 0.1})
    made.timed_out(ANN, 1.0, now=5.0)
    made.busy(ANN, 0.1, now=5.0)
    slow = Quote(delay=100.0, service=10.0)
    assert made.settle(slow, None, now=5.0, patient=True).take == "first"


def test_a_seat_that_was_busy_when_we_asked_is_waited_for_though_it_is_free_by_now() -> None:
    made = router({ANN: 1.0, BOB: 0.1})
    made.busy(ANN, 1.0, now=5.0)
    loaded = Quote(delay=20.0, service=10.0)
    settled = made.settle(loaded, None, now=6.5, patient=True, asked=(BOB,))
    assert (settled.take, settled.retry_at) == (None, 6.5)
    assert made.settle(loaded, None, now=6.5, patient=True, asked=(BOB, ANN)).take == "first"


# --- near the end of a step -------------------------------------------------------------------


def test_who_would_end_last_is_not_taken() -> None:
    made = router({ANN: 1.0, BOB: 0.1})
    fast, slow = Quote(delay=8.0, service=1.0), Quote(delay=10.0, service=10.0)
    assert made.settle(slow, fast, now=0.0).take == "first"  # nobody knows what is left
    made.set_left(30)
    assert made.settle(slow, fast, now=0.0).take == "first"  # 27 s of work for both
    made.set_left(10)
    assert made.settle(slow, fast, now=0.0).take == "alternative"
    assert made.settle(fast, slow, now=0.0).take == "first"
    crowded = Quote(delay=30.0, service=1.0)
    assert made.settle(slow, crowded, now=0.0).take == "first"  # it would end sooner after all
    made.set_left(30)
    assert made.settle(slow, fast, now=0.0).take == "first"  # the next step


def test_one_slow_offer_at_the_end_is_weighed_against_who_is_busy() -> None:
    made = router({ANN: 1.0, BOB: 0.1})
    made.busy(ANN, 1.0, now=0.0)
    slow = Quote(delay=10.0, service=10.0)
    assert made.settle(slow, None, now=0.0, patient=True).take == "first"
    made.set_left(10)
    assert made.settle(slow, None, now=0.0, patient=True).retry_at == 1.0
