"""Which lineage holds, and where a run falls back to: pure, total, the same for all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.core.agreement import Position
from p2ptrain.core.lineage import Known, admits, beats, beginning, fall, fitting, possible
from p2ptrain.core.resuming import Holding
from p2ptrain.units import Chain, Stage, Step

if TYPE_CHECKING:
    import random

GENESIS = Chain(b"g" * 32)
ROOT = Position(epoch=0, step=Step(0), chain=GENESIS)
STAGES = 3


def at(step: int, epoch: int = 0, chain: str = "c") -> Position:
    return Position(epoch=epoch, step=Step(step), chain=Chain((chain * 32).encode()))


def held(stage: int, *steps: int) -> list[Holding]:
    return [Holding(stage=Stage(stage), at=at(step)) for step in steps]


positions = st.builds(at, st.integers(0, 9), st.integers(0, 3), st.sampled_from("abc"))
holdings = st.lists(st.builds(Holding, stage=st.integers(0, STAGES - 1).map(Stage), at=positions))


@given(positions, positions, positions)
def test_lineages_have_one_strict_order(a: Position, b: Position, c: Position) -> None:
    assert beats(a, b) + beats(b, a) == (a != b)
    assert not (beats(a, b) and beats(b, c)) or beats(a, c)


@given(st.lists(positions, min_size=1), st.randoms())
def test_whoever_hears_the_same_rollbacks_ends_in_the_same_lineage(
    told: list[Position],
    rng: random.Random,
) -> None:
    ends = set()
    for _ in range(3):
        rng.shuffle(told)
        mine = ROOT
        for each in told:
            mine = each if beats(each, mine) else mine
        ends.add(mine)
    assert len(ends) == 1


def test_the_higher_epoch_then_the_higher_step_then_the_smaller_chain() -> None:
    assert beats(at(1, epoch=2), at(9, epoch=1))
    assert beats(at(6, epoch=1), at(3, epoch=1))
    assert beats(at(6, chain="a"), at(6, chain="b"))


def test_a_state_belongs_to_the_epoch_it_was_taken_in_or_is_what_that_began_with() -> None:
    root = at(3, epoch=1)
    assert admits(root, at(3))  # taken in epoch 0, and begun with
    assert admits(root, at(4, epoch=1))
    assert not admits(root, at(4))  # what was discarded
    assert not admits(root, at(3, chain="d"))
    assert not admits(root, at(2))


@given(positions, st.integers(0, 12).map(Step), st.lists(positions))
def test_what_fits_is_of_the_step_of_the_others_or_one_before(
    root: Position, version: Step, known: list[Position]
) -> None:
    held_here = Known(held=tuple(Holding(stage=Stage(0), at=each) for each in known))
    fit = fitting(root, version, Stage(0), held_here)
    assert all(0 <= version - each.step <= 1 and admits(root, each) for each in fit)
    assert [each.step for each in fit] == sorted((each.step for each in fit), reverse=True)


def test_the_step_before_fits_until_somebody_beside_has_let_its_frames_go() -> None:
    states, gone = (*held(1, 8, 9), *held(0, 8)), tuple(held(1, 8))
    for stage, let_go, steps in ((1, (), [9, 8]), (1, gone, [9]), (0, gone, [8])):
        fit = fitting(ROOT, Step(9), Stage(stage), Known(held=states, let_go=let_go))
        assert [each.step for each in fit] == steps
    assert fitting(ROOT, Step(8), Stage(1), Known(held=states, let_go=gone)) == [at(8)]
    root = at(8, epoch=1)  # its state was taken in the epoch before
    gone = (Holding(stage=Stage(1), at=root),)
    assert fitting(root, Step(9), Stage(1), Known(held=tuple(held(1, 8)), let_go=gone)) == []


def test_a_run_falls_back_where_the_last_copy_cannot_be_counted_on_from() -> None:
    states = tuple(one for stage in range(STAGES) for one in held(stage, 8))
    gone = tuple(held(1, 8))
    assert fall(ROOT, Step(9), {Stage(1)}, Known(held=states), stages=STAGES).to is None
    known = Known(held=states, let_go=gone)
    assert fall(ROOT, Step(9), {Stage(1)}, known, stages=STAGES).to == at(8, epoch=1)


@given(positions, st.integers(0, 12).map(Step), st.sets(st.integers(0, 2).map(Stage)), holdings)
def test_a_run_falls_only_at_need_and_to_what_every_stage_has(
    root: Position, version: Step, lost: set[Stage], known: list[Holding]
) -> None:
    there = Known(held=tuple(known))
    found = fall(root, version, lost, there, stages=STAGES)
    needy = [stage for stage in lost if not fitting(root, version, stage, there)]
    if not needy:
        assert (found.to, found.lost) == (None, False)
    elif found.to is None:
        assert found.lost
        assert found.reason
    else:
        to = found.to
        assert to.epoch == root.epoch + 1
        assert beats(to, root)
        having = {one.stage for one in known if (one.at.step, one.at.chain) == (to.step, to.chain)}
        assert having == set(range(STAGES))
        assert to.step <= root.step or any(
            admits(root, one.at) for one in known if one.at.step == to.step
        )


def test_what_was_discarded_is_nothing_to_fall_back_to() -> None:
    root = at(3, epoch=1)
    known = [one for stage in range(STAGES) for one in held(stage, 3, 6)]
    found = fall(root, Step(9), {Stage(1)}, Known(held=tuple(known)), stages=STAGES)
    assert found.to == at(3, epoch=2)


def test_the_seed_gives_the_beginning_but_only_of_a_run_that_was_to_lose_that_much() -> None:
    near = beginning(GENESIS, Step(6), stages=STAGES, every_steps=3)
    assert [(one.stage, one.at) for one in near] == [(s, ROOT) for s in range(STAGES)]
    found = fall(ROOT, Step(6), {Stage(0)}, Known(held=(*near, *held(1, 3))), stages=STAGES)
    assert found.to == Position(epoch=1, step=Step(0), chain=GENESIS)
    assert beginning(GENESIS, Step(7), stages=STAGES, every_steps=3) == []
    assert beginning(GENESIS, Step(1), stages=STAGES, every_steps=0) == []


def test_what_nobody_can_hold_is_not_fallen_back_to() -> None:
    """A state of a step that is yet to come, or of one that we have been at on another chain."""
    true = [one for stage in range(STAGES) for one in held(stage, 4)]
    ahead = [one for stage in range(STAGES) for one in held(stage, 12)]
    invented = [
        Holding(stage=Stage(s), at=at(step, chain="x")) for s in range(STAGES) for step in (0, 6)
    ]
    past = {Step(step): at(step).chain for step in range(1, 10)} | {Step(0): GENESIS}
    assert possible([*true, *ahead, *invented], Step(9), past) == true
    assert possible([*true, *ahead, *invented], Step(9), {}) == [*true, *invented]
