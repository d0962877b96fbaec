"""Random swarms that keep states: who loses a stage gets it back, or falls back, and trains."""

from __future__ import annotations

import pytest

from p2ptrain.sim.blows import Blow
from p2ptrain.sim.drawing import draw_kept
from p2ptrain.sim.swarms import SwarmPlan, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SEEDS = range(200)
SWARMS = 4
LOSSES = ("last-replica at counting", "stage-loss at counting")
"""All replicas of a stage die, one after another or at once."""


def test_random_swarms_that_keep_states_get_a_lost_stage_back() -> None:
    losing = [
        plan
        for plan in map(draw_kept, SEEDS)
        if any(f"{blow.kind} at {blow.point}" in LOSSES for blow in plan.blows)
    ]
    outcomes = [run(plan) for plan in losing[:SWARMS]]
    assert [(each.end, each.reason) for each in outcomes] == [("trained", "")] * SWARMS
    assert any(each.fired.keys() & set(LOSSES) for each in outcomes)


def test_newcomers_that_the_directory_never_showed_each_other_meet_by_the_step_record() -> None:
    """Two came to one stage as the directory died: the leader lacked the bitmap of the other."""
    blows = (
        Blow(kind="join", point="committed", nth=1, seconds=0.0),
        Blow(kind="freeze", point="chunk asked sent", nth=2, seconds=12.0),
        Blow(kind="join", point="committed", nth=1, seconds=0.0),
        Blow(kind="kill", point="manifest asked arrived", nth=1, seconds=12.0),
        Blow(kind="bootstrap-death", point="counting", nth=19, seconds=2.0),
        Blow(kind="join", point="committed", nth=1, seconds=0.0),
        Blow(kind="kill", point="chunk sent", nth=1, seconds=12.0),
    )
    plan = SwarmPlan(
        seed=41,
        stages=3,
        microbatches=5,
        steps=4,
        replicas=1,
        speeds=(0.166, 0.78, 0.083, 0.101, 0.796, 0.193),
        interval_seconds=0.5,
        latency_seconds=0.02,
        jitter_seconds=0.01,
        rate_bytes_per_second=1e6,
        corruption=0.0,
        blows=blows,
        checkpoint_steps=1,
    )
    outcome = run(plan)
    assert (outcome.end, outcome.reason) == ("trained", "")
    assert outcome.fired["bootstrap-death at counting"] == 1
