"""Silence makes suspects, speech clears them, and a lagging judge is patient."""

import hypothesis.strategies as st
from hypothesis import given, settings

from p2ptrain.core.membership import (
    FORGET_SECONDS,
    PEERS_MAX,
    Forgotten,
    Membership,
    Restored,
    Suspected,
)
from p2ptrain.run import Limits
from p2ptrain.units import PeerId

LIMITS = Limits(heartbeat_seconds=1.0, suspect_seconds=5.0)
ANN, BOB, EVE = PeerId("ann"), PeerId("bob"), PeerId("eve")


def members(*peers: PeerId) -> Membership:
    made = Membership(LIMITS)
    for peer in peers:
        assert made.heard(peer, now=0.0) == ()
    return made


def test_nobody_is_judged_before_being_heard_of() -> None:
    made = members()
    made.link_lost(ANN, now=0.0)
    assert (made.due_at, made.tick(now=1e6), made.live()) == (None, (), frozenset())


def test_silence_makes_a_suspect_once() -> None:
    made = members(BOB, ANN)
    made.heard(BOB, now=3.0)
    assert (made.due_at, made.tick(now=4.9)) == (5.0, ())
    assert made.tick(now=5.0) == (Suspected(peer=ANN, silent_seconds=5.0),)
    assert (made.tick(now=6.0), made.due_at, made.live()) == ((), 8.0, frozenset({BOB}))


def test_speech_takes_a_suspicion_back_and_it_is_counted() -> None:
    made = members(ANN)
    made.tick(now=5.0)
    assert made.heard(ANN, now=6.0) == (Restored(peer=ANN),)
    assert made.heard(ANN, now=6.1) == ()
    assert (made.false_suspicions, made.live()) == (1, frozenset({ANN}))
    assert made.due_at is not None
    assert made.due_at <= 11.1
    assert made.tick(now=11.0) == ()
    assert made.due_at == 11.1


def test_a_suspect_that_stays_silent_is_forgotten_and_would_come_back_as_a_stranger() -> None:
    made = members(ANN, BOB)
    made.tick(now=5.0)
    made.heard(BOB, now=FORGET_SECONDS - 1.0)
    assert made.tick(now=FORGET_SECONDS - 0.1) == ()
    assert made.tick(now=FORGET_SECONDS) == (Forgotten(peer=ANN),)
    assert made.tick(now=FORGET_SECONDS) == ()
    assert made.heard(ANN, now=FORGET_SECONDS + 1.0) == ()
    assert made.live() == frozenset({ANN, BOB})


def test_a_judge_that_lagged_is_patient_for_as_long_as_the_lag_explains_silence() -> None:
    made = members(ANN)
    made.own_lag(3.0)
    assert (made.due_at, made.tick(now=10.9)) == (11.0, ())
    for _ in range(5):
        made.own_lag(0.0)
    assert made.due_at == 11.0
    made.own_lag(0.0)
    assert made.due_at == 5.0


def test_a_broken_link_shortens_the_patience_unless_the_peer_speaks() -> None:
    made = members(ANN, BOB)
    made.heard(ANN, now=1.0)
    made.heard(BOB, now=1.0)
    made.link_lost(ANN, now=1.0)
    made.link_lost(BOB, now=1.0)
    made.heard(BOB, now=1.5)
    assert made.tick(now=2.9) == ()
    assert made.tick(now=3.0) == (Suspected(peer=ANN, silent_seconds=2.0, vanished=True),)
    assert made.due_at == 6.5
    assert made.tick(now=6.5) == (Suspected(peer=BOB, silent_seconds=5.0),)


def test_a_link_that_breaks_late_in_a_silence_gives_no_more_time() -> None:
    made = members(ANN)
    made.link_lost(ANN, now=4.5)
    assert made.due_at == 5.0


def test_who_left_in_order_is_not_judged() -> None:
    made = members(ANN)
    made.forget(ANN)
    assert (made.tick(now=99.0), made.heard(ANN, now=99.0), made.false_suspicions) == ((), (), 0)


def test_memory_is_bounded_and_forgets_the_longest_silent_suspect() -> None:
    made = members(ANN)
    made.tick(now=5.0)
    for number in range(PEERS_MAX):
        made.heard(PeerId(f"peer{number}"), now=6.0)
    assert len(made.live()) == PEERS_MAX
    assert made.heard(ANN, now=7.0) == ()  # forgotten: no Restored


acts = st.tuples(
    st.sampled_from(["heard", "lost", "lag", "tick", "forget"]),
    st.sampled_from([ANN, BOB, EVE]),
    st.floats(0.0, 4.0),
)


@settings(max_examples=150)
@given(st.lists(acts, max_size=40))
def test_every_history_suspects_only_silence_and_balances_its_verdicts(
    history: list[tuple[str, PeerId, float]],
) -> None:
    made, now, suspects, restored = members(), 0.0, set(), 0
    heard: dict[PeerId, float] = {}
    for act, peer, seconds in history:
        now += seconds
        match act:
            case "heard":
                restored += len(made.heard(peer, now=now))
                heard[peer] = now
                suspects.discard(peer)
            case "lost":
                made.link_lost(peer, now=now)
            case "lag":
                made.own_lag(seconds)
            case "forget":
                made.forget(peer)
                suspects.discard(peer)
                heard.pop(peer, None)
            case _:
                for verdict in made.tick(now=now):
                    assert verdict.peer not in suspects
                    assert verdict.silent_seconds == now - heard[verdict.peer] >= 2.0
                    suspects.add(verdict.peer)
        assert made.live() == heard.keys() - suspects
        assert made.false_suspicions == restored
    made.tick(now=now + 100.0)
    assert (made.live(), made.due_at) == (frozenset(), None)
