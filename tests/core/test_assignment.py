"""The weakest stage is helped, holes are filled once, and no stage is ever left alone."""

import random
from collections import Counter, defaultdict

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from p2ptrain.core.assignment import (
    SeatState,
    SeatView,
    choose_stage,
    may_close,
    migrate,
    migration_wait,
    release,
    spare_stage,
)
from p2ptrain.errors import UserError
from p2ptrain.units import PeerId, Stage, Step

ANN, BOB, EVE = PeerId("ann"), PeerId("bob"), PeerId("eve")


def seat(
    peer: PeerId, stage: int, rate: float = 1.0, state: SeatState = "serving", version: int = 0
) -> SeatView:
    return SeatView(peer=peer, stage=Stage(stage), state=state, rate=rate, version=Step(version))


def rng(seed: int = 1) -> random.Random:
    return random.Random(seed)


# --- joining ---


def test_a_hole_comes_first() -> None:
    view = [seat(ANN, 0, rate=0.001), seat(BOB, 2)]
    chosen = choose_stage(view, stages=3, rng=rng())
    assert chosen.stage == 1
    assert chosen.reason == "nobody serves stage 1"


def test_then_the_least_sum_of_rates_counting_who_is_on_the_way() -> None:
    view = [seat(ANN, 0, 3.0), seat(BOB, 1, 2.0), seat(EVE, 1, 2.0, "joining")]
    assert choose_stage(view, stages=2, rng=rng()).stage == 0


def test_a_draining_seat_counts_nowhere() -> None:
    view = [seat(ANN, 0), seat(BOB, 1, state="draining")]
    assert choose_stage(view, stages=2, rng=rng()).stage == 1


def test_a_peer_of_many_seats_counts_with_a_part_in_each() -> None:
    view = [seat(ANN, 0, 2.0), seat(ANN, 1, 2.0), seat(ANN, 2, 2.0), seat(BOB, 3, 1.0)]
    assert all(choose_stage(view, stages=4, rng=rng(seed)).stage != 3 for seed in range(20))


def test_equals_are_drawn_so_that_those_who_start_together_spread() -> None:
    drawn = Counter(choose_stage([], stages=4, rng=rng(seed)).stage for seed in range(200))
    assert len(drawn) == 4
    assert max(drawn.values()) < 80


def test_fewest_seats_break_a_tie_of_rates() -> None:
    view = [seat(ANN, 0, 1.0), seat(BOB, 0, 1.0), seat(EVE, 1, 2.0)]
    assert choose_stage(view, stages=2, rng=rng()).stage == 1


def test_the_operator_is_obeyed_or_told() -> None:
    assert choose_stage([], stages=2, rng=rng(), wanted=Stage(1)).stage == 1
    with pytest.raises(UserError, match="stages 0 to 1"):
        choose_stage([], stages=2, rng=rng(), wanted=Stage(2))


# --- spare seats ---


def test_a_lonely_peer_fills_every_hole() -> None:
    held = [Stage(2)]
    while True:
        view = [seat(ANN, stage) for stage in held]
        spare = spare_stage(view, ANN, stages=4, room=True, held=held)
        if spare is None:
            break
        held.append(spare.stage)
    assert sorted(held) == [0, 1, 2, 3]


def test_without_room_nothing_is_added() -> None:
    assert spare_stage([], ANN, stages=4, room=False, held=()) is None


@given(st.integers(1, 8), st.integers(1, 8))
def test_each_hole_has_one_peer_to_fill_it_first_and_at_last_anybody(
    peers: int, stages: int
) -> None:
    names = [PeerId(f"peer{i}") for i in range(peers)]
    view = [seat(name, 0) for name in names]
    for looks in range(peers + 1):
        takers: dict[int, list[PeerId]] = defaultdict(list)
        for name in names:
            spare = spare_stage(view, name, stages=stages, room=True, held=[Stage(0)], looks=looks)
            if spare is not None:
                takers[spare.stage].append(name)
        assert all(len(them) <= looks + 1 for them in takers.values())
        if stages > 1:
            assert takers
            assert looks < peers or sum(map(len, takers.values())) == peers


