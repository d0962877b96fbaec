"""Who serves what: first hand over hearsay, suspects aside; who may come back is remembered."""

from __future__ import annotations

from p2ptrain.core.agreement import Position
from p2ptrain.core.assignment import SeatView
from p2ptrain.engine.roster import INCARNATIONS_MOST, Roster
from p2ptrain.units import Chain, PeerId, Stage, Step
from p2ptrain.wire.messages import SeatStatus

ME, A, B = PeerId("me"), PeerId("a"), PeerId("b")


def status(stage: int, state: str = "serving", version: int = 3, rate: float = 1.0) -> SeatStatus:
    return SeatStatus(
        stage=Stage(stage),
        state=state,  # type: ignore[arg-type]
        version=Step(version),
        rate=rate,
        queue=0,
        parked=0,
    )


def view(peer: PeerId, stage: int, version: int = 0) -> SeatView:
    return SeatView(peer=peer, stage=Stage(stage), state="serving", rate=1.0, version=Step(version))


def at(step: int) -> Position:
    return Position(epoch=0, step=Step(step), chain=Chain(bytes(32)))


def test_seats_versions_and_rates_are_news_of_different_weight() -> None:
    roster = Roster(ME)
    assert roster.hear(A, [status(0)]) == "seats"
    assert roster.hear(A, [status(0, rate=9.0)]) == "nothing"
    assert roster.hear(A, [status(0, version=4)]) == "versions"
    assert roster.hear(A, [status(0, "draining", version=4)]) == "seats"


def test_versions_do_not_go_back_within_an_incarnation() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0, version=5)])
    roster.hear(A, [status(0, version=4)])
    assert roster.views()[0].version == 5
    assert not roster.incarnated(A, 1)
    assert roster.incarnated(A, 2)
    roster.hear(A, [status(0, version=0)])
    assert roster.views()[0].version == 0


def test_a_suspect_does_not_count_until_it_is_heard() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0)])
    roster.lost(A)
    assert roster.present(Stage(0)) == ()
    assert roster.views() == ()
    assert roster.hear(A, [status(0)]) == "seats"
    assert [seat.peer for seat in roster.present(Stage(0))] == [A]


def test_a_stage_has_vanished_if_all_did_who_served_it_last() -> None:
    roster = Roster(ME)
    for peer in (A, B):
        roster.hear(peer, [status(0)])
    assert not roster.vanished(Stage(0))
    roster.lost(A, vanished=True)
    assert roster.vanished(Stage(0))
    assert not roster.vanished(Stage(1))
    roster.lost(B)
    assert not roster.vanished(Stage(0))
    roster.found(B)
    roster.left(B)
    assert roster.vanished(Stage(0))  # who went in order is no riddle
    roster.hear(A, [status(1)])
    assert not roster.vanished(Stage(0))


def test_a_suspect_stays_near_so_that_it_can_come_back() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0)])
    roster.lost(A)
    assert roster.near({0}) == {A}
    assert roster.near({1}) == frozenset()


def test_draining_seats_are_present_and_joining_ones_are_not() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0, "draining")])
    roster.hear(B, [status(0, "joining")])
    assert [seat.peer for seat in roster.present(Stage(0))] == [A]
    assert roster.serving(Stage(0)) == ()


def test_the_directory_is_believed_of_strangers_only() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0)])
    roster.list([view(A, 1), view(B, 1)])
    assert [(seat.peer, seat.stage) for seat in roster.views()] == [(A, 0), (B, 1)]
    assert roster.everyone() == (A, B)


def test_the_rates_of_those_who_are_far_are_as_listed_and_of_the_near_as_heard() -> None:
    """A far peer was met when the run began; its rate was not known then."""
    roster = Roster(ME)
    roster.hear(ME, [status(0)])
    roster.hear(A, [status(1, rate=2.0)])
    roster.hear(B, [status(2, rate=0.0)])
    roster.list([view(A, 1), view(B, 2)])
    assert [(v.peer, v.rate) for v in roster.views()] == [(ME, 1.0), (A, 2.0), (B, 1.0)]
    roster.hear(B, [status(2, rate=0.0, version=4)])  # its latest word, until the next record
    assert [(v.rate, v.version) for v in roster.views() if v.peer == B] == [(0.0, 4)]
    roster.hear(ME, [status(0), status(1)])
    assert [v.rate for v in roster.views() if v.peer == B] == [0.0]


