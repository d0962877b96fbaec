"""What a seat may park follows its share of the stage's rate, as soon as all rates are known."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from p2ptrain.core.assignment import SeatView
from p2ptrain.engine import window
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import PeerId, Stage, Step

ME, MATE = PeerId("me"), PeerId("mate")


def around(*leaving: PeerId, **rates: float) -> Any:
    """The seats of stage 0 with these rates; those of ``leaving`` drain."""
    seats = tuple(
        SeatView(
            peer=PeerId(peer),
            stage=Stage(0),
            state="draining" if peer in leaving else "serving",
            rate=rate,
            version=Step(0),
        )
        for peer, rate in rates.items()
    )
    serving = tuple(seat for seat in seats if seat.state == "serving")
    return SimpleNamespace(
        spec=toy_spec(stages=2, microbatches=64, steps=1),
        roster=SimpleNamespace(present=lambda _stage: seats, serving=lambda _stage: serving),
        signer=SimpleNamespace(peer=ME),
    )


def test_our_own_rate_is_what_we_measure_now() -> None:
    assert window.rates(around(me=1.0, mate=2.0), Stage(0), own=3.0) == {ME: 3.0, MATE: 2.0}
    assert window.rates(around(), Stage(0), own=0.0) == {ME: 0.0}


@pytest.mark.parametrize(
    ("own", "mate", "bound"),
    [(1.0, 1.0, 8), (0.5, 1.5, 4), (1.0, 0.0, 8), (0.0, 1.0, 8), (0.01, 0.99, 1)],
)
def test_the_window_is_shared_by_speed(own: float, mate: float, bound: int) -> None:
    found = window.parked_bound(around(me=0.1, mate=mate), Stage(0), rate=own, total_slots=64)
    assert found == bound


def test_the_part_of_who_leaves_is_the_others_at_once() -> None:
    three = {"me": 1.0, "mate": 1.0, "third": 2.0}
    bound = partial(window.parked_bound, stage=Stage(0), rate=1.0, total_slots=64)
    assert bound(around(**three)) == 6
    assert bound(around(PeerId("third"), **three)) == 8
    assert PeerId("third") not in window.rates(around(PeerId("third"), **three), Stage(0), own=1.0)


def test_a_seat_that_leaves_leaves_the_data_to_mates_if_there_are_any() -> None:
    assert not window.left_to_mates(around(me=1.0, mate=1.0))
    assert window.left_to_mates(around(ME, me=1.0, mate=1.0))
    assert not window.left_to_mates(around(ME, MATE, me=1.0, mate=1.0))


@pytest.mark.parametrize(
    ("rates", "seconds"),
    [({"me": 9.0, "mate": 4.0}, 0.25), ({"me": 9.0, "mate": 0.0}, None), ({"me": 9.0}, None)],
)
def test_a_newcomer_supposes_what_its_mates_take(
    rates: dict[str, float], seconds: float | None
) -> None:
    assert window.usual_service(around(**rates), Stage(0)) == seconds


@pytest.mark.parametrize(
    ("rates", "late"),
    [
        ({"me": 0.0, "mate": 0.0}, False),
        ({"me": 0.0, "mate": 1.0}, True),
        ({"mate": 1.0}, True),
        ({"me": 1.0, "mate": 0.0}, False),
    ],
)
def test_a_first_step_has_begun_when_somebody_has_a_rate(
    rates: dict[str, float], *, late: bool
) -> None:
    assert window.begun_without_us(around(**rates)) is late


def test_who_came_when_the_first_step_had_begun_owns_nothing() -> None:
    assert window.first_owners(around(me=0.0, mate=1.0), late=True) == (MATE,)
    assert window.first_owners(around(mate=0.0), late=True) == (MATE,)


def test_who_begins_a_moment_after_a_fast_mate_has_its_part() -> None:
    assert window.first_owners(around(me=0.0, mate=1.0), late=False) == (ME, MATE)
