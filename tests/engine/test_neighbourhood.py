"""Whoever is near is judged, and our seats hear of it; whoever is not costs nobody anything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from p2ptrain.core.membership import FORGET_SECONDS
from p2ptrain.engine.neighbourhood import Neighbourhood
from p2ptrain.engine.roster import Roster
from p2ptrain.observe import events as ev
from p2ptrain.sim.toy import toy_spec
from p2ptrain.units import PeerId, Stage, Step
from p2ptrain.wire import messages as m

if TYPE_CHECKING:
    from collections.abc import Callable

ME, NEAR, FAR = PeerId("me"), PeerId("near"), PeerId("far")
LIMITS = toy_spec(stages=8, microbatches=4, steps=1).limits


class Street:
    """A peer that serves the stages 1 and 2 of 8; ``calls``: what its seats were told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.events: list[ev.AnyEvent] = []
        self.seats: dict[Stage, Any] = {Stage(stage): self.seat(stage) for stage in (1, 2)}
        self.roster = Roster(ME)
        self.near = Neighbourhood(
            self.roster,
            self.seats,
            LIMITS,
            emit=self.events.append,
            changed=lambda: self.calls.append("changed"),
        )

    def seat(self, stage: int) -> Any:
        def told(what: str) -> Callable[..., None]:
            return lambda *_: self.calls.append(f"{stage}.{what}")

        stepper = {name: told(name) for name in ("restarted", "greet")}
        own = ("lost", "found", "forget", "roster_changed", "advanced", "link_down", "look_back")
        return SimpleNamespace(
            position="somewhere",
            stepper=SimpleNamespace(**stepper),
            **{name: told(name) for name in own},
        )

    def beat(
        self, peer: PeerId, stage: int, *, version: int = 0, above: int = 0, now: float = 0.0
    ) -> bool:
        """A heartbeat arrives, the way that the reception hands it on."""
        status = m.SeatStatus(
            stage=Stage(stage),
            state="serving",
            version=Step(version),
            rate=1.0,
            queue=0,
            parked=0,
            least_above=Step(above),
        )
        self.near.heard(peer, now)
        return self.near.told(peer, m.Heartbeat(count=1, lag_seconds=0.0, seats=(status,)), now)

    def said(self) -> list[str]:
        """The calls since the last look."""
        calls, self.calls[:] = list(self.calls), []
        return calls

    def present(self, stage: int) -> list[PeerId]:
        return [seat.peer for seat in self.roster.present(Stage(stage))]


@pytest.fixture
def street() -> Street:
    """With a neighbour on stage 3, and somebody four stages further up."""
    street = Street()
    street.beat(NEAR, 3)
    street.beat(FAR, 7)
    street.beat(NEAR, 3, now=0.1)  # from now on it is judged
    street.said()
    return street


def test_only_a_seat_beside_ours_is_near(street: Street) -> None:
    assert street.near.is_near(NEAR)
    assert not street.near.is_near(FAR)
    assert not street.near.is_near(ME)


def test_that_the_run_has_begun_is_believed_of_anybody_and_for_good(street: Street) -> None:
    assert not street.roster.begun
    for begun in (True, False):
        beat = m.Heartbeat(count=2, lag_seconds=0.0, seats=(), begun=begun)
        street.near.told(PeerId("stranger"), beat, 0.2)
        assert street.roster.begun


def test_a_silent_neighbour_is_lost_to_the_roster_first_and_then_to_every_seat(
    street: Street,
) -> None:
    roster_at_loss: list[list[PeerId]] = []
    street.seats[Stage(1)].lost = lambda *_: roster_at_loss.append(street.present(3))
    street.near.tick(0.2 + LIMITS.suspect_seconds)
    assert [type(event) for event in street.events] == [ev.Suspected]
    assert roster_at_loss == [[]]
    assert street.said() == ["2.lost", "changed"]


def test_a_false_suspicion_is_taken_back_by_anything_heard(street: Street) -> None:
    street.near.tick(0.2 + LIMITS.suspect_seconds)
    street.said()
    street.near.heard(NEAR, 7.0)
    assert [type(event) for event in street.events] == [ev.Suspected, ev.Restored]
    assert street.said() == ["1.found", "2.found", "changed"]
    assert street.present(3) == [NEAR]
    assert street.near.false_suspicions == 1


def test_whoever_is_not_near_may_be_silent_for_ever(street: Street) -> None:
    for now in range(1, 100):
        street.near.heard(NEAR, float(now))
        street.near.tick(float(now))
    assert street.events == []


def test_how_far_those_behind_a_neighbour_are_makes_seats_look_back(street: Street) -> None:
    assert street.beat(NEAR, 3, above=1, now=0.2)
    assert street.said() == ["1.look_back", "2.look_back"]
    assert not street.beat(NEAR, 3, above=1, now=0.3)
    street.beat(FAR, 7, above=1, now=0.4)  # nobody here asks what it knows
    assert street.said() == []


