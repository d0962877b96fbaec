"""A seed draws one plan, within the sizes, and everything is drawn by some."""

import msgspec

from p2ptrain.sim.drawing import (
    FALLS,
    FAMILIES,
    KEPT_STEPS,
    PLAIN,
    RARE,
    draw,
    draw_deposit,
    draw_kept,
    draw_lossy,
    draw_mixed,
    draw_rare,
    family,
)
from p2ptrain.sim.points import (
    IN_ADOPTING,
    IN_COPYING,
    IN_DEPOSITING,
    IN_LOSS,
    IN_SHARING,
    POINTS,
)


def test_a_seed_draws_one_plan_within_the_sizes() -> None:
    plans = [draw(seed) for seed in range(300)]
    assert plans == [draw(seed) for seed in range(300)]
    assert {plan.stages for plan in plans} == {2, 3, 4}
    assert {len(plan.speeds) for plan in plans} == set(range(4, 13))
    assert {plan.microbatches for plan in plans} == set(range(4, 17))
    assert {plan.steps for plan in plans} == {3, 4, 5, 6}
    assert {len(plan.blows) for plan in plans} >= {0, 1, 2, 3, 4, 5}
    assert {blow.point for plan in plans for blow in plan.blows} == PLAIN


def test_the_other_families_differ_in_one_thing_alone() -> None:
    assert {draw_kept(seed).checkpoint_steps for seed in range(50)} == {1, 2}
    assert {draw_mixed(seed).canonical_steps for seed in range(50)} == {1, 2, 3}
    assert {draw_lossy(seed).adoption for seed in range(50)} == {"int8", "int4"}
    for seed in range(50):
        lossy, mixed = draw_lossy(seed), draw_mixed(seed)
        assert {blow.point for blow in lossy.blows[-2:]} <= IN_ADOPTING
        plain = msgspec.structs.replace(lossy, adoption="exact", blows=mixed.blows)
        assert plain == mixed
    assert [draw_kept(seed).blows for seed in range(50)] == [draw(seed).blows for seed in range(50)]


def test_rare_ones_are_struck_where_the_others_are_not() -> None:
    plans = [draw_rare(seed) for seed in range(200)]
    assert plans == [draw_rare(seed) for seed in range(200)]
    lost = [plan for plan in plans if plan.blows[0].kind == "stage-loss"]
    whole = [plan for plan in plans if plan not in lost]
    assert {blow.point for plan in lost for blow in plan.blows[1:]} == IN_LOSS
    assert {blow.point for plan in whole for blow in plan.blows} == IN_SHARING | IN_COPYING
    assert {blow.kind for plan in whole for blow in plan.blows} == {"kill", "freeze"}
    assert {plan.checkpoint_steps for plan in whole} == set(KEPT_STEPS)
    assert all(len(plan.speeds) >= 2 * plan.stages for plan in plans)
    for plan in lost:
        step, _ = divmod(plan.blows[0].nth - 1, plan.stages * plan.microbatches)
        assert step in FALLS[plan.checkpoint_steps]
        assert step < plan.steps


def test_every_point_is_of_some_family() -> None:
    assert set(POINTS) == PLAIN | RARE | IN_DEPOSITING
    assert not IN_DEPOSITING & (PLAIN | RARE)  # nowhere else would they be reached


def test_a_plan_shows_its_family() -> None:
    for name, drawn in FAMILIES.items():
        assert {family(drawn(seed)) for seed in range(50)} == {name}
    assert family(msgspec.structs.replace(draw_kept(1), seed=2)) == "plain"  # nobody drew that


def test_where_deposits_are_made_faults_strike_there_and_stages_have_mates() -> None:
    plans = [draw_deposit(seed) for seed in range(200)]
    assert all(plan.deposit_every and len(plan.speeds) >= 2 * plan.stages for plan in plans)
    points = {blow.point for plan in plans for blow in plan.blows}
    assert points >= IN_DEPOSITING
    assert {bool(plan.canonical_steps) for plan in plans} == {True, False}
    assert not any(draw(seed).deposit_every for seed in range(50))