def test_who_left_is_gone_from_the_list_too() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0)])
    roster.list([view(A, 0)])
    roster.left(A)
    assert roster.views() == ()
    roster.list([view(A, 0)])  # its record outlives it
    assert roster.views() == ()
    assert roster.near({0}) == frozenset()


def test_who_counts_at_a_position() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0, version=3)])
    roster.hear(B, [status(0, version=2)])
    assert roster.at(Stage(0), at(3), ()) == {A}
    assert roster.at(Stage(0), at(3), (B,)) == {A, B}  # on its way
    assert roster.at(Stage(0), at(2), ()) == {A, B}


def test_who_has_parted_counts_in_no_later_step_until_it_goes_on() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0, "draining", version=3)])
    assert roster.at(Stage(0), at(3), (A,)) == {A}  # it finishes the step that it is in
    assert roster.hear(A, [status(0, "parted", version=4)]) == "seats"
    assert roster.at(Stage(0), at(3), (A,)) == {A}  # what it counted there stands
    assert roster.at(Stage(0), at(4), (A,)) == frozenset()
    assert [(seat.peer, seat.state) for seat in roster.present(Stage(0))] == [(A, "draining")]
    assert roster.hear(A, [status(0, "parted", version=4)]) == "nothing"
    assert roster.hear(A, [status(0, "draining", version=4)]) == "seats"  # nobody took it over
    assert roster.at(Stage(0), at(4), ()) == {A}


def test_what_is_said_of_an_earlier_step_comes_too_late() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0, "parted", version=4)])
    roster.hear(A, [status(0, "draining", version=3)])
    assert roster.at(Stage(0), at(4), (A,)) == frozenset()
    roster = Roster(ME)
    roster.hear(A, [status(0, version=5)])
    roster.hear(A, [status(0, "parted", version=4)])
    assert roster.at(Stage(0), at(5), (A,)) == {A}


def test_who_says_of_a_step_behind_that_it_has_parted_there_is_as_if_it_were_gone() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0, "parted", version=2)])
    assert roster.at(Stage(0), at(3), (A,)) == frozenset()


def test_covered_wants_serving_seats_of_every_stage() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0), status(1, "joining")])
    assert not roster.covered(2, 1)
    roster.hear(B, [status(1)])
    assert roster.covered(2, 1)
    assert not roster.covered(2, 2)


def test_all_seats_are_shown_in_order_as_they_were_last_told_of() -> None:
    roster = Roster(ME)
    roster.list([view(B, 1), view(A, 0)])
    assert [(v.peer, v.rate) for v in roster.of_all_epochs()] == [(A, 1.0), (B, 1.0)]
    roster.hear(A, [status(0, rate=2.0)])
    assert [(v.peer, v.rate) for v in roster.of_all_epochs()] == [(A, 2.0), (B, 1.0)]
    roster.hear(A, [status(0, rate=3.0)])
    assert [(v.peer, v.rate) for v in roster.of_all_epochs()] == [(A, 3.0), (B, 1.0)]
    roster.hear(A, [status(2, rate=3.0)])
    roster.unreached(B)
    assert [(v.peer, v.stage) for v in roster.of_all_epochs()] == [(A, 2)]
    roster.hear(B, [])
    assert [(v.peer, v.stage) for v in roster.of_all_epochs()] == [(B, 1), (A, 2)]
    roster.left(A)
    assert [(v.peer, v.stage) for v in roster.of_all_epochs()] == [(B, 1)]


def test_who_is_forgotten_is_no_seat_and_no_mark_until_it_speaks_again() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0)])
    roster.list([view(A, 0), view(B, 0)])
    roster.lost(A)
    roster.forget(A)
    assert [seat.peer for seat in roster.views()] == [B]  # its record may outlive it
    roster.list([view(B, 0)])
    roster.list([view(A, 0), view(B, 0)])  # no: listed anew, it is as good as any stranger
    assert [seat.peer for seat in roster.views()] == [A, B]
    assert roster.near([0]) == frozenset({A, B})
    assert roster.hear(A, [status(0)]) == "seats"


