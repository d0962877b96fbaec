"""Who hears the same decides the same, and who hears more never decides for less."""

from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.core.agreement import Position
from p2ptrain.core.resuming import Holding, origin
from p2ptrain.units import Chain, Stage, Step

STAGES = 3


def at(step: int, *, epoch: int = 0, chain: int = 0) -> Position:
    return Position(epoch=epoch, step=Step(step), chain=Chain(bytes((chain,)) * 32))


def held(stage: int, *steps: int) -> list[Holding]:
    return [Holding(stage=Stage(stage), at=at(step)) for step in steps]


HOLDINGS = st.lists(
    st.builds(
        Holding,
        stage=st.integers(0, STAGES - 1).map(Stage),
        at=st.builds(at, st.integers(1, 4), epoch=st.integers(0, 1), chain=st.integers(0, 1)),
    ),
    max_size=24,
)


def test_the_newest_step_that_every_stage_has() -> None:
    found = origin([*held(0, 20, 40), *held(1, 40, 60), *held(2, 20, 40)], STAGES)
    assert found.at == at(40)
    assert "20 steps behind the newest" in found.reason


def test_a_later_epoch_comes_before_a_later_step() -> None:
    rolled_back = [Holding(stage=Stage(stage), at=at(20, epoch=1)) for stage in range(STAGES)]
    assert origin([*held(0, 40), *held(1, 40), *held(2, 40), *rolled_back], STAGES).at == at(
        20, epoch=1
    )


def test_states_of_two_chains_are_never_mixed() -> None:
    foreign = Holding(stage=Stage(2), at=at(40, chain=7))
    assert origin([*held(0, 40), *held(1, 40), foreign], STAGES).at is None


def test_what_is_missing_is_named() -> None:
    assert origin([], STAGES).empty
    missing = origin([*held(0, 40), *held(2, 40)], STAGES)
    assert (missing.at, missing.empty) == (None, False)
    assert missing.reason == "nobody here holds a checkpoint of stage 1"
    apart = origin([*held(0, 80, 60), *held(1, 20), *held(2, 20, 60)], STAGES)
    assert apart.at is None
    assert apart.reason == (
        "no step is held for every stage: stage 0 has 60, 80; stage 1 has 20; stage 2 has 20, 60"
    )


@given(some=HOLDINGS, more=HOLDINGS)
def test_order_means_nothing_and_more_holders_never_give_less(
    some: list[Holding], more: list[Holding]
) -> None:
    first = origin(some, STAGES)
    assert origin(some[::-1], STAGES) == first
    second = origin([*some, *more], STAGES)
    if first.at is not None:
        assert second.at is not None
        assert (second.at.epoch, second.at.step) >= (first.at.epoch, first.at.step)
    if second.at is not None:
        there = {one.stage for one in (*some, *more) if one.at == second.at}
        assert there == set(range(STAGES))
