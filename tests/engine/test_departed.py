"""What is remembered of those who serve nothing any more."""

from p2ptrain.core.assignment import SeatView
from p2ptrain.engine.departed import DEPARTED_MOST, Departed
from p2ptrain.units import PeerId, Stage, Step


def seat(version: int, state: str = "serving") -> SeatView:
    return SeatView(
        peer=PeerId("x"),
        stage=Stage(0),
        state=state,  # type: ignore[arg-type]
        rate=1.0,
        version=Step(version),
    )


def test_of_nobody_nothing_is_known() -> None:
    departed = Departed()
    departed.note(PeerId("a"), [])
    departed.note(PeerId("a"), [seat(5, "joining")])
    assert (departed.furthest, departed.middle) == (0, 0)


def test_the_furthest_seat_of_a_peer_counts_and_the_middle_of_all_peers() -> None:
    departed = Departed()
    for name, versions in {"a": (3, 4), "b": (9,), "c": (5,), "d": (4,)}.items():
        departed.note(PeerId(name), [seat(version) for version in versions])
    assert (departed.furthest, departed.middle) == (9, 4)
    departed.note(PeerId("a"), [seat(2)])  # it had been further
    assert departed.middle == 4


def test_so_many_are_remembered_those_who_went_last() -> None:
    departed = Departed()
    departed.note(PeerId("first"), [seat(10**6)])
    for number in range(DEPARTED_MOST):
        departed.note(PeerId(f"p{number}"), [seat(1)])
    assert departed.furthest == 1