def test_who_could_not_be_reached_counts_again_once_it_was_out_of_the_list() -> None:
    roster = Roster(ME)
    roster.list([view(A, 0)])
    roster.unreached(A)
    assert roster.views() == ()
    roster.list([])
    roster.list([view(A, 0)])
    assert [seat.peer for seat in roster.views()] == [A]


def test_of_who_is_out_of_sight_the_directory_speaks() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(7, version=5)])
    assert roster.out_of_sight(A)
    assert roster.views() == ()
    assert not roster.out_of_sight(A)  # nothing was known at first hand
    roster.list([view(A, 7, version=4)])
    assert [seat.version for seat in roster.views()] == [4]


def test_a_suspect_stays_one_when_its_link_breaks() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0)])
    roster.lost(A)
    assert not roster.out_of_sight(A)
    roster.found(A)
    assert [seat.peer for seat in roster.present(Stage(0))] == [A]


def test_incarnations_are_remembered_of_those_met_last() -> None:
    roster = Roster(ME)
    for number in range(INCARNATIONS_MOST + 1):
        roster.incarnated(PeerId(f"peer-{number}"), 1)
    assert not roster.incarnated(PeerId("peer-0"), 2)  # forgotten: as if it were the first
    assert roster.incarnated(PeerId(f"peer-{INCARNATIONS_MOST}"), 2)


def told(stage: int, version: int, above: int, below: int = 0) -> SeatStatus:
    return SeatStatus(
        stage=Stage(stage),
        state="serving",
        version=Step(version),
        rate=1.0,
        queue=0,
        parked=0,
        least_above=Step(above),
        least_below=Step(below),
    )


def test_how_far_others_are_behind_a_seat_is_news_of_its_own() -> None:
    roster = Roster(ME)
    roster.hear(A, [told(0, 3, 2)])
    assert roster.hear(A, [told(0, 3, 2)]) == "nothing"
    assert roster.hear(A, [told(0, 3, 3)]) == "reach"
    assert roster.hear(A, [told(0, 4, 4)]) == "versions"


def test_the_least_of_a_stage_and_of_all_beyond() -> None:
    roster = Roster(ME)
    assert roster.least(Stage(1), "above") == 0  # nobody is known
    roster.hear(A, [told(1, 5, 3, 4)])
    roster.hear(B, [told(1, 4, 2, 4)])
    assert roster.least(Stage(1), "above") == 3  # what one knows is true
    assert roster.least(Stage(1), "below") == 4
    roster.hear(A, [told(1, 5, 5, 5)])
    assert roster.least(Stage(1), "above") == 4  # the slower one of the stage itself
    roster.left(B)
    assert roster.least(Stage(1), "above") == 5
    roster.left(A)
    assert roster.least(Stage(1), "above") == 5  # it said so before it went


def test_where_there_is_no_stage_on_one_side_it_is_as_far_as_we_are() -> None:
    roster = Roster(ME)
    roster.hear(A, [told(1, 5, 3, 4)])
    assert roster.beside(Stage(0), 2, Step(6)) == {"above": 3, "below": 6}
    assert roster.beside(Stage(2), 3, Step(6)) == {"above": 6, "below": 4}


def test_whom_it_has_met_is_known_also_when_it_is_gone() -> None:
    roster = Roster(ME)
    strangers = PeerId("c"), PeerId("d")
    roster.hear(A, [status(0)])
    roster.incarnated(B, 1)
    roster.lost(A)
    roster.unreached(strangers[0])
    roster.list([view(strangers[1], 0)])
    assert [roster.has_met(peer) for peer in (ME, A, B, *strangers)] == [True] * 3 + [False] * 2
    roster.list([view(strangers[0], 0)])
    roster.unreached(strangers[0])
    assert roster.has_met(strangers[0])


def test_who_was_of_another_epoch_does_not_say_where_ours_stood() -> None:
    roster = Roster(ME)
    roster.begin_anew(1)
    roster.hear(A, [status(0, version=7)])
    roster.hear(A, [])
    assert (roster.departed.middle, roster.furthest()) == (0, 0)


def test_how_far_somebody_had_come_stays_known_when_he_has_left() -> None:
    roster = Roster(ME)
    roster.hear(A, [status(0, version=7)])
    roster.hear(B, [status(0, version=5)])
    roster.left(A)
    assert roster.furthest() == 7
    roster.begin_anew(1)  # of this lineage nobody has been anywhere
    assert roster.furthest() == 0
