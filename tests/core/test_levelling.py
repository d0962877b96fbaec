"""Peers that started together end up spread evenly, in few looks and without a conductor."""

import hypothesis.strategies as st
from hypothesis import given

from p2ptrain.core.assignment import SeatView, stage_rates
from p2ptrain.core.levelling import level, spread
from p2ptrain.units import PeerId, Stage, Step


def view_of(seats: dict[str, int]) -> list[SeatView]:
    return [
        SeatView(peer=PeerId(p), stage=Stage(s), state="serving", rate=0.0, version=Step(0))
        for p, s in sorted(seats.items())
    ]


def looks(seats: dict[str, int], stages: int) -> int:
    """Let everybody act on the same view at once, until nobody moves."""
    for count in range(20):
        view = view_of(seats)
        moves = {p: level(view, PeerId(p), stages=stages) for p in seats}
        if not any(moves.values()):
            return count
        seats.update({p: move.stage for p, move in moves.items() if move is not None})
    raise AssertionError(seats)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_any_start_becomes_even_in_a_look_or_two(chosen: list[int]) -> None:
    seats = {f"peer{i}": stage for i, stage in enumerate(chosen)}
    assert looks(seats, 4) <= 2
    loads = [list(seats.values()).count(stage) for stage in range(4)]
    assert max(loads) - min(loads) <= 1


def test_an_even_layout_is_kept() -> None:
    seats = {"a": 0, "b": 1, "c": 1, "d": 2}
    assert looks(seats, 3) == 0


def test_a_peer_with_several_seats_counts_but_does_not_move() -> None:
    view = [*view_of({"a": 0, "b": 0, "c": 0}), *view_of({"z": 1}), *view_of({"z": 2})]
    moves = {p: level(view, PeerId(p), stages=3) for p in "abcz"}
    assert moves["z"] is None
    assert [move.stage for move in moves.values() if move is not None] == [1]


def seat(peer: str, stage: int, *, joining: bool = False, rate: float = 1.0) -> SeatView:
    return SeatView(
        peer=PeerId(peer),
        stage=Stage(stage),
        state="joining" if joining else "serving",
        rate=0.0 if joining else rate,
        version=Step(3),
    )


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=50),
    st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=4, max_size=4),
)
def test_who_comes_at_once_spreads_in_one_look(claimed: list[int], rates: list[float]) -> None:
    rest = [seat(f"old{stage}", stage, rate=rate) for stage, rate in enumerate(rates)]
    claims = {f"new{number}": stage for number, stage in enumerate(claimed)}

    def view() -> list[SeatView]:
        return [*rest, *(seat(peer, stage, joining=True) for peer, stage in claims.items())]

    seen = view()
    moves = {peer: spread(seen, PeerId(peer), stages=4) for peer in claims}
    claims.update({peer: move.stage for peer, move in moves.items() if move is not None})
    assert all(spread(view(), PeerId(peer), stages=4) is None for peer in claims)
    after = stage_rates(view(), stages=4)
    filled = [after[stage] for stage in claims.values()]
    usual = sorted(rates)[1:3]
    assert max(filled) - min(after.values()) <= sum(usual) / 2 + 1e-9  # one seat at most


def test_who_serves_or_claims_alone_where_it_is_needed_is_left_in_peace() -> None:
    view = [seat("old", 0), seat("mover", 0), seat("mover", 1, joining=True)]
    assert spread(view, PeerId("mover"), stages=2) is None
    view = [seat("a", 0), seat("b", 1), seat("new", 1, joining=True)]
    assert spread(view, PeerId("a"), stages=2) is None
    two = [seat("a", 0), seat("b", 0), seat("new", 1, joining=True)]
    assert spread(two, PeerId("new"), stages=2) is None


def test_a_hole_is_filled_before_a_weak_stage() -> None:
    view = [seat("a", 0, rate=0.1), *(seat(p, 0, joining=True) for p in ("x", "y"))]
    moves = [spread(view, PeerId(p), stages=2) for p in ("x", "y")]
    assert [move.stage for move in moves if move is not None] == [1]
