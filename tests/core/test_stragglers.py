"""A deadline follows what is usual, forgives scatter, ignores one hang, and is bounded."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from p2ptrain.core.stragglers import (
    CEILING_SECONDS,
    FACTOR,
    FLOOR_SECONDS,
    KNOWN_SAMPLES,
    WINDOW_SAMPLES,
    DelayEstimate,
    Delays,
    expected_delay,
    recall_deadline,
)
from p2ptrain.units import PeerId

delays = st.floats(0.0, 1e6)


def estimate(*samples: float, initial: float = 1.0) -> DelayEstimate:
    made = DelayEstimate(initial)
    for sample in samples:
        made.observe(sample)
    return made


def test_before_the_first_sample_the_announced_delay_counts() -> None:
    assert estimate(initial=2.0).expected() == 2.0
    assert estimate(initial=2.0).deadline() == FACTOR * 2.0


def test_one_hang_does_not_make_the_next_look_normal() -> None:
    assert estimate(1.0, 1.0, 1.0, 1.0, 500.0).deadline() == FACTOR * 1.0


def test_a_seat_that_scatters_gets_more_time() -> None:
    steady, unsteady = estimate(*[2.0] * 9), estimate(*[1.0, 2.0, 3.0] * 3)
    assert steady.expected() == unsteady.expected() == 2.0
    assert unsteady.deadline() == 2.0 + 6.0 * 1.0 > steady.deadline()


def test_a_seat_that_has_become_slow_is_believed_after_a_window() -> None:
    made = estimate(*[1.0] * WINDOW_SAMPLES)
    for _ in range(WINDOW_SAMPLES):
        made.observe(10.0)
    assert made.expected() == 10.0


@given(delays, st.lists(delays, max_size=50), delays)
def test_deadlines_are_bounded_and_grow_with_the_offer(
    offered: float, samples: list[float], more: float
) -> None:
    made = estimate(*samples)
    deadline = recall_deadline(offered, made)
    assert FLOOR_SECONDS <= made.deadline() <= deadline <= CEILING_SECONDS
    assert recall_deadline(offered + more, made) >= deadline


def test_a_deep_queue_or_a_slow_link_both_give_time() -> None:
    assert recall_deadline(4.0, estimate(1.0)) == pytest.approx(10.0)
    assert recall_deadline(1.0, estimate(4.0)) == pytest.approx(10.0)


def test_what_an_offer_promises() -> None:
    assert expected_delay(ahead=0, backwards=0, service_seconds=0.3) == pytest.approx(0.3)
    assert expected_delay(ahead=2, backwards=3, service_seconds=0.3) == pytest.approx(1.5)


def test_who_is_forgotten_is_a_stranger_again() -> None:
    delays, ann = Delays(), PeerId("ann")
    for _ in range(KNOWN_SAMPLES):
        delays.observe(ann, 10.0)
    assert delays.deadline(ann, 0.1, floor_seconds=5.0) == FACTOR * 10.0
    delays.forget(ann)
    delays.forget(ann)
    assert delays.deadline(ann, 0.1, floor_seconds=5.0) == 5.0
