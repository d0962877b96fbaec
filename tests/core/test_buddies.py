"""Who guards a stage: one peer, in everybody's eyes the same, and none of the stage's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p2ptrain.core.buddies import DONORS, buddy, donors, due, wards
from p2ptrain.units import PeerId, RunId, Stage, Step

RUN = RunId("a" * 32)
PEERS = [PeerId(f"peer-{number}") for number in range(6)]

servings = st.dictionaries(
    st.integers(0, 4).map(Stage), st.sets(st.sampled_from(PEERS), min_size=1), max_size=5
)


def test_a_state_is_kept_every_so_many_steps_and_never_without_being_asked_for() -> None:
    assert [step for step in range(10) if due(3, Step(step))] == [3, 6, 9]
    assert not any(due(0, Step(step)) for step in range(10))


@given(servings, servings.flatmap(lambda s: st.sampled_from(sorted(s) or [Stage(0)])))
def test_a_stage_has_one_guard_that_does_not_die_with_it(
    serving: dict[Stage, set[PeerId]], stage: Stage
) -> None:
    guard = buddy(RUN, stage, serving)
    own = serving.get(stage, set())
    everybody = set().union(*serving.values()) if serving else set()
    if guard is None:
        assert everybody <= own
    else:
        assert guard in everybody - own
        again = {other: sorted(serving[other], reverse=True) for other in reversed(list(serving))}
        assert buddy(RUN, stage, again) == guard


@given(servings)
def test_everybody_knows_its_own_wards_from_the_same_view(
    serving: dict[Stage, set[PeerId]],
) -> None:
    guarded = [stage for peer in PEERS for stage in wards(RUN, peer, serving)]
    assert sorted(guarded) == [s for s in sorted(serving) if buddy(RUN, s, serving) is not None]


def test_the_guard_sits_above_if_it_can_else_below_else_anywhere() -> None:
    a, b, c = PEERS[:3]
    assert buddy(RUN, Stage(1), {Stage(0): [a], Stage(1): [b], Stage(2): [c]}) == c
    assert buddy(RUN, Stage(2), {Stage(0): [a], Stage(1): [b], Stage(2): [c]}) == b
    assert buddy(RUN, Stage(1), {Stage(0): [a], Stage(1): [b, c], Stage(2): [c]}) == a
    assert buddy(RUN, Stage(0), {Stage(0): [a], Stage(1): [a], Stage(2): [c]}) == c


def test_the_death_of_another_moves_no_guard() -> None:
    serving = {Stage(0): PEERS[:1], Stage(1): PEERS[1:]}
    guard = buddy(RUN, Stage(0), serving)
    for gone in PEERS[1:]:
        left = {Stage(0): PEERS[:1], Stage(1): [p for p in PEERS[1:] if p != gone]}
        assert (buddy(RUN, Stage(0), left) == guard) is (gone != guard)


def test_donors_take_turns() -> None:
    asked = [donors(RUN, Stage(1), Step(step), PEERS) for step in range(40)]
    assert {len(set(each)) for each in asked} == {DONORS}
    assert {peer for each in asked for peer in each} == set(PEERS)
