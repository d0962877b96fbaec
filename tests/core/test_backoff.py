"""Pauses grow, stay bounded, differ between peers, and are forgotten on success."""

import random

import hypothesis.strategies as st
from hypothesis import given

from p2ptrain.core.backoff import CEILING_SECONDS, FIRST_SECONDS, Backoff


@given(st.integers(0, 2**32), st.integers(1, 40))
def test_every_pause_is_bounded_and_within_its_doubling(seed: int, failures: int) -> None:
    backoff = Backoff(random.Random(seed))
    for count in range(failures):
        whole = min(FIRST_SECONDS * 2.0**count, CEILING_SECONDS)
        assert whole / 2 <= backoff.failed() <= whole
    assert backoff.failures == failures
    assert not backoff.exhausted


def test_success_forgets() -> None:
    backoff = Backoff(random.Random(1), first_seconds=1.0)
    for _ in range(5):
        backoff.failed()
    backoff.succeeded()
    assert backoff.failures == 0
    assert backoff.failed() <= 1.0


def test_peers_that_failed_together_come_back_apart() -> None:
    pauses = {Backoff(random.Random(seed)).failed() for seed in range(50)}
    assert len(pauses) == 50
    assert max(pauses) - min(pauses) > 0.4 * FIRST_SECONDS


def test_a_bounded_number_of_attempts() -> None:
    backoff = Backoff(random.Random(1), attempts_max=2)
    exhausted = []
    for _ in range(3):
        exhausted.append(backoff.exhausted)
        backoff.failed()
    assert exhausted == [False, False, True]
    backoff.succeeded()
    assert not backoff.exhausted


def test_a_first_pause_above_the_ceiling_is_cut() -> None:
    assert Backoff(random.Random(1), first_seconds=99.0, ceiling_seconds=2.0).failed() <= 2.0
