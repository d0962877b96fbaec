"""Random swarms that keep states: who loses a stage gets it back, or falls back, and trains."""

from __future__ import annotations

import pytest

from p2ptrain.sim.drawing import draw_kept
from p2ptrain.sim.swarms import run

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
