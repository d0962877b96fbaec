"""A slow seat is told in time that its mates will be through; the fastest never is."""

from __future__ import annotations

import math

import pytest

from p2ptrain.core.ending import MARGIN_SERVICES, STILL_SECONDS, STILL_SERVICES, Rest


def test_the_slow_are_given_the_time_that_the_others_need() -> None:
    rest = Rest()
    services = rest.services(0, 30, own=0.1, mates=(1.0, 2.0), now=0.0)
    assert services == pytest.approx(0.1 * (30 / 3.0 + MARGIN_SERVICES / 2.0))
    assert rest.services(0, 3, own=0.1, mates=(1.0, 2.0), now=1.0) < services


@pytest.mark.parametrize(
    ("own", "mates"),
    [(2.0, (1.0, 2.0)), (3.0, (1.0, 2.0)), (1.0, ()), (0.0, (1.0,)), (1.0, (0.0, 0.0))],
    ids=["as fast as the fastest", "fastest", "alone", "unknown itself", "mates unknown"],
)
def test_who_is_not_known_to_be_slower_does_not_hurry(own: float, mates: tuple[float, ...]) -> None:
    assert Rest().services(0, 1, own=own, mates=mates, now=0.0) == math.inf


def test_of_any_seats_one_takes_everything() -> None:
    rates = (0.1, 0.7, 2.0, 1.9)
    free = [
        Rest().services(0, 0, own=own, mates=(*rates[:i], *rates[i + 1 :]), now=0.0) == math.inf
        for i, own in enumerate(rates)
    ]
    assert free == [False, False, True, False]


@pytest.mark.parametrize("own", [0.5, 0.01])
def test_a_mate_that_promises_and_counts_nothing_holds_nobody_up_for_long(own: float) -> None:
    rest, patience = Rest(), max(STILL_SECONDS, STILL_SERVICES / own)
    assert rest.services(0, 4, own=own, mates=(1e9,), now=0.0) < 1.0
    assert rest.services(0, 4, own=own, mates=(1e9,), now=patience) < 1.0
    assert rest.services(0, 4, own=own, mates=(1e9,), now=patience + 0.1) == math.inf
    assert rest.services(0, 3, own=own, mates=(1e9,), now=patience + 0.2) == math.inf  # by us
    assert rest.services(1, 8, own=own, mates=(1e9,), now=patience + 0.3) < 1.0


def test_what_a_mate_takes_back_and_says_again_is_no_progress() -> None:
    rest = Rest()
    said = [rest.services(0, 8 - k % 2, own=1.0, mates=(1e9,), now=14.0 * k) for k in range(5)]
    assert said[-1] == math.inf
