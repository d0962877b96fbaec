"""Random swarms that keep states: who loses a stage gets it back, or falls back, and trains."""

from __future__ import annotations

import pytest

from p2ptrain.sim.swarms import draw_kept, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

LOST_A_STAGE = (7, 10, 77, 84)
"""Plans of these seeds take all replicas of a stage away, one after another or at once."""


@pytest.mark.parametrize("seed", LOST_A_STAGE)
def test_a_random_swarm_that_keeps_states_trains_to_its_end(seed: int) -> None:
    outcome = run(draw_kept(seed))
    assert (outcome.end, outcome.reason) == ("trained", "")
    assert outcome.fired
