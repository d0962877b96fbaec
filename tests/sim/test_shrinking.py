"""What is left of a shrunk plan still fails in the same way, and every part of it matters."""

from msgspec.structs import replace

from p2ptrain.sim.blows import Blow
from p2ptrain.sim.drawing import draw
from p2ptrain.sim.shrinking import shrink
from p2ptrain.sim.swarms import Outcome, SwarmPlan

GUILTY = Blow(kind="kill", point="sum sent", nth=2, seconds=2.0)
INNOCENT = Blow(kind="freeze", point="counting", nth=3, seconds=2.0)


def stub(plan: SwarmPlan) -> Outcome:
    """Stalls where the guilty blow meets at least 3 steps and 5 peers; another way with noise."""
    bad = GUILTY in plan.blows and plan.steps >= 3 and len(plan.speeds) >= 5
    end = "stalled" if bad else "violated" if plan.corruption else "trained"
    return Outcome(plan=plan, end=end, reason="", event_log_hash="")  # type: ignore[arg-type]


def large() -> SwarmPlan:
    plan = replace(
        draw(1),
        stages=3,
        replicas=2,
        steps=6,
        microbatches=16,
        speeds=(1.0, 0.5) * 6,
        corruption=0.1,
    )
    return replace(plan, blows=(INNOCENT, GUILTY, INNOCENT))


def test_only_what_matters_is_left() -> None:
    shortest = shrink(stub(large()), runner=stub).plan
    assert shortest.blows == (GUILTY,)
    assert (shortest.steps, len(shortest.speeds)) == (3, 5)
    assert shortest.stages == 2
    assert (shortest.corruption, shortest.microbatches, shortest.replicas) == (0.0, 4, 1)


def test_the_number_of_runs_is_bounded() -> None:
    runs: list[SwarmPlan] = []

    def counting(plan: SwarmPlan) -> Outcome:
        runs.append(plan)
        return stub(plan)

    assert shrink(stub(large()), runs_most=7, runner=counting).end == "stalled"
    assert len(runs) == 7
