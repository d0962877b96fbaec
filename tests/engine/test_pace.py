"""A seat's pace: unknown at first, then what it measured, the latest a little more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.engine.pace import FIRST_SERVICE_SECONDS, SERVICE_SMOOTHING, Pace

services = st.floats(min_value=0.0, max_value=1e4)


def test_before_the_first_service_all_seats_look_equal() -> None:
    pace = Pace()
    assert (pace.rate, pace.service_seconds) == (0.0, FIRST_SERVICE_SECONDS)


def test_the_first_service_is_believed_and_later_ones_are_averaged() -> None:
    pace = Pace()
    pace.observe(4.0)
    assert (pace.rate, pace.service_seconds) == (0.25, 4.0)
    pace.observe(9.0)
    assert pace.service_seconds == pytest.approx(4.0 + SERVICE_SMOOTHING * 5.0)


def test_what_mates_take_is_supposed_until_it_is_measured() -> None:
    pace = Pace()
    pace.suppose(0.25)
    assert (pace.rate, pace.service_seconds) == (0.0, 0.25)
    pace.observe(4.0)
    pace.suppose(0.25)
    assert pace.service_seconds == 4.0


def test_the_rate_of_another_seat_is_ours_until_we_know_better() -> None:
    pace = Pace()
    pace.inherit(0.0)
    assert pace.rate == 0.0
    pace.inherit(2.0)
    pace.suppose(4.0)  # what mates take says nothing of this machine
    assert (pace.rate, pace.service_seconds) == (2.0, 0.5)
    pace.observe(4.0)
    pace.inherit(2.0)
    assert pace.rate == 0.25


@given(st.lists(services, min_size=1, max_size=30))
def test_it_stays_within_what_was_measured_and_its_rate_finite(seconds: list[float]) -> None:
    pace = Pace()
    for service in seconds:
        pace.observe(service)
    assert min(seconds) - 1e-9 <= pace.service_seconds <= max(seconds) * (1 + 1e-9)
    assert 0.0 < pace.rate <= 1e6


def test_a_step_forgets_what_was_computed_and_not_how_fast() -> None:
    pace = Pace()
    pace.observe(2.0)
    pace.computing_seconds += 2.0
    pace.begin()
    assert (pace.computing_seconds, pace.rate) == (0.0, 0.5)
