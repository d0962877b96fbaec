"""Pauses grow with failures, are bounded, and end when a peer is reached."""

import random

import hypothesis.strategies as st
from hypothesis import given

from p2ptrain.engine.retries import FORGET_SECONDS, MOST_PEERS, Retries
from p2ptrain.units import PeerId

ANN = PeerId("ann")


def retries() -> Retries:
    return Retries(random.Random(1), first_seconds=0.5, most_seconds=8.0)


@given(st.integers(1, 50))
def test_the_pause_grows_up_to_its_bound(failures: int) -> None:
    each = retries()
    for index in range(failures):
        each.failed(ANN, now=float(index))
    now = float(failures - 1)
    assert 0.25 <= each.wait_seconds(ANN, now=now) <= min(8.0, 0.5 * 2.0 ** (failures - 1))
    assert each.wait_seconds(ANN, now=now + 8.0) == 0.0
    each.reached(ANN)
    assert each.wait_seconds(ANN, now=now) == 0.0


def test_the_longest_past_failure_is_forgotten_at_the_bound() -> None:
    each = retries()
    for index in range(MOST_PEERS + 1):
        each.failed(PeerId(str(index)), now=0.0)
    assert each.wait_seconds(PeerId("0"), now=0.0) == 0.0
    assert each.wait_seconds(PeerId("1"), now=0.0) > 0.0


def test_who_is_tried_no_more_is_forgotten_after_a_while() -> None:
    each, bob = retries(), PeerId("bob")
    for _ in range(5):
        each.failed(ANN, now=0.0)
    pause = each.wait_seconds(ANN, now=0.0)
    assert pause > 1.0
    each.failed(bob, now=FORGET_SECONDS - 1.0)
    assert each.wait_seconds(ANN, now=0.0) == pause
    each.failed(bob, now=pause + FORGET_SECONDS)
    assert each.wait_seconds(ANN, now=0.0) == 0.0
    assert each.wait_seconds(bob, now=pause + FORGET_SECONDS) > 0.0
