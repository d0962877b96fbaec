"""A seed draws one plan, within the sizes, and everything is drawn by some."""

from p2ptrain.sim.drawing import FAMILIES, draw, draw_kept, draw_mixed, family
from p2ptrain.sim.points import POINTS


def test_a_seed_draws_one_plan_within_the_sizes() -> None:
    plans = [draw(seed) for seed in range(300)]
    assert plans == [draw(seed) for seed in range(300)]
    assert {plan.stages for plan in plans} == {2, 3, 4}
    assert {len(plan.speeds) for plan in plans} == set(range(4, 13))
    assert {plan.microbatches for plan in plans} == set(range(4, 17))
    assert {plan.steps for plan in plans} == {3, 4, 5, 6}
    assert {len(plan.blows) for plan in plans} >= {0, 1, 2, 3, 4, 5}
    assert {blow.point for plan in plans for blow in plan.blows} == set(POINTS)


def test_the_other_families_differ_in_one_thing_alone() -> None:
    assert {draw_kept(seed).checkpoint_steps for seed in range(50)} == {1, 2}
    assert {draw_mixed(seed).canonical_steps for seed in range(50)} == {1, 2, 3}
    assert [draw_kept(seed).blows for seed in range(50)] == [draw(seed).blows for seed in range(50)]


def test_a_plan_shows_its_family() -> None:
    for name, drawn in FAMILIES.items():
        assert {family(drawn(seed)) for seed in range(50)} == {name}