def test_who_holds_fewer_seats_fills_first() -> None:
    view = [seat(ANN, 0), seat(ANN, 1), seat(BOB, 2)]
    held = [Stage(0), Stage(1)]
    assert spare_stage(view, ANN, stages=4, room=True, held=held) is None
    spare = spare_stage(view, BOB, stages=4, room=True, held=[Stage(2)])
    assert spare is not None
    assert spare.stage == 3
    assert spare_stage(view, ANN, stages=4, room=True, held=held, looks=1) == spare_stage(
        view, ANN, stages=4, room=True, held=held, looks=9
    )


# --- giving away ---


def test_a_seat_that_a_newcomer_carries_is_given_away() -> None:
    view = [seat(ANN, 0), seat(ANN, 1), seat(BOB, 1)]
    given_up = release(view, ANN, stages=2)
    assert given_up is not None
    assert given_up.stage == 1
    assert release(view, BOB, stages=2) is None


def test_a_seat_is_kept_while_nobody_is_level() -> None:
    for other in (seat(BOB, 1, state="joining"), seat(BOB, 1, version=3)):
        assert release([seat(ANN, 0), seat(ANN, 1), other], ANN, stages=2) is None


def test_a_seat_is_kept_if_the_newcomer_is_too_slow_for_it() -> None:
    assert release([seat(ANN, 0, 9.0), seat(ANN, 1, 9.0), seat(BOB, 1, 0.5)], ANN, stages=2) is None


def test_the_seat_with_the_most_help_goes_first() -> None:
    view = [*(seat(ANN, stage) for stage in range(3)), seat(BOB, 1, 2.0), seat(EVE, 2, 4.0)]
    given_up = release(view, ANN, stages=3)
    assert given_up is not None
    assert given_up.stage == 2


def test_a_seat_is_closed_only_while_another_serves() -> None:
    draining = seat(ANN, 1, state="draining")
    assert may_close([draining, seat(BOB, 1)], ANN, Stage(1))
    assert not may_close([draining, seat(BOB, 1, state="draining")], ANN, Stage(1))
    assert not may_close([draining, seat(BOB, 0)], ANN, Stage(1))


views = st.lists(
    st.builds(
        seat,
        st.sampled_from([ANN, BOB, EVE]),
        st.integers(0, 3),
        st.sampled_from([0.0, 0.1, 1.0, 7.0]),
        st.sampled_from(["serving", "serving", "joining", "draining"]),
        st.integers(0, 1),
    ),
    max_size=10,
    unique_by=lambda view: (view.peer, view.stage),
)


def weakest(view: list[SeatView], stages: int) -> float:
    """Rates as release sees them, of seats that serve; unmeasured ones replaced before."""
    serving = [one for one in view if one.state == "serving"]
    load = Counter(one.peer for one in serving)
    sums = dict.fromkeys(range(stages), 0.0)
    for one in serving:
        sums[one.stage] += one.rate / load[one.peer]
    return min(sums.values())


@settings(max_examples=100)
@given(views)
def test_releases_by_all_at_once_leave_no_hole_and_weaken_nothing(view: list[SeatView]) -> None:
    measured = [one for one in view if one.rate > 0.0]
    gone = set()
    for peer in (ANN, BOB, EVE):
        given_up = release(measured, peer, stages=4)
        if given_up is not None:
            gone.add((peer, given_up.stage))
    assert len({stage for _, stage in gone}) == len(gone)
    after = [one for one in measured if (one.peer, one.stage) not in gone]
    served = {one.stage for one in measured if one.state == "serving"}
    assert {one.stage for one in after if one.state == "serving"} == served
    assert weakest(after, 4) >= weakest(measured, 4) - 1e-12


@given(views)
def test_every_view_has_an_answer(view: list[SeatView]) -> None:
    for me in (ANN, BOB):
        held = [one.stage for one in view if one.peer == me]
        assert choose_stage(view, stages=4, rng=rng()).reason
        spare_stage(view, me, stages=4, room=True, held=held)
        release(view, me, stages=4)
        migrate(view, me, stages=4)


