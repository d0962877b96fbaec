"""What strangers wrote about seats: read in order, or as if it were not there."""

from __future__ import annotations

import pytest

from p2ptrain.core.assignment import SeatState, SeatView
from p2ptrain.core.schedule import last_step
from p2ptrain.engine.listing import SEATS_MOST, Listing, at_listed_rates
from p2ptrain.ports import Record
from p2ptrain.run import Cut, RunSpec
from p2ptrain.units import PeerId, Stage, Step
from p2ptrain.wire.records import SeatRecord, encode_record

ANN, BOB, EVE = PeerId("ann"), PeerId("bob"), PeerId("eve")
SPEC = RunSpec(cut=Cut(stages=3))
LOW, MIDDLE, TOP = Stage(0), Stage(1), Stage(2)


def seat(state: str = "serving", version: int = 0, rate: float = 1.0, epoch: int = 0) -> bytes:
    return encode_record(
        SeatRecord(
            state=state,  # type: ignore[arg-type]  # the tests name the four states
            version=Step(version),
            rate=rate,
            queue=0,
            incarnation=1,
            epoch=epoch,
        )
    )


def record(owner: PeerId, value: bytes) -> Record:
    return Record(owner=owner, sequence=1, value=value)


@pytest.fixture
def listing() -> Listing:
    return Listing(ANN, SPEC)


def test_seats_come_by_stage_and_peer_with_all_that_their_records_say(listing: Listing) -> None:
    listing.take(TOP, [record(BOB, seat("joining", rate=3.0))])
    listing.take(LOW, [record(EVE, seat()), record(BOB, seat("draining", version=2, epoch=1))])
    assert listing.seats() == (
        SeatView(peer=BOB, stage=LOW, state="draining", rate=1.0, version=Step(2), epoch=1),
        SeatView(peer=EVE, stage=LOW, state="serving", rate=1.0, version=Step(0)),
        SeatView(peer=BOB, stage=TOP, state="joining", rate=3.0, version=Step(0)),
    )
    assert listing.vacant() == {MIDDLE}


@pytest.mark.parametrize(
    ("owner", "value"),
    [
        pytest.param(BOB, b"\xc1", id="no record at all"),
        pytest.param(BOB, seat(rate=float("nan")), id="a rate that is no number"),
        pytest.param(BOB, seat(version=last_step(SPEC) + 2), id="further than any seat got"),
        pytest.param(BOB, seat("gone"), id="of who has left"),
        pytest.param(ANN, seat(), id="our own, of before a restart"),
    ],
)
def test_some_records_are_as_if_they_were_not_there(
    listing: Listing, owner: PeerId, value: bytes
) -> None:
    listing.take(LOW, [record(owner, value), record(EVE, seat(version=last_step(SPEC) + 1))])
    assert [view.peer for view in listing.seats()] == [EVE]


def test_what_is_read_replaces_what_was(listing: Listing) -> None:
    listing.take(LOW, [record(BOB, seat()), record(EVE, seat())])
    before = listing.seats()
    listing.take(LOW, [record(BOB, seat()), record(EVE, seat(version=1))])
    assert listing.seats()[0] is before[0]  # not decoded again
    assert [view.version for view in listing.seats()] == [0, 1]
    listing.take(LOW, [])
    assert listing.seats() == ()
    assert listing.vacant() == {LOW, MIDDLE, TOP}


def test_only_who_serves_what_is_news(listing: Listing) -> None:
    listing.take(LOW, [record(BOB, seat())])
    shape = listing.shape()
    listing.take(LOW, [record(BOB, seat(version=3, rate=9.0))])
    assert listing.shape() == shape
    listing.take(LOW, [record(BOB, seat("draining"))])
    assert listing.shape() != shape


def test_more_than_anybody_needs_are_not_looked_at(listing: Listing) -> None:
    owners = [PeerId(f"{number:05}") for number in range(SEATS_MOST + 5)]
    listing.take(LOW, [record(owner, seat()) for owner in reversed(owners)])
    assert [view.peer for view in listing.seats()] == owners[:SEATS_MOST]


def test_what_was_said_is_shown_at_the_rate_that_is_listed_since() -> None:
    def view(peer: PeerId, rate: float, state: SeatState = "serving") -> SeatView:
        return SeatView(peer=peer, stage=LOW, state=state, rate=rate, version=Step(4))

    told = {BOB: {LOW: view(BOB, 0.0)}, EVE: {LOW: view(EVE, 2.0)}}
    listed = [view(ANN, 7.0), view(BOB, 3.0)]
    assert list(at_listed_rates(listed, told)) == [view(BOB, 3.0)]
    assert list(at_listed_rates([view(EVE, 0.0)], told)) == []  # not known when it was written
    assert list(at_listed_rates([view(EVE, 1.0, "draining")], told)) == []  # of another time
