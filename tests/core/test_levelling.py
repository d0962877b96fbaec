"""Peers that started together end up spread evenly, in few looks and without a conductor."""

import hypothesis.strategies as st
from hypothesis import given

from p2ptrain.core.assignment import SeatView
from p2ptrain.core.levelling import level
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