def test_a_swarm_that_grows_from_one_ends_with_a_seat_each() -> None:
    stages, names = 4, [PeerId(f"peer{i}") for i in range(6)]
    held: dict[PeerId, list[Stage]] = {}
    draw = rng()

    def view() -> list[SeatView]:
        return [seat(peer, stage) for peer, stages_ in held.items() for stage in stages_]

    for name in names:
        held[name] = [choose_stage(view(), stages=stages, rng=draw).stage]
        for _ in range(10):
            for peer, own in held.items():
                spare = spare_stage(view(), peer, stages=stages, room=True, held=own)
                if spare is not None:
                    own.append(spare.stage)
                given_up = release(view(), peer, stages=stages)
                if given_up is not None:
                    own.remove(given_up.stage)
        assert {one.stage for one in view()} == set(range(stages))
    assert [len(own) for own in held.values()] == [1] * 6


# --- moving ---


def test_who_lifts_the_weakest_most_goes_first() -> None:
    peers = [PeerId(f"peer{i}") for i in range(4)]
    view = [seat(peer, 0, rate) for peer, rate in zip(peers, [1.0, 2.0, 4.0, 8.0], strict=True)]
    view.append(seat(EVE, 1, 1.0))
    moves = [migrate(view, peer, stages=2) for peer in peers]
    assert [move.rank for move in moves if move is not None] == [3, 2, 1, 0]
    assert migrate(view, EVE, stages=2) is None


def test_small_differences_and_lonely_seats_stay() -> None:
    two = [seat(ANN, 0, 1.0), seat(BOB, 0, 1.0), seat(EVE, 1, 0.9)]
    assert migrate(two, ANN, stages=2) is None
    assert migrate([seat(ANN, 0, 9.0), seat(BOB, 1, 1.0)], ANN, stages=2) is None


def test_who_is_far_slower_than_usual_moves_only_where_even_that_is_felt() -> None:
    slow = seat(PeerId("dan"), 0, 0.02)
    view = [seat(ANN, 0), seat(BOB, 0), slow, seat(EVE, 1, 0.9)]
    assert migrate(view, slow.peer, stages=2) is None
    felt = msgspec.structs.replace(slow, rate=0.04)
    assert migrate([*view[:2], felt, view[3]], felt.peer, stages=2) is not None
    assert migrate(view, slow.peer, stages=3) is not None


def test_a_hole_draws_somebody_who_leaves_none() -> None:
    view = [seat(ANN, 0), seat(BOB, 0), seat(EVE, 1)]
    moves = [migrate(view, peer, stages=3) for peer in (ANN, BOB, EVE)]
    assert sorted(move.rank for move in moves if move is not None) == [0, 1]
    assert moves[2] is None
    assert {move.target for move in moves if move is not None} == {2}


def test_a_claim_stops_the_next_in_rank() -> None:
    view = [seat(ANN, 0), seat(BOB, 0), seat(EVE, 0), seat(PeerId("dan"), 1, 0.5)]
    assert migrate(view, ANN, stages=2) is not None
    claimed = [seat(BOB, 0, state="draining"), seat(BOB, 1, state="joining")]
    rest = [one for one in view if one.peer != BOB]
    assert migrate([*rest, *claimed], ANN, stages=2) is None


def test_later_ranks_wait_longer_than_a_claim_takes() -> None:
    waits = [migration_wait(rank, rng=rng(3)) for rank in range(3)]
    assert waits == sorted(waits)
    assert 5.0 <= waits[0] < 10.0
    assert waits[2] - waits[0] == pytest.approx(5.0)


@settings(max_examples=100)
@given(views)
def test_a_migration_never_weakens_the_weakest_nor_leaves_a_hole(view: list[SeatView]) -> None:
    for me in (ANN, BOB, EVE):
        move = migrate(view, me, stages=4)
        if move is not None:
            assert move.target not in {
                one.stage for one in view if one.peer == me and one.state != "draining"
            }
            assert any(
                one.stage == move.source and one.peer != me and one.state == "serving"
                for one in view
            )