def test_a_neighbour_that_moves_away_is_judged_no_more(street: Street) -> None:
    street.beat(NEAR, 6, now=1.0)
    assert street.said() == ["1.roster_changed", "2.roster_changed", "changed"]
    street.near.tick(1000.0)
    assert street.events == []


def test_our_own_move_makes_others_near(street: Street) -> None:
    street.seats[Stage(6)] = street.seat(6)
    street.near.refresh(1.0)
    assert street.near.is_near(FAR)
    assert street.said()[-2:] == ["6.roster_changed", "changed"]


def test_whoever_died_before_it_became_near_is_found_out(street: Street) -> None:
    """It spoke while we had no seat beside it, and never again."""
    street.seats[Stage(6)] = street.seat(6)
    street.near.refresh(1.0)
    street.near.heard(NEAR, 1.0)
    street.near.tick(1.1 + LIMITS.suspect_seconds)
    assert [e.peer for e in street.events if isinstance(e, ev.Suspected)] == [FAR, NEAR]
    assert street.present(7) == []


@pytest.mark.parametrize(
    ("peer", "stage", "version", "matters", "calls"),
    [
        (NEAR, 3, 0, False, []),
        (NEAR, 3, 1, True, ["1.advanced", "2.advanced"]),
        (FAR, 7, 1, True, []),
        (FAR, 6, 0, True, []),
        (FAR, 0, 0, True, ["1.roster_changed", "2.roster_changed", "changed"]),
    ],
)
def test_a_heartbeat_is_passed_on_for_its_news_alone(
    street: Street, peer: PeerId, stage: int, version: int, *, matters: bool, calls: list[str]
) -> None:
    assert street.beat(peer, stage, version=version, now=1.0) is matters
    assert street.said() == calls


def test_a_seat_that_counts_nowhere_yet_is_not_told_of_the_roster(street: Street) -> None:
    street.seats[Stage(1)].position = None
    street.near.refresh(1.0)
    assert street.said() == ["2.roster_changed", "changed"]


def test_a_peer_that_says_goodbye_is_lost_without_a_suspicion(street: Street) -> None:
    street.near.left(FAR, 1.0)
    assert street.said() == []
    street.near.left(NEAR, 1.0)
    assert street.said() == ["1.lost", "2.lost", "changed"]
    street.near.tick(1000.0)
    assert street.events == []


def test_a_restart_loses_what_it_held_and_a_new_link_does_not(street: Street) -> None:
    for incarnation in (None, 1, 1):
        street.near.up(NEAR, incarnation, 1.0)
        assert street.said() == ["1.greet", "2.greet"]
    street.near.up(NEAR, 2, 2.0)
    lost = ["1.lost", "2.lost", "changed"]
    assert street.said() == ["1.restarted", "2.restarted", *lost, "1.greet", "2.greet"]


def test_a_broken_link_shortens_the_patience(street: Street) -> None:
    street.near.down(NEAR, 0.2)
    assert street.said() == ["1.link_down", "2.link_down"]
    street.near.tick(0.2 + 2.5 * LIMITS.heartbeat_seconds)
    assert [type(event) for event in street.events] == [ev.Suspected]
    assert street.roster.vanished(Stage(3))


def test_who_only_falls_silent_has_not_vanished(street: Street) -> None:
    street.near.tick(0.2 + LIMITS.suspect_seconds)
    assert [type(event) for event in street.events] == [ev.Suspected]
    assert not street.roster.vanished(Stage(3))


def test_our_own_lag_is_an_excuse_for_others(street: Street) -> None:
    street.near.own_lag(3.0)
    street.near.tick(0.2 + LIMITS.suspect_seconds)
    assert street.events == []


def test_a_seat_may_close_while_it_hears_of_a_loss(street: Street) -> None:
    street.seats[Stage(1)].lost = lambda *_: street.seats.pop(Stage(1))
    street.near.left(NEAR, 1.0)
    assert street.said() == ["2.lost", "changed"]


def test_a_neighbour_lost_for_minutes_is_forgotten_by_all(street: Street) -> None:
    street.near.tick(LIMITS.suspect_seconds + 1.0)
    assert street.near.is_near(NEAR)  # it may come back
    street.said()
    street.near.tick(FORGET_SECONDS + 1.0)
    assert street.said() == ["1.forget", "2.forget"]
    assert not street.near.is_near(NEAR)
    assert street.beat(NEAR, 3, now=FORGET_SECONDS + 2.0)  # it comes as a stranger
    assert street.near.is_near(NEAR)


def test_who_is_far_and_out_of_reach_is_what_the_directory_says(street: Street) -> None:
    """Nobody hears whether it lives: it would count as serving for ever."""
    assert FAR in street.roster.everyone()
    street.near.down(FAR, 1.0)
    assert FAR not in street.roster.everyone()
    street.beat(FAR, 7, now=2.0)
    assert FAR in street.roster.everyone()


def test_a_neighbour_whose_link_breaks_is_judged_by_its_silence(street: Street) -> None:
    street.near.down(NEAR, 1.0)
    assert NEAR in street.roster.everyone()
